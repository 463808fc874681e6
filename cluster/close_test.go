package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/fsm"
)

// These tests run in real time: what a node has asked Raft, and Raft never answers, leaves a goroutine behind, which a
// bubble does not allow.
//
// Raft's shutdown forgets what is committed and not yet handed to the state machine, but not always: after each batch
// that the state machine has finished it may take the next one just as well. So before what is asked there are this many.
const batchesBefore = 20

// sticking lets the state machine of n1 stick in an entry that registers "stick", until release.
func sticking() (option clustertest.Option, release func()) {
	released := make(chan struct{})
	return func(cfg *cluster.Config) {
		if cfg.Name != "n1" {
			return
		}
		cfg.Applied = func(_, _ uint64, data []byte) {
			if bytes.Contains(data, []byte("stick")) {
				<-released
			}
		}
	}, sync.OnceFunc(func() { close(released) })
}

// enter puts an entry into the log past the proposer, which has but one under way.
func enter(t *testing.T, r *raft.Raft, id string) {
	t.Helper()
	data, err := proto.Marshal(clustertest.Register("web", id))
	if err != nil {
		t.Fatal(err)
	}
	r.Apply(fsm.AppendEntry(nil, time.Now().UnixMilli(), [][]byte{data}), time.Second)
}

// stick has the state machine of a leader stuck, and batchesBefore batches wait for it.
func stick(t *testing.T, c *clustertest.Cluster, r *raft.Raft) {
	t.Helper()
	for i := range batchesBefore {
		before := r.AppliedIndex()
		enter(t, r, fmt.Sprint("stick", i))
		c.Wait("an entry to be committed", func() bool { return r.AppliedIndex() > before })
	}
}

// endsWhenStopped stops a node. What holds it is released once Raft has been told to stop.
func endsWhenStopped(t *testing.T, c *clustertest.Cluster, name string, release func()) {
	t.Helper()
	r, stopped := c.Node(name).Raft(), make(chan struct{})
	go func() {
		defer close(stopped)
		c.Stop(name)
	}()
	c.Wait("Raft to be told to stop", func() bool { return r.State() == raft.Shutdown })
	release()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("the node has not stopped after 20s")
	}
}

func TestANodeStopsAlthoughRaftForgetsABarrier(t *testing.T) {
	t.Parallel()
	c := clustertest.New(t, 1)
	c.Ready()
	r := c.Leader().Raft()
	stick(t, c, r)
	for i := range 64 * batchesBefore { // So many are in a batch when a log is replayed.
		enter(t, r, fmt.Sprint(i))
	}
	last := r.LastIndex()
	c.Stop("n1")
	option, release := sticking()
	c.Reconfigure("n1", option)
	n := c.Start("n1")
	c.Wait("a new leader's barrier to be committed", func() bool {
		r := n.Raft()
		return r != nil && r.State() == raft.Leader && r.LastIndex() >= last+2 && r.AppliedIndex() == r.LastIndex()
	})
	endsWhenStopped(t, c, "n1", release)
}

func TestANodeStopsAlthoughRaftForgetsAProposal(t *testing.T) {
	t.Parallel()
	option, release := sticking()
	c := clustertest.New(t, 1, option)
	c.Ready()
	n := c.Leader()
	r := n.Raft()
	stick(t, c, r)
	last := r.LastIndex()
	proposed := make(chan error, 1)
	go func() {
		_, err := n.Propose(context.WithoutCancel(t.Context()), clustertest.Register("web", "last"))
		proposed <- err
	}()
	c.Wait("the proposal to be committed", func() bool { return r.AppliedIndex() > last })
	endsWhenStopped(t, c, "n1", release)
	if err := <-proposed; !errors.Is(err, cluster.ErrUnknownOutcome) {
		t.Errorf("the proposal under way = %v, want ErrUnknownOutcome", err)
	}
}

func TestANodeStopsAlthoughRaftForgetsAPromotion(t *testing.T) {
	t.Parallel()
	option, release := sticking()
	// There must be time to stick. What sticks must be released before the nodes are stopped, also when the test has failed.
	c := clustertest.New(t, 1, option, func(cfg *cluster.Config) { cfg.PromoteAfter = 5 * time.Second })
	t.Cleanup(release)
	c.Ready()
	r := c.Leader().Raft()
	suffrage := func() (is, votes bool) {
		servers := r.GetConfiguration().Configuration().Servers
		return len(servers) == 2, len(servers) == 2 && servers[1].Suffrage == raft.Voter
	}
	n2 := c.Add("n2", func(cfg *cluster.Config) { cfg.Join = []string{"n1:7401"} })
	c.Wait("a second member", func() bool { is, _ := suffrage(); return is && n2.Ready() == nil })
	stick(t, c, r)
	if _, votes := suffrage(); votes {
		t.Fatal("the second member votes already; this test is of its promotion")
	}
	c.Wait("its promotion to be committed", func() bool { _, votes := suffrage(); return votes && r.AppliedIndex() == r.LastIndex() })
	endsWhenStopped(t, c, "n1", release)
}

func TestANodeStopsAlthoughRaftForgetsToHandOver(t *testing.T) {
	t.Parallel()
	disks, option := freezers()
	c := clustertest.New(t, 3, option)
	c.Ready()
	n := c.Leader()
	name := n.Info().Name
	thaw := disks[name].freeze()
	written := make(chan error, 1)
	go func() {
		_, err := n.Propose(context.WithoutCancel(t.Context()), clustertest.Register("web", "a"))
		written <- err
	}()
	c.Wait("an append to hang", disks[name].appends.holds)
	n.Drain(within(t, 100*time.Millisecond))
	endsWhenStopped(t, c, name, thaw)
	if err := <-written; !errors.Is(err, cluster.ErrUnknownOutcome) {
		t.Errorf("the proposal under way = %v, want ErrUnknownOutcome", err)
	}
}
