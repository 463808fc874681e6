package storage

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// The files of one snapshot. The sum is ours: raft's own checksum covers the
// state alone, not the index and the members in the meta file.
const (
	metaFile  = "meta.json"
	stateFile = "state.bin"
	sumFile   = "meta.sum"
)

// snapshotMeta is meta.json as raft.FileSnapshotStore writes it.
type snapshotMeta struct {
	raft.SnapshotMeta
	CRC []byte
}

// sum is over what is known when a snapshot is begun. Of the rest, the state's
// own checksum guards itself, and its size with it.
func (m snapshotMeta) sum() (string, error) {
	m.Size = 0
	text, err := json.Marshal(m.SnapshotMeta)
	if err != nil {
		return "", fmt.Errorf("encode snapshot meta: %w", err)
	}
	return fmt.Sprintf("%08x\n", crc32.Checksum(text, castagnoli())), nil
}

func readMetaFile(path string) (m snapshotMeta, err error) {
	content, err := os.ReadFile(filepath.Join(path, metaFile))
	if err == nil {
		err = json.Unmarshal(content, &m)
	}
	return m, err
}

// snapshot is one found in the folder.
type snapshot struct {
	id          string
	term, index uint64
	err         error // what is damaged, nil if nothing is
}

// listSnapshots reads and verifies all snapshots, newest first as raft orders
// them. Folders that are not named like one are none.
func listSnapshots(dir string, logger *slog.Logger) ([]snapshot, error) {
	path := filepath.Join(dir, snapshotsDir)
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", accessError(err))
	}
	var found []snapshot
	for _, e := range entries {
		s := snapshot{id: e.Name()}
		var msec uint64
		if n, _ := fmt.Sscanf(s.id, "%d-%d-%d", &s.term, &s.index, &msec); n != 3 || !e.IsDir() ||
			s.id != fmt.Sprintf("%d-%d-%d", s.term, s.index, msec) {
			continue
		}
		s.err = verifySnapshot(filepath.Join(path, s.id), s, logger)
		if s.err != nil && !isDamage(s.err) {
			return nil, fmt.Errorf("verify snapshot %s: %w", s.id, accessError(s.err))
		}
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b snapshot) int {
		return cmp.Or(cmp.Compare(b.term, a.term), cmp.Compare(b.index, a.index), cmp.Compare(b.id, a.id))
	})
	return found, nil
}

// isDamage tells a bad snapshot from one that could not be looked at, for lack
// of permission or of file descriptors.
func isDamage(err error) bool {
	var path *fs.PathError
	return !errors.As(err, &path) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO)
}

// judgeSnapshots returns the index of the newest good snapshot and the damaged ones.
func judgeSnapshots(found []snapshot) (base uint64, damaged []snapshot) {
	for _, s := range found {
		switch {
		case s.err != nil:
			damaged = append(damaged, s)
		case base == 0:
			base = s.index
		}
	}
	return base, damaged
}

// replaced returns nil if the good snapshots, up to index base, and the log, up
// to index last, hold all that the damaged snapshots did. What is wrong with the
// log, if anything, comes in as err and goes out with the snapshot's damage.
func replaced(dir string, damaged []snapshot, base, last uint64, err error) error {
	if len(damaged) == 0 || damaged[0].index <= base || err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	newest := damaged[0]
	var log *CorruptError
	switch {
	case errors.As(err, &log):
		err = fmt.Errorf("%s: %w", log.Where, log.Err)
	case newest.index > last:
		err = fmt.Errorf("it ends at index %d", last)
	default:
		return nil
	}
	err = fmt.Errorf("%w, and the log can't replace it: %w", newest.err, err)
	return corrupt(dir, filepath.Join(snapshotsDir, newest.id), fmt.Sprintf("snapshot of index %d", newest.index), err)
}

// verifySnapshot reads a snapshot to its end.
func verifySnapshot(path string, s snapshot, logger *slog.Logger) error {
	m, err := readMetaFile(path)
	if err != nil {
		return fmt.Errorf("%s: %w", metaFile, err)
	}
	sum, err := m.sum()
	if err != nil {
		return err
	}
	stored, err := os.ReadFile(filepath.Join(path, sumFile))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", sumFile, err)
	case string(stored) != sum:
		return fmt.Errorf("%s: checksum is %q, the content has %q", metaFile, stored, sum)
	case m.ID != s.id || m.Term != s.term || m.Index != s.index:
		return fmt.Errorf("%s is that of snapshot %q", metaFile, m.ID)
	}
	file, err := os.Open(filepath.Join(path, stateFile))
	if err != nil {
		return fmt.Errorf("%s: %w", stateFile, err)
	}
	defer func() { _ = file.Close() }() // It was only read.
	state := crc64.New(crc64.MakeTable(crc64.ECMA))
	reader := &steppedReader{Reader: file, total: uint64(m.Size), step: progress(logger, file.Name())}
	size, err := io.Copy(state, reader)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", stateFile, err)
	case size != m.Size:
		return fmt.Errorf("%s has %d bytes, not %d", stateFile, size, m.Size)
	case !bytes.Equal(state.Sum(nil), m.CRC):
		return fmt.Errorf("%s: checksum is %x, the content has %x", stateFile, m.CRC, state.Sum(nil))
	}
	return nil
}

// steppedReader says how far a long read is.
type steppedReader struct {
	io.Reader
	done, total uint64
	step        func(done, total uint64)
}

// Read reads and counts.
func (r *steppedReader) Read(buf []byte) (int, error) {
	n, err := r.Reader.Read(buf)
	r.done += uint64(n)
	r.step(r.done, r.total)
	return n, err
}

// setAside takes a damaged snapshot out of raft's sight and keeps it for a
// human. It must leave the folder: raft would count it among those to retain.
func setAside(dir string, s snapshot, logger *slog.Logger) error {
	from := filepath.Join(dir, snapshotsDir, s.id)
	to := filepath.Join(dir, s.id+corruptSuffix)
	if err := renameFile(from, to); err != nil {
		return fmt.Errorf("set damaged snapshot aside: %w", accessError(err))
	}
	if err := syncDir(filepath.Dir(from)); err != nil {
		return fmt.Errorf("set damaged snapshot aside: %w", err)
	}
	logger.Warn("damaged snapshot set aside", "snapshot", s.id, "index", s.index, "path", to, "error", s.err)
	return nil
}

// snapshots is the raft.SnapshotStore: raft's own, with a checksum over the
// meta file, no leftovers, and errors that say whether the node must stop.
type snapshots struct {
	inner  *raft.FileSnapshotStore
	dir    string // the data folder
	guard  *guard
	logger *slog.Logger
}

var _ raft.SnapshotStore = (*snapshots)(nil)

func openSnapshots(dir string, retain int, g *guard, logger *slog.Logger) (*snapshots, error) {
	path := filepath.Join(dir, snapshotsDir)
	if err := makeDir(path); err != nil {
		return nil, fmt.Errorf("make %s: %w", path, accessError(err))
	}
	if err := removeUnfinished(path, ""); err != nil {
		return nil, err
	}
	inner, err := raft.NewFileSnapshotStoreWithLogger(dir, retain, hclog.NewNullLogger())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrNotWritable, err)
	}
	return &snapshots{inner: inner, dir: dir, guard: g, logger: logger}, nil
}

// removeUnfinished removes what a crash or a failed write left: raft never
// does, and each may be as big as a snapshot.
func removeUnfinished(path, prefix string) error {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), tmpSuffix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(path, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("remove unfinished snapshots: %w", err)
	}
	return nil
}

func (s *snapshots) path(id string) string { return filepath.Join(s.dir, snapshotsDir, id) }

// List returns the snapshots, newest first.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) { return s.inner.List() }

// Open opens a snapshot whose checksums fit. One that is damaged is reported
// to OnFatal: this node can't bring a follower up to date any more.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, reader, err := s.inner.Open(id)
	if err == nil {
		return meta, reader, nil
	}
	if errors.Is(err, fs.ErrNotExist) || !isDamage(err) { // A newer snapshot may just have replaced it.
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, err)
	}
	return nil, nil, s.guard.fail(corrupt(s.dir, filepath.Join(snapshotsDir, id), "snapshot "+id, err))
}

// Create begins a snapshot. It counts only once the sink is closed without error.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, members raft.Configuration,
	membersIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	if err := s.guard.failure(); err != nil {
		return nil, fmt.Errorf("create snapshot: stopped by an earlier error: %w", err)
	}
	inner, err := s.inner.Create(version, index, term, members, membersIndex, trans)
	if err != nil {
		left := removeUnfinished(s.path(""), fmt.Sprintf("%d-%d-", term, index))
		return nil, errors.Join(s.failed("create snapshot", err), left)
	}
	k := &sink{SnapshotSink: inner, store: s, index: index}
	err = k.seal()
	if err == nil {
		k.state, err = os.Open(filepath.Join(k.tmp(), stateFile))
	}
	if err != nil {
		return nil, errors.Join(s.failed("create snapshot", err), k.Cancel())
	}
	return k, nil
}

// failed types an error met while a snapshot was written. A snapshot that could
// not be written is no loss, but a disk that fails to sync ends the node.
func (s *snapshots) failed(what string, err error) error {
	var path *fs.PathError
	switch {
	case isFull(err):
		s.guard.onFull()
		return fmt.Errorf("%s: %w: %w", what, ErrDiskFull, err)
	case errors.As(err, &path) && path.Op == "sync", errors.Is(err, syscall.EIO):
		return s.guard.fail(fmt.Errorf("%s: %w: %w", what, ErrSync, err))
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// sink is one snapshot that is being written.
type sink struct {
	raft.SnapshotSink
	store  *snapshots
	index  uint64
	closed bool
	state  *os.File // the state that is being written; nil if it could not be opened
	dirty  int      // bytes written since the disk was last told to begin
}

// writebackEvery is how much of a snapshot is written before the disk begins with it.
const writebackEvery = 256 << 10

func (k *sink) tmp() string { return k.store.path(k.ID()) + tmpSuffix }

// seal writes the checksum of the meta file beside it, to become visible with it.
func (k *sink) seal() error {
	m, err := readMetaFile(k.tmp())
	if err != nil {
		return err
	}
	sum, err := m.sum()
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(k.tmp(), dirMode), writeFile(filepath.Join(k.tmp(), sumFile), []byte(sum)))
}

// Write appends to the state. The disk begins with it at once: else Close would give it the whole snapshot, and each sync
// of the log would wait for that.
func (k *sink) Write(data []byte) (int, error) {
	n, err := k.SnapshotSink.Write(data)
	if err != nil {
		return n, k.store.failed("write snapshot", err)
	}
	if k.dirty += n; k.dirty >= writebackEvery {
		k.dirty = 0
		startWriteback(k.state)
	}
	return n, nil
}

// end makes the sink closed, and tells whether it was not.
func (k *sink) end() bool {
	if k.closed {
		return false
	}
	k.closed = true
	if k.state != nil {
		_ = k.state.Close() // It was not written through.
	}
	return true
}

// Close makes the snapshot durable and visible, files and names. With an error
// there is none and nothing is left of it.
func (k *sink) Close() error {
	if !k.end() {
		return nil
	}
	err := k.SnapshotSink.Close()
	if err == nil {
		err = errors.Join(syncDir(k.store.path(k.ID())), syncDir(k.store.path("")))
	}
	if err != nil {
		return errors.Join(k.store.failed("close snapshot", err), os.RemoveAll(k.tmp()))
	}
	k.store.logger.Info("snapshot stored", "snapshot", k.ID(), "index", k.index)
	return nil
}

// Cancel gives the snapshot up and leaves nothing of it.
func (k *sink) Cancel() error {
	if !k.end() {
		return nil
	}
	_ = k.SnapshotSink.Cancel() // It flushes first, which fails on a full disk; what counts is that the files go.
	if err := os.RemoveAll(k.tmp()); err != nil {
		return fmt.Errorf("cancel snapshot: %w", err)
	}
	return nil
}
