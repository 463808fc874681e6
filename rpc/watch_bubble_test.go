package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
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

// W5: another node goes on with the next event.
func TestResumeOnAnotherNode(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		other := newRig(t)
		both := func(c *raftlogv1.Command) {
			r.node.mustApply(t, c)
			other.node.mustApply(t, c)
		}
		for i := range 5 {
			both(registration(t, instance("web", fmt.Sprint(i))))
		}
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.subscribe(subscribe(2, "quiet"))
		f.until(r.node.feed.State().Revision())
		revision := r.node.feed.State().Revision()
		both(removal("web", "1"))
		both(registration(t, instance("db", "1")))
		both(registration(t, instance("web", "9")))

		g := newFollower(ctx, t, other.registry)
		for id, s := range f.subs {
			g.subscribe(&apiv1.Subscribe{SubscriptionId: id, Filter: s.filter, Resume: s.resume()}, s)
		}
		g.until(revision + 3)
		g.equal(other.node.feed.State())
		both(registration(t, instance("web", "10")))
		g.until(revision + 4)
		want := []string{
			fmt.Sprintf("%d -web/1 [1]", revision+1), fmt.Sprintf("%d +web/9 [1]", revision+3),
			fmt.Sprintf("%d +web/10 [1]", revision+4),
		}
		if diff := cmp.Diff(want, g.events); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if len(g.cuts) > 0 {
			t.Errorf("cuts after resuming: %v", g.cuts)
		}
	})
}

// Whoever was told more by another node than this one has gets no hole from a snapshot: what came before the
// revision that it resumes after, and went after it, differs neither where this node was nor where the snapshot leads.
func TestWhoIsAheadMissesNothingOfASnapshot(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		other := newRig(t)
		for round := range 200 {
			inRound, end := context.WithCancel(ctx)
			defer end()
			id := fmt.Sprint(round)
			come, stay, gone := registration(t, instance("web", id)), registration(t, instance("db", id)), removal("web", id)
			other.node.mustApply(t, come)
			f := newFollower(inRound, t, other.registry)
			f.subscribe(subscribe(1, "web"))
			f.until(other.node.feed.State().Revision())
			g := newFollower(inRound, t, r.registry)
			g.subscribe(&apiv1.Subscribe{SubscriptionId: 1, Filter: f.subs[1].filter, Resume: f.subs[1].resume()}, f.subs[1])
			synctest.Wait()
			for _, c := range []*raftlogv1.Command{stay, gone} {
				other.node.mustApply(t, c)
			}
			r.node.skip(t, come, stay, gone)
			g.until(r.node.feed.State().Revision())
			g.equal(r.node.feed.State())
			if t.Failed() {
				t.Fatalf("in round %d", round)
			}
			end() // Streams that stay open would all be told of each round.
		}
	})
}

// hookedNode does something when it is asked who it is: the stream asks between subscribing to the feed and looking at
// the history.
type hookedNode struct {
	*fakeNode
	onInfo func()
}

func (n *hookedNode) Info() cluster.Info {
	if do := n.onInfo; do != nil {
		n.onInfo = nil
		do()
	}
	return n.fakeNode.Info()
}

func TestNothingIsMissedWhileASubscriptionResumes(t *testing.T) {
	for _, queue := range []int{1, 100} {
		t.Run(fmt.Sprint("queue of ", queue), func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				r.limited(t, feed.Limits{QueueEvents: queue})
				hooked := &hookedNode{fakeNode: r.node}
				r.server.core.node = hooked
				f := newFollower(ctx, t, r.registry)
				f.subscribe(subscribe(1, "web"))
				f.until(r.node.feed.State().Revision())
				base := r.node.feed.State().Revision()
				r.node.put(t, instance("db", "1"))
				synctest.Wait()
				hooked.onInfo = func() {
					for i := range 3 {
						r.node.put(t, instance("db", fmt.Sprint("meanwhile", i)))
						r.node.put(t, instance("web", fmt.Sprint("meanwhile", i)))
					}
					synctest.Wait()
				}
				sub := subscribe(2, "db")
				sub.Resume = &apiv1.ResumePoint{ClusterId: "c1", Epoch: 1, Revision: base}
				f.subscribe(sub)
				r.node.put(t, instance("db", "2"))
				f.until(base + 8)
				r.node.put(t, instance("db", "3"))
				f.until(base + 9)
				f.equal(r.node.feed.State())
				if len(f.cuts[2]) > 0 {
					t.Errorf("the subscription that resumed got %v", f.cuts[2])
				}
			})
		})
	}
}

// W7: a resume point that can't be met gives a full cut that says why.
func TestResumeWithoutHistoryIsAFullCut(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*testing.T, *rig, *apiv1.ResumePoint)
		want   apiv1.CutReason
	}{
		{"history gone", func(t *testing.T, r *rig, _ *apiv1.ResumePoint) {
			r.node.skip(t, registration(t, instance("web", "3")))
		}, apiv1.CutReason_CUT_REASON_HISTORY_GONE},
		{"another cluster", func(_ *testing.T, _ *rig, p *apiv1.ResumePoint) {
			p.ClusterId = "c2"
			p.Revision = 1 << 60
		}, apiv1.CutReason_CUT_REASON_HISTORY_GONE},
		{"restored", func(t *testing.T, r *rig, _ *apiv1.ResumePoint) {
			if err := r.node.Restore(t.Context(), r.node.feed.State()); err != nil {
				t.Fatal(err)
			}
		}, apiv1.CutReason_CUT_REASON_RESTORED},
		{"an epoch that was not", func(_ *testing.T, _ *rig, p *apiv1.ResumePoint) { p.Epoch = 9 }, apiv1.CutReason_CUT_REASON_RESTORED},
		{"a revision that was not", func(_ *testing.T, _ *rig, p *apiv1.ResumePoint) {
			p.Epoch, p.Revision = 0, 1<<60
		}, apiv1.CutReason_CUT_REASON_RESTORED},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				r.node.put(t, instance("web", "1"))
				point := &apiv1.ResumePoint{ClusterId: "c1", Epoch: 1, Revision: r.node.feed.State().Revision()}
				r.node.put(t, instance("web", "2"))
				tc.change(t, r, point)
				synctest.Wait()
				f := newFollower(ctx, t, r.registry)
				f.subscribe(&apiv1.Subscribe{SubscriptionId: 1, Filter: &apiv1.Filter{Service: "web"}, Resume: point})
				f.until(r.node.feed.State().Revision())
				f.equal(r.node.feed.State())
				if got := f.cuts[1]; len(got) != 1 || !got[0].GetFull() || got[0].GetReason() != tc.want {
					t.Errorf("cuts %v, want one for %v", got, tc.want)
				}
			})
		})
	}
}

// W8: a revision that this node has not reached is waited for, and nothing older is sent.
func TestFutureRevisionIsWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		revision := r.node.feed.State().Revision()
		f := newFollower(ctx, t, r.registry)
		resume := func(after uint64) *apiv1.Subscribe {
			sub := subscribe(uint32(after), "web")
			sub.Resume = &apiv1.ResumePoint{ClusterId: "c1", Epoch: 1, Revision: revision + after}
			return sub
		}
		f.subscribe(resume(2))
		f.subscribe(resume(3))
		f.subscribe(resume(1 << 20))
		f.unsubscribe(1 << 20)
		for range 2 {
			r.node.put(t, instance("web", fmt.Sprint(r.node.feed.State().Revision())))
			synctest.Wait()
		}
		for !f.subs[2].synced {
			f.recv()
		}
		if got := f.subs[2].header.GetRevision(); got != revision+2 {
			t.Errorf("synced at revision %d, want %d", got, revision+2)
		}
		if f.subs[3].synced || len(f.events) > 0 {
			t.Errorf("before its revision a subscription is synced (%v), or there were events: %v", f.subs[3].synced, f.events)
		}
		r.node.put(t, instance("web", "next"))
		for !f.subs[3].synced {
			f.recv()
		}
		r.node.put(t, instance("web", "last"))
		f.until(revision + 4)
		want := []string{fmt.Sprintf("%d +web/next [2]", revision+3), fmt.Sprintf("%d +web/last [2 3]", revision+4)}
		if diff := cmp.Diff(want, f.events); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
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

// W14: what a node skips by installing a snapshot is told, deletions included, and where nothing differs that there is a
// gap: something may have come and gone.
func TestInstalledSnapshotIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		r.node.put(t, instance("web", "2"))
		r.node.put(t, instance("db", "1"))
		r.node.put(t, instance("cache", "1"))
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.subscribe(subscribe(2, "db"))
		f.subscribe(&apiv1.Subscribe{SubscriptionId: 3, Filter: &apiv1.Filter{Namespace: "*", Service: "web"}})
		f.subscribe(subscribe(4, "cache"))
		f.subscribe(subscribe(5, "job"))
		f.subscribe(&apiv1.Subscribe{SubscriptionId: 6, Filter: &apiv1.Filter{Namespace: "*", Service: "job"}})
		f.until(r.node.feed.State().Revision())
		r.node.skip(t, removal("web", "1"), registration(t, instance("web", "3")), registration(t, instance("other", "1")),
			registration(t, instance("cache", "2")), removal("cache", "2"),
			registration(t, instance("job", "1")), removal("job", "1"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
		for _, id := range []uint32{1, 3} {
			got := f.cuts[id][len(f.cuts[id])-1]
			if got.GetFull() || got.GetReason() != apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED ||
				len(got.GetInstances()) != 1 || len(got.GetDeleted()) != 1 {
				t.Errorf("cut of subscription %d: %v", id, got)
			}
		}
		for _, id := range []uint32{4, 5, 6} {
			got := f.cuts[id][len(f.cuts[id])-1]
			if got.GetFull() || got.GetReason() != apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED ||
				len(got.GetInstances()) != 0 || len(got.GetDeleted()) != 0 {
				t.Errorf("cut of subscription %d, where something came and went: %v", id, got)
			}
		}
		if len(f.cuts[2]) != 1 {
			t.Errorf("a subscription whom it doesn't concern got %v", f.cuts[2])
		}
	})
}

func TestRestoreIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		old := r.node.feed.State()
		r.node.put(t, instance("web", "2"))
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.subscribe(subscribe(2, "none"))
		f.until(r.node.feed.State().Revision())
		if err := r.node.Restore(ctx, old); err != nil {
			t.Fatal(err)
		}
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
		for id, s := range f.subs {
			got := f.cuts[id][1]
			if !got.GetFull() || got.GetReason() != apiv1.CutReason_CUT_REASON_RESTORED || s.header.GetEpoch() != 2 {
				t.Errorf("subscription %d: cut %v, epoch %d", id, got, s.header.GetEpoch())
			}
		}
		r.node.put(t, instance("web", "3"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
	})
}

func TestBadSubscriptionEndsAlone(t *testing.T) {
	for _, tc := range []struct {
		name, message string
		sub           *apiv1.Subscribe
	}{
		{"service", "filter.service", &apiv1.Subscribe{Filter: &apiv1.Filter{Service: "/"}}},
		{"namespace", "filter.namespace", &apiv1.Subscribe{Filter: &apiv1.Filter{Namespace: "A"}}},
		{"interval", "progress_interval", &apiv1.Subscribe{ProgressInterval: durationpb.New(time.Millisecond)}},
		{"long interval", "progress_interval", &apiv1.Subscribe{ProgressInterval: durationpb.New(time.Hour)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				f := newFollower(ctx, t, r.registry)
				f.subscribe(subscribe(1, "web"))
				tc.sub.SubscriptionId = 2
				f.subscribe(tc.sub)
				f.until(r.node.feed.State().Revision())
				for len(f.ended) == 0 {
					f.recv()
				}
				got := f.ended[0]
				if got.GetSubscriptionId() != 2 || got.GetReason() != "INVALID_ARGUMENT" || !strings.Contains(got.GetMessage(), tc.message) {
					t.Errorf("ended: %v, want a message about %s", got, tc.message)
				}
				f.subscribe(subscribe(2, "web")) // The number is free again.
				r.node.put(t, instance("web", "1"))
				f.until(r.node.feed.State().Revision())
				f.equal(r.node.feed.State())
			})
		})
	}
}

func TestUnsubscribeEndsASubscription(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		for id := range uint32(3) {
			f.subscribe(subscribe(id+1, "web"))
		}
		f.until(r.node.feed.State().Revision())
		f.unsubscribe(2)
		f.unsubscribe(9)
		for range 2 {
			f.recv()
		}
		want := []*apiv1.SubscriptionEnded{{SubscriptionId: 2}, {SubscriptionId: 9}}
		if diff := cmp.Diff(want, f.ended, protocmp.Transform()); diff != "" {
			t.Errorf("ended (-want +got):\n%s", diff)
		}
		r.node.put(t, instance("web", "1"))
		revision := r.node.feed.State().Revision()
		f.until(revision)
		if diff := cmp.Diff([]string{fmt.Sprintf("%d +web/1 [1 3]", revision)}, f.events); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		f.unsubscribe(1)
		f.unsubscribe(3)
		for len(f.subs) > 0 {
			f.recv()
		}
		r.node.put(t, instance("web", "2"))
		if f.recv().GetProgress() == nil {
			t.Errorf("events without a subscription: %v", f.events)
		}
	})
}

func TestSubscriptionsOfAStreamAreLimited(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		for i := range uint32(MaxSubscriptions) {
			f.subscribe(subscribe(i+1, "none"))
			f.recv() // Cut.
			f.recv() // Synced.
		}
		f.subscribe(subscribe(MaxSubscriptions+1, "none"))
		f.recv()
		if got := f.ended[0]; got.GetReason() != "LIMIT_REACHED" || got.GetSubscriptionId() != MaxSubscriptions+1 {
			t.Errorf("ended: %v", got)
		}
	})
}

func TestBrokenProtocolEndsTheStream(t *testing.T) {
	for _, tc := range []struct {
		name string
		req  *apiv1.WatchRequest
	}{
		{"no action", &apiv1.WatchRequest{}},
		{"no number", &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: &apiv1.Subscribe{}}}},
		{"a number twice", &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: subscribe(1, "web")}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				f := newFollower(ctx, t, r.registry)
				f.subscribe(subscribe(1, "web"))
				f.until(r.node.feed.State().Revision())
				f.send(tc.req)
				if err := endOf(f); status.Code(err) != codes.InvalidArgument {
					t.Errorf("the stream ended with %v", err)
				}
			})
		})
	}
}

// endOf takes messages in until the stream ends.
func endOf(f *follower) error {
	for {
		m, err := f.stream.Recv()
		if err != nil {
			return err
		}
		f.take(m)
	}
}

func reasonOf(tb testing.TB, err error) string {
	tb.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	tb.Errorf("no reason in %v", err)
	return ""
}

func TestLeavingNodeSendsItsClientsElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		began := time.Now()
		down := make(chan error, 1)
		go func() { down <- r.server.Shutdown(ctx) }()
		f.recv()
		if f.moved.GetLeader() != "n1:7400" {
			t.Errorf("go elsewhere: %v", f.moved)
		}
		r.node.put(t, instance("web", "1")) // Still served.
		f.until(r.node.feed.State().Revision())
		if err := endOf(f); status.Code(err) != codes.Unavailable || reasonOf(t, err) != "SHUTTING_DOWN" {
			t.Errorf("the stream ended with %v", err)
		}
		if err := <-down; err != nil || time.Since(began) > 2*leavingGrace {
			t.Errorf("Shutdown took %v: %v", time.Since(began), err)
		}
	})
}

func TestClientThatLeavesAtOnceDoesNotHoldUpShutdown(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		ctx, cancel := context.WithCancel(ctx)
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		began := time.Now()
		down := make(chan error, 1)
		go func() { down <- r.server.Shutdown(t.Context()) }()
		f.recv()
		cancel()
		if err := <-down; err != nil || time.Since(began) != 0 {
			t.Errorf("Shutdown took %v: %v", time.Since(began), err)
		}
	})
}

func TestWatchEndsWithTheReasonOfTheNode(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		r.node.set(func() {
			r.node.onView = func(context.Context, cluster.Freshness) error { return cluster.ErrRemoved }
		})
		if err := endOf(f); reasonOf(t, err) != "REMOVED" {
			t.Errorf("the stream ended with %v", err)
		}
	})
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		r.node.feed.Close()
		if err := endOf(f); reasonOf(t, err) != "SHUTTING_DOWN" {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

func TestStreamLivesOnAfterTheLastRequest(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		if err := f.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		f.until(r.node.feed.State().Revision())
		r.node.put(t, instance("web", "1"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
	})
}

// A client that only wants one subscription gets the same messages.
func TestWatchServiceIsAWatchWithOneSubscription(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		ctx, cancel := context.WithCancel(ctx)
		stream, err := r.registry.WatchService(ctx, &apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: "web"}})
		if err != nil {
			t.Fatal(err)
		}
		recv := func() *apiv1.WatchServiceResponse {
			t.Helper()
			m, recvErr := stream.Recv()
			if recvErr != nil {
				t.Fatal(recvErr)
			}
			return m
		}
		if c := recv().GetCut(); c.GetSubscriptionId() != 1 || len(c.GetInstances()) != 1 {
			t.Errorf("cut %v", c)
		}
		synced := recv().GetSynced().GetHeader()
		if synced.GetRevision() != r.node.feed.State().Revision() {
			t.Errorf("synced %v", synced)
		}
		r.node.put(t, instance("web", "2"))
		if e := recv().GetEvents(); len(e.GetEvents()) != 1 || !slices.Equal(e.GetEvents()[0].GetSubscriptionIds(), []uint32{1}) {
			t.Errorf("events %v", e)
		}
		if p := recv().GetProgress(); p.GetHeader().GetRevision() != r.node.feed.State().Revision() {
			t.Errorf("progress %v", p)
		}
		cancel()
		if _, err = stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("after the client cancelled: %v", err)
		}

		bad, err := r.registry.WatchService(t.Context(), &apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: "/"}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := bad.Recv()
		if err != nil || m.GetEnded().GetReason() != "INVALID_ARGUMENT" {
			t.Errorf("a bad filter gives %v, %v", m, err)
		}
		if _, err = bad.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("after its subscription ended the stream goes on: %v", err)
		}
	})
}

func TestWatchesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.MaxWatches = 2 })
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 {
			f := newFollower(ctx, t, r.registry)
			f.subscribe(subscribe(1, "web"))
			f.until(r.node.feed.State().Revision())
		}
		refused := newFollower(t.Context(), t, r.registry)
		if err := endOf(refused); reasonOf(t, err) != "OVERLOADED" {
			t.Errorf("one watch too many ended with %v", err)
		}
		cancel()
		synctest.Wait()
		f := newFollower(t.Context(), t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
	})
}
