package rpc

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/regd-io/regd/cluster/feed"
)

// subscription is what the client wants to know. It is routed once it is told of changes. There may be very many: it is
// kept small.
type subscription struct {
	id           uint32
	routed       bool
	acknowledges bool // its client answers markers
	filter       filter
	interval     time.Duration
	// from: the client has everything up to here, or gets it by other ways than events.
	from uint64
	// proved: what is sent from now on holds all that was acknowledged before this time. Zero: that is not known.
	proved time.Time
}

// subscriptions are those of one stream. Most streams have one and some have thousands: sorted slices take little for the
// first, and for the others a lookup in them costs little beside the send that follows.
type subscriptions struct {
	byID   []*subscription
	routes []*subscription // that are routed, by topic and id
}

// search returns the place of the number among byID.
func (s *subscriptions) search(id uint32) (int, bool) {
	return slices.BinarySearchFunc(s.byID, id, func(sub *subscription, id uint32) int { return cmp.Compare(sub.id, id) })
}

// get returns the subscription of the number, or nil.
func (s *subscriptions) get(id uint32) *subscription {
	if i, ok := s.search(id); ok {
		return s.byID[i]
	}
	return nil
}

// add adds one with a number that is free.
func (s *subscriptions) add(sub *subscription) {
	i, _ := s.search(sub.id)
	s.byID = slices.Insert(s.byID, i, sub)
}

// remove is the opposite of add.
func (s *subscriptions) remove(sub *subscription) {
	if i, ok := s.search(sub.id); ok {
		s.byID = slices.Delete(s.byID, i, i+1)
	}
}

// place returns the place among the routes of the topic's subscription with the number, or where it would be.
func (s *subscriptions) place(topic feed.Topic, id uint32) int {
	i, _ := slices.BinarySearchFunc(s.routes, id, func(sub *subscription, id uint32) int {
		if c := sub.filter.topic().Compare(topic); c != 0 {
			return c
		}
		return cmp.Compare(sub.id, id)
	})
	return i
}

// of returns those that are routed and of just this topic.
func (s *subscriptions) of(topic feed.Topic) []*subscription {
	first := s.place(topic, 0)
	if first == len(s.routes) || s.routes[first].filter.topic() != topic {
		return nil
	}
	rest := s.routes[first:]
	return rest[:sort.Search(len(rest), func(i int) bool { return rest[i].filter.topic() != topic })]
}

// route has the subscription found by its topic. It has no revision yet.
func (s *subscriptions) route(sub *subscription) {
	sub.routed, sub.from = true, math.MaxUint64
	s.routes = slices.Insert(s.routes, s.place(sub.filter.topic(), sub.id), sub)
}

// unroute is the opposite of route.
func (s *subscriptions) unroute(sub *subscription) {
	i := s.place(sub.filter.topic(), sub.id)
	s.routes = slices.Delete(s.routes, i, i+1)
	sub.routed = false
}
