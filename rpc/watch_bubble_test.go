package rpc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster/feed"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// bubble runs a test in a bubble, with a server and a context that ends with the test.
func bubble(t *testing.T, test func(t *testing.T, ctx context.Context, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, t.Context(), newRig(t)) })
}

// limited gives the node another feed.
func (r *rig) limited(tb testing.TB, limits feed.Limits) {
	tb.Helper()
	r.node.feed.Close()
	r.node.feed = feed.New(r.node.feed.State(), limits)
	tb.Cleanup(r.node.feed.Close)
}

func subscribe(id uint32, service string) *apiv1.Subscribe {
	return &apiv1.Subscribe{SubscriptionId: id, Filter: &apiv1.Filter{Service: service}}
}

// W9: the list at one revision, then the events after it, nothing between and nothing twice.
func TestWatchIsACutThenEvents(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		r.node.put(t, instance("db", "1"))
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(7, "web"))

		st := r.node.feed.State()
		first := matching(t, st, &apiv1.Filter{Service: "web"})["default/web/1"]
		want := []*apiv1.WatchResponse{
			{Payload: &apiv1.WatchResponse_Cut{Cut: &apiv1.Cut{
				SubscriptionId: 7, Full: true, Reason: apiv1.CutReason_CUT_REASON_INITIAL, Instances: []*registryv1.Instance{first},
			}}},
			{Payload: &apiv1.WatchResponse_Synced{Synced: &apiv1.Synced{SubscriptionId: 7, Header: &apiv1.ResponseHeader{
				ClusterId: "c1", Epoch: 1, Revision: st.Revision(), Staleness: durationpb.New(time.Millisecond),
				Mode: apiv1.Mode_MODE_STALE, Node: "n1", Leader: "n1:7400",
			}}}},
		}
		for _, m := range want {
			if diff := cmp.Diff(m, f.recv(), protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}

		r.node.put(t, instance("db", "2"))
		r.node.put(t, instance("web", "2"))
		revision := r.node.feed.State().Revision()
		second := matching(t, r.node.feed.State(), &apiv1.Filter{Service: "web"})["default/web/2"]
		r.node.mustApply(t, removal("web", "1"))
		f.until(revision + 1)
		f.equal(r.node.feed.State())
		if diff := cmp.Diff([]string{
			fmt.Sprintf("%d +web/2 [7]", revision), fmt.Sprintf("%d -web/1 [7]", revision+1),
		}, f.events); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(second, f.subs[7].known["default/web/2"], protocmp.Transform()); diff != "" {
			t.Errorf("instance of the event (-want +got):\n%s", diff)
		}
	})
}

func TestDeleteNamesTheIncarnationThatIsGone(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		incarnation := r.node.feed.State().Instance("default", "web", "1").Incarnation()
		r.node.mustApply(t, removal("web", "1"))
		got := f.recv().GetEvents().GetEvents()[0].GetEvent()
		want := &registryv1.Event{
			Type: registryv1.EventType_EVENT_TYPE_DELETE, Revision: r.node.feed.State().Revision(),
			Cause:    registryv1.Cause_CAUSE_DEREGISTERED,
			Instance: &registryv1.Instance{Namespace: "default", Service: "web", Id: "1", Incarnation: incarnation},
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// An instance that stops matching is deleted for that subscription; one that never matched is not heard of.
func TestFilterTransitions(t *testing.T) {
	in := func(change func(*registryv1.Instance)) *registryv1.Instance {
		i := instance("web", "1")
		i.Tags, i.Zone, i.Metadata = []string{"a", "b"}, "z1", map[string]string{"k": "v", "other": "x"}
		change(i)
		return i
	}
	for _, tc := range []struct {
		name    string
		filter  *apiv1.Filter
		without func(*registryv1.Instance)
	}{
		{"tags", &apiv1.Filter{Tags: []string{"a", "b"}}, func(i *registryv1.Instance) { i.Tags = []string{"a"} }},
		{"zone", &apiv1.Filter{Zone: "z1"}, func(i *registryv1.Instance) { i.Zone = "z2" }},
		{"metadata", &apiv1.Filter{Metadata: map[string]string{"k": "v"}}, func(i *registryv1.Instance) { i.Metadata["k"] = "w" }},
		{"no metadata", &apiv1.Filter{Metadata: map[string]string{"k": "v"}}, func(i *registryv1.Instance) { delete(i.Metadata, "k") }},
		{"health", &apiv1.Filter{MinHealth: registryv1.Health_HEALTH_STARTING}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				f := newFollower(ctx, t, r.registry)
				tc.filter.Service = "web"
				f.subscribe(&apiv1.Subscribe{SubscriptionId: 1, Filter: tc.filter})
				f.subscribe(subscribe(2, "web"))
				f.until(r.node.feed.State().Revision())
				base := r.node.feed.State().Revision()
				without := func() {
					if tc.without == nil {
						r.node.mustApply(t, maintenance("web", "1", true))
						return
					}
					r.node.put(t, in(tc.without))
				}
				if tc.without != nil {
					without() // Not matched yet: only the other one hears of it.
					base++
				}
				r.node.put(t, in(func(*registryv1.Instance) {}))
				without()
				without() // No change.
				r.node.mustApply(t, removal("web", "1"))
				f.until(base + 3)
				f.equal(r.node.feed.State())
				want := []string{
					fmt.Sprintf("%d +web/1 [1 2]", base+1),
					fmt.Sprintf("%d +web/1 [2]", base+2), fmt.Sprintf("%d -web/1 [1]", base+2),
					fmt.Sprintf("%d -web/1 [2]", base+3),
				}
				if tc.without != nil {
					want = append([]string{fmt.Sprintf("%d +web/1 [2]", base)}, want...)
				}
				if diff := cmp.Diff(want, f.events); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// W3: a revision that changes many instances comes in one message.
func TestRevisionIsWhole(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, ""))
		f.until(r.node.feed.State().Revision())
		r.node.mustApply(t, batch(t, 500, 0))
		m := f.recv().GetEvents()
		if len(m.GetEvents()) != 500 || m.GetRevision() != r.node.feed.State().Revision() {
			t.Errorf("%d events up to revision %d, want 500 up to %d", len(m.GetEvents()), m.GetRevision(), r.node.feed.State().Revision())
		}
		f.equal(r.node.feed.State())
	})
}

// A revision larger than what clients take as a message comes as a cut in parts, in its place between the events.
func TestRevisionTooLargeForAMessageIsACut(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, ""))
		f.subscribe(subscribe(2, "few"))
		f.until(r.node.feed.State().Revision())
		before := f.subs[1]
		resume := before.resume()
		old := &followed{known: before.known, last: before.last, upTo: before.upTo}

		r.node.put(t, instance("few", "1"))
		r.node.mustApply(t, batch(t, 900, 3500))
		r.node.put(t, instance("few", "2"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
		if n := len(f.cuts[1]); n != 2 || len(f.cuts[1][1].GetInstances()) != 900 || f.cuts[1][1].GetFull() {
			t.Errorf("%d cuts, want the first one and one for the large revision", n)
		}
		if n := len(f.cuts[2]); n != 1 {
			t.Errorf("%d cuts for a subscription whom the large revision doesn't concern", n)
		}
		again := newFollower(ctx, t, r.registry)
		again.subscribe(&apiv1.Subscribe{SubscriptionId: 1, Filter: &apiv1.Filter{}, Resume: resume}, old)
		again.until(r.node.feed.State().Revision())
		again.equal(r.node.feed.State())
		if n := len(again.events); n != 2 {
			t.Errorf("%d events after resuming, want 2 beside the large revision: %v", n, again.events)
		}
	})
}

// batch is a command that registers n instances as one change.
func batch(tb testing.TB, n, metadata int) *raftlogv1.Command {
	tb.Helper()
	b := &raftlogv1.Batch{}
	for i := range n {
		in := instance(fmt.Sprint("s", i%7), fmt.Sprint(i))
		in.Metadata = map[string]string{"k": strings.Repeat("x", metadata)}
		b.Register = append(b.Register, registration(tb, in).GetRegister())
	}
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Batch{Batch: b}}
}

func TestSubscriptionsShareAStream(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		const n = 1000
		f := newFollower(ctx, t, r.registry)
		for i := range uint32(n) {
			f.subscribe(subscribe(i+1, fmt.Sprint("s", i%500)))
			f.recv() // Cut.
			f.recv() // Synced.
		}
		for i := range 500 {
			r.node.put(t, instance(fmt.Sprint("s", i), "1"))
		}
		r.node.put(t, instance("other", "1"))
		f.until(r.node.feed.State().Revision() - 1)
		for id, s := range f.subs {
			if len(s.known) != 1 {
				t.Errorf("subscription %d knows %d instances, want 1", id, len(s.known))
			}
		}
		if len(f.events) != 500 {
			t.Errorf("%d events, want 500: each once, for two subscriptions", len(f.events))
		}
	})
}

// W6: an idle stream tells how far and how fresh it is, at the least interval of its subscriptions.
func TestIdleStreamShowsProgress(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		every := func(id uint32, d time.Duration) *apiv1.Subscribe {
			sub := subscribe(id, "web")
			sub.ProgressInterval = durationpb.New(d)
			return sub
		}
		next := func(want time.Duration) {
			t.Helper()
			began := time.Now()
			h := f.recv().GetProgress().GetHeader()
			if got := time.Since(began); got != want {
				t.Errorf("progress after %v, want %v", got, want)
			}
			if h.GetRevision() != r.node.feed.State().Revision() || h.GetStaleness().AsDuration() != time.Millisecond {
				t.Errorf("progress %v", h)
			}
		}
		f.subscribe(every(1, time.Minute))
		f.until(r.node.feed.State().Revision())
		next(time.Minute)
		f.subscribe(every(2, time.Second))
		f.until(r.node.feed.State().Revision())
		next(time.Second)
		r.node.put(t, instance("other", "1")) // Not heard of, but the revision grows.
		next(time.Second)
		time.Sleep(time.Second / 2)
		r.node.put(t, instance("web", "1"))
		f.recv()
		next(time.Second) // Since the event.
		f.unsubscribe(2)
		f.recv()
		next(time.Minute)
	})
}

// W10: a reader that is too slow gets what changed, and the applier never notices it.
func TestSlowReaderGetsACut(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.limited(t, feed.Limits{QueueEvents: 50})
		slow, fast := newFollower(ctx, t, r.registry), newFollower(ctx, t, r.registry)
		for _, f := range []*follower{slow, fast} {
			f.subscribe(subscribe(1, "web"))
			f.subscribe(subscribe(2, "db"))
			f.until(r.node.feed.State().Revision())
		}
		r.node.put(t, instance("web", "gone"))
		slow.until(r.node.feed.State().Revision())
		began := time.Now()
		for i := range 1500 {
			in := instance("web", fmt.Sprint(i%100))
			in.Metadata = map[string]string{"k": fmt.Sprint(i), "large": strings.Repeat("x", 3000)}
			r.node.put(t, in)
			fast.until(r.node.feed.State().Revision())
		}
		r.node.mustApply(t, removal("web", "gone"))
		if time.Since(began) != 0 {
			t.Errorf("somebody waited for %v", time.Since(began))
		}
		fast.until(r.node.feed.State().Revision())
		fast.equal(r.node.feed.State())
		if len(fast.cuts[1]) != 1 {
			t.Errorf("the fast reader got %d cuts", len(fast.cuts[1]))
		}
		slow.until(r.node.feed.State().Revision())
		slow.equal(r.node.feed.State())
		cuts, deleted := slow.cuts[1][1:], 0
		for _, c := range cuts {
			if c.GetFull() || c.GetReason() != apiv1.CutReason_CUT_REASON_SLOW_READER {
				t.Errorf("the slow reader got a cut for %v, full: %v", c.GetReason(), c.GetFull())
			}
			deleted += len(c.GetDeleted())
		}
		if len(cuts) == 0 || deleted != 1 {
			t.Errorf("the slow reader got %d cuts with %d deletions", len(cuts), deleted)
		}
		if len(slow.cuts[2]) != 1 {
			t.Errorf("a subscription of the slow reader whom it doesn't concern got %d cuts", len(slow.cuts[2]))
		}
	})
}

// A client that does not read is cut off; others, on the same connection, are not held up.
func TestStuckStreamIsEnded(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		stuck, fine := newFollower(ctx, t, r.registry), newFollower(ctx, t, r.registry)
		for _, f := range []*follower{stuck, fine} {
			f.subscribe(subscribe(1, "web"))
			f.until(r.node.feed.State().Revision())
		}
		for i := range 60 {
			for k := range 200 {
				in := instance("web", fmt.Sprint(k))
				in.Metadata = map[string]string{"k": fmt.Sprint(i)}
				r.node.put(t, in)
			}
			time.Sleep(time.Second)
			fine.until(r.node.feed.State().Revision())
			if watchers := watching(t, r); i < 29 && watchers != 2 {
				t.Fatalf("%d streams after %d s, want 2", watchers, i)
			}
		}
		fine.equal(r.node.feed.State())
		if watchers := watching(t, r); watchers != 1 {
			t.Errorf("%d streams after a minute, want 1", watchers)
		}
		for {
			m, err := stuck.stream.Recv()
			if err == nil {
				stuck.take(m)
				continue
			}
			if status.Code(err) != codes.ResourceExhausted || reasonOf(t, err) != "OVERLOADED" {
				t.Errorf("the stuck stream ended with %v", err)
			}
			return
		}
	})
}

// watching is the number of watch streams: of watchers without that of the server itself.
func watching(t *testing.T, r *rig) int {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.node.feed.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "regd_watchers" {
			return int(f.GetMetric()[0].GetGauge().GetValue()) - 1
		}
	}
	return -1
}
