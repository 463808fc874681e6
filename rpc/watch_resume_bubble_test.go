package rpc

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

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
