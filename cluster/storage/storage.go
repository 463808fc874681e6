// Package storage keeps what one node must not forget: its data folder with
// the raft log, the votes, the snapshots and the node's identity.
//
// It wraps raft-boltdb or raft-wal, and raft.FileSnapshotStore, and adds what
// they lack: checksums over every entry, vote and snapshot; a check of all of it
// before raft starts, so that a damaged node refuses to start instead of serving
// wrong data; a stop after the first failed write; figures on append times, an
// append that hangs, and free space. It knows nothing of what entries mean and
// never repairs: a node with a damaged folder comes back empty, as a new member,
// because it may have forgotten what it acknowledged.
//
// Term and vote are in raft.db, a database of bbolt, whatever keeps the log.
// With LogStoreBoltDB the log is there too; with LogStoreWAL it is in segments
// in the folder wal, whose list is in raft.db.
//
// Start from Open and Store.
package storage

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

const (
	defaultRetain       = 2
	defaultCacheEntries = 256
	maxCacheEntries     = 1 << 16
	maxClusterID        = 256
)

// LogStore is what keeps the entries of the log. A folder has one for good.
type LogStore string

// The log stores.
const (
	// LogStoreBoltDB keeps the log in a database: two fsyncs an append.
	LogStoreBoltDB LogStore = "boltdb"
	// LogStoreWAL keeps the log in files that are appended to: one fsync an
	// append. What is damaged in the last append before a crash may be taken for
	// torn by it, and fetched from the leader again.
	LogStoreWAL LogStore = "wal"
)

// LogStores are all of them, the default first.
func LogStores() []LogStore { return []LogStore{LogStoreBoltDB, LogStoreWAL} }

// Config says where and how a node stores. Zero values mean the defaults.
type Config struct {
	// Dir is the data folder. It is made, with its parents, if it is missing.
	Dir string
	// LogStore is what keeps the log (LogStoreBoltDB). A folder that has another
	// one is refused.
	LogStore LogStore
	// NoSync leaves out the fsync of the log. For tests only: with it a power
	// loss takes acknowledged entries.
	NoSync bool
	// MinFreeBytes is the free space below which the disk counts as full.
	// 0 means 1 % of the disk, at least 64 MiB and at most 1 GiB.
	MinFreeBytes uint64
	// SnapshotRetain is how many snapshots are kept, at least 2 (the default).
	SnapshotRetain int
	// LogCacheEntries is how many recent entries stay in memory (256), at most
	// 8 MiB of them.
	LogCacheEntries int
	// Logger gets what the operator should know. Required.
	Logger *slog.Logger
	// OnFatal, if set, is called once, with the first error after which the node
	// must not go on: a failed write or fsync (ErrSync), or damage found while
	// running (ErrCorrupt). It runs on the goroutine that met the error. raft
	// learns of that error, and of any later one, when it has returned: raft
	// panics on some of them, so a program that wants an exit code of its own
	// ends itself inside the callback. It must not use the storage.
	OnFatal func(error)

	// segmentSize is what a segment of the log takes of the disk, for tests.
	segmentSize int
}

// Validate reports all that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir is empty"))
	}
	if c.LogStore != "" && !slices.Contains(LogStores(), c.LogStore) {
		errs = append(errs, fmt.Errorf("log store %q is none of %q", c.LogStore, LogStores()))
	}
	if c.SnapshotRetain != 0 && c.SnapshotRetain < defaultRetain {
		errs = append(errs, fmt.Errorf("snapshot retain is %d, at least %d are needed", c.SnapshotRetain, defaultRetain))
	}
	if c.LogCacheEntries < 0 || c.LogCacheEntries > maxCacheEntries {
		errs = append(errs, fmt.Errorf("log cache entries is %d, not within 0 to %d", c.LogCacheEntries, maxCacheEntries))
	}
	if c.Logger == nil {
		errs = append(errs, errors.New("logger is missing"))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.LogStore == "" {
		c.LogStore = LogStoreBoltDB
	}
	if c.segmentSize == 0 {
		c.segmentSize = defaultSegmentSize
	}
	if c.SnapshotRetain == 0 {
		c.SnapshotRetain = defaultRetain
	}
	if c.LogCacheEntries == 0 {
		c.LogCacheEntries = defaultCacheEntries
	}
	return c
}

// Store is an open data folder. All methods are safe for concurrent use.
type Store struct {
	dir       string
	lock      *os.File
	db        *raftboltdb.BoltStore
	log       logDatabase
	logs      *logs
	stable    *stable
	snapshots *snapshots
	space     *space

	mu       sync.Mutex // guards what follows
	identity Identity
	closed   bool
}

// Open makes or opens the data folder and takes it for this process. It reads
// and verifies everything in it first (some 3 us an entry; progress is logged)
// and refuses, without having changed anything but the lock file, with ErrLocked, ErrNewerFormat, ErrLogStore,
// ErrNotWritable, ErrExposed, ErrDiskFull or a CorruptError. A damaged snapshot that an older one and the log replace is
// set aside with a warning; so is an append cut off that a power loss has torn. What others could read is made private.
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("storage configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("data folder %s: %w", cfg.Dir, err)
	}
	if err = makeDir(dir); err != nil {
		return nil, fmt.Errorf("make data folder: %w", accessError(err))
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, lock: lock}
	if err := refuseExposed(dir, cfg.Logger); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.open(cfg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := makePrivate(dir, cfg.Logger); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(cfg Config) error {
	found, err := inspect(s.dir, cfg.LogStore, cfg.Logger)
	if err != nil {
		return err
	}
	if s.space, err = newSpace(s.dir, cfg.MinFreeBytes, cfg.Logger); err != nil {
		return err
	}
	for _, damaged := range found.damaged {
		if err = setAside(s.dir, damaged, cfg.Logger); err != nil {
			return err
		}
	}
	g := &guard{dir: s.dir, onFatal: cfg.OnFatal, onFull: s.space.refused}
	if s.snapshots, err = openSnapshots(s.dir, cfg.SnapshotRetain, g, cfg.Logger); err != nil {
		return err
	}
	s.identity = found.identity
	if found.fresh {
		if s.identity, err = initialize(s.dir, cfg); err != nil {
			return err
		}
	}
	if s.db, err = openDatabase(filepath.Join(s.dir, databaseFile), cfg.NoSync); err != nil {
		return err
	}
	s.stable = &stable{inner: s.db, guard: g}
	s.log = boltLog{s.db}
	if cfg.LogStore == LogStoreWAL {
		files := &walFiles{dir: s.dir, size: cfg.segmentSize, noSync: cfg.NoSync, guard: g, stable: s.stable}
		if s.log, err = openWAL(files, found.torn, found.base, cfg.Logger); err != nil {
			return err
		}
	}
	s.logs = &logs{inner: s.log, guard: g, appends: newAppendClock(), recent: newRecent(cfg.LogCacheEntries)}
	return nil
}

// initialize makes a folder's files at the first start. The identity comes
// last: once it is there, everything else was, and what is missing was lost.
func initialize(dir string, cfg Config) (Identity, error) {
	node, err := uuid.NewRandom()
	if err != nil {
		return Identity{}, fmt.Errorf("make node id: %w", err)
	}
	path := filepath.Join(dir, databaseFile)
	tmp := path + tmpSuffix
	if err = os.RemoveAll(tmp); err != nil {
		return Identity{}, fmt.Errorf("remove unfinished database: %w", accessError(err))
	}
	db, err := openDatabase(tmp, cfg.NoSync)
	if err != nil {
		return Identity{}, err
	}
	if err = db.Close(); err != nil {
		return Identity{}, fmt.Errorf("close new database: %w", err)
	}
	if err = renameFile(tmp, path); err != nil {
		return Identity{}, fmt.Errorf("make %s: %w", path, accessError(err))
	}
	id := Identity{NodeID: node.String(), LogStore: cfg.LogStore}
	if err = writeIdentity(dir, id); err != nil {
		return Identity{}, err
	}
	cfg.Logger.Info("data folder made", "dir", dir, "node", id.NodeID, "log_store", id.LogStore)
	return id, nil
}

// Logs returns the raft log. See Config.OnFatal for errors after which the
// node must stop; ErrDiskFull is not one of them.
func (s *Store) Logs() raft.LogStore { return s.logs }

// Stable returns the store of votes and terms.
func (s *Store) Stable() raft.StableStore { return s.stable }

// Snapshots returns the store of snapshots.
func (s *Store) Snapshots() raft.SnapshotStore { return s.snapshots }

// Identity returns who the node is.
func (s *Store) Identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity
}

// SetClusterID makes the node a member of a cluster, for good. It does nothing
// if the id is set already, and returns ErrForeignCluster if another one is.
func (s *Store) SetClusterID(id string) error {
	if id == "" || len(id) > maxClusterID {
		return fmt.Errorf("cluster id has %d bytes, not 1 to %d", len(id), maxClusterID)
	}
	s.mu.Lock() // Held while writing: it happens once in the life of a node.
	defer s.mu.Unlock()
	switch s.identity.ClusterID {
	case id:
		return nil
	case "":
	default:
		return fmt.Errorf("%w: it is a member of %s, not of %s", ErrForeignCluster, s.identity.ClusterID, id)
	}
	next := s.identity
	next.ClusterID = id
	if err := writeIdentity(s.dir, next); err != nil {
		return err
	}
	s.identity = next
	return nil
}

// Empty reports whether raft has stored nothing yet: no term, entry or snapshot.
func (s *Store) Empty() (bool, error) {
	has, err := raft.HasExistingState(s.logs, s.stable, s.snapshots)
	if err != nil {
		return false, fmt.Errorf("look for raft state: %w", err)
	}
	return !has, nil
}

// AppendStall returns for how long the append under way has lasted, 0 if there
// is none. It never waits.
func (s *Store) AppendStall() time.Duration { return s.logs.appends.stall() }

// AppendLatency returns the median and the 99th percentile of the last 512
// appends, failed ones included; 0 before the first.
func (s *Store) AppendLatency() (p50, p99 time.Duration) { return s.logs.appends.latency() }

// DiskFree returns the free space of the disk in bytes, at most 250 ms old.
func (s *Store) DiskFree() uint64 {
	s.space.refresh()
	return s.space.free.Load()
}

// Full reports whether the free space is below the watermark, or a write has
// just found no space. A full disk counts as usable again when it has a quarter
// more than the watermark. The answer is at most 250 ms old.
func (s *Store) Full() bool {
	s.space.refresh()
	return s.space.full.Load()
}

// Close releases the folder; raft must have been shut down. It may be called twice.
func (s *Store) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if s.log != nil {
		err = caught(s.log.Close)
	}
	if s.db != nil {
		err = errors.Join(err, caught(s.db.Close))
	}
	if err = errors.Join(err, s.lock.Close()); err != nil {
		return fmt.Errorf("close data folder %s: %w", s.dir, err)
	}
	return nil
}
