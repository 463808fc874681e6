//go:build !linux

package storage

import (
	"errors"
	"os"
)

// allocate is not offered: the file has a hole at first.
func allocate(*os.File, int64) error { return errors.ErrUnsupported }

// syncData makes a file durable.
func syncData(f *os.File) error { return f.Sync() }

// startWriteback is not offered: the sync at the end takes longer.
func startWriteback(*os.File) {}
