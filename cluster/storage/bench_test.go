package storage

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// BenchmarkStoreLogs compares the wrapper with the database alone. With fsync
// the disk decides; without, what the wrapper costs shows.
func BenchmarkStoreLogs(b *testing.B) {
	for _, noSync := range []bool{false, true} {
		for _, n := range []int{1, 64} {
			for _, with := range []bool{false, true} {
				b.Run(fmt.Sprintf("nosync=%v/entries=%d/wrapper=%v", noSync, n, with), func(b *testing.B) {
					var store raft.LogStore
					if with {
						cfg := config(b.TempDir())
						cfg.NoSync = noSync
						s, err := Open(cfg)
						if err != nil {
							b.Fatal(err)
						}
						defer s.Close()
						store = s.Logs()
					} else {
						db, err := openDatabase(filepath.Join(b.TempDir(), databaseFile), noSync)
						if err != nil {
							b.Fatal(err)
						}
						defer db.Close()
						store = db
					}
					storeBatches(b, store, n)
				})
			}
		}
	}
}

func storeBatches(b *testing.B, store raft.LogStore, n int) {
	b.Helper()
	data := bytes.Repeat([]byte("x"), 250)
	index := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		batch := make([]*raft.Log, n)
		for i := range batch {
			index++
			batch[i] = &raft.Log{Index: index, Term: 1, Data: data, AppendedAt: time.Unix(1_700_000_000, 0)}
		}
		if err := store.StoreLogs(batch); err != nil {
			b.Fatal(err)
		}
	}
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
