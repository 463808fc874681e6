package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// progressEvery is how often a long check says how far it is.
const progressEvery = 5 * time.Second

// The buckets of raft-boltdb, in the order of their names.
const (
	stableBucket = "conf"
	logBucket    = "logs"
)

// contents is what a check of the database found.
type contents struct {
	entries, values int
	last            uint64 // index of the newest entry
	segments        string // the list of the segments of the log, if it has any
}

// checkDatabase reads all of raft.db without changing it: the structure, every
// checksum, and that no entry after base, the index of the newest good
// snapshot, is missing. Before base gaps are lawful: a snapshot that was
// received or restored leaves them. Without a file it returns fs.ErrNotExist.
func checkDatabase(dir string, base uint64, logger *slog.Logger) (contents, error) {
	file, err := os.OpenFile(filepath.Join(dir, databaseFile), os.O_RDWR, 0)
	if err != nil {
		return contents{}, accessError(err)
	}
	defer func() { _ = file.Close() }() // It was only read.
	if err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return contents{}, fmt.Errorf("%w: %s is open in another process", ErrLocked, file.Name())
	}
	info, err := file.Stat()
	if err != nil {
		return contents{}, fmt.Errorf("check %s: %w", file.Name(), err)
	}
	return checkPages(dir, file, uint64(info.Size()), base, progress(logger, file.Name()))
}

func checkPages(dir string, file io.ReaderAt, size, base uint64, step func(done, total uint64)) (contents, error) {
	c := checker{dir: dir, base: base}
	p, err := openPages(file, size)
	if err == nil {
		p.step = step
		err = p.buckets([]string{stableBucket, logBucket}, c.check)
	}
	var at *pageError
	if errors.As(err, &at) {
		return contents{}, corrupt(dir, databaseFile, fmt.Sprintf("page %d", at.page), at.err)
	}
	return c.found, err
}

// checker judges keys and values.
type checker struct {
	dir     string
	base    uint64
	found   contents
	decoder *codec.Decoder
}

func (c *checker) check(bucket string, page uint64, key, value []byte) error {
	if bucket == stableBucket {
		c.found.values++
		content, err := unsealValue(key, value)
		if err != nil {
			return corrupt(c.dir, databaseFile, fmt.Sprintf("key %q (page %d)", key, page), err)
		}
		if string(key) == segmentsKey {
			c.found.segments = string(content)
		}
		return nil
	}
	if len(key) != 8 {
		return badPage(page, "log key %x is not an index", key)
	}
	index := binary.BigEndian.Uint64(key)
	where := fmt.Sprintf("index %d (page %d)", index, page)
	if index > c.base {
		if want := max(c.base, c.found.last) + 1; index != want {
			return corrupt(c.dir, databaseFile, where, fmt.Errorf("entries %d to %d are missing; the newest good snapshot ends at %d", want, index-1, c.base))
		}
	}
	if err := c.entry(index, value); err != nil {
		return corrupt(c.dir, databaseFile, where, err)
	}
	c.found.entries++
	c.found.last = index
	return nil
}

func (c *checker) entry(index uint64, value []byte) error {
	if c.decoder == nil {
		c.decoder = codec.NewDecoderBytes(nil, &codec.MsgpackHandle{}) // as raft-boltdb decodes
	}
	c.decoder.ResetBytes(value)
	var e raft.Log
	if err := c.decoder.Decode(&e); err != nil {
		return fmt.Errorf("decode entry: %w", err)
	}
	return unseal(index, &e)
}

// progress returns a step that logs how far a check is, every few seconds.
func progress(logger *slog.Logger, file string) func(done, total uint64) {
	logged := time.Now()
	return func(done, total uint64) {
		if time.Since(logged) < progressEvery {
			return
		}
		logged = time.Now()
		logger.Info("checking data", "file", file, "done_bytes", done, "total_bytes", total)
	}
}

var errMissing = errors.New("it is missing")

// inspection is what a look at the whole folder found, before anything in it is changed.
type inspection struct {
	identity Identity
	fresh    bool       // nothing was ever stored: this is the first start
	damaged  []snapshot // not needed: an older snapshot and the log replace them
	base     uint64     // index of the newest good snapshot
	torn     bool       // the log ends in an append that a power loss has torn
}

// checkLog reads all of the log, term and vote. torn is as in checkSegments.
func checkLog(dir string, store LogStore, base uint64, logger *slog.Logger) (found contents, torn bool, err error) {
	found, err = checkDatabase(dir, base, logger)
	if err != nil || store != LogStoreWAL {
		return found, false, err
	}
	return checkSegments(dir, found.segments, base, logger)
}

// inspect decides whether the node may serve from its folder with a log store.
// It changes nothing.
func inspect(dir string, asked LogStore, logger *slog.Logger) (inspection, error) {
	id, err := readIdentity(dir)
	unnamed := errors.Is(err, fs.ErrNotExist)
	if err != nil && !unnamed {
		return inspection{}, err
	}
	if !unnamed && id.LogStore != asked {
		return inspection{}, fmt.Errorf("%w: %s has %s, asked for was %s", ErrLogStore, dir, id.LogStore, asked)
	}
	snapshots, err := listSnapshots(dir, logger)
	if err != nil {
		return inspection{}, err
	}
	base, damaged := judgeSnapshots(snapshots)
	found, torn, err := checkLog(dir, id.LogStore, base, logger)
	missing := errors.Is(err, fs.ErrNotExist)
	if unnamed && len(snapshots) == 0 && (missing || err == nil && found == contents{}) {
		return inspection{fresh: true}, nil
	}
	if missing {
		err = corrupt(dir, databaseFile, "the whole file", errMissing)
	}
	err = replaced(dir, damaged, base, found.last, err)
	if err == nil && unnamed {
		err = corrupt(dir, identityFile, "the whole file", errMissing)
	}
	if err != nil {
		return inspection{}, err
	}
	logger.Info("data verified", "dir", dir, "entries", found.entries, "last_index", found.last, "snapshot_index", base)
	return inspection{identity: id, damaged: damaged, base: base, torn: torn}, nil
}
