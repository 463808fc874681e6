package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

const (
	walDir = "wal"
	// segmentsKey is where in raft.db the list of segments is, beside term and
	// vote and with a checksum like theirs.
	segmentsKey = "LogSegments"
	// defaultSegmentSize is what a segment takes of the disk in advance. It is
	// small beside the watermark of free space, and some 30,000 registrations.
	defaultSegmentSize = 8 << 20
)

// walLog is the log in segments, files that are written from front to back: one
// fsync an append. raft-wal does that work; what it takes for granted is done
// here and in walFiles.
//
// raft-wal has one goroutine, which makes the next segment when one is full. It
// writes under the lock that Close takes first, so it writes nothing after
// Close, and ends by itself: it is not waited for. A segment that Close has kept
// it from making is made by the next open.
type walLog struct {
	files  *walFiles
	logger hclog.Logger

	mu  sync.RWMutex // guards what follows; held alone to replace it, and to delete
	log *wal.WAL
}

var (
	_ logDatabase            = (*walLog)(nil)
	_ raft.MonotonicLogStore = (*walLog)(nil)
)

// openWAL opens segments that were checked, or makes the first one. A torn end
// is cut off first, which raft-wal would append to.
func openWAL(files *walFiles, cut bool, base uint64, logger *slog.Logger) (*walLog, error) {
	if err := makeDir(files.path("")); err != nil {
		return nil, fmt.Errorf("make %s: %w", files.path(""), accessError(err))
	}
	w := &walLog{files: files, logger: hclog.FromStandardLogger(
		slog.NewLogLogger(logger.Handler(), slog.LevelWarn), &hclog.LoggerOptions{Name: "wal", Level: hclog.Error, DisableTime: true})}
	if _, err := files.Load(""); err != nil {
		return nil, err
	}
	if err := files.removeUnlisted(); err != nil {
		return nil, fmt.Errorf("remove segments of no use: %w", accessError(err))
	}
	if cut {
		if err := files.cutTail(logger); err != nil {
			return nil, fmt.Errorf("cut the torn end of the log: %w", accessError(err))
		}
	}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", files.path(""), accessError(err))
	}
	return w, w.dropReplaced(base)
}

// open finishes a rotation that was broken off, by a crash, by Close or by a
// disk that was full, and opens the log. raft-wal alone would refuse every
// append to a log whose newest segment is sealed.
func (w *walLog) open() error {
	if err := w.files.finishRotation(); err != nil {
		return err
	}
	log, err := wal.Open(w.files.path(""), wal.WithMetaStore(w.files), wal.WithLogger(w.logger),
		wal.WithSegmentFiler(segment.NewFiler(w.files.path(""), w.files)), wal.WithSegmentSize(w.files.size))
	if err != nil {
		return err
	}
	w.mu.Lock()
	old := w.log
	w.log = log
	w.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// dropReplaced deletes a log that ends before base, the index of the newest
// snapshot. raft does so when it has received a snapshot, and a crash may have
// come first; the next entry leaves a gap, which a monotonic store refuses.
func (w *walLog) dropReplaced(base uint64) error {
	first, err := w.FirstIndex()
	if err != nil {
		return err
	}
	last, err := w.LastIndex()
	if err != nil || last == 0 || last >= base {
		return err
	}
	return w.DeleteRange(first, last)
}

// IsMonotonic tells raft that the log takes no gaps: it deletes the log before it leaves one.
func (w *walLog) IsMonotonic() bool { return true }

// file is the segment of an index.
func (w *walLog) file(index uint64) string {
	w.files.mu.Lock()
	defer w.files.mu.Unlock()
	for _, info := range slices.Backward(w.files.list.Segments) {
		if info.BaseIndex <= index {
			return segmentFile(info)
		}
	}
	return walDir
}

// FirstIndex is the index of the oldest entry, 0 if there is none.
func (w *walLog) FirstIndex() (uint64, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.log.FirstIndex()
}

// LastIndex is the index of the newest entry, 0 if there is none.
func (w *walLog) LastIndex() (uint64, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.log.LastIndex()
}

// GetLog reads an entry. raft-wal alone would also read what was deleted from
// the front of the newest segment, and raft would never send a snapshot.
func (w *walLog) GetLog(index uint64, e *raft.Log) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	first, err := w.log.FirstIndex()
	if err != nil {
		return err
	}
	if index < first {
		return raft.ErrLogNotFound
	}
	return w.log.GetLog(index, e)
}

// StoreLog appends one entry.
func (w *walLog) StoreLog(e *raft.Log) error { return w.StoreLogs([]*raft.Log{e}) }

// StoreLogs appends entries. A segment that was sealed and has no successor
// needs the log opened again: the disk was full when it was to be made.
func (w *walLog) StoreLogs(entries []*raft.Log) error {
	err := w.store(entries)
	if !errors.Is(err, wal.ErrSealed) {
		return err
	}
	if err := w.open(); err != nil {
		return err
	}
	return w.store(entries)
}

func (w *walLog) store(entries []*raft.Log) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.log.StoreLogs(entries)
}

// DeleteRange deletes entries at the front or at the end. It waits for those who
// read: raft-wal would close the files of whoever begins to just then, and an
// error of the disk means damage.
func (w *walLog) DeleteRange(low, high uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, err := w.log.LastIndex()
	if err != nil {
		return err
	}
	return w.log.DeleteRange(low, min(high, last))
}

// Close closes the log and notes how far it reached, if the disk lets it: what
// is missing at the next start was lost, not torn.
func (w *walLog) Close() error {
	last, err := w.LastIndex()
	if err != nil {
		return err
	}
	if err = w.log.Close(); err != nil {
		return err
	}
	w.files.mu.Lock()
	defer w.files.mu.Unlock()
	list := w.files.list
	list.Last = last
	if err = w.files.write(list); err != nil && !errors.Is(err, ErrDiskFull) && w.files.guard.failed.Load() == nil {
		return err
	}
	return nil
}

// walFiles makes, lists and deletes segments for raft-wal, which would do it
// less carefully: here the file of a segment is on disk before the list says
// so, so that a missing file is a lost one; the list is verified like a vote;
// and an append that failed leaves nothing behind that could be read for one.
type walFiles struct {
	dir    string // the data folder
	size   int    // of a segment
	noSync bool
	guard  *guard
	stable *stable

	mu   sync.Mutex // guards what follows
	list segmentList
}

var (
	_ types.MetaStore = (*walFiles)(nil)
	_ types.VFS       = (*walFiles)(nil)
)

func (f *walFiles) path(name string) string { return filepath.Join(f.dir, walDir, name) }

// Load returns the list of segments, empty at the first start.
func (f *walFiles) Load(string) (types.PersistentState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, err := f.stable.Get([]byte(segmentsKey))
	switch {
	case errors.Is(err, raftboltdb.ErrKeyNotFound):
		return types.PersistentState{}, nil
	case err != nil:
		return types.PersistentState{}, err
	}
	if err = json.Unmarshal(value, &f.list); err != nil {
		return types.PersistentState{}, f.guard.damaged(databaseFile, "the list of segments", err)
	}
	return f.list.PersistentState, nil
}

// CommitState makes the file of a new segment, then the list durable.
func (f *walFiles) CommitState(state types.PersistentState) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := segmentList{PersistentState: state}
	info, unsealed := list.tail()
	if known, _ := f.list.tail(); unsealed && (len(f.list.Segments) == 0 || info.ID != known.ID) {
		err := f.guard.write(segmentFile(info), "make a segment of the log", func() error { return f.makeSegment(f.path(segment.FileName(info))) })
		if err != nil {
			return err
		}
	}
	return f.write(list)
}

func (f *walFiles) write(list segmentList) error {
	value, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode the list of segments: %w", err)
	}
	if err = f.stable.Set([]byte(segmentsKey), value); err == nil {
		f.list = list
	}
	return err
}

// makeSegment makes a file of zeros, durably. Where there is no room for all of
// it, it is made with a hole: whoever appends is told when the disk is full.
func (f *walFiles) makeSegment(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	if allocate(file, int64(f.size)) != nil {
		err = errors.Join(file.Truncate(0), file.Truncate(int64(f.size)))
	}
	if err == nil && !f.noSync {
		err = errors.Join(file.Sync(), syncDir(f.path("")))
	}
	return errors.Join(err, file.Close())
}

// finishRotation lists the newest segment as sealed if it is, and a new one after it.
func (f *walFiles) finishRotation() error {
	f.mu.Lock()
	list := f.list
	f.mu.Unlock()
	info, unsealed := list.tail()
	if !unsealed {
		return nil
	}
	file, err := os.ReadFile(f.path(segment.FileName(info)))
	if err != nil {
		return err
	}
	read, _ := readBatches(file)
	if read.index == 0 {
		return nil
	}
	next := info
	next.ID, next.BaseIndex, next.CreateTime = list.NextSegmentID, read.last(info)+1, time.Now()
	next.MinIndex = next.BaseIndex
	info.IndexStart, info.MaxIndex, info.SealTime = uint64(read.index), read.last(info), time.Now()
	sealed := append(slices.Clone(list.Segments[:len(list.Segments)-1]), info, next)
	return f.CommitState(types.PersistentState{NextSegmentID: list.NextSegmentID + 1, Segments: sealed})
}

// cutTail takes a torn append off the newest segment.
func (f *walFiles) cutTail(logger *slog.Logger) error {
	info, _ := f.list.tail()
	path := f.path(segment.FileName(info))
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	read, _ := readBatches(content)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.cut(file, int64(read.end))
	if err == nil {
		err = file.Sync()
	}
	logger.Warn("a torn append was cut off the log", "file", path, "offset", read.end, "last_index", read.last(info))
	return errors.Join(err, file.Close())
}

// cut makes a segment read as zeros from an offset on.
func (f *walFiles) cut(file *os.File, at int64) error {
	return errors.Join(file.Truncate(at), file.Truncate(max(at, int64(f.size))))
}

// removeUnlisted removes what a crash left of segments that are not yet, or no more, in the list.
func (f *walFiles) removeUnlisted() error {
	names, err := f.ListDir("")
	for _, name := range names {
		listed := slices.ContainsFunc(f.list.Segments, func(info types.SegmentInfo) bool { return segment.FileName(info) == name })
		if !listed && strings.HasSuffix(name, segmentSuffix) {
			err = errors.Join(err, os.Remove(f.path(name)))
		}
	}
	return err
}

// ListDir returns the names of all files.
func (f *walFiles) ListDir(string) ([]string, error) {
	entries, err := os.ReadDir(f.path(""))
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Create opens the file of a new segment, which CommitState has made.
func (f *walFiles) Create(dir, name string, _ uint64) (types.WritableFile, error) {
	return f.OpenWriter(dir, name)
}

// Delete removes a segment that is no more in the list. Should it come back after a crash, it is removed at the next start.
func (f *walFiles) Delete(_, name string) error { return os.Remove(f.path(name)) }

// OpenReader opens a sealed segment.
func (f *walFiles) OpenReader(_, name string) (types.ReadableFile, error) {
	return os.Open(f.path(name))
}

// OpenWriter opens the newest segment.
func (f *walFiles) OpenWriter(_, name string) (types.WritableFile, error) {
	file, err := os.OpenFile(f.path(name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &segmentWriter{File: file, files: f}, nil
}

// GetStable and SetStable are not used: term and vote are in raft.db, as with boltdb.
func (f *walFiles) GetStable([]byte) ([]byte, error) { return nil, errors.ErrUnsupported }

// SetStable is like GetStable.
func (f *walFiles) SetStable(_, _ []byte) error { return errors.ErrUnsupported }

// Close does nothing: no file is kept open.
func (f *walFiles) Close() error { return nil }

// segmentWriter is the newest segment.
type segmentWriter struct {
	*os.File
	files *walFiles
}

// WriteAt writes at an offset or, with an error, not at all: raft-wal goes on
// from that offset, and what lies after the next append must be zeros.
func (w *segmentWriter) WriteAt(data []byte, at int64) (int, error) {
	n, err := w.File.WriteAt(data, at)
	if err == nil {
		return n, nil
	}
	if cut := w.files.cut(w.File, at); cut != nil {
		return 0, fmt.Errorf("%w, after %v", cut, err) //nolint:errorlint // The first error is no longer what matters.
	}
	return 0, err
}

// Sync makes the content durable. The size needs none: it was made so before.
func (w *segmentWriter) Sync() error {
	if w.files.noSync {
		return nil
	}
	return syncData(w.File)
}
