package rpc

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// acknowledging is a subscription of which the client answers markers.
func acknowledging(id uint32, service string) *apiv1.Subscribe {
	s := subscribe(id, service)
	s.Acknowledges = true
	return s
}

// await asks who was told of web up to the revision, and gives it so long.
func (r *rig) await(tb testing.TB, revision uint64, within time.Duration) <-chan *apiv1.AwaitDeliveryResponse {
	tb.Helper()
	answer := make(chan *apiv1.AwaitDeliveryResponse, 1)
	go func() {
		ctx, cancel := context.WithTimeout(tb.Context(), within)
		defer cancel()
		resp, err := r.registry.AwaitDelivery(ctx, &apiv1.AwaitDeliveryRequest{Service: "web", Revision: revision})
		if err != nil {
			tb.Errorf("AwaitDelivery: %v", err)
		}
		answer <- resp
	}()
	return answer
}

// wantTold checks what the node says of itself, apart from where lagging clients are.
func wantTold(tb testing.TB, resp *apiv1.AwaitDeliveryResponse, want *apiv1.NodeDelivery) {
	tb.Helper()
	want.Node = "n1"
	got := resp.GetNodes()[0]
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&apiv1.LaggingStream{}, "client")); diff != "" {
		tb.Errorf("(-want +got):\n%s", diff)
	}
	for _, l := range got.GetLaggards() {
		if l.GetClient() == "" {
			tb.Error("a lagging stream without its client")
		}
	}
	if complete := want.GetProblem() == "" && want.GetLagging() == 0 && len(resp.GetNodes()) == 1; resp.GetComplete() != complete {
		tb.Errorf("complete is %v with %v", resp.GetComplete(), resp.GetNodes())
	}
}

// open makes a follower that has everything.
func (r *rig) open(ctx context.Context, tb testing.TB, subs ...*apiv1.Subscribe) *follower {
	tb.Helper()
	f := newFollower(ctx, tb, r.registry)
	for _, s := range subs {
		f.subscribe(s)
	}
	f.until(r.node.feed.State().Revision())
	return f
}

// Told means sent for who does not acknowledge, and for who does only what it says. Others are not asked.
func TestDeliveryIsAwaitedOfThoseConcerned(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.open(ctx, t, subscribe(1, "web"), subscribe(2, "web"))
		r.open(ctx, t, subscribe(1, ""))
		r.open(ctx, t, &apiv1.Subscribe{SubscriptionId: 1, Filter: &apiv1.Filter{Namespace: "*", Service: "web"}})
		healthy := &apiv1.Filter{Service: "web", MinHealth: registryv1.Health_HEALTH_PASSING}
		r.open(ctx, t, &apiv1.Subscribe{SubscriptionId: 1, Filter: healthy})
		r.open(ctx, t, subscribe(1, "db"))
		r.open(ctx, t, &apiv1.Subscribe{SubscriptionId: 1, Filter: &apiv1.Filter{Namespace: "other"}})
		polite := r.open(ctx, t, acknowledging(1, "db"), acknowledging(2, "web"), subscribe(3, "web"), acknowledging(4, ""))
		r.node.put(t, instance("web", "1"))
		revision := r.node.feed.State().Revision()
		answer := r.await(t, revision, time.Minute)
		polite.until(revision)
		synctest.Wait()
		select {
		case resp := <-answer:
			t.Fatalf("answered before the acknowledgement: %v", resp)
		default:
		}
		marker := polite.recv().GetMarker()
		if diff := cmp.Diff(&apiv1.Marker{Number: 1, SubscriptionIds: []uint32{2, 4}}, marker, protocmp.Transform()); diff != "" {
			t.Fatalf("marker (-want +got):\n%s", diff)
		}
		polite.acknowledge(99) // Of nothing.
		synctest.Wait()
		polite.acknowledge(marker.GetNumber())
		resp := <-answer
		wantTold(t, resp, &apiv1.NodeDelivery{Revision: revision, Streams: 5, Sent: 4, Acknowledged: 1})
		if resp.GetHeader().GetRevision() != revision || resp.GetHeader().GetNode() != "n1" {
			t.Errorf("header %v", resp.GetHeader())
		}
		polite.acknowledge(marker.GetNumber()) // Again.
		wantTold(t, <-r.await(t, revision, time.Second), &apiv1.NodeDelivery{
			Revision: revision, Streams: 5, Sent: 4, Lagging: 1, Laggards: []*apiv1.LaggingStream{{Sent: true}},
		})
		polite.until(revision)
	})
}

// Events come before the marker that stands for them, and only who is waited for gets one.
func TestMarkerComesBehindWhatItIsAbout(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := r.open(ctx, t, acknowledging(1, "web"))
		base := r.node.feed.State().Revision()
		answer := r.await(t, base+100, time.Minute)
		for i := range 100 {
			r.node.put(t, instance("web", fmt.Sprint(i)))
		}
		var m *apiv1.Marker
		for m == nil {
			m = f.recv().GetMarker()
		}
		if s := f.subs[1]; s.upTo < base+100 || len(s.known) != 100 {
			t.Errorf("marker at revision %d with %d instances, want %d with 100", s.upTo, len(s.known), base+100)
		}
		f.acknowledge(m.GetNumber())
		wantTold(t, <-answer, &apiv1.NodeDelivery{Revision: base + 100, Streams: 1, Acknowledged: 1})
	})
}

// A client that does not read is told as lagging, and holds up neither the others nor the answer.
func TestBlockedStreamLags(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.open(ctx, t, subscribe(1, "web"), acknowledging(2, "s0"))
		polite := r.open(ctx, t, acknowledging(1, "web"))
		synctest.Wait()
		blocked := r.blocked(ctx, t)
		revision := r.node.feed.State().Revision()
		began := time.Now()
		answer := r.await(t, revision, 5*time.Second)
		polite.acknowledge(polite.marker())
		wantTold(t, <-answer, &apiv1.NodeDelivery{
			Revision: revision, Streams: 3, Sent: 1, Acknowledged: 1, Lagging: 1, Laggards: []*apiv1.LaggingStream{{}},
		})
		if took := time.Since(began); took >= 5*time.Second || took < 4500*time.Millisecond {
			t.Errorf("answered after %v, want a moment before 5s", took)
		}
		if n := r.owing(); n != 0 {
			t.Errorf("%d deliveries are remembered that nobody waits for", n)
		}
		// It reads on: then it is told.
		answer = r.await(t, revision, time.Minute)
		synctest.Wait()
		blocked.until(revision)
		polite.acknowledge(polite.marker())
		wantTold(t, <-answer, &apiv1.NodeDelivery{Revision: revision, Streams: 3, Sent: 2, Acknowledged: 1})
	})
}

// owing is the number of deliveries that streams owe something to.
func (r *rig) owing() int {
	x := &r.server.core.deliveries
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.waits
	for _, w := range x.streams {
		n += len(w.marks.due) + len(w.marks.owed)
	}
	return n
}

// blocked opens a stream of all services that is held up in a send.
func (r *rig) blocked(ctx context.Context, tb testing.TB) *follower {
	tb.Helper()
	f := newFollower(ctx, tb, r.registry)
	f.subscribe(subscribe(1, ""))
	for range 4 {
		r.node.mustApply(tb, batch(tb, 500, 500))
		r.node.put(tb, instance("web", fmt.Sprint(r.node.feed.State().Revision())))
	}
	synctest.Wait()
	return f
}

// A stream that ends, or is no longer subscribed, is not waited for.
func TestWhoLeavesIsNotWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		leaving, leave := context.WithCancel(ctx)
		r.open(leaving, t, acknowledging(1, "web"))
		r.open(ctx, t, acknowledging(1, "web"))
		f := r.open(ctx, t, acknowledging(1, "web"), acknowledging(2, "db"))
		revision := r.node.feed.State().Revision()
		answer := r.await(t, revision, time.Minute)
		synctest.Wait()
		leave()
		synctest.Wait()
		f.acknowledge(f.marker())
		synctest.Wait()
		select {
		case resp := <-answer:
			t.Fatalf("answered with %v while one had not acknowledged", resp)
		default:
		}
		wantTold(t, <-answer, &apiv1.NodeDelivery{
			Revision: revision, Streams: 3, Acknowledged: 1, Ended: 1, Lagging: 1, Laggards: []*apiv1.LaggingStream{{Sent: true}},
		})
	})
}

// A node waits for the revision itself, with whoever subscribes meanwhile; who subscribes later has it anyway.
func TestDeliveryWaitsForTheRevision(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		base := r.node.feed.State().Revision()
		answer := r.await(t, base+1, time.Minute)
		synctest.Wait()
		early := r.open(ctx, t, acknowledging(1, "web"))
		synctest.Wait()
		r.node.put(t, instance("web", "1"))
		number := early.marker()
		late := r.open(ctx, t, acknowledging(1, "web"))
		if n := len(late.subs[1].known); n != 1 {
			t.Errorf("who came later knows %d instances", n)
		}
		early.acknowledge(number)
		wantTold(t, <-answer, &apiv1.NodeDelivery{Revision: base + 1, Streams: 1, Acknowledged: 1})

		began := time.Now()
		resp := <-r.await(t, base+2, 3*time.Second)
		if took := time.Since(began); took >= 3*time.Second || took < 2500*time.Millisecond {
			t.Errorf("answered after %v, want a moment before 3s", took)
		}
		wantTold(t, resp, &apiv1.NodeDelivery{
			Revision: base + 1, Problem: fmt.Sprintf("it has come to revision %d, and not to %d", base+1, base+2),
		})
	})
}

// What another member could not say is part of the answer.
func TestUnreachableMemberIsNotComplete(t *testing.T) {
	bubble(t, func(t *testing.T, _ context.Context, r *rig) {
		r.node.set(func() { r.node.others = []*apiv1.NodeDelivery{{Node: "n2", Problem: "could not be asked"}} })
		revision := r.node.feed.State().Revision()
		wantTold(t, <-r.await(t, revision, time.Second), &apiv1.NodeDelivery{Revision: revision})
	})
}

func TestDeliveryIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		for _, req := range []*apiv1.AwaitDeliveryRequest{
			{Service: "web"}, {Revision: 1}, {Namespace: "*", Service: "web", Revision: 1}, {Service: "no name", Revision: 1},
		} {
			if _, err := r.registry.AwaitDelivery(ctx, req); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v: %v", req, err)
			}
		}
		r.server.core.deliveries.waits = maxDeliveries
		resp := <-r.await(t, r.node.feed.State().Revision(), time.Second)
		if resp.GetComplete() || resp.GetNodes()[0].GetProblem() == "" {
			t.Errorf("too many waits: %v", resp)
		}
		r.server.core.deliveries.waits = 0
	})
}

// acknowledge answers a marker.
func (f *follower) acknowledge(number uint64) {
	f.tb.Helper()
	f.send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Acknowledge{Acknowledge: &apiv1.Acknowledge{Number: number}}})
}

// marker takes messages in until there is one.
func (f *follower) marker() uint64 {
	f.tb.Helper()
	for {
		if m := f.recv().GetMarker(); m != nil {
			return m.GetNumber()
		}
	}
}
