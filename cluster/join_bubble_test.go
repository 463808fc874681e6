package cluster_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster/clustertest"
)

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
