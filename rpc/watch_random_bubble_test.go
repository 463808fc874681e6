package rpc

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/regd-io/regd/cluster/feed"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// pump makes a follower's messages readable without waiting for more.
type pump struct {
	*follower
	cancel   context.CancelFunc
	messages chan *apiv1.WatchResponse
	next     uint32
}

func newPump(ctx context.Context, t *testing.T, r *rig) *pump {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	p := &pump{follower: newFollower(ctx, t, r.registry), cancel: cancel, messages: make(chan *apiv1.WatchResponse)}
	go func() {
		defer close(p.messages)
		for {
			m, err := p.stream.Recv()
			if err != nil {
				return
			}
			select {
			case p.messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return p
}

// read takes in up to n messages that are there.
func (p *pump) read(n int) {
	for range n {
		synctest.Wait()
		select {
		case m := <-p.messages:
			p.take(m)
		default:
			return
		}
	}
}

func anyOf[T any](rnd *rand.Rand, from ...T) T { return from[rnd.IntN(len(from))] }

// story is a random course of events with watchers of all kinds, some slow, some that move.
type story struct {
	t     *testing.T
	ctx   context.Context
	rnd   *rand.Rand
	rig   *rig
	pumps []*pump
}

func (s *story) filter() *apiv1.Filter {
	f := &apiv1.Filter{Namespace: anyOf(s.rnd, "", "*", "default"), Service: anyOf(s.rnd, "", "a", "b")}
	switch s.rnd.IntN(5) {
	case 0:
		f.MinHealth = registryv1.Health_HEALTH_PASSING
	case 1:
		f.Tags = []string{"x"}
	case 2:
		f.Zone = "z"
	case 3:
		f.Metadata = map[string]string{"k": "v"}
	}
	return f
}

func (s *story) instance() *registryv1.Instance {
	in := instance(anyOf(s.rnd, "a", "b", "c"), anyOf(s.rnd, "1", "2", "3"))
	in.Tags, in.Zone = []string{anyOf(s.rnd, "x", "y")}, anyOf(s.rnd, "z", "")
	in.Metadata = map[string]string{"k": anyOf(s.rnd, "v", "w"), "large": string(make([]byte, s.rnd.IntN(2000)))}
	return in
}

func (s *story) step() {
	in := s.instance()
	switch s.rnd.IntN(20) {
	default:
		s.rig.node.put(s.t, in)
	case 0, 1, 2:
		s.rig.node.mustApply(s.t, removal(in.GetService(), in.GetId()))
	case 3, 4:
		if s.rig.node.feed.State().Instance("default", in.GetService(), in.GetId()) != nil {
			s.rig.node.mustApply(s.t, maintenance(in.GetService(), in.GetId(), s.rnd.IntN(2) == 0))
		}
	case 5:
		s.rig.node.mustApply(s.t, batch(s.t, 20, 10))
	case 6:
		s.rig.node.skip(s.t, registration(s.t, in), removal("a", "1"))
	case 7:
		if s.rnd.IntN(5) == 0 {
			if err := s.rig.node.Restore(s.ctx, s.rig.node.feed.State()); err != nil {
				s.t.Fatal(err)
			}
		}
	case 8:
		s.watch()
	case 9:
		s.move()
	case 10:
		if p := anyOf(s.rnd, s.pumps...); len(p.subs) > 1 {
			p.unsubscribe(slices.Sorted(maps.Keys(p.subs))[0])
		}
	case 11, 12, 13:
		anyOf(s.rnd, s.pumps...).read(s.rnd.IntN(10))
	}
}

// watch adds a subscription to a stream, or another stream.
func (s *story) watch() {
	if len(s.pumps) == 0 || s.rnd.IntN(4) == 0 {
		s.pumps = append(s.pumps, newPump(s.ctx, s.t, s.rig))
	}
	p := anyOf(s.rnd, s.pumps...)
	p.next++
	p.subscribe(&apiv1.Subscribe{SubscriptionId: p.next, Filter: s.filter()})
}

// move ends a stream and resumes its subscriptions on another one.
func (s *story) move() {
	i := s.rnd.IntN(len(s.pumps))
	old := s.pumps[i]
	old.cancel()
	p := newPump(s.ctx, s.t, s.rig)
	s.pumps[i] = p
	if s.rnd.IntN(2) == 0 {
		p = anyOf(s.rnd, s.pumps...)
	}
	for _, id := range slices.Sorted(maps.Keys(old.subs)) {
		p.next++
		if sub := old.subs[id]; sub.synced && sub.cut == nil {
			p.subscribe(&apiv1.Subscribe{SubscriptionId: p.next, Filter: sub.filter, Resume: sub.resume()}, sub)
		} else {
			p.subscribe(&apiv1.Subscribe{SubscriptionId: p.next, Filter: sub.filter})
		}
	}
}

// Whatever happens, every subscription ends up with just what matches, and all that it is told on the way is in order,
// whole, and told once: the follower checks that. This is W1 to W14 together.
func TestWatchersKnowTheState(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				s := &story{t: t, ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 1)), rig: r}
				r.limited(t, feed.Limits{QueueEvents: 1 + s.rnd.IntN(60), DirtyKeys: 1 + s.rnd.IntN(20), Events: 1 + s.rnd.IntN(400)})
				s.watch()
				for range 300 {
					s.step()
					if s.rnd.IntN(3) == 0 {
						synctest.Wait()
					}
				}
				s.rig.node.put(t, instance("a", "last"))
				for _, p := range s.pumps {
					for p.behind(r.node.feed.State().Revision()) {
						m, ok := <-p.messages
						if !ok {
							t.Fatal("a stream ended")
						}
						p.take(m)
					}
					p.equal(r.node.feed.State())
					p.cancel()
				}
			})
		})
	}
}
