package storage

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	bolterrors "go.etcd.io/bbolt/errors"
)

// guard stands before every use of the databases. It turns bbolt's panics and
// faults in its memory map into errors, types the errors of writes, and once
// the disk has failed lets nothing more be written: after a failed fsync
// nobody knows what is on disk, so a later success would mean nothing.
type guard struct {
	dir     string
	onFatal func(error) // may be nil
	onFull  func()

	failed atomic.Pointer[failure] // the first fatal error; set once
}

// failure is an error that ends this node.
type failure struct {
	err  error
	told chan struct{} // closed when onFatal has returned
}

// fail records the first error that ends this node and reports it. Whoever fails later waits until that is done. It
// returns the caller's error.
func (g *guard) fail(err error) error {
	f := &failure{err: err, told: make(chan struct{})}
	if !g.failed.CompareAndSwap(nil, f) {
		_ = g.failure()
		return err
	}
	if g.onFatal != nil {
		g.onFatal(err)
	}
	close(f.told)
	return err
}

// failure returns the error that ended this node, when that has been reported.
func (g *guard) failure() error {
	f := g.failed.Load()
	if f == nil {
		return nil
	}
	<-f.told
	return f.err
}

// damaged is fail for damage found in a file of the folder.
func (g *guard) damaged(file, where string, cause error) error {
	return g.fail(corrupt(g.dir, file, where, cause))
}

// read runs a read. A miss and a closed database are ordinary. file and where
// are asked for what was read only if it is damaged.
func (g *guard) read(place func() (file, where string), fn func() error) error {
	err := caught(fn)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, raftboltdb.ErrKeyNotFound) || isClosed(err) {
		return err
	}
	file, where := place()
	return g.damaged(file, where, err)
}

// isClosed tells whether a database was closed before it was used.
func isClosed(err error) bool {
	return errors.Is(err, bolterrors.ErrDatabaseNotOpen) || errors.Is(err, wal.ErrClosed)
}

// write runs a write to a file, unless an earlier one has failed.
func (g *guard) write(file, what string, fn func() error) error {
	if err := g.failure(); err != nil {
		return fmt.Errorf("%s: stopped by an earlier error: %w", what, err)
	}
	err := caught(fn)
	var crash *crashError
	switch {
	case err == nil:
		return nil
	case isClosed(err):
		return fmt.Errorf("%s: %w", what, err)
	case isFull(err):
		g.onFull()
		return fmt.Errorf("%s: %w: %w", what, ErrDiskFull, err)
	case errors.As(err, &crash):
		return g.damaged(file, what, err)
	default:
		return g.fail(fmt.Errorf("%s: %w: %w", what, ErrSync, err))
	}
}

// crashError is a panic that was caught.
type crashError struct{ reason any }

// Error returns what the panic said.
func (e *crashError) Error() string { return fmt.Sprint(e.reason) }

// caught runs fn and returns its panic as an error. A read beyond the end of a
// file that was cut short, or a sector that can't be read, is a fault in the
// memory map: it becomes a panic too.
func caught(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if reason := recover(); reason != nil {
			err = &crashError{reason: reason}
		}
	}()
	return fn()
}
