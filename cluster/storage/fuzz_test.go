package storage

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc64"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// stored is an entry's bytes as raft-boltdb writes them.
func stored(tb testing.TB, e *raft.Log) []byte {
	tb.Helper()
	var b []byte
	var handle codec.MsgpackHandle
	handle.TimeNotBuiltin = true
	if err := codec.NewEncoderBytes(&b, &handle).Encode(e); err != nil {
		tb.Fatal(err)
	}
	return b
}

// FuzzSealedEntry writes an entry of any content and reads it back: as it was, its caller's copy untouched, and with
// one bit flipped, wherever, refused or no different.
func FuzzSealedEntry(f *testing.F) {
	f.Add(uint64(1), uint64(1), uint8(0), []byte("data"), []byte("ext"), int64(1_700_000_000), uint32(77))
	f.Add(uint64(0), uint64(1<<63), uint8(255), []byte{}, []byte{}, int64(-1), uint32(0))
	f.Add(uint64(7), uint64(7), uint8(5), []byte{0xc1}, make([]byte, sumSize), int64(1<<40), uint32(1<<31))
	f.Fuzz(func(t *testing.T, index, term uint64, kind uint8, data, extensions []byte, seconds int64, flip uint32) {
		e := &raft.Log{
			Index: index, Term: term, Type: raft.LogType(kind), Data: data, Extensions: extensions,
			AppendedAt: time.Unix(seconds%(1<<32), int64(flip)%1e9), // what fits a database of entries written in our time
		}
		before := *e
		value := stored(t, seal([]*raft.Log{e})[0])
		if diff := cmp.Diff(before, *e); diff != "" {
			t.Fatalf("sealing changed the entry:\n%s", diff)
		}
		got, err := unstored(index, value)
		if err != nil {
			t.Fatal(err)
		}
		if !sameEntry(e, got) {
			t.Fatalf("read back:\n%s", cmp.Diff(*e, *got))
		}
		if err = (&checker{}).entry(index, value); err != nil {
			t.Fatalf("the check refuses what the store reads: %v", err)
		}
		if _, err = unstored(index+1, value); err == nil {
			t.Fatal("the entry was read at another index")
		}
		at := int(flip) % (len(value) * 8)
		value[at/8] ^= 1 << (at % 8)
		if got, err = unstored(index, value); err == nil && !sameEntry(e, got) {
			t.Fatalf("with bit %d flipped another entry was read:\n%s", at, cmp.Diff(*e, *got))
		}
	})
}

// unstored reads an entry as logs.GetLog does.
func unstored(index uint64, value []byte) (*raft.Log, error) {
	var e raft.Log
	if err := codec.NewDecoder(bytes.NewReader(value), &codec.MsgpackHandle{}).Decode(&e); err != nil {
		return nil, err
	}
	return &e, unseal(index, &e)
}

// sameEntry takes an empty slice for none: the database does not tell them apart.
func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// FuzzStoredEntry checks arbitrary bytes in the place of an entry: no panic, no memory for what a length only claims,
// and what passes is an entry that reads the same again.
func FuzzStoredEntry(f *testing.F) {
	good := stored(f, seal(entries(3, 3))[0])
	f.Add(uint64(3), good)
	f.Add(uint64(3), good[:len(good)/2])
	f.Add(uint64(1), []byte{0xdf, 0xff, 0xff, 0xff, 0xff})                                                // a map of 4 billion
	f.Add(uint64(1), append([]byte{0x81, 0xa4}, "Data\xc6\xff\xff\xff\xff"...))                           // bytes of 4 GiB
	f.Add(uint64(1), append([]byte{0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 10_000)...))              // 10,000 levels deep
	f.Add(uint64(1), append([]byte{0x81, 0xaa}, "AppendedAt\xc7\x0f\xff0123456789abcde"...))              // a time too long
	f.Add(uint64(1), append([]byte{0x81, 0xaa}, "Extensions\xdd\xff\xff\xff\xff\x01\x02\x03\x04\x05"...)) // an array as bytes
	f.Fuzz(func(t *testing.T, index uint64, value []byte) {
		var err error
		used := allocated(func() { err = (&checker{}).entry(index, value) })
		if limit := uint64(1<<20 + 64*len(value)); used > limit {
			t.Fatalf("%d bytes of memory for %d bytes", used, len(value))
		}
		if err != nil {
			return
		}
		got, err := unstored(index, value)
		if err != nil {
			t.Fatalf("the store does not read what the check passed: %v", err)
		}
		if again, err := unstored(index, stored(t, seal([]*raft.Log{got})[0])); err != nil || !sameEntry(got, again) {
			t.Fatalf("written again: %v, %v", err, cmp.Diff(got, again))
		}
	})
}

// FuzzStableValue seals and unseals values: of another key, or with one bit flipped, nothing is read.
func FuzzStableValue(f *testing.F) {
	f.Add([]byte("CurrentTerm"), []byte{0, 0, 0, 0, 0, 0, 0, 7}, []byte{}, uint32(3))
	f.Add([]byte{}, []byte{}, []byte{1, 2, 3, 4}, uint32(0))
	f.Fuzz(func(t *testing.T, key, value, raw []byte, flip uint32) {
		sealed := sealValue(key, value)
		got, err := unsealValue(key, sealed)
		if err != nil || !bytes.Equal(got, value) {
			t.Fatalf("read back %x, %v", got, err)
		}
		if _, err = unsealValue(append(bytes.Clone(key), 0), sealed); err == nil {
			t.Fatal("read under another key")
		}
		at := int(flip) % (len(sealed) * 8)
		sealed[at/8] ^= 1 << (at % 8)
		if _, err = unsealValue(key, sealed); err == nil {
			t.Fatalf("read with bit %d flipped", at)
		}
		if got, err = unsealValue(key, raw); err == nil && !bytes.Equal(sealValue(key, got), raw) {
			t.Fatalf("%x was read as %x", raw, got)
		}
	})
}

// FuzzIdentity reads arbitrary bytes as node.json, as they are and with the checksum put right: a typed error that
// names the file in one line, or an identity that is written and read again as it is.
func FuzzIdentity(f *testing.F) {
	dir := f.TempDir()
	check := func(err error) {
		if err != nil {
			f.Fatal(err)
		}
	}
	check(writeIdentity(dir, Identity{NodeID: "3a5f8f0e-0000-4000-8000-1234567890ab", ClusterID: "c", LogStore: LogStoreWAL}))
	good, err := os.ReadFile(filepath.Join(dir, identityFile))
	check(err)
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"format": 1`), []byte(`"format": 2`), 1))
	f.Add([]byte(`{"format":1,"node_id":"\u000a"}`))
	f.Add([]byte("null"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, identityFile)
		contents := [][]byte{content}
		var r identityRecord
		if json.Unmarshal(content, &r) == nil {
			r.Checksum = r.sum()
			fitting, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			contents = append(contents, fitting)
		}
		for _, c := range contents {
			if err := os.WriteFile(path, c, fileMode); err != nil {
				t.Fatal(err)
			}
			id, err := readIdentity(dir)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewerFormat) {
					t.Fatalf("unfiled error %v", err)
				}
				if text := err.Error(); !strings.Contains(text, path) || strings.Contains(text, "\n") {
					t.Fatalf("error %q: not one line that names %s", text, path)
				}
				continue
			}
			if err = writeIdentity(dir, id); err != nil {
				t.Fatal(err)
			}
			if again, err := readIdentity(dir); err != nil || again != id {
				t.Fatalf("%+v becomes %+v, %v", id, again, err)
			}
		}
	})
}

// FuzzSnapshotFiles verifies arbitrary files of a snapshot, as they are and with all sums put right: what passes is what
// raft opens, with just that state.
func FuzzSnapshotFiles(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(config(dir))
	if err != nil {
		f.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("a")
	sink, err := s.Snapshots().Create(1, 50, 6, raft.Configuration{Servers: []raft.Server{{ID: "n", Address: "a:1"}}}, 1, trans)
	if err != nil {
		f.Fatal(err)
	}
	if _, err = sink.Write([]byte("state")); err != nil {
		f.Fatal(err)
	}
	if err = errors.Join(sink.Close(), s.Close()); err != nil {
		f.Fatal(err)
	}
	file := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(dir, snapshotsDir, sink.ID(), name))
		if err != nil {
			f.Fatal(err)
		}
		return content
	}
	f.Add(file(metaFile), file(sumFile), file(stateFile))
	f.Add(file(metaFile), file(sumFile), []byte{})
	f.Add([]byte(`{"Version":1,"ID":"../../x","Index":50,"Term":6,"Size":-1}`), []byte("00000000\n"), []byte("state"))
	f.Add([]byte("null"), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, meta, sum, state []byte) {
		judgeSnapshotFiles(t, meta, sum, state)
		var m snapshotMeta
		if json.Unmarshal(meta, &m) != nil {
			return
		}
		m.ID, m.Index, m.Term, m.Size = "6-50-1", 50, 6, int64(len(state))
		crc := crc64.New(crc64.MakeTable(crc64.ECMA))
		_, _ = crc.Write(state) // A hash never fails.
		m.CRC = crc.Sum(nil)
		text, err := m.sum()
		if err != nil {
			t.Fatal(err)
		}
		if meta, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		if !judgeSnapshotFiles(t, meta, []byte(text), state) {
			t.Fatalf("refused with all sums right: %s", meta)
		}
	})
}

// judgeSnapshotFiles reports whether the files are taken for a good snapshot.
func judgeSnapshotFiles(t *testing.T, meta, sum, state []byte) bool {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, snapshotsDir, "6-50-1")
	if err := os.MkdirAll(path, dirMode); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{metaFile: meta, sumFile: sum, stateFile: state} {
		if err := os.WriteFile(filepath.Join(path, name), content, fileMode); err != nil {
			t.Fatal(err)
		}
	}
	found, err := listSnapshots(dir, slog.New(slog.DiscardHandler))
	if err != nil || len(found) != 1 {
		t.Fatalf("found %v, %v", found, err)
	}
	if found[0].err != nil {
		return false
	}
	store, err := openSnapshots(dir, defaultRetain, &guard{dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m, reader, err := store.Open("6-50-1")
	if err != nil {
		t.Fatalf("raft does not open what the check passed: %v", err)
	}
	defer reader.Close()
	if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, state) || m.Index != 50 {
		t.Fatalf("raft reads %x of index %d, %v, written was %x", got, m.Index, err, state)
	}
	return true
}

// FuzzDatabase checks arbitrary bytes as raft.db, their meta pages' checksums put right: what passes is opened by the
// library, read in full, written to and passes again. The library itself panics on damage, in goroutines of its own.
func FuzzDatabase(f *testing.F) {
	f.Add(seedDatabase(f, 512, 60), uint8(0))
	f.Add(seedDatabase(f, 4096, 3), uint8(0))
	f.Add(seedDatabase(f, 1024, 0), uint8(9))
	f.Add([]byte{}, uint8(0))
	f.Fuzz(func(t *testing.T, file []byte, base uint8) {
		if len(file) > 1<<18 {
			return // Larger files hold nothing else, only more of it.
		}
		file = bytes.Clone(file)
		resealMeta(file)
		var found contents
		var err error
		used := allocated(func() {
			found, err = checkPages("data", bytes.NewReader(file), uint64(len(file)), uint64(base), func(uint64, uint64) {})
		})
		if limit := uint64(4<<20 + 64*len(file)); used > limit {
			t.Fatalf("%d bytes of memory for a file of %d", used, len(file))
		}
		if err != nil {
			var damage *CorruptError
			if !errors.As(err, &damage) || damage.Where == "" || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q is no CorruptError of one line with a place", err)
			}
			return
		}
		dir := t.TempDir()
		path := filepath.Join(dir, databaseFile)
		if err = os.WriteFile(path, file, fileMode); err != nil {
			t.Fatal(err)
		}
		if last := grow(t, path, found, uint64(base)); last > 0 {
			after, err := checkDatabase(dir, uint64(base), slog.New(slog.DiscardHandler))
			if err != nil || after.last != last || after.values != found.values {
				t.Fatalf("with entry %d written there are %+v of %+v: %v", last, after, found, err)
			}
		}
	})
}

// grow reads a database that was found good through the library, appends an entry and returns its index; 0: there is no
// room for one.
func grow(t *testing.T, path string, found contents, base uint64) uint64 {
	t.Helper()
	db, err := openDatabase(path, true)
	if err != nil {
		t.Fatalf("the library does not open what the check passed: %v", err)
	}
	defer db.Close()
	last, err := db.LastIndex()
	if err != nil || last != found.last {
		t.Fatalf("last index %d, %v, checked was %d", last, err, found.last)
	}
	first, err := db.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for i := first; i <= last && read < found.entries && i > 0; i++ {
		var e raft.Log
		switch err = db.GetLog(i, &e); {
		case errors.Is(err, raft.ErrLogNotFound) && i <= base: // a lawful gap
		case err != nil:
			t.Fatalf("entry %d: %v", i, err)
		default:
			read++
			if err = unseal(i, &e); err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
		}
	}
	next := max(last, base) + 1
	if first == 0 && last > 0 || next == 0 {
		return 0
	}
	if read != found.entries {
		t.Fatalf("%d entries were read, %d were checked", read, found.entries)
	}
	if err = db.StoreLogs(seal(entries(next, next))); err != nil {
		t.Fatalf("append: %v", err)
	}
	return next
}

// seedDatabase is a file with entries 1 to n and a vote, in pages of the given size.
func seedDatabase(f *testing.F, pageSize int, n uint64) []byte {
	f.Helper()
	path := filepath.Join(f.TempDir(), databaseFile)
	db, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true, BoltOptions: &bbolt.Options{
		PageSize: pageSize, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	}})
	if err != nil {
		f.Fatal(err)
	}
	vote := []byte("LastVoteCand")
	err = db.Set(vote, sealValue(vote, []byte("node-b")))
	for i := uint64(1); i <= n && err == nil; i++ {
		err = db.StoreLogs(seal([]*raft.Log{{Index: i, Term: 1, Data: []byte("entry")}}))
	}
	if err = errors.Join(err, db.Close()); err != nil {
		f.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return content
}

// resealMeta puts the checksums of both meta pages right.
func resealMeta(file []byte) {
	for _, at := range []int{0, pageSizeOf(file)} {
		if at+pageHeader+metaSize > len(file) {
			return
		}
		m := file[at+pageHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:metaSize-8]) // A hash never fails.
		binary.NativeEndian.PutUint64(m[metaSize-8:], sum.Sum64())
	}
}

func pageSizeOf(file []byte) int {
	if len(file) < pageHeader+metaSize {
		return 0
	}
	return int(binary.NativeEndian.Uint32(file[pageHeader+8:]))
}

// allocated is how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
