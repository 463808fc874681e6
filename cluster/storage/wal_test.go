package storage

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
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

// FuzzSegment checks arbitrary bytes as a segment, the checksums of its batches
// put right: no panic, and what passes is read by the library as it was checked,
// and appended to unless it is sealed.
func FuzzSegment(f *testing.F) {
	info := types.SegmentInfo{ID: 3, BaseIndex: 5, MinIndex: 5, Codec: wal.CodecBinaryV1, SizeLimit: 4096}
	f.Add(encodedSegment(f, info, 3), false)
	f.Add(encodedSegment(f, info, 0), false)
	f.Add(encodedSegment(f, info, 12), true)
	f.Fuzz(func(t *testing.T, content []byte, reseal bool) {
		if len(content) > 1<<14 {
			return // Longer ones hold nothing else, only more of it.
		}
		file := memFile(append(bytes.Clone(content), make([]byte, max(0, int(info.SizeLimit)-len(content)))...))
		if reseal {
			resealBatches(file)
		}
		read, cut, where, err := checkSegment(file, info, 0)
		if err != nil {
			if where == "" {
				t.Fatalf("error %q has no place", err)
			}
			return
		}
		if cut {
			clear(file[read.end:])
		}
		filer := segment.NewFiler("", memFiles{file: append(file, make([]byte, info.SizeLimit)...)}) // room for one more
		var library types.SegmentReader
		if last := read.last(info); read.index > 0 {
			sealed := info
			sealed.SealTime, sealed.IndexStart, sealed.MaxIndex = time.Unix(1, 0), uint64(read.index), last
			library, err = filer.Open(sealed)
			check(t, err)
		} else {
			tail, err := filer.RecoverTail(info)
			check(t, err)
			if got := tail.LastIndex(); len(read.offsets) > 0 && got != last || len(read.offsets) == 0 && got != 0 {
				t.Fatalf("the library reads up to %d, checked was %d", got, last)
			}
			var data bytes.Buffer
			check(t, new(wal.BinaryCodec).Encode(seal(entries(last+1, last+1))[0], &data))
			check(t, tail.Append([]types.LogEntry{{Index: last + 1, Data: data.Bytes()}}))
			library, read.offsets = tail, append(read.offsets, 0)
		}
		for i := range read.offsets {
			var e raft.Log
			data, err := library.GetLog(info.BaseIndex + uint64(i))
			check(t, err)
			check(t, new(wal.BinaryCodec).Decode(data.Bs, &e))
			check(t, unseal(info.BaseIndex+uint64(i), &e))
			check(t, data.Close())
		}
	})
}

// memFiles is a folder with one file, in memory.
type memFiles struct {
	types.VFS
	file memFile
}

func (f memFiles) OpenReader(_, _ string) (types.ReadableFile, error) { return f.file, nil }

func (f memFiles) OpenWriter(_, _ string) (types.WritableFile, error) { return f.file, nil }

// memFile is a file in memory, of a size that does not change: what is written beyond it is lost.
type memFile []byte

func (f memFile) ReadAt(b []byte, at int64) (int, error) { return bytes.NewReader(f).ReadAt(b, at) }

func (f memFile) WriteAt(b []byte, at int64) (int, error) {
	copy(f[at:], b)
	return len(b), nil
}

func (f memFile) Sync() error { return nil }

func (f memFile) Close() error { return nil }

// encodedSegment is a segment with n entries, one a batch.
func encodedSegment(f *testing.F, info types.SegmentInfo, n int) []byte {
	f.Helper()
	cfg := inStore(LogStoreWAL, f.TempDir())
	cfg.segmentSize = int(info.SizeLimit)
	s, err := Open(cfg)
	if err != nil {
		f.Fatal(err)
	}
	for i := range uint64(n) {
		if err = s.Logs().StoreLog(entry(info.BaseIndex + i)); err != nil {
			f.Fatal(err)
		}
	}
	tail := s.log.(*walLog).file(info.BaseIndex)
	if err = s.Close(); err != nil {
		f.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(cfg.Dir, tail))
	if err != nil {
		f.Fatal(err)
	}
	content[16] = byte(info.ID)
	resealBatches(content)
	return content
}

// resealBatches puts the checksums of all batches right.
func resealBatches(file []byte) {
	from, at := 0, segmentHeader
	for {
		kind, _, next, ok := frameAt(file, at)
		if !ok {
			return
		}
		if kind == frameCommit {
			sum := crc32.Checksum(file[from:at], castagnoli())
			file[at+4], file[at+5], file[at+6], file[at+7] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
			from = next
		}
		at = next
	}
}
