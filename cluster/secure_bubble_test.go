package cluster_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/certs/certstest"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cluster/peer"
)

// secured gives each node TLS with a certificate of the name that certified returns for it.
func secured(t *testing.T, ca *certstest.Authority, certified func(name string) string) clustertest.Option {
	t.Helper()
	return func(cfg *cluster.Config) {
		name := certified(cfg.Name)
		s, err := certs.Open(certs.Config{Files: certstest.Write(t, t.TempDir(), ca.Peer(name), ca.PEM()), Port: "peer", Node: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		cfg.Network = peer.Secure(cfg.Network, s)
	}
}

func own(name string) string { return name }

// A joining node takes the place of a member of its name that does not answer. So the name must be proved.
func TestANodeJoinsOnlyUnderTheNameOfItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certstest.NewAuthority(t)
		c := clustertest.New(t, 3, secured(t, ca, own))
		c.Ready()
		follower := c.Follower().Info()
		c.Stop(follower.Name)
		c.Add("n4", func(cfg *cluster.Config) { cfg.Name = follower.Name },
			secured(t, ca, func(string) string { return "n4" }))
		leader := c.Leader(follower.Name, "n4")
		_, _, err := leader.Join(t.Context(), "n4:7401", false)
		if !errors.Is(err, peer.ErrWrongName) {
			t.Errorf("n4 joins as %s: %v", follower.Name, err)
		}
		if got := len(leader.Feed().State().Members()); got != 3 {
			t.Errorf("there are %d members", got)
		}
		if m := leader.Feed().State().Member(follower.NodeID); m.GetName() != follower.Name {
			t.Errorf("%s was replaced", follower.Name)
		}
		c.Stop("n4")
		c.Add("n5", secured(t, ca, own))
		if _, _, err := leader.Join(t.Context(), "n5:7401", false); err != nil {
			t.Errorf("n5 joins as itself: %v", err)
		}
	})
}
