package storage

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// What Linux offers to who knows what he writes.

// allocate gives a file its blocks, full of zeros.
func allocate(f *os.File, size int64) error { return unix.Fallocate(int(f.Fd()), 0, 0, size) }

// syncData makes the content of a file durable, and of what is known about it only what is needed to read it.
func syncData(f *os.File) error {
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return &fs.PathError{Op: "sync", Path: f.Name(), Err: err}
	}
	return nil
}

// startWriteback has the disk begin with what was written to a file, and waits for nothing. It is no promise and can't fail:
// what goes wrong, the sync at the end tells.
func startWriteback(f *os.File) {
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // 0, 0: the whole file.
}
