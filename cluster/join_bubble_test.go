package cluster_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
)

// A node that has just joined hears from its leader before it has the log, or the snapshot, that names it.
func TestANewMemberServesBeforeItHasTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader := c.Leader()
		n4 := c.Add("n4", func(cfg *cluster.Config) { cfg.LeaderWait = 50 * time.Millisecond })
		c.Net.Delay(leader.Info().Name, "n4", 300*time.Millisecond) // Between the first message and the log.
		if _, _, err := leader.Join(within(t, 20*time.Second), "n4:7401", true); err != nil {
			t.Fatal(err)
		}
		c.Wait("the new member to hear of its leader", func() bool { return n4.Info().LeaderID != "" })
		if len(n4.Feed().State().Members()) > 0 {
			t.Fatal("the new member has the log already")
		}
		c.Put(n4, "web", "a")
		v, err := n4.View(within(t, 20*time.Second), cluster.Freshness{})
		if err != nil || v.State.Instance("default", "web", "a") == nil {
			t.Errorf("read of what it has written: %v", err)
		}
	})
}

// What a node has only begun to start has to end with it, or the bubble complains.
func TestANodeCanBeClosedWhileItStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		for range 10 {
			c.Stop("n1")
			c.Start("n1")
		}
		c.Wait("the node to serve", func() bool { return c.Node("n1").Ready() == nil })
	})
}

// A removed node still runs, and is still among the initial peers of the others.
func TestALostDiskIsReplacedBesideARemovedNode(t *testing.T) {
	for _, removed := range []string{"n1", "n4"} {
		t.Run(removed, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := clustertest.New(t, 4)
				c.Ready()
				if err := c.Leader().Remove(within(t, 20*time.Second), removed, false); err != nil {
					t.Fatal(err)
				}
				c.Wait("the removed node to know", func() bool { return c.Node(removed).Info().Removed })
				leader := c.Leader(removed)
				name := "n2"
				if leader.Info().Name == name {
					name = "n3"
				}
				c.Stop(name)
				c.Wipe(name)
				n := c.Start(name)
				c.Wait("three voters again", func() bool { return n.Ready() == nil && voters(t, leader) == 3 })
			})
		})
	}
}

// What autopilot has seen may be a while ago: a member that was removed since is not added again as a voter, which would count
// in the quorum for ever.
func TestWhoWasRemovedIsNotPromoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		leader := c.Leader()
		n4 := c.Add("n4", func(cfg *cluster.Config) { cfg.Join = []string{"n1:7401"} })
		c.Wait("a fourth voter", func() bool { return n4.Ready() == nil && voters(t, leader) == 4 })
		if err := leader.PromoteStable(n4.Info().NodeID, "n4:7401"); err != nil {
			t.Errorf("a second promotion = %v", err)
		}
		if err := leader.Remove(within(t, 20*time.Second), "n4", false); err != nil {
			t.Fatal(err)
		}
		if err := leader.PromoteStable(n4.Info().NodeID, "n4:7401"); !errors.Is(err, cluster.ErrMemberNotFound) {
			t.Errorf("promotion of a removed member = %v", err)
		}
		if got := voters(t, leader); got != 3 {
			t.Errorf("%d voters, want 3", got)
		}
	})
}
