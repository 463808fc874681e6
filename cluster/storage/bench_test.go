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
				storeInTurns(b, db, s.Logs(), n)
			})
		}
	}
}

func storeInTurns(b *testing.B, bare, wrapped raft.LogStore, n int) {
	b.Helper()
	data := bytes.Repeat([]byte("x"), 250)
	var tookBare, tookWrapped []time.Duration
	store := func(l raft.LogStore, first uint64, took *[]time.Duration) {
		batch := make([]*raft.Log, n)
		for i := range batch {
			batch[i] = &raft.Log{Index: first + uint64(i), Term: 1, Data: data, AppendedAt: time.Unix(1_700_000_000, 0)}
		}
		began := time.Now()
		if err := l.StoreLogs(batch); err != nil {
			b.Fatal(err)
		}
		*took = append(*took, time.Since(began))
	}
	for next := uint64(1); b.Loop(); next += uint64(n) {
		if len(tookBare)%2 == 0 {
			store(bare, next, &tookBare)
			store(wrapped, next, &tookWrapped)
		} else {
			store(wrapped, next, &tookWrapped)
			store(bare, next, &tookBare)
		}
	}
	for unit, took := range map[string][]time.Duration{"bare-ns": tookBare, "wrapped-ns": tookWrapped} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2]), unit)
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
