package storage

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// The format of a segment of raft-wal: a header of the file, then frames that
// begin at multiples of 8 bytes. One append is a batch: a frame for each entry,
// in the last batch of a segment one with the offsets of all entries, and a
// commit frame with the CRC32C of the batch. The rest of the file is zeros.
const (
	segmentSuffix = ".wal"
	segmentHeader = 32 // magic 4, reserved 3, version 1, first index 8, id 8, codec 8
	segmentMagic  = 0x58eb6b0d
	frameHeader   = 8 // type 1, reserved 3, length (of a commit: checksum) 4

	frameEntry  = 1
	frameIndex  = 2
	frameCommit = 3

	// sector is what a disk writes whole or not at all.
	sector = 512
)

var errSegment = errors.New("bad segment")

// segmentList is what is in raft.db about the segments.
type segmentList struct {
	types.PersistentState
	// Last is an index that the log had reached for certain when the list was
	// written, 0 if that is not known. An unsealed segment that ends before it
	// was not torn by a power loss: something was lost.
	Last uint64 `json:",omitempty"`
}

// tail returns the newest segment, which alone may be unsealed. With none it
// returns one that is sealed.
func (l segmentList) tail() (info types.SegmentInfo, unsealed bool) {
	if len(l.Segments) == 0 {
		return types.SegmentInfo{}, false
	}
	info = l.Segments[len(l.Segments)-1]
	return info, info.SealTime.IsZero()
}

// segmentFile is the name of a segment's file in the data folder.
func segmentFile(info types.SegmentInfo) string { return filepath.Join(walDir, segment.FileName(info)) }

// batches is what the whole batches of a segment hold.
type batches struct {
	offsets []int // of the frames of entries
	end     int   // where the next batch begins
	index   int   // where the offsets of all entries are written; 0: the segment is not sealed
}

// last is the index of the newest entry of a segment, that before its first one if it has none.
func (b batches) last(info types.SegmentInfo) uint64 {
	return info.BaseIndex + uint64(len(b.offsets)) - 1
}

// frameAt reads the header of a frame. It returns false if there is none, or none that fits the file.
func frameAt(file []byte, at int) (kind byte, value uint32, next int, ok bool) {
	if at+frameHeader > len(file) {
		return 0, 0, 0, false
	}
	kind, value = file[at], binary.LittleEndian.Uint32(file[at+4:])
	next = at + frameHeader
	switch kind {
	case frameCommit:
		return kind, value, next, true
	case frameEntry, frameIndex:
		next += (int(value) + 7) &^ 7
		return kind, value, next, next <= len(file)
	default:
		return 0, 0, 0, false
	}
}

// readBatch reads the batch whose frames begin at an offset and whose checksum
// begins at another: the first one's is also over the header of the file. It
// adds to what was read before. whole is false if there is no batch whose
// checksum fits; end is then where its commit frame ends, 0 if it has none.
func readBatch(file []byte, from, at int, read batches) (_ batches, end int, whole bool) {
	for {
		kind, value, next, ok := frameAt(file, at)
		switch {
		case !ok:
			return read, 0, false
		case kind == frameEntry:
			read.offsets = append(read.offsets, at)
		case kind == frameIndex:
			read.index = at + frameHeader
		default:
			read.end = next
			return read, next, crc32.Checksum(file[from:at], castagnoli()) == value
		}
		at = next
	}
}

// readBatches reads all whole batches from the beginning. broken is what
// follows them: 0 if nothing does, else where it ends as far as can be told.
func readBatches(file []byte) (read batches, broken int) {
	from, at := 0, segmentHeader
	for {
		next, end, whole := readBatch(file, from, at, read)
		if whole {
			read, from, at = next, next.end, next.end
			if read.index > 0 {
				return read, 0 // It is sealed: nothing that follows is read.
			}
			continue
		}
		if written := bytes.TrimRight(file[read.end:], "\x00"); len(written) == 0 {
			return read, 0
		}
		return read, max(end, read.end+1)
	}
}

// torn tells what a power loss left of the last append from damage to what was
// acknowledged. An append begins when the one before is on disk: so nothing
// whole follows a torn one. And the sectors that it lacks are zeros still.
func torn(file []byte, info types.SegmentInfo, read batches, end int) bool {
	if followed(file, read.end+frameHeader, read.last(info)) {
		return false
	}
	if end == read.end+1 {
		return true // Its end is not there.
	}
	for at := (read.end + sector - 1) / sector * sector; at+sector <= end; at += sector {
		if len(bytes.TrimRight(file[at:at+sector], "\x00")) == 0 {
			return true
		}
	}
	return false
}

// followed tells whether a whole batch of entries newer than last begins at an
// offset or later. Where a frame begins is known no more: any multiple of 8 may
// be one. What only looks like one costs its length, so there is a limit to
// that, beyond which it is taken for a batch: better a refusal too many.
func followed(file []byte, at int, last uint64) bool {
	from, most := 0, 16*len(file) // where entries that follow each other begin, 0: nowhere; bytes to look at
	for most >= 0 && at < len(file) {
		begin, next := from, at+frameHeader
		from = 0
		switch kind, _, end, ok := frameAt(file, at); {
		case !ok:
		case kind == frameEntry:
			most -= end - at
			if index, err := entryAt(file, at); err == nil && index > last {
				from, next = cmp.Or(begin, at), end
			}
		case begin > 0:
			if kind == frameIndex {
				at = end // Nothing but the commit follows.
			}
			if kind, sum, _, ok := frameAt(file, at); ok && kind == frameCommit {
				most -= at - begin
				if crc32.Checksum(file[begin:at], castagnoli()) == sum {
					return true
				}
			}
		}
		at = next
	}
	return most < 0
}

// entryAt reads and verifies the entry in a frame, at whatever index it says it has.
func entryAt(file []byte, at int) (index uint64, err error) {
	kind, size, _, ok := frameAt(file, at)
	if !ok || kind != frameEntry {
		return 0, fmt.Errorf("%w: no entry at offset %d", errSegment, at)
	}
	var e raft.Log
	err = caught(func() error { // The codec trusts what it reads.
		return new(wal.BinaryCodec).Decode(file[at+frameHeader:][:size], &e)
	})
	if err != nil {
		return 0, fmt.Errorf("decode entry: %w", err)
	}
	return e.Index, unseal(e.Index, &e)
}

// checkSegment verifies all of a segment: each entry and that none is missing,
// up to the index atLeast. cut reports that what follows the whole batches was
// torn by a power loss. With an error, where is what it is about.
func checkSegment(file []byte, info types.SegmentInfo, atLeast uint64) (read batches, cut bool, where string, err error) {
	if len(file) < max(int(info.SizeLimit), segmentHeader) {
		return batches{}, false, "index " + strconv.FormatUint(info.BaseIndex, 10), fmt.Errorf("%w: it has %d bytes, fewer than %d", errSegment, len(file), info.SizeLimit)
	}
	read, broken := readBatches(file)
	last := read.last(info)
	where = fmt.Sprintf("index %d (offset %d)", last+1, read.end)
	switch {
	case !info.SealTime.IsZero() && (uint64(read.index) != info.IndexStart || last < info.MaxIndex):
		err = fmt.Errorf("%w: it was sealed at index %d, offset %d, and does not reach so far", errSegment, info.MaxIndex, info.IndexStart)
	case broken > 0 && !torn(file, info, read, broken):
		err = fmt.Errorf("%w: an append that was acknowledged has another checksum", errSegment)
	case last < atLeast:
		err = fmt.Errorf("%w: entries up to index %d were acknowledged", errSegment, atLeast)
	case read.end > 0:
		where, err = checkBatches(file, info, read)
	}
	return read, broken > 0, where, err
}

// checkBatches verifies the header and the entries of a segment that has any.
func checkBatches(file []byte, info types.SegmentInfo, read batches) (where string, err error) {
	order := binary.LittleEndian
	if order.Uint64(file) != segmentMagic || order.Uint64(file[8:]) != info.BaseIndex || order.Uint64(file[16:]) != info.ID || order.Uint64(file[24:]) != info.Codec {
		return "its header", fmt.Errorf("%w: not that of segment %d from index %d", errSegment, info.ID, info.BaseIndex)
	}
	if read.index > 0 && read.index+4*len(read.offsets) > len(file) {
		return "its list of offsets", fmt.Errorf("%w: too short", errSegment)
	}
	for i, at := range read.offsets {
		index := info.BaseIndex + uint64(i)
		got, err := entryAt(file, at)
		if err == nil && got != index {
			err = fmt.Errorf("entry says it has index %d", got)
		}
		if err == nil && read.index > 0 && int(order.Uint32(file[read.index+4*i:])) != at {
			err = fmt.Errorf("%w: its list of offsets has another for it", errSegment)
		}
		if err != nil {
			return fmt.Sprintf("index %d (offset %d)", index, at), err
		}
	}
	return "", nil
}

// checkSegments reads all segments in the list without changing them: every
// checksum, and that no entry after base, the index of the newest good
// snapshot, is missing. torn reports that the newest segment ends in an append
// that a power loss has torn. Memory: one segment.
func checkSegments(dir, encoded string, base uint64, logger *slog.Logger) (found contents, torn bool, err error) {
	if encoded == "" {
		return contents{}, false, checkNoSegments(dir)
	}
	var list segmentList
	if err = json.Unmarshal([]byte(encoded), &list); err != nil {
		return contents{}, false, corrupt(dir, databaseFile, "the list of segments", err)
	}
	step := progress(logger, filepath.Join(dir, walDir))
	var next uint64 // the index that the next segment must begin with
	for i, info := range list.Segments {
		file, isTail := segmentFile(info), i == len(list.Segments)-1
		if i > 0 && info.BaseIndex != next || info.BaseIndex == 0 || info.MinIndex < info.BaseIndex || info.SealTime.IsZero() != isTail {
			return contents{}, false, corrupt(dir, databaseFile, "the list of segments", fmt.Errorf("%w: %s does not follow", errSegment, file))
		}
		atLeast := uint64(0)
		if isTail {
			atLeast = list.Last
		}
		var last uint64
		if last, torn, err = checkFile(dir, info, atLeast); err != nil {
			return contents{}, false, err
		}
		next = last + 1
		if last >= info.MinIndex {
			if found.entries == 0 && info.MinIndex > base+1 {
				err = fmt.Errorf("entries %d to %d are missing; the newest good snapshot ends at %d", base+1, info.MinIndex-1, base)
				return contents{}, false, corrupt(dir, file, fmt.Sprintf("index %d", info.MinIndex), err)
			}
			found.entries += int(last - info.MinIndex + 1)
			found.last = last
		}
		step(uint64(i+1)*uint64(info.SizeLimit), uint64(len(list.Segments))*uint64(info.SizeLimit))
	}
	return found, torn, nil
}

// checkFile reads and verifies the file of a segment and returns the index of its last entry.
func checkFile(dir string, info types.SegmentInfo, atLeast uint64) (last uint64, torn bool, err error) {
	file := segmentFile(info)
	content, err := os.ReadFile(filepath.Join(dir, file))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, false, corrupt(dir, file, "the whole file", errMissing)
	case err != nil:
		return 0, false, accessError(err)
	}
	read, torn, where, err := checkSegment(content, info, atLeast)
	switch {
	case err != nil:
		return 0, false, corrupt(dir, file, where, err)
	case info.SealTime.IsZero():
		return read.last(info), torn, nil
	default:
		return info.MaxIndex, false, nil
	}
}

// checkNoSegments verifies that nothing was ever written to a log whose list is
// not there: it is made at the first start, before the first append.
func checkNoSegments(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, walDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return accessError(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, walDir, e.Name()))
		if err != nil {
			return accessError(err)
		}
		if strings.HasSuffix(e.Name(), segmentSuffix) && len(bytes.TrimRight(content, "\x00")) > 0 {
			return corrupt(dir, databaseFile, "the list of segments", errMissing)
		}
	}
	return nil
}
