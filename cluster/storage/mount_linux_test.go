package storage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// A read-only mount is the one place where root can't write either.
func TestReadOnlyMountIsNotWritable(t *testing.T) {
	dir := built(t, 1)
	mount(t, dir, dir, "", unix.MS_BIND, "")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("remount: %v", err)
	}
	if err := refused(t, dir); !errors.Is(err, ErrNotWritable) {
		t.Errorf("open: %v", err)
	}
}

func mount(t *testing.T, source, dir, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, dir, kind, flags, data); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// A real disk that is full: a small file system in memory.
func TestFullDiskRefusesAndRecovers(t *testing.T) { eachStore(t, fullDiskRefusesAndRecovers) }

func fullDiskRefusesAndRecovers(t *testing.T, store LogStore) {
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", 0, "size=4m")
	cfg := inStore(store, filepath.Join(dir, "data"))
	cfg.MinFreeBytes = 256 << 10
	cfg.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	s := openConfig(t, cfg)
	appendEntries(t, s, 1, 20)
	older := makeSnapshot(t, s, 10, "state")
	if s.Full() {
		t.Fatalf("full with %d bytes free", s.DiskFree())
	}

	filler := filepath.Join(dir, "filler")
	fill(t, filler)
	next, err := uint64(21), error(nil)
	for err == nil && next < 10_000 {
		if err = s.Logs().StoreLog(entry(next)); err == nil {
			next++
		}
	}
	if !errors.Is(err, ErrDiskFull) || !s.Full() {
		t.Errorf("append %d: %v, full %v", next, err, s.Full())
	}
	if _, err := snapshotOf(s, strings.Repeat("state", 100_000)); !errors.Is(err, ErrDiskFull) {
		t.Errorf("snapshot: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(cfg.Dir, snapshotsDir)); len(left) != 1 || err != nil {
		t.Errorf("the snapshot that failed left %v, %v", left, err)
	}
	for term := range uint64(100) { // Elections go on: raft panics when it can't store a term.
		check(t, s.Stable().SetUint64([]byte("CurrentTerm"), term))
	}
	closeStore(t, s)
	s = openConfig(t, cfg) // A restart is no way out of a full disk, but it must be possible.
	wantEntries(t, s.Logs(), 1, next-1)
	if !s.Full() {
		t.Errorf("not full with %d bytes free", s.DiskFree())
	}

	check(t, os.Remove(filler))
	appendEntries(t, s, next, next+50)
	newer := makeSnapshot(t, s, 20, "state")
	closeStore(t, s)
	s = openConfig(t, cfg)
	wantEntries(t, s.Logs(), 1, next+50)
	wantSnapshots(t, s, newer, older)
	closeStore(t, s)
}

func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	check(t, err)
	defer file.Close()
	for err == nil {
		_, err = file.Write(make([]byte, 64<<10))
	}
	if !isFull(err) {
		t.Fatalf("fill: %v", err)
	}
}

func snapshotOf(s *Store, state string) (string, error) {
	_, trans := raft.NewInmemTransport("a")
	sink, err := s.Snapshots().Create(1, 15, 2, raft.Configuration{}, 1, trans)
	if err != nil {
		return "", err
	}
	if _, err := sink.Write([]byte(state)); err != nil {
		return "", errors.Join(err, sink.Cancel())
	}
	return sink.ID(), sink.Close()
}
