package cluster_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cluster/storage"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Who waits until any node of a new cluster is ready, or has no problem to tell of, may use all that the cluster can do.
func TestANodeIsReadyOnceTheClusterKnowsItsLevel(t *testing.T) {
	for name, well := range map[string]func(*testing.T, *cluster.Node) bool{
		"ready": func(_ *testing.T, n *cluster.Node) bool { return n.Ready() == nil },
		"healthy": func(t *testing.T, n *cluster.Node) bool {
			t.Helper()
			s, err := n.Status(within(t, 10*time.Second), false)
			if err != nil {
				t.Fatal(err)
			}
			return len(s.GetProblems()) == 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := clustertest.New(t, 3)
				var found *cluster.Node
				for found == nil {
					time.Sleep(2 * time.Millisecond)
					for _, n := range c.Nodes() {
						if well(t, n) {
							found = n
						}
					}
				}
				newest := named("web", "a")
				newest.Level = fsm.FeatureLevel
				if outcome, err := found.Propose(within(t, time.Second), newest); err != nil || outcome.Err() != nil {
					t.Errorf("%s has just become %s, and refuses a command of the newest level: %+v, %v", found.Info().Name, name, outcome, err)
				}
			})
		})
	}
}

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
			if outcome, err := n.Propose(within(t, time.Second), named("web", n.Info().Name)); err != nil || outcome.Err() != nil {
				t.Errorf("%s: a command of the cluster's level = %+v, %v", n.Info().Name, outcome, err)
			}
		}
		if has(c.Leader(), "web", "a") {
			t.Error("a command above the level was applied")
		}
	})
}

// old makes a node as those versions are that know nothing of access control.
func old(cfg *cluster.Config) {
	cluster.WithLevel(cfg, fsm.AccessLevel-1)
	cfg.Version = "0.9"
}

// named is a command of the level of access control, as rpc makes of each write once all members have that level.
func named(service, id string) *raftlogv1.Command {
	cmd := clustertest.Register(service, id)
	cmd.Level, cmd.Actor = fsm.AccessLevel, fsm.Anonymous
	return cmd
}

// While a member is old, what it can't apply stays out of the log, and other old nodes may join. Once none is old none
// may come any more: neither by itself, nor by an operator, nor in the place of a member that it was before.
func TestAnOldNodeJoinsOnlyAnOldCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		c.Stop("n3")
		c.Wipe("n3")
		peers := func(cfg *cluster.Config) {
			cfg.InitialPeers, cfg.LeaderWait = []string{"n1:7401", "n2:7401"}, 50*time.Millisecond
		}
		c.Reconfigure("n3", old)
		n3 := c.Start("n3") // Empty, in the place of its former self.
		n4 := c.Add("n4", old, peers)
		for _, name := range []string{"n3", "n4"} {
			c.Wait(name+" to be told why not", func() bool {
				_, err := c.Node(name).Propose(within(t, time.Second), clustertest.Register("web", "a"))
				return errors.Is(err, cluster.ErrStarting) && strings.Contains(err.Error(), fmt.Sprintf("knows feature level 1 and the cluster has reached %d", fsm.FeatureLevel))
			})
		}
		for _, n := range []*cluster.Node{c.Node("n1"), c.Node("n2")} {
			_, _, err := n.Join(within(t, time.Second), "n4:7401", true)
			if !errors.Is(err, cluster.ErrMembership) || !strings.Contains(err.Error(), `n4 at n4:7401, of version "0.9"`) {
				t.Errorf("%s: join of an old node = %v", n.Info().Name, err)
			}
		}
		if got := voters(t, c.Leader()); got != 3 {
			t.Errorf("%d voters, want 3: the former n3 has lost its place to a node that can't take it", got)
		}

		// An old member, as there are in the middle of an upgrade.
		leader := c.Leader()
		outcome, err := leader.Propose(within(t, time.Second), &raftlogv1.Command{
			Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: &registryv1.Member{
				Id: "m", Name: "m", Version: "0.9", PeerAddress: "m:7401",
			}}},
		})
		if err != nil || outcome.Err() != nil {
			t.Fatalf("set member: %+v, %v", outcome, err)
		}
		c.Wait("n3 and n4 to be members", func() bool { return n3.Ready() == nil && n4.Ready() == nil })
		_, err = leader.Propose(within(t, time.Second), named("web", "b"))
		if !errors.Is(err, cluster.ErrFeatureLevel) || !strings.Contains(err.Error(), `"0.9"`) {
			t.Errorf("a command that a member is too old for = %v", err)
		}
		if has(leader, "web", "b") {
			t.Error("a command above the level was applied")
		}
	})
}

// A member that is started in an older version than before, when all others have left that behind, ends itself: at once
// where its log shows it, else before it tells the cluster how old it is.
func TestAnOldVersionOnNewerDataStopsAndChangesNothing(t *testing.T) {
	for name, written := range map[string]bool{"its log shows it": true, "the cluster says it": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := clustertest.New(t, 3)
				c.Ready()
				if written {
					if outcome, err := c.Leader().Propose(within(t, 20*time.Second), named("web", "a")); err != nil || outcome.Err() != nil {
						t.Fatalf("write: %+v, %v", outcome, err)
					}
					c.Wait("n3 to have it", func() bool { return has(c.Node("n3"), "web", "a") })
				}
				c.Stop("n3")
				stopped := make(chan error, 1)
				var cfg cluster.Config
				c.Reconfigure("n3", func(now *cluster.Config) {
					old(now)
					now.OnFatal = func(err error) { stopped <- err }
					cfg = *now
				})
				n3, err := cluster.Open(cfg)
				if err == nil {
					err = endOf(t, stopped)
					_ = n3.Close() // As its process would: it may lead.
				}
				if (n3 == nil) != written || !errors.Is(err, cluster.ErrTooOld) || !strings.Contains(err.Error(), "level 1") {
					t.Errorf("an old version started: %v, then %v", n3 != nil, err)
				}
				if level := c.Leader().Feed().State().FeatureLevel(); level != fsm.FeatureLevel {
					t.Errorf("the cluster has fallen to level %d", level)
				}
			})
		})
	}
}

// endOf waits until a node can't go on, and returns why. After a minute it returns nil.
func endOf(t *testing.T, stopped <-chan error) error {
	t.Helper()
	select {
	case err := <-stopped:
		return err
	case <-time.After(time.Minute):
		return nil
	}
}

// An entry of a later version ends the node, and with it in the log the node does not start again.
func TestAnEntryOfALaterVersionStopsTheNode(t *testing.T) {
	for _, store := range storage.LogStores() {
		t.Run(string(store), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stopped := make(chan error, 1)
				c := clustertest.New(t, 1, func(cfg *cluster.Config) {
					cfg.LogStore, cfg.OnFatal = store, func(err error) { stopped <- err }
				})
				c.Ready()
				later := clustertest.Register("web", "a")
				later.Level = fsm.FeatureLevel + 1
				command, err := proto.Marshal(later)
				if err != nil {
					t.Fatal(err)
				}
				c.Leader().Raft().Apply(fsm.AppendEntry(nil, 1, [][]byte{command}), 0)
				if err = endOf(t, stopped); !errors.Is(err, cluster.ErrTooOld) || !errors.Is(err, fsm.ErrUnknownCommand) {
					t.Errorf("the node stopped for: %v", err)
				}
				c.Stop("n1")
				var cfg cluster.Config
				c.Reconfigure("n1", func(now *cluster.Config) { cfg = *now })
				if _, err = cluster.Open(cfg); !errors.Is(err, cluster.ErrTooOld) || !strings.Contains(err.Error(), fmt.Sprintf("feature level %d", fsm.FeatureLevel+1)) {
					t.Errorf("started again: %v", err)
				}
			})
		})
	}
}
