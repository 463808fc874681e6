package rpc

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/regd-io/regd/cluster/feed"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Whatever comes and goes, each subscription is found by its number and, while it is routed, by its topic.
func TestSubscriptionsAreFound(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var subs subscriptions
	model := map[uint32]*subscription{}
	topics := map[feed.Topic]bool{}
	for range 3000 {
		id := uint32(1 + rnd.IntN(60))
		switch sub := model[id]; {
		case sub == nil:
			sub = &subscription{id: id, filter: compileFilter(&apiv1.Filter{
				Namespace: anyOf(rnd, "a", "b", allNamespaces), Service: anyOf(rnd, "", "a", "b"),
			})}
			topics[sub.filter.topic()] = true
			model[id] = sub
			subs.add(sub)
		case !sub.routed && rnd.IntN(3) > 0:
			subs.route(sub)
		default:
			if sub.routed {
				subs.unroute(sub)
			}
			subs.remove(sub)
			delete(model, id)
		}
		if len(subs.byID) != len(model) || !slices.IsSortedFunc(subs.byID, func(a, b *subscription) int { return int(a.id) - int(b.id) }) {
			t.Fatalf("%d subscriptions, want %d, sorted", len(subs.byID), len(model))
		}
		for id := range uint32(62) {
			if got := subs.get(id); got != model[id] {
				t.Fatalf("subscription %d is %v, want %v", id, got, model[id])
			}
		}
		for topic := range topics {
			var want []uint32
			for id := range uint32(62) {
				if sub := model[id]; sub != nil && sub.routed && sub.filter.topic() == topic {
					want = append(want, id)
				}
			}
			var got []uint32
			for _, sub := range subs.of(topic) {
				got = append(got, sub.id)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("topic %v has subscriptions %v, want %v", topic, got, want)
			}
		}
	}
}
