package chaos_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestMembersChangeUnderLoad: by the command line a fourth and a fifth node join, the leader is removed, and a node whose
// folder was deleted is replaced, all under a write load from clients and from commands. No write fails of those who know
// all addresses, none fails at a node that stays, the removed node refuses in as many words, and nothing that was
// acknowledged is lost (G1, G9).
func TestMembersChangeUnderLoad(t *testing.T) {
	c := nodes.Start(t, 3)
	joining := []*nodes.Node{c.Add(), c.Add()}
	for _, n := range joining {
		c.Wait(n.Name+" to answer", 20*time.Second, func(ctx context.Context) bool {
			_, err := n.Admin().Status(ctx, &apiv1.StatusRequest{Local: true})
			return err == nil
		})
	}
	all := newCLI(t, c.Addresses()...)
	w := load(t, c.Addresses(), 2)
	w.rest.Store(int64(100 * time.Millisecond)) // A command is a process: else they keep all processors busy.
	for i := range 2 {
		w.start(t, fmt.Sprintf("cli%d", i), all.register)
	}
	at := map[*nodes.Node]*writer{}
	for _, n := range c.Nodes()[:3] {
		at[n] = w.startAt(t, n, all)
	}
	w.progress(c)

	for _, n := range joining {
		at[n] = w.startAt(t, n, all) // Its first write waits for the node to be a member.
		all.must(t, "members", "join", n.Peer)
	}
	all.awaitVoters(t, c, c.Nodes()...)
	w.progress(c)

	old := all.leader(t, c)
	all.must(t, "members", "remove", old.Name, "--yes")
	stay := slices.DeleteFunc(slices.Clone(c.Nodes()), func(n *nodes.Node) bool { return n == old })
	all.awaitVoters(t, c, stay...)

	leader := all.leader(t, c)
	var lost *nodes.Node
	for _, n := range c.Nodes()[:3] { // Those that were told their initial peers find back by themselves.
		if n != leader && n != old {
			lost = n
		}
	}
	lost.Kill()
	lost.Wipe()
	lost.Start()
	all.awaitVoters(t, c, stay...)
	w.progress(c)

	w.judge(t, newClient(t, c.Addresses()), at[old], at[lost])
	if refused := at[old].refused; len(refused) != 1 || !saysRemoved(refused[0]) || len(at[old].unknown) > 0 {
		t.Errorf("%s was removed: refused %v, unknown %v; want one clear refusal", old.Name, refused, at[old].unknown)
	}
	for _, err := range at[lost].refused {
		if exitCode(err) != exitUnreachable {
			t.Errorf("%s was killed: %v; want exit code %d", lost.Name, err, exitUnreachable)
		}
	}
	verify(t, c)
}

// startAt starts a writer of commands that knows one node only. Once that says that it was removed, it goes to all.
func (w *writes) startAt(t *testing.T, n *nodes.Node, all cli) *writer {
	t.Helper()
	at := newCLI(t, n.GRPC)
	return w.start(t, "cli-"+n.Name, func(ctx context.Context, id string) error {
		err := at.register(ctx, id)
		if saysRemoved(err) {
			at = all
		}
		return err
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
