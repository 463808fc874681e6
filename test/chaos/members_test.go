package chaos_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestMembersChangeUnderLoad: a fourth and a fifth node join, the leader is removed, and a node whose folder was deleted
// is replaced, all under a write load of which no write fails and none that was acknowledged is lost (G1, G9).
func TestMembersChangeUnderLoad(t *testing.T) {
	c := nodes.Start(t, 3)
	admin := newClient(t, c.Addresses())
	w := load(t, c.Addresses(), 4)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	for range 2 {
		n := c.Add()
		c.Wait(n.Name+" to answer", 20*time.Second, func(ctx context.Context) bool {
			_, err := n.Admin().Status(ctx, &apiv1.StatusRequest{Local: true})
			return err == nil
		})
		if _, err := c.Leader(n).Admin().Join(ctx, &apiv1.JoinRequest{PeerAddress: n.Peer}); err != nil {
			t.Fatalf("join %s: %v", n.Name, err)
		}
	}
	voters(t, c, 5)

	old := c.Leader()
	if _, err := old.Admin().Remove(ctx, &apiv1.RemoveRequest{Node: old.Name}); err != nil {
		t.Fatalf("remove the leader: %v", err)
	}
	voters(t, c, 4, old)
	c.Wait("the removed leader to say so", 20*time.Second, func(ctx context.Context) bool {
		_, err := old.Registry().ListServices(ctx, &apiv1.ListServicesRequest{Freshness: &apiv1.Freshness{Mode: apiv1.Mode_MODE_STALE}})
		return err != nil
	})
	old.Kill()

	leader := c.Leader()
	var lost *nodes.Node
	for _, n := range c.Nodes()[:3] { // Those that were told their initial peers find back by themselves.
		if n != leader && n != old {
			lost = n
		}
	}
	lost.Kill()
	lost.Wipe()
	lost.Start()
	voters(t, c, 4)
	c.Wait("the replaced node to serve", 30*time.Second, func(ctx context.Context) bool {
		_, err := lost.Registry().ListServices(ctx, &apiv1.ListServicesRequest{})
		return err == nil
	})
	w.judge(t, admin)
	verify(t, c)
}

// voters waits until the cluster has so many voters and all of them answer.
func voters(t *testing.T, c *nodes.Cluster, want uint32, except ...*nodes.Node) {
	t.Helper()
	c.Wait("the voters", 60*time.Second, func(ctx context.Context) bool {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s, err := c.Leader(except...).Admin().Status(ctx, &apiv1.StatusRequest{})
		return err == nil && s.GetVoters() == want && s.GetVotersReachable() == want
	})
}

// TestASnapshotMovesIntoANewCluster: a snapshot of one cluster is restored into another, empty one: the same content by
// its hash, a revision that is not lower, and watchers that were there before see it (G4, G10).
func TestASnapshotMovesIntoANewCluster(t *testing.T) {
	from := nodes.Start(t, 1)
	source := newClient(t, from.Addresses())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, id := range []string{"a", "b", "c"} {
		if _, err := source.RegisterDetached(ctx, &registryv1.Instance{Service: "web", Id: id, Address: "127.0.0.1"}); err != nil {
			t.Fatal(err)
		}
	}
	saved, err := source.Instances(ctx, client.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var snapshot bytes.Buffer
	if _, err = source.Cluster().SaveSnapshot(ctx, &snapshot, nil); err != nil {
		t.Fatal(err)
	}

	to := nodes.Start(t, 3)
	target := newClient(t, to.Addresses())
	if _, err = target.RegisterDetached(ctx, &registryv1.Instance{Service: "old", Id: "x", Address: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	v := observe(t, newClient(t, to.Addresses()))
	to.Wait("the watcher to see what was there", 10*time.Second, func(context.Context) bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.instances["old/x"] != nil
	})
	if _, err = target.Cluster().RestoreSnapshot(ctx, &snapshot, nil); err != nil {
		t.Fatal(err)
	}
	restored, err := target.Instances(ctx, client.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if restored.Revision < saved.Revision {
		t.Errorf("revision %d after the restore of revision %d", restored.Revision, saved.Revision)
	}
	if a, b := contentHash(t, from), contentHash(t, to); !bytes.Equal(a, b) {
		t.Errorf("content hash %x after the restore of %x", b, a)
	}
	to.Wait("the watcher to see the restored content", 15*time.Second, func(context.Context) bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.instances["old/x"] == nil && len(v.instances) == 3
	})
	verify(t, to)
}

func contentHash(t *testing.T, c *nodes.Cluster) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	reply, err := c.Leader().Admin().Verify(ctx, &apiv1.VerifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return reply.GetContentHash()
}
