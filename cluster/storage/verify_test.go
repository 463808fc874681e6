package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

func TestFlippedByteInAnEntryNamesItsIndex(t *testing.T) {
	dir := built(t, 40)
	path := filepath.Join(dir, databaseFile)
	content, err := os.ReadFile(path)
	check(t, err)
	needle := []byte("entry 17 entry 17 ")
	for at := range content { // Old pages have old copies: all of them, to hit the live one.
		if bytes.HasPrefix(content[at:], needle) {
			content[at+7] ^= 0x20
		}
	}
	check(t, os.WriteFile(path, content, fileMode))
	damage := damageOf(t, refused(t, dir), databaseFile)
	if !strings.HasPrefix(damage.Where, "index 17 ") {
		t.Errorf("where is %q, want index 17", damage.Where)
	}
}

// live is the pages of a database that are in use, as the checker sees them.
func live(t *testing.T, content []byte) (size int, used []int) {
	t.Helper()
	p, err := openPages(bytes.NewReader(content), uint64(len(content)))
	check(t, err)
	check(t, p.buckets([]string{stableBucket, logBucket}, func(string, uint64, []byte, []byte) error { return nil }))
	for id := range p.meta.pages {
		if id < 2 || p.seen[id/64]&(1<<(id%64)) != 0 {
			used = append(used, int(id))
		}
	}
	return int(p.size), used
}

// What the checker lets pass, the library reads without a panic and as it was.
// One exception is left: pages carry no checksum, so a page number can change
// into that of the page's own older copy. What is read then is an older log,
// whole but shorter; raft fetches the rest from the leader.
func TestEveryFlippedByteIsRefusedOrHarmless(t *testing.T) {
	dir := built(t, 12)
	path := filepath.Join(dir, databaseFile)
	good, err := os.ReadFile(path)
	check(t, err)
	size, used := live(t, good)
	want := readAll(t, path)
	refusals, passed, older := 0, 0, 0
	bad := bytes.Clone(good)
	for _, id := range used {
		// All of the headers and tables, some of the rest: the race detector is slow.
		for at := id * size; at < (id+1)*size; at += 1 + 6*min(1, at%size/256) {
			bad[at] ^= 1 << (at % 8)
			_, err := checkPages(dir, bytes.NewReader(bad), uint64(len(bad)), 0, func(uint64, uint64) {})
			switch {
			case errors.Is(err, ErrCorrupt):
				refusals++
			case err != nil:
				t.Fatalf("offset %d: %v", at, err)
			default:
				every := 61
				if at%size < 256 {
					every = fewer
				}
				if passed++; passed%every != 0 {
					break
				}
				check(t, os.WriteFile(path, bad, fileMode))
				if got := readAll(t, path); got != want {
					older++
					if !strings.HasPrefix(want, got) {
						t.Fatalf("offset %d (page %d + %d) passed but reads differently", at, id, at%size)
					}
				}
			}
			bad[at] = good[at]
		}
	}
	t.Logf("%d pages in use: %d flips refused, %d harmless, %d an older log", len(used), refusals, passed-older, older)
	if refusals < 1000 || older > 4 {
		t.Errorf("%d flips were refused, %d read as an older log", refusals, older)
	}
}

// readAll reads a database through the library.
func readAll(t *testing.T, path string) string {
	t.Helper()
	db, err := openDatabase(path, true)
	check(t, err)
	defer db.Close()
	var text strings.Builder
	for _, key := range []string{"CurrentTerm", "LastVoteCand"} {
		var value []byte
		value, err = db.Get([]byte(key))
		check(t, err)
		fmt.Fprintf(&text, "%s %x\n", key, value)
	}
	first, err := db.FirstIndex()
	check(t, err)
	last, err := db.LastIndex()
	check(t, err)
	for i := first; i <= last; i++ {
		var e raft.Log
		check(t, db.GetLog(i, &e))
		fmt.Fprintf(&text, "%d %d %v %x %x %d\n", e.Index, e.Term, e.Type, e.Data, e.Extensions, e.AppendedAt.UnixNano())
	}
	return text.String()
}

func TestTruncatedDatabaseIsRefused(t *testing.T) {
	good := built(t, 40)
	content, err := os.ReadFile(filepath.Join(good, databaseFile))
	check(t, err)
	size, used := live(t, content)
	for _, length := range []int{0, 1, size, 2 * size, 2*size + 100, used[len(used)-1] * size, (used[len(used)-1]+1)*size - 1} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			check(t, os.WriteFile(filepath.Join(good, databaseFile), content[:length], fileMode))
			wantCorrupt(t, refused(t, good), databaseFile)
		})
	}
}

func TestZeroedPageIsRefused(t *testing.T) {
	dir := built(t, 40)
	path := filepath.Join(dir, databaseFile)
	content, err := os.ReadFile(path)
	check(t, err)
	size, used := live(t, content)
	for _, id := range used {
		bad := bytes.Clone(content)
		clear(bad[id*size : (id+1)*size])
		check(t, os.WriteFile(path, bad, fileMode))
		damage := damageOf(t, refused(t, dir), databaseFile)
		if !strings.Contains(damage.Where, "page") {
			t.Errorf("page %d: where is %q", id, damage.Where)
		}
	}
	if len(used) < 8 {
		t.Errorf("only pages %v were in use", used)
	}
}

func TestPagesInTheWrongPlaceAreRefused(t *testing.T) {
	dir := built(t, 60)
	path := filepath.Join(dir, databaseFile)
	content, err := os.ReadFile(path)
	check(t, err)
	size, used := live(t, content)
	for i := 2; i < len(used); i++ {
		from, to := used[i-1], used[i]
		bad := bytes.Clone(content)
		copy(bad[to*size:(to+1)*size], content[from*size:(from+1)*size])
		check(t, os.WriteFile(path, bad, fileMode))
		wantCorrupt(t, refused(t, dir), databaseFile)
	}
}

func TestMissingEntryIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		low, high uint64
		where     string
	}{
		"in the middle": {5, 6, "index 7 "},
		"at the front":  {1, 3, "index 4 "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := built(t, 20)
			db, err := openDatabase(filepath.Join(dir, databaseFile), true)
			check(t, err)
			check(t, db.DeleteRange(tc.low, tc.high))
			check(t, db.Close())
			if damage := damageOf(t, refused(t, dir), databaseFile); !strings.HasPrefix(damage.Where, tc.where) {
				t.Errorf("where is %q, want %q", damage.Where, tc.where)
			}
		})
	}
}

func TestEntryWithoutChecksumIsRefused(t *testing.T) {
	dir := built(t, 5)
	db, err := openDatabase(filepath.Join(dir, databaseFile), true)
	check(t, err)
	check(t, db.StoreLog(&raft.Log{Index: 6, Term: 1, Data: []byte("from elsewhere")}))
	check(t, db.Close())
	if damage := damageOf(t, refused(t, dir), databaseFile); !errors.Is(damage, errShort) {
		t.Errorf("cause is %v", damage.Err)
	}
}

func TestGapsCoveredByASnapshotAreLawful(t *testing.T) { eachStore(t, gapsCoveredByASnapshotAreLawful) }

func gapsCoveredByASnapshotAreLawful(t *testing.T, store LogStore) {
	dir := t.TempDir()
	s := openConfig(t, inStore(store, dir))
	appendEntries(t, s, 1, 10)
	makeSnapshot(t, s, 50, "received") // as a follower that was far behind
	closeStore(t, s)
	s = open(t, dir)
	appendEntries(t, s, 51, 60)
	closeStore(t, s)
	s = open(t, dir)
	wantEntries(t, s.Logs(), 51, 60)
	check(t, s.Logs().DeleteRange(1, 55)) // too far: 51 to 55 are in no snapshot
	closeStore(t, s)
	wantCorrupt(t, refused(t, dir), map[LogStore]string{LogStoreBoltDB: databaseFile, LogStoreWAL: walDir}[store])
}

// A file that the bbolt tool has compacted has a list of free pages.
func TestDatabaseWithAFreelistOpens(t *testing.T) {
	dir := built(t, 40)
	path := filepath.Join(dir, databaseFile)
	db, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{NoFreelistSync: false}})
	check(t, err)
	check(t, db.DeleteRange(0, 0))
	check(t, db.Close())
	wantEntries(t, open(t, dir).Logs(), 1, 40)
}

func TestFreelistWithAPageInUseIsRefused(t *testing.T) {
	dir := built(t, 40)
	path := filepath.Join(dir, databaseFile)
	db, err := raftboltdb.New(raftboltdb.Options{Path: path})
	check(t, err)
	check(t, db.DeleteRange(0, 0))
	check(t, db.Close())
	content, err := os.ReadFile(path)
	check(t, err)
	p, err := openPages(bytes.NewReader(content), uint64(len(content)))
	check(t, err)
	at := int(p.meta.freelist*p.size) + pageHeader
	content[at] = byte(p.meta.root)
	check(t, os.WriteFile(path, content, fileMode))
	wantCorrupt(t, refused(t, dir), databaseFile)
}

// Structure that no flipped bit makes: each rule of the checker by itself.
func TestForgedPagesAreRefused(t *testing.T) {
	dir := built(t, 40)
	good, err := os.ReadFile(filepath.Join(dir, databaseFile))
	check(t, err)
	size, used := live(t, good)
	var branch, leaf int // the offset of the branch page, and of its first leaf
	for _, id := range used[2:] {
		if binary.NativeEndian.Uint16(good[id*size+8:]) == flagBranch {
			branch = id * size
			leaf = int(binary.NativeEndian.Uint64(good[branch+pageHeader+8:])) * size
		}
	}
	child := func(b []byte, i int) []byte { return b[branch+pageHeader+i*elementSize+8:][:8] }
	key := func(b []byte, i int) []byte {
		row := leaf + pageHeader + i*elementSize
		return b[row+int(binary.NativeEndian.Uint32(b[row+4:])):][:8]
	}
	last := int(binary.NativeEndian.Uint16(good[leaf+10:])) - 1
	for name, tc := range map[string]struct {
		forge func(b []byte)
		want  string
	}{
		"a page used twice":       {func(b []byte) { copy(child(b, 1), child(b, 0)) }, "used twice"},
		"a page within itself":    {func(b []byte) { binary.NativeEndian.PutUint64(child(b, 0), uint64(branch/size)) }, "used twice"},
		"a page beyond the end":   {func(b []byte) { binary.NativeEndian.PutUint64(child(b, 0), 1<<40) }, "outside the file"},
		"a meta page in the tree": {func(b []byte) { binary.NativeEndian.PutUint64(child(b, 0), 1) }, "outside the file"},
		"a key twice":             {func(b []byte) { copy(key(b, 1), key(b, 0)) }, "out of order"},
		"a key too high":          {func(b []byte) { key(b, last)[6] = 1 }, "out of order"},
		"a key too low":           {func(b []byte) { copy(key(b, 0), make([]byte, 8)) }, "out of order"},
		"a run of pages too long": {func(b []byte) { binary.NativeEndian.PutUint32(b[leaf+12:], 1<<20) }, "runs over"},
		"too many elements":       {func(b []byte) { binary.NativeEndian.PutUint16(b[leaf+10:], 1<<15) }, "elements in"},
		"an unknown type":         {func(b []byte) { b[leaf+8] = flagFreelist }, "type"},
		"an empty branch":         {func(b []byte) { binary.NativeEndian.PutUint16(b[branch+10:], 0) }, "without children"},
		"a bucket in the log":     {func(b []byte) { b[leaf+pageHeader] = flagBucket }, "inside bucket"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := bytes.Clone(good)
			tc.forge(bad)
			_, err := checkPages(dir, bytes.NewReader(bad), uint64(len(bad)), 0, func(uint64, uint64) {})
			if damage := damageOf(t, err, databaseFile); !strings.Contains(damage.Err.Error(), tc.want) {
				t.Errorf("cause is %q, want %q", damage.Err, tc.want)
			}
		})
	}
}
