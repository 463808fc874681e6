package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// snapshotted is a closed folder with entries from low to high and snapshots
// at indexes 20 and 40.
func snapshotted(t *testing.T, low, high uint64) (dir string, ids [2]string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	s := open(t, dir)
	appendEntries(t, s, 1, high)
	ids = [2]string{makeSnapshot(t, s, 20, "state at 20"), makeSnapshot(t, s, 40, "state at 40")}
	if low > 1 {
		check(t, s.Logs().DeleteRange(1, low-1))
	}
	closeStore(t, s)
	return dir, ids
}

// spoilers damage one file of a snapshot: flipped, cut, emptied or gone.
func spoilers(t *testing.T) map[string]func(dir, id string) {
	t.Helper()
	all := map[string]func(dir, id string){}
	for _, file := range []string{metaFile, stateFile, sumFile} {
		path := func(dir, id string) string { return filepath.Join(dir, snapshotsDir, id, file) }
		for name, change := range map[string]func([]byte) []byte{
			"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"cut":     func(b []byte) []byte { return b[:len(b)-2] },
			"emptied": func([]byte) []byte { return nil },
		} {
			all[file+" "+name] = func(dir, id string) { edit(t, path(dir, id), change) }
		}
		all[file+" gone"] = func(dir, id string) { check(t, os.Remove(path(dir, id))) }
	}
	return all
}

func TestDamagedSnapshotThatTheLogReplacesIsSetAside(t *testing.T) {
	for name, spoil := range spoilers(t) {
		t.Run(name, func(t *testing.T) {
			dir, ids := snapshotted(t, 21, 45)
			spoil(dir, ids[1])
			s := open(t, dir)
			wantSnapshots(t, s, ids[0])
			wantEntries(t, s.Logs(), 21, 45)
			if _, err := os.Stat(filepath.Join(dir, ids[1]+corruptSuffix)); err != nil {
				t.Errorf("the damaged snapshot was not kept: %v", err)
			}
			closeStore(t, s)
			wantSnapshots(t, open(t, dir), ids[0])
		})
	}
}

func TestDamagedSnapshotThatNothingReplacesIsRefused(t *testing.T) {
	for name, spoil := range spoilers(t) {
		t.Run(name, func(t *testing.T) {
			dir, ids := snapshotted(t, 22, 45) // 21 is gone
			spoil(dir, ids[1])
			damage := damageOf(t, refused(t, dir), ids[1])
			if !strings.Contains(damage.Where, "40") {
				t.Errorf("where is %q", damage.Where)
			}
		})
	}
}

func TestDamagedSnapshotsAndTheLog(t *testing.T) {
	for name, tc := range map[string]struct {
		low, high uint64
		spoil     []int
		refused   bool
	}{
		"the only base, log from 1":         {1, 45, []int{0, 1}, false},
		"the only base, log from 2":         {2, 45, []int{0, 1}, true},
		"an older one, log from behind it":  {30, 45, []int{0}, false},
		"newest, log ends before it":        {1, 39, []int{1}, true},
		"newest, log ends just at it":       {1, 40, []int{1}, false},
		"newest, log empty":                 {40, 39, []int{1}, true},
		"none, log begins after the newest": {42, 45, nil, true},
		"none, log begins just behind":      {41, 45, nil, false},
		"none, log empty":                   {46, 45, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, ids := snapshotted(t, tc.low, tc.high)
			for _, i := range tc.spoil {
				edit(t, filepath.Join(dir, snapshotsDir, ids[i], stateFile), func(b []byte) []byte { b[0]++; return b })
			}
			if tc.refused {
				wantCorrupt(t, refused(t, dir), "")
				return
			}
			s := open(t, dir)
			if tc.low <= tc.high {
				wantEntries(t, s.Logs(), tc.low, tc.high)
			}
		})
	}
}

// raft's checksum doesn't cover the members: one changed letter made a voter of a stranger.
func TestChangedMemberInSnapshotIsDamage(t *testing.T) {
	dir, ids := snapshotted(t, 30, 45)
	edit(t, filepath.Join(dir, snapshotsDir, ids[1], metaFile), func(b []byte) []byte {
		return []byte(strings.Replace(string(b), "node-a", "node-b", 1))
	})
	wantCorrupt(t, refused(t, dir), ids[1])
}

// raft finds a snapshot's files by the id in its meta file.
func TestRenamedSnapshotIsDamage(t *testing.T) {
	dir, ids := snapshotted(t, 30, 45)
	name := ids[1] + "0"
	check(t, os.Rename(filepath.Join(dir, snapshotsDir, ids[1]), filepath.Join(dir, snapshotsDir, name)))
	wantCorrupt(t, refused(t, dir), name)
}

func wantSnapshots(t *testing.T, s *Store, ids ...string) {
	t.Helper()
	list, err := s.Snapshots().List()
	check(t, err)
	var got []string
	for _, m := range list {
		got = append(got, m.ID)
		_, r, err := s.Snapshots().Open(m.ID)
		check(t, err)
		check(t, r.Close())
	}
	if strings.Join(got, " ") != strings.Join(ids, " ") {
		t.Errorf("snapshots are %v, want %v", got, ids)
	}
}

func TestSnapshotRoundTripRetainsTwo(t *testing.T) {
	s := open(t, t.TempDir())
	var ids []string
	for i := range uint64(4) {
		ids = append(ids, makeSnapshot(t, s, 10+i, strings.Repeat("state ", int(i)*5000)))
	}
	wantSnapshots(t, s, ids[3], ids[2])
	meta, r, err := s.Snapshots().Open(ids[3])
	check(t, err)
	defer r.Close()
	state, err := io.ReadAll(r)
	check(t, err)
	if meta.Index != 13 || meta.Size != int64(len(state)) || string(state) != strings.Repeat("state ", 15000) {
		t.Errorf("index %d, size %d, read %d bytes", meta.Index, meta.Size, len(state))
	}
}

func TestUnfinishedSnapshotsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, trans := raft.NewInmemTransport("a")
	cancelled, err := s.Snapshots().Create(1, 7, 1, raft.Configuration{}, 1, trans)
	check(t, err)
	check(t, cancelled.Cancel())
	check(t, cancelled.Cancel())
	check(t, cancelled.Close())
	_, err = s.Snapshots().Create(1, 8, 1, raft.Configuration{}, 1, trans) // and then the power fails
	check(t, err)
	closeStore(t, s)
	s = open(t, dir)
	if left, err := os.ReadDir(filepath.Join(dir, snapshotsDir)); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	wantSnapshots(t, s)
}

func TestSnapshotDamagedWhileRunningStopsTheNode(t *testing.T) {
	var fatal []error
	cfg := config(t.TempDir())
	cfg.OnFatal = func(err error) { fatal = append(fatal, err) }
	s := openConfig(t, cfg)
	id := makeSnapshot(t, s, 5, "state")
	if _, _, err := s.Snapshots().Open("1-2-3"); err == nil || len(fatal) != 0 {
		t.Errorf("a snapshot that is not there: %v, fatal %v", err, fatal)
	}
	edit(t, filepath.Join(cfg.Dir, snapshotsDir, id, stateFile), func(b []byte) []byte { b[0]++; return b })
	_, _, err := s.Snapshots().Open(id)
	wantCorrupt(t, err, id)
	if len(fatal) != 1 || !errors.Is(fatal[0], ErrCorrupt) {
		t.Errorf("fatal: %v", fatal)
	}
	if _, err := s.Snapshots().Create(1, 6, 1, raft.Configuration{}, 1, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("create after it: %v", err)
	}
}

func TestSnapshotThatCannotBeReadIsNotDamage(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"bytes differ":        {errors.New("checksum"), true},
		"a file is gone":      {&fs.PathError{Op: "open", Err: syscall.ENOENT}, true},
		"a sector is bad":     {&fs.PathError{Op: "read", Err: syscall.EIO}, true},
		"no permission":       {&fs.PathError{Op: "open", Err: syscall.EACCES}, false},
		"too many open files": {&fs.PathError{Op: "open", Err: syscall.EMFILE}, false},
	} {
		if got := isDamage(fmt.Errorf("wrapped: %w", tc.err)); got != tc.want {
			t.Errorf("%s: damage is %v, want %v", name, got, tc.want)
		}
	}
}
