package cluster_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// A command that a member can't apply would stop that member: it does not get into the log.
func TestACommandAboveTheLevelOfTheClusterIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		for _, n := range c.Nodes() {
			c.Wait("the members in the state of "+n.Info().Name, func() bool {
				return n.Feed().State().FeatureLevel() == fsm.FeatureLevel
			})
			later := clustertest.Register("web", "a")
			later.Level = fsm.FeatureLevel + 1
			if _, err := n.Propose(within(t, time.Second), later); !errors.Is(err, cluster.ErrFeatureLevel) {
				t.Errorf("%s: a command of a later level = %v", n.Info().Name, err)
			}
			named := clustertest.Register("web", n.Info().Name)
			named.Level, named.Actor = fsm.AccessLevel, fsm.Anonymous
			if outcome, err := n.Propose(within(t, time.Second), named); err != nil || outcome.Err() != nil {
				t.Errorf("%s: a command of the cluster's level = %+v, %v", n.Info().Name, outcome, err)
			}
		}
		// An old member, as the leader's own record says.
		leader := c.Leader()
		self := leader.Feed().State().Members()[0]
		outcome, err := leader.Propose(within(t, time.Second), &raftlogv1.Command{
			Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: &registryv1.Member{
				Id: self.GetId(), Name: self.GetName(), Version: "0.9", PeerAddress: self.GetPeerAddress(),
			}}},
		})
		if err != nil || outcome.Err() != nil {
			t.Fatalf("set member: %+v, %v", outcome, err)
		}
		named := clustertest.Register("web", "old")
		named.Level, named.Actor = fsm.AccessLevel, fsm.Anonymous
		_, err = leader.Propose(within(t, time.Second), named)
		if !errors.Is(err, cluster.ErrFeatureLevel) || !strings.Contains(err.Error(), self.GetName()) || !strings.Contains(err.Error(), `"0.9"`) {
			t.Errorf("a command that a member is too old for = %v", err)
		}
		if has(leader, "web", "a") || has(leader, "web", "old") {
			t.Error("a command above the level was applied")
		}
	})
}
