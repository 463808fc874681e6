package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/fsm"
)

// savedNode is a node with a State to save.
type savedNode struct {
	mu    sync.Mutex
	state *fsm.State
	err   error // of View
}

func (n *savedNode) Ready() error       { return nil }
func (n *savedNode) Info() cluster.Info { return cluster.Info{ClusterID: "c1", Name: "n1"} }

func (n *savedNode) View(context.Context, cluster.Freshness) (cluster.View, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return cluster.View{State: n.state}, n.err
}

func (n *savedNode) failing(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

// newSavedNode has some instances.
func newSavedNode(t *testing.T) *savedNode {
	t.Helper()
	st := fsm.New()
	for i := range uint64(100) {
		data, err := proto.Marshal(clustertest.Register("web", fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		if st, _, err = st.Apply(fsm.Entry{Index: i + 1, Term: 1, Data: fsm.AppendEntry(nil, 1, [][]byte{data})}); err != nil {
			t.Fatal(err)
		}
	}
	return &savedNode{state: st}
}

// backingUp runs backups into a folder until the end of the test; logged gets what they say.
func backingUp(t *testing.T, cfg backupSettings, node backedUp, change ...func(*backups)) (b *backups, logged *syncBuffer, stop func()) {
	t.Helper()
	logged = &syncBuffer{}
	b = newBackups(cfg, node, slog.New(slog.NewTextHandler(logged, nil)))
	for _, c := range change {
		c(b)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.run(ctx)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return b, logged, stop
}

// metric is the value of a metric.
func metric(t *testing.T, all []prometheus.Collector, name string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(all...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func namesIn(t *testing.T, dir string) []string {
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

func TestBackupsAreMadeKeptAndExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "backups")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		foreign := []string{"notes.txt", "regd-19990101T000000Z-r1-c1-n2.regd", "regd-19990101T000000Z-r1-c2-n1.regd", "regd-today-r1-c1-n1.regd", "regd-19990101T000000Z-r1-c1-n2.regd.part"}
		for _, name := range append(foreign, "regd-19990101T000000Z-r1-c1-n1.regd", "regd-19990101T000000Z-r1-c1-n1.regd.part") {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		node := newSavedNode(t)
		cfg := backupSettings{Dir: dir, Every: time.Hour, Keep: 3}
		b, logged, stop := backingUp(t, cfg, node)
		time.Sleep(5*time.Hour + time.Minute) // At once, then after each hour: six.
		own, err := b.own()
		if err != nil || len(own) != 3 {
			t.Fatalf("%d backups, %v; want 3\n%s", len(own), err, logged.String())
		}
		newest := own[2]
		if age := time.Since(newest.at); age > time.Minute+time.Second {
			t.Errorf("the newest backup is %v old", age)
		}
		if names := strings.Join(namesIn(t, dir), " "); len(namesIn(t, dir)) != 3+len(foreign) {
			t.Errorf("the folder has %s", names)
		}
		for _, name := range foreign {
			if _, err = os.Stat(filepath.Join(dir, name)); err != nil {
				t.Errorf("a file that is not its own is gone: %v", err)
			}
		}
		if want := "-r" + fmt.Sprint(node.state.Revision()) + "-c1-n1.regd"; !strings.HasSuffix(newest.name, want) {
			t.Errorf("it is named %s, want ...%s", newest.name, want)
		}
		info, err := os.Stat(filepath.Join(dir, newest.name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if last, size, failures := metric(t, b.collectors(), "regd_backup_last_success_timestamp_seconds"), metric(t, b.collectors(), "regd_backup_bytes"),
			metric(t, b.collectors(), "regd_backup_failures_total"); last != float64(newest.at.Unix()) || size != float64(info.Size()) || failures != 0 {
			t.Errorf("metrics: last %v, %v bytes, %v failures", last, size, failures)
		}
		if said := newShell(t).ok("snapshot", "inspect", filepath.Join(dir, newest.name)); !strings.Contains(said, "sound") || !strings.Contains(said, "100 instances") {
			t.Errorf("inspect says %s", said)
		}
		stop()
		again, _, _ := backingUp(t, cfg, node) // A restart is no reason for another one.
		time.Sleep(30 * time.Minute)
		if own, err = again.own(); err != nil || own[2] != newest {
			t.Errorf("after a restart: %v, %v", own, err)
		}
		time.Sleep(30 * time.Minute)
		if own, err = again.own(); err != nil || own[2] == newest {
			t.Errorf("after the restart there is no more: %v, %v", own, err)
		}
	})
}

func TestBackupThatFailsIsToldAndTriedAgainAndCostsNoOlderOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "backups")
		node := newSavedNode(t)
		var full atomic.Bool
		b, logged, _ := backingUp(t, backupSettings{Dir: dir, Every: time.Hour, Keep: 1}, node, func(b *backups) {
			b.create = func(path string) (*os.File, error) {
				if full.Load() {
					path = "/dev/full"
				}
				return createPrivate(path)
			}
		})
		time.Sleep(time.Minute)
		first := namesIn(t, dir)
		away := dir + ".away"
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct {
			cause, says, kept string
			fail, heal        func()
		}{
			{"full disk", "no space left on device", dir, func() { full.Store(true) }, func() { full.Store(false) }},
			{"no leader", cluster.ErrNoLeader.Error(), dir, func() { node.failing(cluster.ErrNoLeader) }, func() { node.failing(nil) }},
			{"no folder", "not a directory", away, func() {
				must(os.Rename(dir, away))
				must(os.WriteFile(dir, nil, 0o600))
			}, func() {
				must(os.Remove(dir))
				must(os.Rename(away, dir))
			}},
		} {
			tt.fail()
			before := metric(t, b.collectors(), "regd_backup_failures_total")
			time.Sleep(2 * time.Hour)
			if failed := metric(t, b.collectors(), "regd_backup_failures_total") - before; failed < 60 || !strings.Contains(logged.String(), tt.says) {
				t.Errorf("%s: %v failures, want one a minute; said:\n%s", tt.cause, failed, logged.String())
			}
			if names := namesIn(t, tt.kept); len(first) != 1 || len(names) != 1 || names[0] != first[0] {
				t.Errorf("%s: the folder has %v, want %v", tt.cause, names, first)
			}
			tt.heal()
			time.Sleep(2 * time.Minute)
			if names := namesIn(t, dir); len(names) != 1 || names[0] == first[0] {
				t.Errorf("%s: when all is well again the folder has %v", tt.cause, names)
			}
			first = namesIn(t, dir)
		}
	})
}

// Files of the future, of a clock that was wrong, neither put backups off nor have the new one deleted.
func TestClockThatWasWrongCostsNoBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "regd-20990101T000000Z-r1-c1-n1.regd"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		b, logged, _ := backingUp(t, backupSettings{Dir: dir, Every: time.Hour, Keep: 1}, newSavedNode(t))
		time.Sleep(2*time.Hour + time.Minute)
		if own, err := b.own(); err != nil || len(own) != 1 || time.Since(own[0].at) > time.Hour {
			t.Errorf("%v, %v\n%s", own, err, logged.String())
		}
	})
}

// A backup that was damaged on its way to the disk gets no name.
func TestBackupIsCheckedBeforeItCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := newBackups(backupSettings{Dir: dir, Every: time.Hour, Keep: 1}, newSavedNode(t), slog.New(slog.DiscardHandler))
		b.create = func(path string) (*os.File, error) {
			f, err := createPrivate(path)
			if err == nil {
				_, err = f.WriteString("x")
			}
			return f, err
		}
		if _, err := b.save(t.Context(), time.Now()); err == nil || !strings.Contains(err.Error(), "check ") {
			t.Errorf("a damaged file: %v", err)
		}
		if names := namesIn(t, dir); len(names) != 0 {
			t.Errorf("the folder has %v", names)
		}
	})
}

func TestBackupsOutsideOfTheDataFolder(t *testing.T) {
	t.Parallel()
	for dir, want := range map[string]bool{"/var/lib/regd": false, "/var/lib/regd/backups": false, "/var/lib/regd/../regd/b": false, "/var/lib/regd-backups": true, "/var": true} {
		var faults []string
		(&backupSettings{Dir: dir, Every: time.Hour, Keep: 1}).validate("/var/lib/regd", func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) })
		if (len(faults) == 0) != want {
			t.Errorf("%s: %v", dir, faults)
		}
	}
}
