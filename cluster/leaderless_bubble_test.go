package cluster_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
)

// A heartbeat of a leader is handled beside Raft's main loop, and hangs there on the disk. It ends only when its sender
// has been removed and the removal is applied: then the node takes the sender for its leader again, until it hears of
// the successor. Neither its State nor Raft's configuration know who that is.
func TestCallsWaitWhileTheLeaderIsSaidToBeARemovedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks, option := freezers()
		c := clustertest.New(t, 3, option)
		c.Ready()
		next := c.Leader() // and again later
		var names []string
		for _, n := range c.Nodes() {
			if n != next {
				names = append(names, n.Info().Name)
			}
		}
		removed, node := c.Node(names[0]), c.Node(names[1])
		disk := disks[names[1]]
		lead := func(from, to *cluster.Node) {
			t.Helper()
			if _, err := from.TransferLeadership(within(t, 10*time.Second), to.Info().Name); err != nil {
				t.Fatal(err)
			}
			c.Wait("it to lead", func() bool { return to.Info().Leading })
		}

		// Raft's main loop hangs in an append, so that the new term comes by a heartbeat.
		thawAppends, beat := disk.appends.shut(), disk.terms.shut()
		c.Put(next, "web", "a")
		c.Wait("an append to hang", disk.appends.holds)
		lead(next, removed)
		c.Wait("a heartbeat to hang", disk.terms.holds)
		disk.appends.open()
		disk.terms.open()
		thawAppends()
		c.Ready()

		lead(removed, next)
		id := removed.Info().NodeID
		if err := next.Remove(within(t, 10*time.Second), id, false); err != nil {
			t.Fatal(err)
		}
		c.Wait("the removal to be applied", func() bool { return node.Feed().State().Member(id) == nil })
		c.Net.CutOneWay(next.Info().Name, node.Info().Name)
		beat()
		c.Wait("the removed node to be called the leader", func() bool { return node.Info().LeaderID == id })
		written, read := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := node.Propose(within(t, 10*time.Second), clustertest.Register("web", "b"))
			written <- err
		}()
		go func() {
			_, err := node.View(within(t, 10*time.Second), cluster.Freshness{})
			read <- err
		}()
		time.Sleep(cluster.DefaultHeartbeatTimeout / 5)
		c.Net.Heal()
		if err := <-written; err != nil {
			t.Errorf("a write begun while a removed node was called the leader: %v", err)
		}
		if err := <-read; err != nil {
			t.Errorf("a read begun while a removed node was called the leader: %v", err)
		}
	})
}
