package storage

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// BenchmarkStoreLogs compares the wrapper with the database alone, in turns so
// that a busy disk troubles both alike, by their medians. With fsync the disk
// decides; without, what the wrapper costs shows.
func BenchmarkStoreLogs(b *testing.B) {
	for _, noSync := range []bool{false, true} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("nosync=%v/entries=%d", noSync, n), func(b *testing.B) {
				cfg := config(b.TempDir())
				cfg.NoSync = noSync
				s, err := Open(cfg)
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				db, err := openDatabase(filepath.Join(b.TempDir(), databaseFile), noSync)
				if err != nil {
					b.Fatal(err)
				}
				defer db.Close()
				storeInTurns(b, [2]raft.LogStore{db, s.Logs()}, [2]string{"bare", "wrapped"}, n)
			})
		}
	}
}

// BenchmarkLogStores compares the log stores in turns, by their medians, with
// fsync: the disk decides.
func BenchmarkLogStores(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			var logs []raft.LogStore
			for _, store := range LogStores() {
				cfg := inStore(store, b.TempDir())
				cfg.NoSync, cfg.segmentSize = false, 0
				s, err := Open(cfg)
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				logs = append(logs, s.Logs())
			}
			storeInTurns(b, [2]raft.LogStore(logs), [2]string{"boltdb", "wal"}, n)
		})
	}
}

// storeInTurns appends n entries at a time to two logs and reports the medians.
func storeInTurns(b *testing.B, logs [2]raft.LogStore, names [2]string, n int) {
	b.Helper()
	data := bytes.Repeat([]byte("x"), 250)
	var took [2][]time.Duration
	store := func(i int, first uint64) {
		batch := make([]*raft.Log, n)
		for i := range batch {
			batch[i] = &raft.Log{Index: first + uint64(i), Term: 1, Data: data, AppendedAt: time.Unix(1_700_000_000, 0)}
		}
		began := time.Now()
		if err := logs[i].StoreLogs(batch); err != nil {
			b.Fatal(err)
		}
		took[i] = append(took[i], time.Since(began))
	}
	for next := uint64(1); b.Loop(); next += uint64(n) {
		first := len(took[0]) % 2
		store(first, next)
		store(1-first, next)
	}
	for i, list := range took {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2]), names[i]+"-ns")
		b.ReportMetric(float64(list[len(list)*99/100]), names[i]+"-p99-ns")
	}
	b.ReportMetric(0, "ns/op") // of both together: of no use
}

// BenchmarkOpen is the check at the start, for a log of 100,000 entries.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s, err := Open(config(dir))
	if err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 250)
	const count = 100_000
	for index := uint64(1); index <= count; index += 100 {
		var batch []*raft.Log
		for i := range uint64(100) {
			batch = append(batch, &raft.Log{Index: index + i, Term: 1, Data: data})
		}
		if err := s.Logs().StoreLogs(batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s, err := Open(config(dir))
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/count, "ns/entry")
}

func BenchmarkGetLog(b *testing.B) {
	s, err := Open(config(b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for i := uint64(1); i <= 1000; i++ {
		if err := s.Logs().StoreLog(entry(i)); err != nil {
			b.Fatal(err)
		}
	}
	for name, index := range map[string]uint64{"cached": 1000, "read": 1} {
		b.Run(name, func(b *testing.B) {
			var e raft.Log
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Logs().GetLog(index, &e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
