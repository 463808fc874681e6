package storage

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// logDatabase is what keeps the entries of the log. It is opened once all of it
// was checked; see inspect.
type logDatabase interface {
	raft.LogStore
	// file is the file, in the data folder, that has the entry at an index.
	file(index uint64) string
	// Close ends it; raft.db is closed after it.
	Close() error
}

// logs is the raft.LogStore: checksums, append times and recent entries around
// the database. Unlike raft.LogCache its cache is bounded in bytes too, and
// leaves the errors of the store whole, so that ErrDiskFull reaches a proposer.
type logs struct {
	inner   logDatabase
	guard   *guard
	appends *appendClock
	recent  *recent
}

var (
	_ raft.LogStore          = (*logs)(nil)
	_ raft.MonotonicLogStore = (*logs)(nil)
)

// IsMonotonic says what the inner store says; false is as good as not to have it.
func (l *logs) IsMonotonic() bool {
	inner, ok := l.inner.(raft.MonotonicLogStore)
	return ok && inner.IsMonotonic()
}

// FirstIndex returns the index of the oldest entry, 0 if there is none.
func (l *logs) FirstIndex() (index uint64, err error) {
	err = l.guard.read(l.place(0), func() error {
		index, err = l.inner.FirstIndex()
		return err
	})
	return index, err
}

// LastIndex returns the index of the newest entry, 0 if there is none.
func (l *logs) LastIndex() (index uint64, err error) {
	err = l.guard.read(l.place(0), func() error {
		index, err = l.inner.LastIndex()
		return err
	})
	return index, err
}

// place is where an entry is; index 0 stands for the oldest and the newest one.
func (l *logs) place(index uint64) func() (file, where string) {
	return func() (string, string) { return l.inner.file(index), fmt.Sprintf("index %d", index) }
}

// GetLog reads the entry at index into e: raft.ErrLogNotFound if there is none,
// a CorruptError (reported to OnFatal first) if its checksum doesn't fit.
func (l *logs) GetLog(index uint64, e *raft.Log) error {
	if l.recent.get(index, e) {
		return nil
	}
	var read raft.Log
	err := l.guard.read(l.place(index), func() error {
		if err := l.inner.GetLog(index, &read); err != nil {
			return err
		}
		return unseal(index, &read)
	})
	if err != nil {
		return err
	}
	*e = read
	return nil
}

// StoreLog is StoreLogs of one entry.
func (l *logs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs makes the entries durable: all of them or, with an error, none.
func (l *logs) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	end := l.appends.begin()
	defer end()
	sealed := seal(entries)
	if err := l.guard.write(l.inner.file(entries[0].Index), "append to the log", func() error { return l.inner.StoreLogs(sealed) }); err != nil {
		return err
	}
	l.recent.add(entries)
	return nil
}

// DeleteRange deletes the entries from index low to high, both included.
func (l *logs) DeleteRange(low, high uint64) error {
	l.recent.remove(low, high)
	return l.guard.write(l.inner.file(low), "delete from the log", func() error { return l.inner.DeleteRange(low, high) })
}
