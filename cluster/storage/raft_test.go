package storage

import (
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// count is a state machine: how many entries, and the last of them.
type count struct {
	Entries int
	Last    string
}

func (c *count) Apply(e *raft.Log) any {
	c.Entries++
	c.Last = string(e.Data)
	return c.Entries
}

func (c *count) Snapshot() (raft.FSMSnapshot, error) { return &countSnapshot{*c}, nil }

func (c *count) Restore(r io.ReadCloser) error { return json.NewDecoder(r).Decode(c) }

type countSnapshot struct{ count }

func (s *countSnapshot) Persist(sink raft.SnapshotSink) error {
	return json.NewEncoder(sink).Encode(s.count)
}

func (s *countSnapshot) Release() {}

// node is a real raft node on a store.
type node struct {
	*raft.Raft
	store *Store
}

func start(t *testing.T, in LogStore, dir string) *node {
	t.Helper()
	store := openConfig(t, inStore(in, dir))
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(store.Identity().NodeID)
	conf.Logger = hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	conf.SnapshotThreshold, conf.TrailingLogs = 1<<20, 5
	addr, trans := raft.NewInmemTransport("a")
	empty, err := store.Empty()
	check(t, err)
	if empty {
		members := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: addr}}}
		check(t, raft.BootstrapCluster(conf, store.Logs(), store.Stable(), store.Snapshots(), trans, members))
	}
	r, err := raft.NewRaft(conf, &count{}, store.Logs(), store.Stable(), store.Snapshots(), trans)
	check(t, err)
	for !<-r.LeaderCh() {
		continue
	}
	return &node{Raft: r, store: store}
}

func (n *node) stop(t *testing.T) {
	t.Helper()
	check(t, n.Shutdown().Error())
	closeStore(t, n.store)
}

func (n *node) apply(t *testing.T, times int) (entries int) {
	t.Helper()
	for range times {
		f := n.Apply([]byte("command"), time.Second)
		check(t, f.Error())
		entries = f.Response().(int)
	}
	return entries
}

func TestRaftKeepsEverythingAcrossRestarts(t *testing.T) {
	eachStore(t, raftKeepsEverythingAcrossRestarts)
}

func raftKeepsEverythingAcrossRestarts(t *testing.T, store LogStore) {
	dir := t.TempDir()
	want := 0
	for round := range 5 {
		n := start(t, store, dir)
		want += 30
		if got := n.apply(t, 30); got != want {
			t.Fatalf("round %d: the state has %d entries, want %d", round, got, want)
		}
		if round%2 == 0 {
			check(t, n.Snapshot().Error())
			first, err := n.store.Logs().FirstIndex()
			check(t, err)
			if first < uint64(want-10) {
				t.Errorf("round %d: the log begins at %d, it was not compacted", round, first)
			}
		}
		term, err := n.store.Stable().GetUint64([]byte("CurrentTerm"))
		check(t, err)
		if term < uint64(round+1) {
			t.Errorf("round %d: term %d", round, term)
		}
		n.stop(t)
	}
}

// An operator's restore burns an index; the gap that it leaves is no damage.
func TestRaftReopensAfterARestore(t *testing.T) { eachStore(t, raftReopensAfterARestore) }

func raftReopensAfterARestore(t *testing.T, store LogStore) {
	dir := t.TempDir()
	n := start(t, store, dir)
	n.apply(t, 20)
	snap := n.Snapshot()
	check(t, snap.Error())
	meta, r, err := snap.Open()
	check(t, err)
	n.apply(t, 20)
	check(t, n.Restore(meta, r, time.Second))
	check(t, r.Close())
	if got := n.apply(t, 1); got != 21 {
		t.Errorf("the state has %d entries, want 21", got)
	}
	n.stop(t)
	n = start(t, store, dir)
	if got := n.apply(t, 1); got != 22 {
		t.Errorf("after the restart the state has %d entries, want 22", got)
	}
	n.stop(t)
}
