package storage

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// listed is the list of segments in a closed folder.
func listed(t *testing.T, dir string) (list segmentList) {
	t.Helper()
	relist(t, dir, func(l *segmentList) { list = *l })
	return list
}

// relist changes the list of segments of a closed folder.
func relist(t *testing.T, dir string, change func(l *segmentList)) {
	t.Helper()
	db, err := openDatabase(filepath.Join(dir, databaseFile), true)
	check(t, err)
	defer db.Close()
	s := &stable{inner: db, guard: &guard{dir: dir}}
	value, err := s.Get([]byte(segmentsKey))
	check(t, err)
	var list segmentList
	check(t, json.Unmarshal(value, &list))
	change(&list)
	value, err = json.Marshal(list)
	check(t, err)
	check(t, s.Set([]byte(segmentsKey), value))
}

// crashed is as if the process had been killed: nothing says how far the log reached.
func crashed(t *testing.T, dir string) {
	t.Helper()
	relist(t, dir, func(l *segmentList) { l.Last = 0 })
}

// newest is the path of the segment that is appended to.
func newest(t *testing.T, dir string) string {
	t.Helper()
	info, unsealed := listed(t, dir).tail()
	if !unsealed {
		t.Fatal("no segment is open")
	}
	return filepath.Join(dir, segmentFile(info))
}

func TestOtherLogStoreIsRefused(t *testing.T) {
	eachStore(t, func(t *testing.T, store LogStore) {
		dir := builtIn(t, store, 3)
		other := LogStores()[1-slices.Index(LogStores(), store)]
		before := files(t, dir)
		_, err := Open(inStore(other, dir))
		if !errors.Is(err, ErrLogStore) || !strings.Contains(err.Error(), fmt.Sprintf("%s has %s, asked for was %s", dir, store, other)) {
			t.Errorf("open: %v", err)
		}
		if after := files(t, dir); len(after) != len(before) {
			t.Errorf("%d files of %d", len(after), len(before))
		}
		s := openConfig(t, inStore(store, dir))
		check(t, s.SetClusterID("c")) // The identity is written anew.
		closeStore(t, s)
		if got := open(t, dir).Identity().LogStore; got != store {
			t.Errorf("the folder has %s", got)
		}
	})
}

// Each byte of a sealed segment and of the one that is appended to, after a stop
// in order and after a crash: what passes reads as it was. After a crash the
// last append alone may be missing, as if it had been torn.
func TestEveryFlippedByteOfASegmentIsRefusedOrHarmless(t *testing.T) {
	cfg := inStore(LogStoreWAL, filepath.Join(t.TempDir(), "data"))
	cfg.segmentSize = 2 << 10
	s := openConfig(t, cfg)
	const count = 7
	appendEntries(t, s, 1, count)
	closeStore(t, s)
	list := listed(t, cfg.Dir)
	refusals, harmless, cut := 0, 0, 0
	for _, info := range list.Segments {
		path := filepath.Join(cfg.Dir, segmentFile(info))
		good, err := os.ReadFile(path)
		check(t, err)
		for at := range good {
			bad := bytes.Clone(good)
			bad[at] ^= 1 << (at % 8)
			passed := false
			for _, last := range []uint64{0, list.Last} {
				if !info.SealTime.IsZero() {
					last = 0
				}
				_, _, where, err := checkSegment(bad, info, last)
				switch {
				case err == nil:
					passed = true
				case !strings.Contains(where, "index") && !strings.Contains(where, "its "):
					t.Errorf("offset %d: where is %q", at, where)
				default:
					refusals++
				}
			}
			if !passed || at%(8*fewer) != 0 && len(bytes.TrimRight(good[at:], "\x00")) == 0 {
				continue
			}
			check(t, os.WriteFile(path, bad, fileMode))
			crashed(t, cfg.Dir)
			s, err := Open(cfg)
			if err != nil {
				t.Fatalf("offset %d of %s passed and is refused: %v", at, path, err)
			}
			last, err := s.Logs().LastIndex()
			check(t, err)
			wantEntries(t, s.Logs(), 1, last)
			closeStore(t, s)
			switch last {
			case count:
				harmless++
			case count - 1:
				cut++
			default:
				t.Fatalf("offset %d of %s passed, and the log ends at %d", at, path, last)
			}
			check(t, os.WriteFile(path, good, fileMode))
		}
	}
	t.Logf("%d flips refused, %d harmless, %d cut the last append off", refusals, harmless, cut)
	if refusals < 5000 || cut == 0 || cut > 40 {
		t.Errorf("%d flips were refused, %d cut the last append off", refusals, cut)
	}
}

// Every way in which a power loss tears the last append at the sectors of a
// disk: it is cut off, and appended anew.
func TestTornAppendIsCutOff(t *testing.T) {
	dir := builtIn(t, LogStoreWAL, 12)
	path := newest(t, dir)
	before, err := os.ReadFile(path)
	check(t, err)
	whole, _ := readBatches(before)
	s := open(t, dir)
	check(t, s.Logs().StoreLogs(entries(13, 17)))
	closeStore(t, s)
	crashed(t, dir)
	after, err := os.ReadFile(path)
	check(t, err)
	all, _ := readBatches(after)
	first, last := whole.end/sector, (all.end-1)/sector
	for lost := 1; lost < 1<<(last-first+1); lost++ {
		torn := bytes.Clone(after)
		for i := range last - first + 1 {
			if lost&(1<<i) != 0 {
				at := (first + i) * sector
				copy(torn[at:], before[at:at+sector])
			}
		}
		check(t, os.WriteFile(path, torn, fileMode))
		crashed(t, dir)
		cfg := config(dir)
		s, err := Open(cfg)
		if err != nil {
			t.Fatalf("with sectors %b lost: %v", lost, err)
		}
		wantEntries(t, s.Logs(), 1, 12)
		if got, err := s.Logs().LastIndex(); got != 12 || err != nil {
			t.Fatalf("with sectors %b lost the log ends at %d, %v", lost, got, err)
		}
		closeStore(t, s)
		if content, err := os.ReadFile(path); err != nil || !bytes.Equal(content, before) {
			t.Fatalf("with sectors %b lost something is left: %v", lost, err)
		}
	}
	appendEntries(t, open(t, dir), 13, 20)
}

// Each multiple of 8 looks like an entry as long as the rest: to read them all takes the square of the size.
func TestWhatLooksLikeEntriesIsReadWithinALimit(t *testing.T) {
	file := make([]byte, 1<<20)
	for at := 0; at < len(file); at += frameHeader {
		file[at] = frameEntry
		binary.LittleEndian.PutUint32(file[at+4:], uint32(len(file)-at-frameHeader))
	}
	if !followed(file, 0, 0) {
		t.Error("all of it was read")
	}
	if followed(file[:64], 0, 0) {
		t.Error("a whole batch was found in it")
	}
}

func TestSegmentThatLacksWhatWasAcknowledgedIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir, path string){
		"the last append, after a stop in order": func(t *testing.T, _, path string) {
			edit(t, path, func(b []byte) []byte {
				read, _ := readBatches(b)
				clear(b[read.end-sector : read.end])
				return b
			})
		},
		"an append in the middle": func(t *testing.T, dir, path string) {
			crashed(t, dir)
			edit(t, path, func(b []byte) []byte {
				read, _ := readBatches(b)
				clear(b[read.offsets[0] : read.offsets[0]+sector])
				return b
			})
		},
		"a byte of the last append, after a crash": func(t *testing.T, dir, path string) {
			crashed(t, dir)
			edit(t, path, func(b []byte) []byte {
				read, _ := readBatches(b)
				b[read.end-100] ^= 4
				return b
			})
		},
		"its end":        func(t *testing.T, _, path string) { check(t, os.Truncate(path, 5000)) },
		"all of it":      func(t *testing.T, _, path string) { check(t, os.Remove(path)) },
		"all of a crash": func(t *testing.T, dir, path string) { crashed(t, dir); check(t, os.Remove(path)) },
		"a sealed one": func(t *testing.T, dir, _ string) {
			check(t, os.Remove(filepath.Join(dir, segmentFile(listed(t, dir).Segments[0]))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := builtIn(t, LogStoreWAL, 60)
			spoil(t, dir, newest(t, dir))
			wantCorrupt(t, refused(t, dir), segmentSuffix)
		})
	}
}

func TestLostListOfSegmentsIsRefused(t *testing.T) {
	dir := builtIn(t, LogStoreWAL, 3)

	content, err := os.ReadFile(filepath.Join(built(t, 0), databaseFile))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, databaseFile), content, fileMode))
	wantCorrupt(t, refused(t, dir), databaseFile)
}

// A list that does not fit together, although its checksum does.
func TestForgedListOfSegmentsIsRefused(t *testing.T) {
	for name, forge := range map[string]func(l *segmentList){
		"a segment left out": func(l *segmentList) { l.Segments = slices.Delete(l.Segments, 1, 2) },
		"an open one first":  func(l *segmentList) { l.Segments[0].SealTime = l.Segments[len(l.Segments)-1].SealTime },
		"a sealed one short": func(l *segmentList) { l.Segments[0].MaxIndex++ },
		"another id":         func(l *segmentList) { l.Segments[0].ID = 99 },
	} {
		t.Run(name, func(t *testing.T) {
			dir := builtIn(t, LogStoreWAL, 100)
			relist(t, dir, forge)
			if err := refused(t, dir); !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
		})
	}
}

// A follower that lags reads what a snapshot deletes: it gets the entry or none, never an error that means damage.
func TestWhatIsDeletedWhileItIsRead(t *testing.T) {
	cfg := inStore(LogStoreWAL, t.TempDir())
	cfg.segmentSize = 4 << 10
	s := openConfig(t, cfg)
	var first atomic.Uint64
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for i := range uint64(8) {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var e raft.Log
				if err := s.log.GetLog(first.Load()+i, &e); err != nil && !errors.Is(err, raft.ErrLogNotFound) {
					t.Error(err)
					return
				}
			}
		})
	}
	const batch = 20
	for low := uint64(1); low < 2000 && !t.Failed(); low += batch {
		check(t, s.Logs().StoreLogs(entries(low, low+batch-1)))
		if low > batch {
			check(t, s.Logs().DeleteRange(first.Load(), low-1))
		}
		first.Store(low)
	}
	close(stop)
	readers.Wait()
}

// raft-wal writes the next append at the offset of the one that failed. Of that nothing may be left.
func TestAppendThatFailedLeavesNothing(t *testing.T) {
	dir := builtIn(t, LogStoreWAL, 5)
	path := newest(t, dir)
	before, err := os.ReadFile(path)
	check(t, err)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer file.Close()
	w := &segmentWriter{File: file, files: &walFiles{size: len(before)}}
	read, _ := readBatches(before)
	limit := syscall.Rlimit{}
	check(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit))
	small := syscall.Rlimit{Cur: uint64(len(before)) + 100, Max: limit.Max}
	check(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small))
	n, err := w.WriteAt(bytes.Repeat([]byte("x"), len(before)), int64(read.end))
	check(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
	if n != 0 || !isFull(err) {
		t.Errorf("write: %d, %v", n, err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("something is left: %v", err)
	}
}

func TestFailedSyncOfASegmentStopsTheNode(t *testing.T) {
	var fatal []error
	cfg := inStore(LogStoreWAL, t.TempDir())
	cfg.NoSync = false
	cfg.OnFatal = func(err error) { fatal = append(fatal, err) }
	s := openConfig(t, cfg)
	appendEntries(t, s, 1, 3)
	info, _ := s.log.(*walLog).files.list.tail()
	breakDescriptor(t, filepath.Join(cfg.Dir, segmentFile(info)))
	for range 2 {
		if err := s.Logs().StoreLog(entry(4)); !errors.Is(err, ErrSync) {
			t.Errorf("append: %v", err)
		}
	}
	if len(fatal) != 1 || !errors.Is(fatal[0], ErrSync) {
		t.Errorf("fatal: %v", fatal)
	}
}

// breakDescriptor lets writes to a file that this process has open succeed and its fsyncs fail.
func breakDescriptor(t *testing.T, path string) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	check(t, err)
	t.Cleanup(func() { check(t, null.Close()) })
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	broken := 0
	for _, fd := range fds {
		name := filepath.Join("/proc/self/fd", fd.Name())
		if target, err := os.Readlink(name); err != nil || target != path {
			continue
		}
		var number int
		_, err := fmt.Sscan(fd.Name(), &number)
		check(t, err)
		check(t, syscall.Dup3(int(null.Fd()), number, syscall.O_CLOEXEC))
		broken++
	}
	if broken != 1 {
		t.Fatalf("%d descriptors of %s", broken, path)
	}
}
