package discovery

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// fileInterval is how often changed views are written.
	fileInterval = 5 * time.Second
	// refreshAge is when a view that has not changed is written again, so that after a crash its age is not told as much
	// higher than it is. closingAge is the same for one that ends.
	refreshAge = 10 * time.Minute
	closingAge = time.Minute
	// maxFileAge is the age from which a file is not used.
	maxFileAge = 24 * time.Hour
	// maxAhead is how far a file may be of the future before its time is not believed. Beyond maxFileAge it is not used.
	maxAhead = time.Minute
	// tempPrefix begins the names of files that are being written; one that is older than tempAge was left by a crash.
	tempPrefix = ".regd-view-"
	tempAge    = time.Hour
)

// written is what a service's file has.
type written struct {
	list *list
	at   time.Time // SyncedAt of the view
}

// path of a service's file. A namespace has no dot in it, so no two services share one but on file systems to which upper
// and lower case are the same; there the name in the file tells them apart.
func (f *follower) path() string {
	return filepath.Join(f.d.cfg.dir, url.PathEscape(f.name.namespace)+"."+url.PathEscape(f.name.service)+".view")
}

// load shows the view of the file, if there is one that can be used.
func (f *follower) load() {
	if f.d.cfg.dir == "" {
		return
	}
	s, err := readFile(f.path())
	if err == nil {
		err = f.accept(s, time.Now())
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		f.log.Warn("service: file is not used", "file", f.path(), "err", err)
	default:
		s.anchor(time.Now())
		f.mirror.restore(s)
		f.d.disk.Lock()
		f.written = written{list: f.mirror.view.list, at: s.syncedAt}
		f.d.disk.Unlock()
		f.publish()
	}
}

// readFile reads and checks a file.
func readFile(path string) (*stored, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("more than %d bytes", maxFileBytes)
	}
	return decode(data)
}

// accept tells why a file must not be used.
func (f *follower) accept(s *stored, now time.Time) error {
	cluster := f.d.cluster.Load()
	age := now.Sub(s.syncedAt)
	switch {
	case s.name != f.name:
		return fmt.Errorf("it is of service %s", s.name)
	case cluster != nil && *cluster != s.point.ClusterID:
		return fmt.Errorf("it is of cluster %s, the registry is %s", s.point.ClusterID, *cluster)
	case age > maxFileAge:
		return fmt.Errorf("it is %s old: at most %s are accepted", age.Round(time.Second), maxFileAge)
	case age < -maxFileAge:
		return fmt.Errorf("it is of the future, by %s", -age.Round(time.Second))
	}
	return nil
}

// anchor ties the times of a file to the monotonic clock, so that they age as time goes by, and not as the wall clock is set.
// A file of the future says that the clock was set back: its age is not known, and taken to be the greatest.
func (s *stored) anchor(now time.Time) {
	at := func(t time.Time) time.Time { return now.Add(min(0, t.Sub(now))) }
	for i := range s.lost {
		s.lost[i].since = at(s.lost[i].since)
	}
	if s.syncedAt.Sub(now) > maxAhead {
		s.syncedAt = now.Add(-maxFileAge)
	}
	s.syncedAt = at(s.syncedAt)
}

// byWall returns the time that the wall clock, which shows now, would have shown, even if it was set since.
func byWall(t, now time.Time) time.Time { return now.Add(t.Sub(now)) }

// save writes the view if it has changed since it was last written, or was confirmed by this much later. It is not written
// while it comes from a file. The file of a service that is none is removed.
func (f *follower) save(refresh time.Duration) {
	v := f.current.Load()
	if f.d.cfg.dir == "" || v == nil || v.Source == SourceFile || v.Point.Revision == 0 {
		return
	}
	f.d.disk.Lock()
	defer f.d.disk.Unlock()
	if errors.Is(v.fault, ErrNoSuchService) {
		f.remove()
		return
	}
	if f.written.list == v.list && v.SyncedAt.Sub(f.written.at) < refresh {
		return
	}
	f.written = written{list: v.list, at: v.SyncedAt} // Also if it fails: the disk is not tried over and over.
	now := time.Now()
	s := &stored{name: f.name, point: v.Point, syncedAt: byWall(v.SyncedAt, now), live: v.list.live}
	for _, l := range v.list.lost {
		s.lost = append(s.lost, suspect{instance: l.instance, since: byWall(l.since, now)})
	}
	data, err := s.encode()
	if err == nil {
		err = writeFile(f.path(), data)
	}
	if err != nil {
		f.log.Warn("service: file is not written", "file", f.path(), "err", err)
	}
}

// remove removes the file, if there is one. The caller holds d.disk.
func (f *follower) remove() {
	if f.written.list == nil {
		return
	}
	f.written = written{}
	if err := os.Remove(f.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.log.Warn("service: file is not removed", "file", f.path(), "err", err)
	}
}

// writeFile puts a file in the place of what is there, whole or not at all. Only its owner may read it.
func writeFile(path string, data []byte) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp.Name()))
		}
	}()
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// keepFiles writes changed views until Close. What changes last is written by each follower as it ends.
func (d *Discovery) keepFiles() {
	tick := time.NewTicker(fileInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, f := range d.all() {
				f.save(refreshAge)
			}
		case <-d.life.Done():
			return
		}
	}
}

// sweep removes what crashes left half-written.
func (d *Discovery) sweep() {
	entries, err := os.ReadDir(d.cfg.dir)
	if err != nil {
		d.cfg.log.Warn("folder for files can't be read", "folder", d.cfg.dir, "err", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), tempPrefix) || time.Since(info.ModTime()) < tempAge {
			continue
		}
		if err := os.Remove(filepath.Join(d.cfg.dir, e.Name())); err != nil {
			d.cfg.log.Warn("file of a crash can't be removed", "file", e.Name(), "err", err)
		}
	}
}
