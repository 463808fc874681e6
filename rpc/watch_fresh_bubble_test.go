package rpc

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// proofs decides what becomes of the linearizable views that a node is asked for.
type proofs struct {
	asked atomic.Int64
	gate  atomic.Pointer[chan struct{}] // views wait until it is closed; nil: they don't
	err   atomic.Pointer[error]         // of a view, after that
}

func (r *rig) proofs() *proofs {
	p := &proofs{}
	r.node.set(func() {
		r.node.onView = func(ctx context.Context, fresh cluster.Freshness) error {
			if fresh.Mode != cluster.ModeLinearizable {
				return nil
			}
			p.asked.Add(1)
			if gate := p.gate.Load(); gate != nil {
				select {
				case <-*gate:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := p.err.Load(); err != nil {
				return *err
			}
			return nil
		}
	})
	return p
}

// hold has views wait until the function is called.
func (p *proofs) hold() (release func()) {
	gate := make(chan struct{})
	p.gate.Store(&gate)
	return func() {
		p.gate.CompareAndSwap(&gate, nil)
		close(gate)
	}
}

// fail has views fail. nil: no longer.
func (p *proofs) fail(err error) {
	if err == nil {
		p.err.Store(nil)
		return
	}
	p.err.Store(&err)
}

func linearizable(id uint32, service string) *apiv1.Subscribe {
	s := subscribe(id, service)
	s.Linearizable = true
	return s
}

// wantSynced takes messages in up to a Synced, which must be of the subscription, the mode and the revision of the State.
func (f *follower) wantSynced(r *rig, id uint32, mode apiv1.Mode) {
	f.tb.Helper()
	for range 100 { // Else there is nothing but signs of life.
		s := f.recv().GetSynced()
		if s == nil {
			continue
		}
		if h := s.GetHeader(); s.GetSubscriptionId() != id || h.GetMode() != mode || h.GetRevision() != r.node.feed.State().Revision() {
			f.tb.Fatalf("got %v; want subscription %d with %v at revision %d", s, id, mode, r.node.feed.State().Revision())
		}
		return
	}
	f.tb.Fatalf("subscription %d is not synced", id)
}

// wantHeldBack fails if the subscription has begun. It takes in what has been sent, up to the beginning of another one.
func (f *follower) wantHeldBack(id uint32) {
	f.tb.Helper()
	synctest.Wait()
	const marker = 99
	f.subscribe(subscribe(marker, "marker"))
	for !f.subs[marker].synced {
		f.recv()
	}
	f.unsubscribe(marker)
	for ended := len(f.ended); len(f.ended) == ended; {
		f.recv()
	}
	if f.subs[id].synced {
		f.tb.Fatalf("subscription %d has begun, and should be held back", id)
	}
}

// The node has an old State and does not know it: the first cut waits for what the leader says, and has what came by then.
func TestLinearizableCutIsHeldBack(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		release := r.proofs().hold()
		f := newFollower(ctx, t, r.registry)
		f.subscribe(linearizable(1, "web"))
		f.subscribe(subscribe(2, "web")) // Others are not.
		f.wantSynced(r, 2, apiv1.Mode_MODE_STALE)
		time.Sleep(2 * time.Second)
		f.wantHeldBack(1)
		r.node.put(t, instance("web", "2"))
		release()
		f.wantSynced(r, 1, apiv1.Mode_MODE_LINEARIZABLE)
		f.equal(r.node.feed.State())
		if s := f.subs[1].header.GetStaleness(); s == nil || s.AsDuration() < 2*time.Second {
			t.Errorf("staleness %v, want the time since the question", s)
		}
		r.node.put(t, instance("web", "3"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
	})
}

// Without a leader the list is what the node has, and says so. When there is one again the subscription is told.
func TestUnprovedSubscriptionsBeginAndAreToldLater(t *testing.T) {
	for name, spoil := range map[string]func(*proofs){
		"at once":      func(p *proofs) { p.fail(cluster.ErrNoLeader) },
		"after a time": func(p *proofs) { _ = p.hold() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				r.node.put(t, instance("web", "1"))
				p := r.proofs()
				spoil(p)
				f := newFollower(ctx, t, r.registry)
				began := time.Now()
				f.subscribe(linearizable(1, "web"))
				f.wantSynced(r, 1, apiv1.Mode_MODE_STALE)
				if took := time.Since(began); took > proveWithin {
					t.Errorf("begun after %v, want at most %v", took, proveWithin)
				}
				began = time.Now()
				f.subscribe(linearizable(2, "db"))
				f.wantSynced(r, 2, apiv1.Mode_MODE_STALE)
				if took := time.Since(began); took > 0 {
					t.Errorf("the next one was held back for %v although nothing can be proved", took)
				}
				r.node.put(t, instance("web", "2"))
				f.until(r.node.feed.State().Revision())
				asked := p.asked.Load()
				time.Sleep(time.Minute)
				if n := p.asked.Load() - asked; n < 10 || n > 61 {
					t.Errorf("asked %d times within a minute", n)
				}
				p.fail(nil)
				p.gate.Store(nil)
				cuts := len(f.cuts[1]) + len(f.cuts[2])
				f.wantSynced(r, 1, apiv1.Mode_MODE_LINEARIZABLE)
				f.wantSynced(r, 2, apiv1.Mode_MODE_LINEARIZABLE)
				if n := len(f.cuts[1]) + len(f.cuts[2]); n != cuts {
					t.Errorf("%d cuts came with it", n-cuts)
				}
				f.equal(r.node.feed.State())
				asked = p.asked.Load()
				time.Sleep(time.Minute)
				if p.asked.Load() != asked {
					t.Error("asked on after all was proved")
				}
				r.node.put(t, instance("db", "1"))
				f.until(r.node.feed.State().Revision())
				f.equal(r.node.feed.State())
			})
		})
	}
}

// Who subscribes while a question is under way may have been told by others of what was acknowledged after it was asked.
func TestAnAnswerProvesOnlyWhatWasAskedBefore(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		p := r.proofs()
		release := p.hold()
		f := newFollower(ctx, t, r.registry)
		f.subscribe(linearizable(1, "web"))
		synctest.Wait()
		f.subscribe(linearizable(2, "web"))
		synctest.Wait()
		if n := p.asked.Load(); n != 1 {
			t.Fatalf("%d questions are under way", n)
		}
		releaseNext := p.hold() // The first question waits at the gate that it came to.
		release()
		f.wantSynced(r, 1, apiv1.Mode_MODE_LINEARIZABLE)
		f.wantHeldBack(2) // It came after the question was asked.
		releaseNext()
		f.wantSynced(r, 2, apiv1.Mode_MODE_LINEARIZABLE)
	})
}

func TestOneQuestionIsForAllWhoWait(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		const subs = 1000
		p := r.proofs()
		release := p.hold()
		f := newFollower(ctx, t, r.registry)
		for id := range uint32(subs) {
			f.subscribe(linearizable(id+1, "web"))
		}
		synctest.Wait()
		release()
		for f.behind(0) {
			f.recv()
		}
		if n := p.asked.Load(); n > 2 {
			t.Errorf("%d questions for %d subscriptions", n, subs)
		}
	})
}

func TestResumedSubscriptionIsProvedToo(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.wantSynced(r, 1, apiv1.Mode_MODE_STALE)
		before := f.subs[1]

		release := r.proofs().hold()
		g := newFollower(ctx, t, r.registry)
		sub := linearizable(1, "web")
		sub.Resume = before.resume()
		g.subscribe(sub, before)
		synctest.Wait()
		r.node.mustApply(t, removal("web", "1"))
		r.node.put(t, instance("web", "2"))
		release()
		g.wantSynced(r, 1, apiv1.Mode_MODE_LINEARIZABLE)
		g.equal(r.node.feed.State())
		if len(g.cuts[1]) > 0 {
			t.Error("a cut came, not what has happened since")
		}
	})
}

// A node that is behind the resume point, and can prove nothing, waits for it all the same; then comes the proof.
func TestProofWaitsForTheResumePoint(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		p := r.proofs()
		p.fail(cluster.ErrNoLeader)
		f := newFollower(ctx, t, r.registry)
		sub := linearizable(1, "web")
		sub.Resume = &apiv1.ResumePoint{ClusterId: "c1", Epoch: 1, Revision: r.node.feed.State().Revision() + 1}
		f.subscribe(sub)
		time.Sleep(time.Second)
		p.fail(nil)
		time.Sleep(10 * time.Second) // It is proved, and still behind: the point is of a future that never was.
		f.wantHeldBack(1)
		r.node.put(t, instance("web", "1"))
		f.wantSynced(r, 1, apiv1.Mode_MODE_LINEARIZABLE)
	})
}

func TestUnsubscribedWhileHeldBack(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		release := r.proofs().hold()
		f := newFollower(ctx, t, r.registry)
		f.subscribe(linearizable(1, "web"))
		synctest.Wait()
		f.unsubscribe(1)
		if f.recv().GetEnded().GetSubscriptionId() != 1 {
			t.Error("not told that it has ended")
		}
		f.subscribe(linearizable(1, "web")) // The number is free again.
		synctest.Wait()
		release()
		f.wantSynced(r, 1, apiv1.Mode_MODE_LINEARIZABLE)
		r.node.put(t, instance("web", "1"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
		if len(f.cuts[1]) != 1 {
			t.Errorf("%d cuts, want one", len(f.cuts[1]))
		}
	})
}

func TestWatchServiceCanBeLinearizable(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		p := r.proofs()
		stream, err := r.registry.WatchService(ctx, &apiv1.WatchServiceRequest{
			Filter: &apiv1.Filter{Service: "web"}, Linearizable: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if h := m.GetSynced().GetHeader(); h != nil {
				if h.GetMode() != apiv1.Mode_MODE_LINEARIZABLE || p.asked.Load() != 1 {
					t.Errorf("mode %v after %d questions", h.GetMode(), p.asked.Load())
				}
				return
			}
		}
	})
}
