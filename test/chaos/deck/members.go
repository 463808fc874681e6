package deck

import (
	"context"
	"fmt"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// memberFaults change who is a member.
func memberFaults() []fault {
	return []fault{
		{kind: "lost disk of a follower", alone: true, begin: func(w *world) undo {
			n := w.follower()
			before := w.memberID(n)
			n.Kill()
			n.Wipe()
			return func() done {
				n.Start() // It was told its initial peers: it comes back by itself.
				return w.rejoined(n, before)
			}
		}},
		{kind: "removed leader", alone: true, begin: func(w *world) undo { return w.remove(w.c.Leader()) }},
		{kind: "removed follower", alone: true, begin: func(w *world) undo { return w.remove(w.follower()) }},
	}
}

// remove removes a node that runs. It must say so and serve no more; then it comes back as a new member.
func (w *world) remove(n *nodes.Node) undo {
	before := w.memberID(n)
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	_, err := n.Admin().Remove(ctx, &apiv1.RemoveRequest{Node: n.Name})
	w.must(err)
	return func() done {
		stale := &apiv1.ListServicesRequest{Freshness: &apiv1.Freshness{Mode: apiv1.Mode_MODE_STALE}}
		w.c.Wait("the removed node to say so", 20*time.Second, func(ctx context.Context) bool {
			_, err := n.Registry().ListServices(ctx, stale)
			return err != nil
		})
		n.Kill()
		n.Wipe()
		n.Start()
		return w.rejoined(n, before)
	}
}

// rejoined waits until a node is a member under another id than before, which is the evidence.
func (w *world) rejoined(n *nodes.Node, before string) done {
	var now string
	w.c.Wait(n.Name+" to be a member again", 30*time.Second, func(context.Context) bool {
		now = w.memberID(n)
		return now != "" && now != before
	})
	return to(fmt.Sprintf("member %.8s became %.8s", before, now), n)
}

// memberID is the id under which the cluster knows a node, empty when it does not.
func (w *world) memberID(n *nodes.Node) string {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	reply, err := w.c.Leader().Admin().Members(ctx, &apiv1.MembersRequest{})
	if err != nil {
		return ""
	}
	for _, m := range reply.GetMembers() {
		if m.GetMember().GetName() == n.Name {
			return m.GetMember().GetId()
		}
	}
	return ""
}

// transfer hands leadership over from a node, and returns the name of the new leader.
func (w *world) transfer(from *nodes.Node) (string, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	reply, err := from.Admin().TransferLeadership(ctx, &apiv1.TransferLeadershipRequest{})
	return reply.GetLeader(), err
}
