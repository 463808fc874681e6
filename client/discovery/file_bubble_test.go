package discovery_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client/discovery"
)

// files returns the names in a folder.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// saved leaves the file of a service with the instances a and b, as of revision 2.
func saved(t *testing.T, r *registry) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "views")
	r.change(put("a", "b")...)
	d, end := open(t, r, discovery.WithFile(dir))
	wantView(t, service(t, d, "web"), "a b")
	end()
	return dir
}

func TestViewOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		dir := saved(t, r)
		path := filepath.Join(dir, "default.web.view")
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 || len(files(t, dir)) != 1 {
			t.Fatalf("files %v, mode %v, %v: want one that is private", files(t, dir), info, err)
		}
		if folder, err := os.Stat(dir); err != nil || folder.Mode().Perm() != 0o700 {
			t.Errorf("folder %v, %v", folder, err)
		}
		r.stop()
		time.Sleep(time.Hour)
		d, _ := open(t, r, discovery.WithFile(dir), discovery.WithMaxStale(2*time.Hour))
		s := service(t, d, "web")
		v := wantView(t, s, "a b")
		if v.Source != discovery.SourceFile || v.Age() != time.Hour || v.Point.Revision != 2 {
			t.Errorf("source %s, %s old, at %d: want a file of an hour ago", v.Source, v.Age(), v.Point.Revision)
		}
		time.Sleep(61 * time.Minute)
		if v, err := s.View(t.Context()); !errors.Is(err, discovery.ErrStale) || v.Source != discovery.SourceFile {
			t.Errorf("error %v, want ErrStale", err)
		}
		r.change(put("c")...)
		r.start()
		time.Sleep(11 * time.Second)
		if v := wantView(t, s, "a b c"); v.Source != discovery.SourceLive {
			t.Errorf("source %s", v.Source)
		}
		if _, _, subs := r.asked(); len(subs) != 2 || subs[1].GetResume().GetRevision() != 2 {
			t.Errorf("subscriptions %v: want the second to resume at 2", subs)
		}
	})
}

func TestFilesAreWrittenNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		dir := t.TempDir()
		d, _ := open(t, r, discovery.WithFile(dir))
		s := service(t, d, "web")
		if _, err := s.View(t.Context()); !errors.Is(err, discovery.ErrNoSuchService) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second/2) // So that no change is made at the time of a write.
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("files %v of a service that is none", got)
		}
		path := filepath.Join(dir, "default.web.view")
		read := func() string {
			synctest.Wait()
			data, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			return string(data)
		}
		writes, last := 0, ""
		for range 60 {
			r.change(put("a")...)
			time.Sleep(time.Second)
			if now := read(); now != last {
				writes, last = writes+1, now
			}
		}
		if writes != 12 {
			t.Errorf("%d writes for a change a second in a minute, want 12", writes)
		}
		time.Sleep(5 * time.Second)
		last = read()
		time.Sleep(9 * time.Minute)
		if read() != last {
			t.Error("written without need")
		}
		time.Sleep(2 * time.Minute)
		if read() == last {
			t.Error("not refreshed")
		}
		r.change(del(deregistered, "a")...) // empty, and remembered as such
		time.Sleep(6 * time.Second)
		r.stop()
		again, _ := open(t, r, discovery.WithFile(dir))
		if v := wantView(t, service(t, again, "web"), ""); v.Source != discovery.SourceFile {
			t.Errorf("source %s", v.Source)
		}
	})
}

func TestProtectionOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a", "b", "c", "d")...)
		dir := t.TempDir()
		d, end := open(t, r, discovery.WithFile(dir))
		wantView(t, service(t, d, "web"), "a b c d")
		r.change(del(expired, "a", "b", "c")...)
		wantView(t, service(t, d, "web"), "(a) (b) (c) d")
		end()
		time.Sleep(4 * time.Minute)
		again, _ := open(t, r, discovery.WithFile(dir))
		s := service(t, again, "web")
		wantView(t, s, "(a) (b) (c) d")
		r.change(put("b")...)
		wantView(t, s, "(a) b (c) d")
		time.Sleep(time.Minute)
		wantView(t, s, "b d")
	})
}

func TestBadFilesAreNotUsed(t *testing.T) {
	edit := func(change func(data []byte) []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, change(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		after time.Duration
		want  string
	}{
		{"cut off", edit(func(data []byte) []byte { return data[:len(data)-7] }), 0, "checksum"},
		{"a bit flipped", edit(func(data []byte) []byte { data[40] ^= 1; return data }), 0, "checksum"},
		{"empty", edit(func([]byte) []byte { return nil }), 0, "not a view"},
		{"another file", edit(func([]byte) []byte { return bytes.Repeat([]byte("x"), 100) }), 0, "not a view"},
		{"newer version", edit(func(data []byte) []byte { data[8]++; return data }), 0, "version 2"},
		{"huge", func(t *testing.T, path string) {
			if err := os.Truncate(path, 65<<20); err != nil {
				t.Fatal(err)
			}
		}, 0, "more than"},
		{"too old", func(*testing.T, string) {}, 25 * time.Hour, "25h0m0s old"},
		{"another service's", func(t *testing.T, path string) {
			if err := os.Rename(filepath.Join(filepath.Dir(path), "default.other.view"), path); err != nil {
				t.Fatal(err)
			}
		}, 0, "of service default/other"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRegistry(t, 1)
				dir := saved(t, r)
				other := put("z")
				other[0].Instance.Service = "other"
				r.change(other...)
				d, end := open(t, r, discovery.WithFile(dir))
				wantView(t, service(t, d, "other"), "z")
				end()
				test.spoil(t, filepath.Join(dir, "default.web.view"))
				r.stop()
				time.Sleep(test.after)
				var log bytes.Buffer
				d, end = open(t, r, discovery.WithFile(dir), discovery.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
				s := service(t, d, "web")
				synctest.Wait()
				if got := d.Stats()[0]; got.Source != 0 {
					t.Errorf("served from %s", got.Source)
				}
				r.start()
				time.Sleep(11 * time.Second)
				wantView(t, s, "a b")
				end()
				if !strings.Contains(log.String(), "file is not used") || !strings.Contains(log.String(), test.want) {
					t.Errorf("log %s: want it to say %q", log.String(), test.want)
				}
			})
		})
	}
}

func TestFileOfAnotherClusterIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		dir := saved(t, r)
		other := put("z")
		other[0].Instance.Service = "other"
		r.change(other...)
		r.set(func() { r.cluster = "another" })
		r.change(del(deregistered, "a", "b")...)
		r.stop()
		var log bytes.Buffer
		d, end := open(t, r, discovery.WithFile(dir), discovery.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		s := service(t, d, "web")
		wantView(t, s, "a b") // for as long as nobody knows better
		r.start()
		time.Sleep(11 * time.Second)
		if v, err := s.View(t.Context()); !errors.Is(err, discovery.ErrNoSuchService) {
			t.Errorf("view %v, error %v: want ErrNoSuchService", told(v), err)
		}
		if !strings.Contains(log.String(), "the registry is another one") {
			t.Errorf("log %s: want it to tell of the other registry", log.String())
		}
		end()
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("files %v are left", got)
		}
	})
}

func TestFileOfAnotherClusterIsNotUsedOnceItIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		dir := saved(t, r)
		other := put("z")
		other[0].Instance.Service = "other"
		r.change(other...)
		r.set(func() { r.cluster = "another" })
		var log bytes.Buffer
		d, end := open(t, r, discovery.WithFile(dir), discovery.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		wantView(t, service(t, d, "other"), "z")
		r.stop()
		s := service(t, d, "web")
		synctest.Wait()
		if got := d.Stats()[1]; got.Service != "web" || got.Source != 0 {
			t.Errorf("stats %+v: want no view", got)
		}
		s.Close()
		end()
		if !strings.Contains(log.String(), "it is of cluster cluster, the registry is another") {
			t.Errorf("log %s: want it to say why", log.String())
		}
	})
}

func TestHalfWrittenFilesAreSweptAway(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{".regd-view-1": 2 * time.Hour, ".regd-view-2": 0, "mine": 2 * time.Hour} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	r := newRegistry(t, 1)
	d, err := discovery.New(r.client(), discovery.WithFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if got := strings.Join(files(t, dir), " "); got != ".regd-view-2 mine" {
		t.Errorf("left are %s", got)
	}
}

func TestFolderThatCannotBeMadeIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := discovery.New(newRegistry(t, 1).client(), discovery.WithFile(filepath.Join(path, "views"))); err == nil {
		t.Error("no error")
	}
}
