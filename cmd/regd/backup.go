package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/regd-io/regd/cluster"
)

// backupSettings say where a node saves the registry, how often, and how many it keeps. No folder: nowhere.
type backupSettings struct {
	Dir   string
	Every time.Duration
	Keep  int
}

const (
	defaultBackupEvery = time.Hour
	defaultBackupKeep  = 24
	minBackupEvery     = time.Minute
	maxBackupKeep      = 10_000
)

func (c *backupSettings) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Dir, "backup-dir", "", "`folder` in which the node saves the registry again and again; other nodes may share it")
	fs.DurationVar(&c.Every, "backup-every", defaultBackupEvery, "time between two backups")
	fs.IntVar(&c.Keep, "backup-keep", defaultBackupKeep, "how many backups of its own the node keeps")
}

// validate reports what can't be, or would be no backup.
func (c *backupSettings) validate(dataDir string, bad func(string, ...any)) {
	if c.Dir == "" {
		return
	}
	if c.Every < minBackupEvery {
		bad("--backup-every %v: must be at least %v", c.Every, minBackupEvery)
	}
	if c.Keep < 1 || c.Keep > maxBackupKeep {
		bad("--backup-keep %d: must be 1 to %d", c.Keep, maxBackupKeep)
	}
	data, err1 := filepath.Abs(dataDir)
	backups, err2 := filepath.Abs(c.Dir)
	if errors.Join(err1, err2) != nil || dataDir == "" {
		return // Whoever opens them will say so.
	}
	if within, err := filepath.Rel(data, backups); err == nil && within != ".." && !strings.HasPrefix(within, "../") {
		bad("--backup-dir %s: lies in --data-dir: what destroys one would destroy the other", c.Dir)
	}
}

// backedUp is the node as backups see it.
type backedUp interface {
	Ready() error
	Info() cluster.Info
	View(ctx context.Context, f cluster.Freshness) (cluster.View, error)
}

// backups saves the registry while the node runs. What it writes is what `regd snapshot save` writes. A backup that fails is
// told by log and metric, and tried again; the node does not care.
type backups struct {
	backupSettings

	node   backedUp
	log    *slog.Logger
	create func(path string) (*os.File, error)

	last, took, bytes prometheus.Gauge
	failures          prometheus.Counter
}

// newBackups returns nil when there shall be none.
func newBackups(cfg backupSettings, node backedUp, log *slog.Logger) *backups {
	if cfg.Dir == "" {
		return nil
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	return &backups{
		backupSettings: cfg, node: node, log: log, create: createPrivate,
		last: gauge("regd_backup_last_success_timestamp_seconds",
			"Time of the newest backup that this node has made, in seconds since 1970; also one of before it was started. 0: none."),
		took:  gauge("regd_backup_duration_seconds", "How long the last backup took, writing and checking."),
		bytes: gauge("regd_backup_bytes", "Size of the last backup."),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "regd_backup_failures_total", Help: "Number of backups that have failed.",
		}),
	}
}

func (b *backups) collectors() []prometheus.Collector {
	if b == nil {
		return nil
	}
	return []prometheus.Collector{b.last, b.took, b.bytes, b.failures}
}

const (
	// backupRetry is how soon a backup that has failed is tried again.
	backupRetry = time.Minute
	// backupTimeout bounds one.
	backupTimeout = 30 * time.Minute
	// backupPause is slept after each block that is written or read: on few cores the scheduler is what would delay writes, and
	// on the same disk the log needs its syncs. It leaves some 50 MB a second.
	backupPause = 5 * time.Millisecond
	// backupStaleness is how old what is saved may be: a node that is cut off saves nothing.
	backupStaleness = time.Minute
)

// run saves until ctx ends: when the newest backup in the folder is too old, also after a restart.
func (b *backups) run(ctx context.Context) {
	if b == nil {
		return
	}
	for wait := time.Second; b.node.Ready() != nil; {
		if !pause(ctx, wait) {
			return
		}
	}
	for {
		wait := b.due(time.Now())
		if wait <= 0 {
			wait = b.try(ctx)
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// pause sleeps, and tells whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// due is how long it is until the next backup. Files of the future are of a clock that was wrong: they don't count.
func (b *backups) due(now time.Time) time.Duration {
	files, err := b.own()
	files = slices.DeleteFunc(files, func(f backupFile) bool { return f.at.After(now) })
	if err != nil || len(files) == 0 {
		return 0 // Whoever saves will say what is wrong.
	}
	newest := files[len(files)-1].at
	b.last.Set(float64(newest.Unix()))
	return newest.Add(b.Every).Sub(now)
}

// try makes a backup, and tells how long it is until the next try.
func (b *backups) try(ctx context.Context) time.Duration {
	began := time.Now()
	making, cancel := context.WithTimeout(ctx, backupTimeout)
	defer cancel()
	view, err := b.save(making, began)
	if ctx.Err() != nil {
		return 0 // The node stops: that is no failure.
	}
	if err != nil {
		b.failures.Inc()
		b.log.Warn("the backup has failed", "folder", b.Dir, "err", err)
		return min(b.Every, backupRetry)
	}
	took := time.Since(began)
	b.last.Set(float64(began.Unix()))
	b.took.Set(took.Seconds())
	b.bytes.Set(float64(view.Bytes))
	b.log.Info("backup saved", "file", view.File, "bytes", view.Bytes, "revision", view.Revision, "took", took)
	if err := b.expire(filepath.Base(view.File)); err != nil {
		b.log.Warn("old backups are not deleted", "folder", b.Dir, "err", err)
	}
	return max(b.Every-took, 0)
}

// save writes a backup beside its file, checks it, and gives it its name.
func (b *backups) save(ctx context.Context, now time.Time) (snapshotView, error) {
	view, err := b.node.View(ctx, cluster.Freshness{Mode: cluster.ModeBounded, MaxStaleness: backupStaleness})
	if err != nil {
		return snapshotView{}, err
	}
	if err = os.MkdirAll(b.Dir, 0o700); err != nil {
		return snapshotView{}, err
	}
	path := filepath.Join(b.Dir, b.name(now, view.State.Revision()))
	f, err := b.create(path + partSuffix)
	if err != nil {
		return snapshotView{}, err
	}
	defer func() {
		_ = f.Close()                    // Closed already if all went well.
		_ = os.Remove(path + partSuffix) // Renamed already if all went well.
	}()
	w := bufio.NewWriterSize(ctxWriter{ctx, f}, 1<<20)
	err = view.State.WriteSnapshot(w, func() { time.Sleep(backupPause) })
	if err = errors.Join(err, w.Flush()); err != nil {
		return snapshotView{}, fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if err = f.Sync(); err != nil {
		return snapshotView{}, err
	}
	saved, err := inspectSnapshot(pacedReader{ctx, f})
	if want := view.State.ContentHash(); err == nil && saved.ContentHash != fmt.Sprintf("%x", want[:]) {
		err = errors.New("it is not what was written")
	}
	if err != nil {
		return snapshotView{}, fmt.Errorf("check %s: %w", f.Name(), err)
	}
	saved.File = path
	return saved, errors.Join(f.Close(), os.Rename(path+partSuffix, path), syncFolder(b.Dir))
}

// expire deletes the oldest backups of this node beyond Keep, and what it has left behind unfinished. The one that was just made
// stays, also when others seem to be newer as the clock was wrong.
func (b *backups) expire(made string) error {
	files, err := b.own()
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(f backupFile) bool { return f.name == made })
	var errs []error
	for _, f := range files[:max(0, len(files)-(b.Keep-1))] {
		errs = append(errs, os.Remove(filepath.Join(b.Dir, f.name)))
	}
	entries, err := os.ReadDir(b.Dir)
	for _, e := range entries {
		if name, part := strings.CutSuffix(e.Name(), partSuffix); part && b.isOwn(name) {
			errs = append(errs, os.Remove(filepath.Join(b.Dir, e.Name())))
		}
	}
	return errors.Join(append(errs, err)...)
}

// partSuffix is that of a backup that is not complete.
const partSuffix = ".part"

// backupTime is how a name tells a time: in the order of time names are in their own order, too.
const backupTime = "20060102T150405Z"

// name is that of a backup: when, of what revision, of which cluster, by which node.
func (b *backups) name(now time.Time, revision uint64) string {
	return fmt.Sprintf("regd-%s-r%d-%s", now.UTC().Format(backupTime), revision, b.suffix())
}

// suffix is the end of the names of all that this node has saved of this cluster.
func (b *backups) suffix() string {
	info := b.node.Info()
	return info.ClusterID + "-" + pathWord(info.Name) + ".regd"
}

// backupFile is a backup by its name.
type backupFile struct {
	name string
	at   time.Time
}

// isOwn tells whether a name is one that this node gives.
func (b *backups) isOwn(name string) bool {
	_, own := b.parse(name)
	return own
}

// parse takes a name apart that this node has given.
func (b *backups) parse(name string) (backupFile, bool) {
	rest, prefixed := strings.CutPrefix(name, "regd-")
	rest, suffixed := strings.CutSuffix(rest, "-"+b.suffix())
	when, revision, both := strings.Cut(rest, "-r")
	if !prefixed || !suffixed || !both {
		return backupFile{}, false
	}
	at, err := time.Parse(backupTime, when)
	if _, notNumber := strconv.ParseUint(revision, 10, 64); err != nil || notNumber != nil {
		return backupFile{}, false
	}
	return backupFile{name, at}, true
}

// own lists the backups of this node, the oldest first. A folder that is missing has none.
func (b *backups) own() ([]backupFile, error) {
	entries, err := os.ReadDir(b.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var files []backupFile
	for _, e := range entries {
		if f, own := b.parse(e.Name()); own && e.Type().IsRegular() {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(x, y backupFile) int { return cmp.Or(x.at.Compare(y.at), strings.Compare(x.name, y.name)) })
	return files, nil
}

// createPrivate makes a file that only this user can read.
func createPrivate(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

// syncFolder makes the names in a folder durable.
func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ctxWriter writes until ctx ends.
type ctxWriter struct {
	ctx context.Context //nolint:containedctx // Of one backup.
	io.Writer
}

// Write implements io.Writer.
func (w ctxWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}

// pacedReader reads until ctx ends, slowly enough to leave room for others.
type pacedReader struct {
	ctx context.Context //nolint:containedctx // Of one backup.
	io.ReadSeeker
}

// pacedRead is how much is read at once.
const pacedRead = 256 << 10

// Read implements io.Reader.
func (r pacedReader) Read(p []byte) (int, error) {
	if !pause(r.ctx, backupPause) {
		return 0, r.ctx.Err()
	}
	return r.ReadSeeker.Read(p[:min(len(p), pacedRead)])
}
