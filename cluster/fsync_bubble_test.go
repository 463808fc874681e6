//go:build linux

package cluster_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cluster/storage"
)

// breakFsync puts a device that takes all that is written, but can't be synced, under an open file of this process.
func breakFsync(t *testing.T, path string) {
	t.Helper()
	const open = "/proc/self/fd"
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fds, err := os.ReadDir(open)
	if err != nil {
		t.Fatal(err)
	}
	broken := 0
	for _, fd := range fds {
		// One of them is the folder that was just read: it is gone.
		if target, err := os.Readlink(filepath.Join(open, fd.Name())); err != nil || target != path {
			continue
		}
		n, err := strconv.Atoi(fd.Name())
		if err == nil {
			err = syscall.Dup3(int(null.Fd()), n, syscall.O_CLOEXEC)
		}
		if err != nil {
			t.Fatal(err)
		}
		broken++
	}
	if broken != 1 {
		t.Fatalf("%s is open %d times, want once", path, broken)
	}
}

func TestANodeWhoseFsyncFailsServesNoMore(t *testing.T) {
	for store, file := range map[storage.LogStore]string{storage.LogStoreBoltDB: "raft.db", storage.LogStoreWAL: "wal/*.wal"} {
		t.Run(string(store), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { fsyncFails(t, store, file) })
		})
	}
}

// fsyncFails breaks the file of the leader that has its log.
func fsyncFails(t *testing.T, store storage.LogStore, file string) {
	t.Helper()
	dirs := map[string]string{}
	fatal, ended := make(chan error, 10), make(chan struct{})
	c := clustertest.New(t, 3, func(cfg *cluster.Config) {
		dirs[cfg.Name] = cfg.DataDir
		cfg.LogStore, cfg.NoSync = store, false
		cfg.OnFatal = func(err error) {
			fatal <- err
			<-ended // As cmd/regd does: Raft would panic on what it is told next.
		}
	})
	c.Ready()
	old := c.Leader()
	name := old.Info().Name
	c.Put(old, "web", "before")
	files, err := filepath.Glob(filepath.Join(dirs[name], file))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	breakFsync(t, files[0])
	written := make(chan error, 1)
	go func() {
		_, err := old.Propose(within(t, 5*time.Second), clustertest.Register("web", "doubtful"))
		written <- err
	}()
	if err := <-fatal; !errors.Is(err, storage.ErrSync) {
		t.Errorf("OnFatal was told %v, want storage.ErrSync", err)
	}
	c.Net.Isolate(name) // As its process ends.
	if err := old.Ready(); !errors.Is(err, cluster.ErrClosed) {
		t.Errorf("Ready() = %v, want ErrClosed", err)
	}
	for _, mode := range []cluster.Mode{cluster.ModeLinearizable, cluster.ModeStale} {
		if _, err := old.View(within(t, time.Second), cluster.Freshness{Mode: mode}); !errors.Is(err, cluster.ErrClosed) {
			t.Errorf("a read in mode %v = %v, want ErrClosed", mode, err)
		}
	}
	if _, err := old.Propose(within(t, time.Second), clustertest.Register("web", "next")); !errors.Is(err, cluster.ErrClosed) {
		t.Errorf("a write after it = %v, want ErrClosed", err)
	}
	if err := <-written; !errors.Is(err, cluster.ErrUnknownOutcome) {
		t.Errorf("the write whose fsync failed = %v, want ErrUnknownOutcome", err)
	}
	next := c.Leader(name)
	c.Put(next, "web", "after")
	if has(old, "web", "doubtful") {
		t.Error("a node applied what it could not sync")
	}

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.Stop(name)
	}()
	time.Sleep(5 * time.Second) // Raft is told to stop, and does before it does anything else.
	close(ended)
	<-stopped
	if len(fatal) > 0 {
		t.Errorf("OnFatal was called again: %v", <-fatal)
	}
}
