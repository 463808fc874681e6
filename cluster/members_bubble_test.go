package cluster_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster/clustertest"
)

func TestANodeThatLostItsDiskComesBackAsANewMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		c.Put(c.Leader(), "web", "a")
		f := c.Follower()
		name, former := f.Info().Name, f.Info().NodeID
		c.Stop(name)
		c.Wipe(name)
		time.Sleep(5 * time.Second)
		n := c.Start(name)
		c.Wait("three voters again", func() bool { return n.Ready() == nil && voters(t, c.Leader()) == 3 })
		if n.Info().NodeID == former {
			t.Error("the node has its former id although it lost its disk")
		}
		if c.Leader().Feed().State().Member(former) != nil {
			t.Error("the former member is still recorded")
		}
		if !has(n, "web", "a") {
			t.Error("the node has not got the data back")
		}
	})
}

func TestADemotedMemberStaysANonVoter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		f := c.Follower()
		if changed, err := c.Leader().Demote(within(t, 20*time.Second), f.Info().Name); err != nil || !changed {
			t.Fatalf("Demote = %v, %v", changed, err)
		}
		time.Sleep(30 * time.Second)
		if got := voters(t, c.Leader()); got != 2 {
			t.Fatalf("%d voters half a minute after a demotion, want 2", got)
		}
		if changed, err := c.Leader().Promote(within(t, 20*time.Second), f.Info().Name); err != nil || !changed {
			t.Fatalf("Promote = %v, %v", changed, err)
		}
		c.Wait("three voters", func() bool { return voters(t, c.Leader()) == 3 })
	})
}

// A follower that is behind tells of a change that was acknowledged all the same: who makes it looks next.
func TestAFollowerShowsTheMembersAsTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		f, leader := c.Follower(), c.Leader()
		c.Net.Delay(leader.Info().Name, f.Info().Name, 200*time.Millisecond)
		if _, err := leader.Demote(within(t, 20*time.Second), f.Info().Name); err != nil {
			t.Fatal(err)
		}
		if got := voters(t, f); got != 2 {
			t.Errorf("the follower shows %d voters after the demotion, want 2", got)
		}
	})
}

func TestLeadershipGoesWhereItIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		want := c.Follower().Info().Name
		got, err := c.Leader().TransferLeadership(within(t, 20*time.Second), want)
		if err != nil || got != want {
			t.Fatalf("TransferLeadership(%s) = %q, %v", want, got, err)
		}
		c.Wait("it to lead", func() bool { return c.Node(want).Info().Leading })
	})
}
