package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// has tells whether a node's own State holds an instance.
func has(n *cluster.Node, service, id string) bool {
	return n.Feed().State().Instance("default", service, id) != nil
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestThreeNodesFoundOneCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		id := c.Leader().Info().ClusterID
		for _, n := range c.Nodes() {
			if got := n.Info().ClusterID; got == "" || got != id {
				t.Errorf("%s is in cluster %q, the leader in %q", n.Info().Name, got, id)
			}
		}
		c.Wait("the cluster's name in the state of all", func() bool {
			return !slices.ContainsFunc(c.Nodes(), func(n *cluster.Node) bool { return n.Feed().State().ClusterID() != id })
		})
	})
}

func TestFiveNodesFoundOneCluster(t *testing.T) {
	for range 5 { // test/sim does so in many of its runs.
		synctest.Test(t, func(t *testing.T) {
			clustertest.New(t, 5).Ready()
		})
	}
}

func TestNoClusterIsFoundedWhileAPeerIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Stop("n3")
		time.Sleep(time.Minute)
		for _, n := range c.Nodes() {
			err := n.Ready()
			if !errors.Is(err, cluster.ErrStarting) && n.Info().ClusterID == "" {
				t.Errorf("%s: Ready() = %v, want ErrStarting", n.Info().Name, err)
			}
		}
		c.Start("n3")
		c.Ready()
	})
}

func TestAnyNodeTakesWritesAndAnswersLinearizableReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		for i, through := range c.Nodes() {
			id := fmt.Sprint("i", i)
			c.Put(through, "web", id)
			for _, n := range c.Nodes() {
				v, err := n.View(within(t, time.Second), cluster.Freshness{})
				if err != nil {
					t.Fatalf("read at %s: %v", n.Info().Name, err)
				}
				if v.State.Instance("default", "web", id) == nil {
					t.Errorf("a linearizable read at %s misses %s, acknowledged through %s before", n.Info().Name, id, through.Info().Name)
				}
			}
		}
	})
}

// Else what is written before a pause would be seen at followers only after a timeout of Raft, CommitTimeout to twice that.
func TestFollowersHearAtOnceOfTheLastWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const late = 100 * time.Millisecond
		c := clustertest.New(t, 3, func(cfg *cluster.Config) { cfg.CommitTimeout = late })
		c.Ready()
		for i := range 10 {
			time.Sleep(time.Second)
			c.Put(c.Leader(), "web", fmt.Sprint(i))
			written := time.Now()
			c.Wait("the write at all nodes", func() bool {
				return !slices.ContainsFunc(c.Nodes(), func(n *cluster.Node) bool { return !has(n, "web", fmt.Sprint(i)) })
			})
			if took := time.Since(written); took >= late {
				t.Errorf("write %d was at all nodes after %v", i, took)
			}
		}
	})
}

func TestWritesGoOnAfterTheLeaderIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		old := c.Leader()
		c.Put(old, "web", "before")
		c.Net.Isolate(old.Info().Name)
		next := c.Leader(old.Info().Name)
		c.Put(next, "web", "after")
		if _, err := old.View(within(t, 5*time.Second), cluster.Freshness{}); err == nil {
			t.Error("the leader that was cut off answered a linearizable read")
		}
		if _, err := old.Propose(within(t, 5*time.Second), clustertest.Register("web", "lost")); err == nil {
			t.Error("the leader that was cut off acknowledged a write")
		}
		c.Net.Heal()
		c.Ready()
		v, err := old.View(within(t, 15*time.Second), cluster.Freshness{})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"before", "after"} {
			if v.State.Instance("default", "web", id) == nil {
				t.Errorf("after the cut has healed %s is missing", id)
			}
		}
	})
}

// A leader that is cut off, or paused, goes on believing in its leadership while answers arrive that its followers gave
// before they voted for another. Such answers must not prove its leadership to reads that begin later. The delay makes
// the time in which there are two leaders long; without the rounds several of these reads are stale.
func TestAnswersFromBeforeTheCutProveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3, func(cfg *cluster.Config) { cfg.LeaseTimeout = cluster.DefaultHeartbeatTimeout })
		stale := 0
		for round := range 20 {
			c.Ready()
			old := c.Leader()
			name, id := old.Info().Name, fmt.Sprint(round)
			for _, n := range c.Nodes() {
				c.Net.Delay(n.Info().Name, name, 400*time.Millisecond)
			}
			time.Sleep(time.Second)
			for _, n := range c.Nodes() {
				c.Net.CutOneWay(name, n.Info().Name)
			}
			next := c.Leader(name)
			c.Put(next, "web", id)
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
				v, err := old.View(ctx, cluster.Freshness{})
				cancel()
				if err == nil && v.State.Instance("default", "web", id) == nil {
					stale++
				}
			}
			c.Net.Heal()
			for _, n := range c.Nodes() {
				c.Net.Delay(n.Info().Name, name, 0)
			}
		}
		if stale > 0 {
			t.Errorf("%d linearizable reads were stale", stale)
		}
	})
}

func TestBoundedReadsRefuseWhatIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		f := c.Follower()
		time.Sleep(2 * time.Second)
		if age := f.Staleness(); age < 0 || age > time.Second {
			t.Fatalf("an idle follower says its state is %v old", age)
		}
		bounded := cluster.Freshness{Mode: cluster.ModeBounded, MaxStaleness: time.Second}
		if v, err := f.View(within(t, time.Second), bounded); err != nil || v.Staleness > time.Second {
			t.Fatalf("bounded read = %v old, %v", v.Staleness, err)
		}
		c.Net.Isolate(f.Info().Name)
		time.Sleep(5 * time.Second)
		if v, err := f.View(within(t, 5*time.Second), bounded); !errors.Is(err, cluster.ErrTooStale) {
			t.Errorf("bounded read of a node cut off for 5s = %v old, %v; want ErrTooStale", v.Staleness, err)
		}
		if v, err := f.View(within(t, time.Second), cluster.Freshness{Mode: cluster.ModeStale}); err != nil || v.Staleness < 5*time.Second {
			t.Errorf("stale read of a node cut off for 5s = %v old, %v; want at least 5s", v.Staleness, err)
		}
	})
}

func TestReadsOfARevisionWaitForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		f := c.Follower()
		outcome, err := c.Leader().Propose(within(t, time.Second), clustertest.Register("web", "a"))
		if err != nil {
			t.Fatal(err)
		}
		v, err := f.View(within(t, time.Second), cluster.Freshness{Mode: cluster.ModeAtLeast, MinRevision: outcome.Revision})
		if err != nil || v.State.Instance("default", "web", "a") == nil {
			t.Errorf("read at revision %d: %v, found %v", outcome.Revision, err, v.State != nil)
		}
		_, err = f.View(within(t, time.Second), cluster.Freshness{Mode: cluster.ModeAtLeast, MinRevision: outcome.Revision + 1000})
		if !errors.Is(err, cluster.ErrTooStale) {
			t.Errorf("read of a revision that is yet to come = %v, want ErrTooStale", err)
		}
	})
}

func TestANewMemberCatchesUpAndVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		for i := range 50 {
			c.Put(c.Leader(), "web", fmt.Sprint(i))
		}
		c.Add("n4", func(cfg *cluster.Config) { cfg.Join = []string{"n1:7401"} })
		n5 := c.Add("n5")
		time.Sleep(3 * time.Second)
		if err := n5.Ready(); !errors.Is(err, cluster.ErrStarting) {
			t.Errorf("an empty node that was told nothing: Ready() = %v, want ErrStarting", err)
		}
		if _, changed, err := c.Follower().Join(within(t, 20*time.Second), "n5:7401", false); err != nil || !changed {
			t.Fatalf("join n5 = %v, %v", changed, err)
		}
		c.Wait("five voters", func() bool { return voters(t, c.Leader()) == 5 })
		c.Ready()
		for _, name := range []string{"n4", "n5"} {
			if !has(c.Node(name), "web", "49") {
				t.Errorf("%s votes but lacks data", name)
			}
		}
	})
}

func voters(t *testing.T, n *cluster.Node) int {
	t.Helper()
	s, err := n.Status(within(t, 5*time.Second), false)
	if err != nil {
		t.Fatal(err)
	}
	return int(s.GetVoters())
}

func TestTheLeaderCanBeRemovedAndKnowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		old := c.Leader()
		name := old.Info().Name
		if err := old.Remove(within(t, 20*time.Second), name, false); err != nil {
			t.Fatal(err)
		}
		c.Wait("two voters", func() bool { return voters(t, c.Leader(name)) == 2 })
		begun := time.Now()
		if _, err := old.View(within(t, 10*time.Second), cluster.Freshness{}); !errors.Is(err, cluster.ErrRemoved) || time.Since(begun) > 2*time.Second {
			t.Errorf("a read just after the removal = %v after %v, want ErrRemoved soon", err, time.Since(begun))
		}
		c.Wait("the removed node to know", func() bool { return old.Info().Removed })
		if _, err := old.View(t.Context(), cluster.Freshness{Mode: cluster.ModeStale}); !errors.Is(err, cluster.ErrRemoved) {
			t.Errorf("read at the removed node: %v, want ErrRemoved", err)
		}
		c.Put(c.Leader(name), "web", "a")
	})
}

func TestARemovalThatCostsTheQuorumIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader := c.Leader()
		var others []string
		for _, n := range c.Nodes() {
			if n != leader {
				others = append(others, n.Info().Name)
			}
		}
		c.Stop(others[0])
		err := leader.Remove(within(t, 20*time.Second), others[1], false)
		if !errors.Is(err, cluster.ErrMembership) {
			t.Errorf("removing the last living follower = %v, want ErrMembership", err)
		}
		if err := leader.Remove(within(t, 20*time.Second), others[0], false); err != nil {
			t.Errorf("removing the dead follower = %v", err)
		}
	})
}

func TestAFollowerFarBehindGetsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3, func(cfg *cluster.Config) {
			cfg.SnapshotThreshold, cfg.SnapshotInterval, cfg.TrailingLogs = 20, time.Second, 5
		})
		c.Ready()
		f := c.Follower()
		name := f.Info().Name
		c.Stop(name)
		for i := range 200 {
			c.Put(c.Leader(), "web", fmt.Sprint(i))
		}
		time.Sleep(10 * time.Second)
		f = c.Start(name)
		c.Wait("the follower to catch up", func() bool { return f.Ready() == nil && has(f, "web", "199") })
		v, err := c.Leader().Verify(within(t, 10*time.Second))
		if err != nil || !v.GetEqual() {
			t.Errorf("Verify = %v, %v", v, err)
		}
	})
}

func TestAllRestartKeepsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		for i := range 20 {
			c.Put(c.Leader(), "web", fmt.Sprint(i))
		}
		names := c.Names()
		for _, name := range names {
			c.Stop(name)
		}
		for _, name := range names {
			c.Start(name)
		}
		c.Ready()
		v, err := c.Follower().View(within(t, 5*time.Second), cluster.Freshness{})
		if err != nil {
			t.Fatal(err)
		}
		if got := v.State.Counts().Instances; got != 20 {
			t.Errorf("%d instances after all nodes were restarted, want 20", got)
		}
	})
}

func TestRestoreReplacesTheContentOnAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		c.Put(c.Leader(), "web", "kept")
		before, err := c.Leader().View(within(t, time.Second), cluster.Freshness{})
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		if err = before.State.WriteSnapshot(&buf, nil); err != nil {
			t.Fatal(err)
		}
		c.Put(c.Leader(), "web", "later")
		st, err := fsm.ReadSnapshot(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Follower().Restore(within(t, 30*time.Second), st); err != nil {
			t.Fatal(err)
		}
		c.Ready()
		for _, n := range c.Nodes() {
			v, err := n.View(within(t, 30*time.Second), cluster.Freshness{})
			if err != nil {
				t.Fatal(err)
			}
			if v.State.Instance("default", "web", "kept") == nil || v.State.Instance("default", "web", "later") != nil {
				t.Errorf("%s has not the content of the snapshot", n.Info().Name)
			}
			if v.State.ContentHash() != before.State.ContentHash() {
				t.Errorf("%s has another content hash", n.Info().Name)
			}
			if v.State.Revision() <= before.State.Revision()+1 || v.State.Epoch() <= before.State.Epoch() {
				t.Errorf("%s: revision %d, epoch %d after a restore at revision %d, epoch %d", n.Info().Name,
					v.State.Revision(), v.State.Epoch(), before.State.Revision()+1, before.State.Epoch())
			}
		}
		c.Put(c.Leader(), "web", "after")
	})
}

func TestRenewalsAreAcknowledgedOnlyByAProvenLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type call struct {
			term  uint64
			taken time.Time
		}
		calls := make(chan call, 1000)
		c := clustertest.New(t, 3, func(cfg *cluster.Config) {
			cfg.Renew = func(term uint64, taken time.Time, lists []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
				calls <- call{term, taken}
				return []*peerv1.Renewals{{Kind: peerv1.RenewKind_RENEW_KIND_SESSION, Ids: []string{"gone"}}}, nil
			}
		})
		c.Ready()
		for _, n := range c.Nodes() {
			ended, err := n.Renew(within(t, time.Second), peerv1.RenewKind_RENEW_KIND_SESSION, []string{"a", "gone"})
			if err != nil || !slices.Equal(ended, []string{"gone"}) {
				t.Errorf("Renew at %s = %v, %v", n.Info().Name, ended, err)
			}
		}
		old := c.Leader()
		for len(calls) > 0 {
			<-calls
		}
		c.Net.Isolate(old.Info().Name)
		if _, err := old.Renew(within(t, 50*time.Millisecond), peerv1.RenewKind_RENEW_KIND_SESSION, []string{"a"}); err == nil {
			t.Error("the leader that was just cut off, and does not know it yet, acknowledged a renewal")
		}
		c.Leader(old.Info().Name)
		if _, err := old.Renew(within(t, 5*time.Second), peerv1.RenewKind_RENEW_KIND_SESSION, []string{"a"}); err == nil {
			t.Error("the leader that was cut off acknowledged a renewal")
		}
		if len(calls) > 0 {
			t.Error("the leader that was cut off recorded a renewal")
		}
	})
}

// The first attempt ends with the leadership, and may have been applied. The next ones find no leader, which alone would
// mean that nothing was done.
func TestAWriteWhoseOutcomeIsUnknownStaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		cmd := clustertest.Register("web", "a")
		cmd.Request = &raftlogv1.RequestID{ClientId: "c", Sequence: 1, BodyHash: 7}
		old := c.Leader()
		c.Net.Isolate(old.Info().Name)
		if _, err := old.Propose(within(t, time.Minute), cmd); !errors.Is(err, cluster.ErrUnknownOutcome) {
			t.Errorf("a write at a leader that is cut off: %v, want ErrUnknownOutcome", err)
		}
	})
}

func TestARetriedWriteIsAppliedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		cmd := clustertest.Register("web", "a")
		cmd.Request = &raftlogv1.RequestID{ClientId: "c", Sequence: 1, BodyHash: 7}
		first, err := c.Leader().Propose(within(t, time.Second), cmd)
		if err != nil {
			t.Fatal(err)
		}
		old := c.Leader()
		c.Net.Isolate(old.Info().Name)
		next := c.Leader(old.Info().Name)
		again, err := next.Propose(within(t, 5*time.Second), cmd)
		if err != nil || again != first {
			t.Errorf("the retry at the next leader = %+v, %v; the first was %+v", again, err, first)
		}
	})
}

// A round first asks one of the two followers. One that does not answer delays at most the reads of the first round.
func TestAFollowerThatIsGoneDelaysNoReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader := c.Leader()
		c.Net.Isolate(c.Follower().Info().Name)
		var slow int
		for range 50 {
			began := time.Now()
			if _, err := leader.View(within(t, time.Second), cluster.Freshness{}); err != nil {
				t.Fatal(err)
			}
			switch d := time.Since(began); {
			case d > cluster.DefaultHeartbeatTimeout/10:
				t.Fatalf("a read took %v", d)
			case d > 0:
				slow++
			}
		}
		if slow > 2 {
			t.Errorf("%d of 50 reads waited for the follower that is gone", slow)
		}
	})
}
