package storage

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// A segment is sealed by the append that fills it. The node may stop before the
// next one is listed, or the disk may have had no room for it.
func TestRotationThatWasBrokenOffIsFinished(t *testing.T) {
	dir := builtIn(t, LogStoreWAL, 100)
	list := listed(t, dir)
	tail, _ := list.tail()
	check(t, os.Remove(newest(t, dir)))
	sealed := list.Segments[len(list.Segments)-2]
	relist(t, dir, func(l *segmentList) {
		l.Segments = l.Segments[:len(l.Segments)-1]
		open := &l.Segments[len(l.Segments)-1]
		open.SealTime, open.MaxIndex, open.IndexStart = tail.SealTime, 0, 0
		l.NextSegmentID = tail.ID
		l.Last = 0
	})
	s := open(t, dir)
	wantEntries(t, s.Logs(), 1, sealed.MaxIndex)
	appendEntries(t, s, sealed.MaxIndex+1, 120)
	closeStore(t, s)
	wantEntries(t, open(t, dir).Logs(), 1, 120)
}

// fullList is a stable store that can be made to have no room for the list of segments.
type fullList struct {
	*raftboltdb.BoltStore
	full bool
}

func (f *fullList) Set(key, value []byte) error {
	if f.full && string(key) == segmentsKey {
		return &os.PathError{Op: "write", Path: databaseFile, Err: syscall.ENOSPC}
	}
	return f.BoltStore.Set(key, value)
}

func TestRotationOnAFullDiskIsRefusedAndTriedAgain(t *testing.T) {
	dir := t.TempDir()
	cfg := inStore(LogStoreWAL, dir)
	cfg.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	s := openConfig(t, cfg)
	inner := &fullList{BoltStore: s.db, full: true}
	s.stable.inner = inner
	next, err := uint64(1), error(nil)
	for ; err == nil && next < 1000; next++ {
		err = s.Logs().StoreLog(entry(next))
	}
	for range 3 {
		next-- // The one that failed.
		wantEntries(t, s.Logs(), 1, next-1)
		if err = s.Logs().StoreLog(entry(next)); !errors.Is(err, ErrDiskFull) || !s.Full() {
			t.Fatalf("append %d: %v, full %v", next, err, s.Full())
		}
		next++
	}
	next--
	inner.full = false
	appendEntries(t, s, next, next+100)
	closeStore(t, s)
	wantEntries(t, open(t, dir).Logs(), 1, next+100)
}

// As raft does it: appends of many entries, which fill one segment after the
// other, snapshots that delete the front, and followers that read far behind.
func TestSegmentsRotateUnderLoad(t *testing.T) {
	cfg := inStore(LogStoreWAL, filepath.Join(t.TempDir(), "data"))
	cfg.segmentSize = 64 << 10
	cfg.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	const batch, between, trailing = 40, 800, 300
	var first, last atomic.Uint64
	first.Store(1)
	var rotations uint64
	for range 3 {
		s := openConfig(t, cfg)
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 2 {
			readers.Go(func() {
				for index := first.Load(); ; index++ {
					select {
					case <-stop:
						return
					default:
					}
					written := last.Load()
					if index > written {
						index = first.Load()
					}
					var got raft.Log
					err := s.Logs().GetLog(index, &got)
					if err != nil && (!errors.Is(err, raft.ErrLogNotFound) || first.Load() <= index && index <= written) {
						t.Errorf("get entry %d: %v", index, err)
						return
					}
				}
			})
		}
		for range 4 {
			for range between / batch {
				next := last.Load() + 1
				check(t, s.Logs().StoreLogs(entries(next, next+batch-1)))
				last.Store(next + batch - 1)
			}
			makeSnapshot(t, s, last.Load(), "state")
			low := first.Swap(last.Load() - trailing + 1)
			check(t, s.Logs().DeleteRange(low, first.Load()-1))
		}
		close(stop)
		readers.Wait()
		closeStore(t, s)
		list := listed(t, cfg.Dir)
		if kept, err := os.ReadDir(filepath.Join(cfg.Dir, walDir)); err != nil || len(kept) != len(list.Segments) {
			t.Errorf("%d files, %d segments are listed, %v", len(kept), len(list.Segments), err)
		}
		rotations = list.NextSegmentID
		s = openConfig(t, cfg)
		if got, err := s.Logs().FirstIndex(); err != nil || got != first.Load() {
			t.Errorf("first index %d, %v, want %d", got, err, first.Load())
		}
		if got, err := s.Logs().LastIndex(); err != nil || got != last.Load() {
			t.Errorf("last index %d, %v, want %d", got, err, last.Load())
		}
		wantEntries(t, s.Logs(), first.Load(), last.Load())
		closeStore(t, s)
	}
	if rotations < 50 {
		t.Errorf("%d segments", rotations)
	}
}
