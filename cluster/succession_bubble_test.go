package cluster_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
)

// inOrder are the running followers by their ids, which is the order in which they succeed their leader.
func inOrder(c *clustertest.Cluster) []*cluster.Node {
	leader := c.Leader()
	followers := slices.DeleteFunc(c.Nodes(), func(n *cluster.Node) bool { return n == leader })
	slices.SortFunc(followers, func(a, b *cluster.Node) int { return strings.Compare(a.Info().NodeID, b.Info().NodeID) })
	return followers
}

// kill does to the others what the end of some processes does: their connections end, and no new ones come about.
func kill(c *clustertest.Cluster, killed ...*cluster.Node) {
	for _, k := range killed {
		for _, n := range c.Nodes() {
			if n != k {
				c.Net.Refuse(n.Info().Name, k.Info().Name)
				c.Net.Refuse(k.Info().Name, n.Info().Name)
			}
		}
	}
	for _, k := range killed {
		c.Net.Reset(k.Info().Name)
	}
}

// succeeded waits for another leader, and fails the test if that takes long.
func succeeded(t *testing.T, c *clustertest.Cluster, limit time.Duration, dead ...*cluster.Node) *cluster.Node {
	t.Helper()
	begun := time.Now()
	var names []string
	for _, n := range dead {
		names = append(names, n.Info().Name)
	}
	next := c.Leader(names...)
	if took := time.Since(begun); took >= limit {
		t.Errorf("a leader's process ended, and the next one led after %v, want less than %v", took, limit)
	}
	return next
}

// itsTurn is how long the second in line waits for the first.
const itsTurn = cluster.DefaultHeartbeatTimeout / 5

func TestALeaderWhoseProcessEndsIsSucceededAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader, first := c.Leader(), inOrder(c)[0]
		c.Put(first, "web", "before")
		c.Wait("everything at the first", func() bool { return first.Raft().LastIndex() == leader.Raft().LastIndex() })
		kill(c, leader)
		next := succeeded(t, c, itsTurn, leader)
		if next != first {
			t.Errorf("%s leads, want %s, the first by id", next.Info().Name, first.Info().Name)
		}
		if !has(next, "web", "before") {
			t.Error("the next leader misses what was acknowledged")
		}
		c.Put(next, "web", "after")
	})
}

// A process that is stopped in order closes its port last.
func TestALeaderThatEndsSlowlyIsSucceededBeforeATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		name := c.Leader().Info().Name
		begun := time.Now()
		c.Stop(name)
		c.Leader()
		if took := time.Since(begun); took >= cluster.DefaultHeartbeatTimeout {
			t.Errorf("%s was stopped, and the next one led after %v, want less than %v", name, took, cluster.DefaultHeartbeatTimeout)
		}
		c.Start(name)
		c.Ready()
	})
}

func TestAMajorityOfFiveSucceedsALeaderThatDidNotEndAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 5)
		c.Ready()
		leader, first := c.Leader(), inOrder(c)[0]
		kill(c, first, leader)
		succeeded(t, c, cluster.DefaultHeartbeatTimeout, first, leader)
	})
}

// Who is first by id would lose an election, and the others a timeout with it.
func TestWhoHasTheLongerLogGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader, followers := c.Leader(), inOrder(c)
		behind, ahead := followers[0], followers[1]
		c.Net.CutOneWay(leader.Info().Name, behind.Info().Name)
		c.Put(leader, "web", "acknowledged")
		if behind.Raft().LastIndex() >= ahead.Raft().LastIndex() {
			t.Fatalf("%s has as long a log as %s: the test shows nothing", behind.Info().Name, ahead.Info().Name)
		}
		kill(c, leader)
		if next := succeeded(t, c, itsTurn, leader); next != ahead {
			t.Errorf("%s leads, want %s: the other lacks what was acknowledged", next.Info().Name, ahead.Info().Name)
		}
	})
}

// Refused is also who has a firewall against them: nobody else is.
func TestALeaderThatAMajorityReachesIsNotSucceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader, follower := c.Leader(), inOrder(c)[0]
		term := leader.Raft().CurrentTerm()
		c.Net.Refuse(follower.Info().Name, leader.Info().Name)
		c.Net.Reset(leader.Info().Name)
		time.Sleep(10 * cluster.DefaultHeartbeatTimeout)
		if now := leader.Raft().CurrentTerm(); now != term || c.Leader() != leader {
			t.Errorf("in term %d %s leads, want %s in term %d still", now, c.Leader().Info().Name, leader.Info().Name, term)
		}
	})
}

func TestAClusterThatIsStartedElectsALeaderAtOnce(t *testing.T) {
	for _, size := range []int{1, 3, 5} {
		synctest.Test(t, func(t *testing.T) {
			c := clustertest.New(t, size)
			c.Ready()
			names := c.Names()
			c.Put(c.Leader(), "web", "before")
			for _, name := range names {
				c.Stop(name)
			}
			begun := time.Now()
			for _, name := range names {
				c.Start(name)
			}
			leader := c.Leader()
			if took := time.Since(begun); took >= cluster.DefaultHeartbeatTimeout {
				t.Errorf("a cluster of %d was started, and one led after %v, want less than %v", size, took, cluster.DefaultHeartbeatTimeout)
			}
			if !has(leader, "web", "before") {
				t.Error("the leader misses what was acknowledged")
			}
		})
	}
}

// They have heard of no leader since they were started, and are a majority.
func TestALeaderIsNotDeposedByOthersThatAreStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader, followers := c.Leader(), inOrder(c)
		term := leader.Raft().CurrentTerm()
		release := c.Net.HoldFrom(leader.Info().Name) // For less than its lease.
		var names []string
		for _, f := range followers {
			names = append(names, f.Info().Name)
			c.Stop(f.Info().Name)
		}
		for _, name := range names {
			c.Start(name)
		}
		turn := time.Duration(0) // of the one that asks first
		if leader.Info().NodeID < followers[0].Info().NodeID {
			turn = itsTurn
		}
		time.Sleep(turn + itsTurn/2) // Its question is under way.
		release()
		c.Ready()
		if now := leader.Raft().CurrentTerm(); now != term || c.Leader() != leader {
			t.Errorf("in term %d %s leads, want %s in term %d still", now, c.Leader().Info().Name, leader.Info().Name, term)
		}
	})
}
