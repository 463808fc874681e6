package storage

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	bolterrors "go.etcd.io/bbolt/errors"
	"pgregory.net/rapid"
)

// faulty is a log and stable store whose writes do what the test says.
type faulty struct {
	*raft.InmemStore
	write func() error
	calls int
}

func (f *faulty) StoreLogs(list []*raft.Log) error {
	if f.calls++; f.write != nil {
		if err := f.write(); err != nil {
			return err
		}
	}
	return f.InmemStore.StoreLogs(list)
}

func (f *faulty) Set(key, value []byte) error {
	if f.calls++; f.write != nil {
		if err := f.write(); err != nil {
			return err
		}
	}
	return f.InmemStore.Set(key, value)
}

type monotonic struct{ inMemory }

func (monotonic) IsMonotonic() bool { return true }

// wrapped is the wrappers around an inner store; fatal and full count the callbacks.
type wrapped struct {
	logs   *logs
	stable *stable
	fatal  []error
	full   int
}

// inMemory is a log database that is not on disk; file says it is in raft.db.
type inMemory struct{ raft.LogStore }

func (inMemory) file(uint64) string { return databaseFile }
func (inMemory) Close() error       { return nil }

func wrap(inner interface {
	raft.LogStore
	raft.StableStore
},
) *wrapped {
	w := &wrapped{}
	g := &guard{dir: "/data", onFatal: func(err error) { w.fatal = append(w.fatal, err) }, onFull: func() { w.full++ }}
	w.logs = &logs{inner: inMemory{inner}, guard: g, appends: newAppendClock(), recent: newRecent(4)}
	w.stable = &stable{inner: inner, guard: g}
	return w
}

func TestErrorsOfWrites(t *testing.T) {
	for name, tc := range map[string]struct {
		cause error
		want  error
		fatal bool
	}{
		"a write finds no space":     {&fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}, ErrDiskFull, false},
		"a write finds no quota":     {&fs.PathError{Op: "write", Path: "raft.db", Err: syscall.EDQUOT}, ErrDiskFull, false},
		"a write exceeds a limit":    {&fs.PathError{Op: "write", Path: "raft.db", Err: syscall.EFBIG}, ErrDiskFull, false},
		"an fsync finds no space":    {syscall.ENOSPC, ErrSync, true},
		"a file sync finds no space": {&fs.PathError{Op: "sync", Path: "raft.db", Err: syscall.ENOSPC}, ErrSync, true},
		"a write fails":              {&fs.PathError{Op: "write", Path: "raft.db", Err: syscall.EIO}, ErrSync, true},
		"an fsync fails":             {syscall.EIO, ErrSync, true},
		"the log is closed":          {wal.ErrClosed, wal.ErrClosed, false},
		"the store is closed":        {bolterrors.ErrDatabaseNotOpen, bolterrors.ErrDatabaseNotOpen, false},
	} {
		t.Run(name, func(t *testing.T) {
			inner := &faulty{InmemStore: raft.NewInmemStore(), write: func() error { return tc.cause }}
			w := wrap(inner)
			for range 2 {
				if err := w.logs.StoreLog(entry(1)); !errors.Is(err, tc.want) || !errors.Is(err, tc.cause) {
					t.Errorf("append: %v", err)
				}
				if err := w.stable.SetUint64([]byte("k"), 1); !errors.Is(err, tc.want) || !errors.Is(err, tc.cause) {
					t.Errorf("set: %v", err)
				}
			}
			if got := len(w.fatal) == 1; got != tc.fatal || len(w.fatal) > 1 {
				t.Errorf("fatal: %v", w.fatal)
			}
			if got := w.full > 0; got != errors.Is(tc.want, ErrDiskFull) {
				t.Errorf("full was noted %d times", w.full)
			}
			inner.write = nil
			err := w.logs.StoreLog(entry(1))
			if tc.fatal && !errors.Is(err, tc.want) || !tc.fatal && err != nil {
				t.Errorf("append after it: %v", err)
			}
			if tc.fatal && inner.calls != 1 {
				t.Errorf("the disk was written to %d times, the first failed", inner.calls)
			}
		})
	}
}

func TestPanicOfTheDatabaseStopsTheNode(t *testing.T) {
	w := wrap(&faulty{InmemStore: raft.NewInmemStore(), write: func() error { panic("page 3 already freed") }})
	for range 2 {
		wantCorrupt(t, w.logs.StoreLog(entry(1)), databaseFile)
	}
	if len(w.fatal) != 1 {
		t.Errorf("fatal: %v", w.fatal)
	}
}

func TestFaultInTheMemoryMapIsDamageNotACrash(t *testing.T) {
	dir := built(t, 200)
	var fatal []error
	cfg := config(dir)
	cfg.OnFatal = func(err error) { fatal = append(fatal, err) }
	s := openConfig(t, cfg)
	check(t, os.Truncate(filepath.Join(dir, databaseFile), 8192))
	wantCorrupt(t, s.Logs().GetLog(100, &raft.Log{}), databaseFile)
	wantCorrupt(t, s.Logs().StoreLog(entry(201)), databaseFile)
	if len(fatal) != 1 {
		t.Errorf("fatal: %v", fatal)
	}
}

func TestEntryDamagedWhileRunningStopsTheNode(t *testing.T) {
	store := raft.NewInmemStore()
	w := wrap(store)
	check(t, w.logs.StoreLogs(entries(1, 20)))
	var stored raft.Log
	check(t, store.GetLog(3, &stored))
	stored.Data[5] ^= 1
	got := *entry(99)
	damage := damageOf(t, w.logs.GetLog(3, &got), databaseFile)
	if damage.Where != "index 3" || len(w.fatal) != 1 {
		t.Errorf("where %q, fatal %v", damage.Where, w.fatal)
	}
	if diff := cmp.Diff(*entry(99), got); diff != "" {
		t.Errorf("the damaged entry was handed out:\n%s", diff)
	}
	if err := w.logs.StoreLog(entry(21)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("append after it: %v", err)
	}
}

func TestDamagedVoteStopsTheNode(t *testing.T) {
	for name, spoil := range map[string]func(inner raft.StableStore) error{
		"value": func(inner raft.StableStore) error {
			return inner.Set([]byte("k"), []byte("\x00\x00\x00\x00\x00\x00\x00\x08abcd"))
		},
		"short": func(inner raft.StableStore) error { return inner.Set([]byte("k"), []byte("abc")) },
		"key": func(inner raft.StableStore) error {
			other, err := inner.Get([]byte("other"))
			return errors.Join(err, inner.Set([]byte("k"), other))
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := raft.NewInmemStore()
			w := wrap(store)
			check(t, w.stable.SetUint64([]byte("k"), 7))
			check(t, w.stable.SetUint64([]byte("other"), 7))
			check(t, spoil(store))
			_, err := w.stable.GetUint64([]byte("k"))
			wantCorrupt(t, err, databaseFile)
			if len(w.fatal) != 1 {
				t.Errorf("fatal: %v", w.fatal)
			}
		})
	}
}

func TestNumberOfWrongSizeIsDamage(t *testing.T) {
	w := wrap(raft.NewInmemStore())
	check(t, w.stable.Set([]byte("k"), []byte("four")))
	_, err := w.stable.GetUint64([]byte("k"))
	wantCorrupt(t, err, databaseFile)
}

func TestMonotonicIsWhatTheInnerStoreSays(t *testing.T) {
	for want, inner := range map[bool]logDatabase{false: inMemory{raft.NewInmemStore()}, true: monotonic{inMemory{raft.NewInmemStore()}}} {
		var l raft.LogStore = &logs{inner: inner}
		if m, ok := l.(raft.MonotonicLogStore); want != (ok && m.IsMonotonic()) {
			t.Errorf("monotonic is not %v", want)
		}
	}
	eachStore(t, func(t *testing.T, store LogStore) {
		m, ok := openConfig(t, inStore(store, t.TempDir())).Logs().(raft.MonotonicLogStore)
		if got := ok && m.IsMonotonic(); got != (store == LogStoreWAL) {
			t.Errorf("monotonic: %v", got)
		}
	})
}

// raft compares this text, so it is part of the contract.
func TestKeyNeverSetIsNotFound(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.Stable().Get([]byte("CurrentTerm")); err == nil || err.Error() != "not found" {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Stable().GetUint64([]byte("CurrentTerm")); err == nil || err.Error() != "not found" {
		t.Errorf("get number: %v", err)
	}
}

func TestEntryWithoutExtensionsIsReadWithout(t *testing.T) {
	eachStore(t, entryWithoutExtensionsIsReadWithout)
}

func entryWithoutExtensionsIsReadWithout(t *testing.T, store LogStore) {
	cfg := inStore(store, t.TempDir())
	cfg.LogCacheEntries = 1
	s := openConfig(t, cfg)
	want := raft.Log{Index: 1, Term: 1, Type: raft.LogNoop}
	check(t, s.Logs().StoreLogs([]*raft.Log{&want, entry(2)}))
	var got raft.Log
	check(t, s.Logs().GetLog(1, &got))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestStoringLeavesRaftsEntriesAlone(t *testing.T) {
	eachStore(t, storingLeavesRaftsEntriesAlone)
}

func storingLeavesRaftsEntriesAlone(t *testing.T, store LogStore) {
	s := openConfig(t, inStore(store, t.TempDir()))
	list := entries(1, 3)
	list[1].Extensions = make([]byte, 0, 64) // with room in which an append would be seen
	check(t, s.Logs().StoreLogs(list))
	list[1].Extensions = list[1].Extensions[:64]
	if diff := cmp.Diff(make([]byte, 64), list[1].Extensions); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(entry(1), list[0]); diff != "" {
		t.Error(diff)
	}
}

// The log store behaves as a map from index to entry whose ends are known, in
// cache and out of it, before and after a restart.
func TestLogStoreIsAMapByIndex(t *testing.T) { eachStore(t, logStoreIsAMapByIndex) }

func logStoreIsAMapByIndex(t *testing.T, store LogStore) {
	dir := t.TempDir() // one for all: making a folder costs several fsyncs
	rapid.Check(t, func(rt *rapid.T) {
		cfg := inStore(store, dir)
		cfg.LogCacheEntries = rapid.IntRange(1, 8).Draw(rt, "cache")
		s := openConfig(t, cfg)
		defer func() { closeStore(t, s) }()
		check(t, s.Logs().DeleteRange(0, math.MaxUint64))
		terms := []uint64{0} // by index
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				var list []*raft.Log
				for range rapid.IntRange(1, 9).Draw(rt, "n") {
					e := entry(uint64(len(terms)))
					e.Term = rapid.Uint64().Draw(rt, "term")
					terms = append(terms, e.Term)
					list = append(list, e)
				}
				check(t, s.Logs().StoreLogs(list))
			},
			"truncate": func(rt *rapid.T) {
				from := rapid.IntRange(1, len(terms)).Draw(rt, "from")
				check(t, s.Logs().DeleteRange(uint64(from), uint64(len(terms))))
				terms = terms[:from]
			},
			"restart": func(rt *rapid.T) {
				if rapid.IntRange(0, 4).Draw(rt, "skip") == 0 {
					closeStore(t, s)
					s = openConfig(t, cfg)
				}
			},
			"": func(rt *rapid.T) {
				first, err := s.Logs().FirstIndex()
				check(t, err)
				last, err := s.Logs().LastIndex()
				check(t, err)
				if last != uint64(len(terms)-1) || first != min(1, last) {
					rt.Fatalf("indexes %d to %d, want %d to %d", first, last, min(1, last), len(terms)-1)
				}
				index := rapid.Uint64Range(0, last+1).Draw(rt, "index")
				var got raft.Log
				if err := s.Logs().GetLog(index, &got); index == 0 || index > last {
					if !errors.Is(err, raft.ErrLogNotFound) {
						rt.Fatalf("get %d: %v", index, err)
					}
					return
				} else if err != nil {
					rt.Fatalf("get %d: %v", index, err)
				}
				want := entry(index)
				want.Term = terms[index]
				if diff := cmp.Diff(*want, got); diff != "" {
					rt.Fatalf("entry %d (-stored +got):\n%s", index, diff)
				}
			},
		})
	})
}

func TestDeletedEntriesAreNotFound(t *testing.T) {
	eachStore(t, func(t *testing.T, store LogStore) {
		cfg := inStore(store, t.TempDir())
		cfg.LogCacheEntries = 1
		s := openConfig(t, cfg)
		appendEntries(t, s, 1, 60)
		for high := uint64(1); high < 60; high++ {
			check(t, s.Logs().DeleteRange(1, high))
			if err := s.Logs().GetLog(high, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
				t.Errorf("get %d: %v", high, err)
			}
			wantEntries(t, s.Logs(), high+1, high+1)
		}
	})
}

func TestRecentEntriesAreBoundedInBytes(t *testing.T) {
	r := newRecent(8)
	for i := uint64(1); i <= 20; i++ {
		r.add([]*raft.Log{{Index: i, Data: make([]byte, recentBytes/4)}})
		if r.bytes > recentBytes {
			t.Fatalf("%d bytes after %d", r.bytes, i)
		}
	}
	var e raft.Log
	for i := uint64(1); i <= 20; i++ {
		if got, want := r.get(i, &e), i > 16; got != want {
			t.Errorf("entry %d cached: %v, want %v", i, got, want)
		}
	}
	r.remove(18, 19)
	if r.get(18, &e) || r.get(19, &e) || !r.get(20, &e) || !r.get(17, &e) || r.bytes != recentBytes/2 {
		t.Errorf("after remove: %d bytes", r.bytes)
	}
	r.add([]*raft.Log{{Index: 21, Data: make([]byte, 2*recentBytes)}})
	if r.bytes != 0 {
		t.Errorf("after an entry too big: %d bytes", r.bytes)
	}
}
