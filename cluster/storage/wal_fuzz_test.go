package storage

import (
	"bytes"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

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
