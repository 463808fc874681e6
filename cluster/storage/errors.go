package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// What Open and the stores report. They are always wrapped; test with errors.Is.
var (
	// ErrLocked: another process has the folder, or its database, open.
	ErrLocked = errors.New("data folder is in use")
	// ErrNewerFormat: a newer version of regd wrote the folder.
	ErrNewerFormat = errors.New("data folder has a newer format")
	// ErrForeignCluster: the folder belongs to another cluster.
	ErrForeignCluster = errors.New("data folder belongs to another cluster")
	// ErrLogStore: the folder has another log store than was asked for.
	ErrLogStore = errors.New("data folder has another log store")
	// ErrNotWritable: the folder can't be made, or this user can't write in it.
	ErrNotWritable = errors.New("data folder is not writable")
	// ErrExposed: everybody on this machine may write in the folder.
	ErrExposed = errors.New("data folder is open to others")
	// ErrCorrupt: a file is damaged or missing; the error is a CorruptError too.
	ErrCorrupt = errors.New("data folder is damaged")
	// ErrSync: a write or an fsync failed for another reason than lack of
	// space. What is on disk is unknown, so the node must stop.
	ErrSync = errors.New("write to disk failed")
	// ErrDiskFull: no space left. Nothing was written; the node can go on.
	ErrDiskFull = errors.New("disk is full")
)

// CorruptError says which file is damaged, where, and what repairs it.
type CorruptError struct {
	// File is the path of the damaged file.
	File string
	// Where is the place in it: an index, a page, a key, a snapshot.
	Where string
	// Repair is what the operator should do.
	Repair string
	// Err is what was found.
	Err error
}

// Error returns everything in one line.
func (e *CorruptError) Error() string {
	line := fmt.Sprintf("%s is damaged at %s: %v; to repair: %s", e.File, e.Where, e.Err, e.Repair)
	return strings.Join(strings.Fields(line), " ")
}

// Unwrap makes errors.Is find ErrCorrupt and the cause.
func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// isFull tells a lack of space met by a write, after which nothing has
// changed, from one reported by an fsync (delayed allocation), after which the
// kernel may have dropped the pages: that one is as bad as any failed fsync.
// bbolt returns the bare number from its fsync and a PathError from its writes.
func isFull(err error) bool {
	var path *fs.PathError
	if !errors.As(err, &path) || path.Op == "sync" {
		return false
	}
	return errors.Is(path.Err, syscall.ENOSPC) || errors.Is(path.Err, syscall.EDQUOT) || errors.Is(path.Err, syscall.EFBIG)
}

// accessError gives the errors of opening, making and locking files their type.
func accessError(err error) error {
	var path *fs.PathError
	switch {
	case isFull(err):
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOTDIR),
		errors.As(err, &path) && path.Op == "mkdir":
		return fmt.Errorf("%w: %w", ErrNotWritable, err)
	default:
		return err
	}
}
