package cluster_test

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cluster/storage"
	"github.com/regd-io/regd/fsm"
)

// Of three disks two are lost. The third has all that it ever had, also an entry of which it had not yet heard that it was
// committed; the others join it as new nodes, and one with its former data is not heard.
func TestAClusterIsRecoveredFromOneDisk(t *testing.T) {
	for _, store := range storage.LogStores() {
		t.Run(string(store), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := clustertest.New(t, 3, func(cfg *cluster.Config) { cfg.LogStore, cfg.SnapshotThreshold = store, 8 })
				c.Ready()
				c.Put(c.Leader(), "web", "a")
				c.Wait("n1 to have it", func() bool { return has(c.Node("n1"), "web", "a") })
				var dir string
				c.Reconfigure("n1", func(cfg *cluster.Config) { dir = cfg.DataDir })
				if _, err := cluster.ReadRemains(dir, store, slog.New(slog.DiscardHandler)); !errors.Is(err, storage.ErrLocked) {
					t.Errorf("recovery of a node that runs = %v", err)
				}
				before := c.Node("n1").Feed().State()
				for _, name := range c.Names() {
					c.Stop(name)
				}
				appendTo(t, dir, store)
				r, err := cluster.ReadRemains(dir, store, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				if r.Self.GetName() != "n1" || len(r.Voters) != 3 || r.Quorum() != 2 {
					t.Errorf("the remains are of %s, one of %d voters, %d needed", r.Self.GetName(), len(r.Voters), r.Quorum())
				}
				if _, _, err = r.Recover(); err != nil {
					t.Fatal(err)
				}

				n1 := c.Start("n1")
				c.Wait("n1 to go on alone", func() bool { return n1.Ready() == nil })
				now := n1.Feed().State()
				if !has(n1, "web", "a") || !has(n1, "web", "tail") || now.Epoch() <= before.Epoch() || now.Revision() <= before.Revision() ||
					now.ClusterID() == before.ClusterID() || n1.Info().ClusterID != now.ClusterID() {
					t.Errorf("recovered: web/a %v, web/tail %v, epoch %d, revision %d, cluster %s; it was %d, %d and %s",
						has(n1, "web", "a"), has(n1, "web", "tail"), now.Epoch(), now.Revision(), now.ClusterID(),
						before.Epoch(), before.Revision(), before.ClusterID())
				}
				former := c.Start("n2") // Its disk was not lost after all.
				time.Sleep(10 * time.Second)
				if former.Ready() == nil || voters(t, n1) != 1 || n1.Ready() != nil {
					t.Errorf("a node of the former cluster was heard: it is ready: %v, %d voters", former.Ready() == nil, voters(t, n1))
				}
				c.Stop("n2")
				for _, name := range []string{"n2", "n3"} {
					c.Wipe(name)
					c.Start(name)
				}
				c.Wait("three voters again", func() bool { return voters(t, n1) == 3 })
				c.Put(c.Node("n3"), "web", "b")
				if s := c.Leader().Feed().State(); s.Counts().Members != 3 || s.Counts().Instances != 3 {
					t.Errorf("%d members and %d instances in the end, want 3 and 3", s.Counts().Members, s.Counts().Instances)
				}
			})
		})
	}
}

// appendTo appends to the log of a stopped node what its leader has sent and not yet told to be committed.
func appendTo(t *testing.T, dir string, logStore storage.LogStore) {
	t.Helper()
	store, err := storage.Open(storage.Config{Dir: dir, LogStore: logStore, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	last, err := store.Logs().LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	command, err := proto.Marshal(clustertest.Register("web", "tail"))
	if err != nil {
		t.Fatal(err)
	}
	entry := &raft.Log{
		Index: last + 1, Term: 9, Type: raft.LogCommand, Data: fsm.AppendEntry(nil, time.Now().UnixMilli(), [][]byte{command}),
	}
	if err := store.Logs().StoreLogs([]*raft.Log{entry}); err != nil {
		t.Fatal(err)
	}
}

func TestThereIsNothingToRecoverFrom(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	for _, dir := range []string{dir + "/none", dir} {
		if _, err := cluster.ReadRemains(dir, storage.LogStoreBoltDB, log); !errors.Is(err, cluster.ErrNoRemains) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
