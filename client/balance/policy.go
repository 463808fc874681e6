package balance

import (
	"sync/atomic"
)

// Policy says how to choose among instances. The constructors of this package return them; they nest, and one may serve
// several balancers.
type Policy interface {
	// String returns the policy in words, with what is nested in it.
	String() string
	// check reports values out of range.
	check() error
	// build makes the picker for a set that is not empty. old is what it made before for the same purpose, or nil: what
	// should go on (a turn, a count, an expensive table) is taken from it.
	build(e *env, s set, old picker) picker
}

// env is what pickers share.
type env struct {
	random func() uint64
	now    func() int64 // since the balancer's start
}

// set is what a picker chooses among: the members that are fit, of all that there are.
type set struct{ fit, all []*member }

// build makes a policy's picker, nil if there is nothing to pick.
func build(p Policy, e *env, s set, old picker) picker {
	if len(s.fit) == 0 {
		return nil
	}
	return p.build(e, s, old)
}

// picker chooses among the members that it was built for. It is safe for concurrent use.
type picker interface {
	// pick returns a member that the query accepts, none if there is none.
	pick(q query) choice
	// shares calls visit for each acceptable member with its part of mass, which is the probability that this picker is
	// asked, in the order in which they would be tried where there is one. It tells whether there was one.
	shares(q query, mass float64, visit func(*member, float64)) bool
}

// choice is a picked member, and a further count of calls in flight to which the call is to be added, if any.
type choice struct {
	member *member
	load   *atomic.Int64
}

// query is one pick on its way through the pickers. It is passed by value, for a pointer to it would escape to the heap.
type query struct {
	key    uint64 // 0: none
	ignore uint32
	avoid  Avoid
}

// accepts tells whether a member may be picked now.
func (q *query) accepts(m *member) bool {
	return (m.track.gate.Load() == 0 || m.track.available(q.ignore)) && !q.avoid.has(m.track)
}

// draw returns 64 bits that depend on the key, if there is one, and on chance otherwise. The salt keeps decisions on the
// same key independent.
func (q *query) draw(e *env, salt uint64) uint64 {
	if q.key != 0 {
		return mix(q.key ^ salt)
	}
	return e.random()
}

// acceptable returns those of the members that the query accepts.
func acceptable(q query, members []*member) []*member {
	out := make([]*member, 0, len(members))
	for _, m := range members {
		if q.accepts(m) {
			out = append(out, m)
		}
	}
	return out
}

// visitByWeight divides mass among the members that the query accepts, in proportion to their weights.
func visitByWeight(q query, members []*member, mass float64, visit func(*member, float64)) bool {
	accepted := acceptable(q, members)
	total := 0.0
	for _, m := range accepted {
		total += float64(m.weight)
	}
	for _, m := range accepted {
		visit(m, mass*float64(m.weight)/total)
	}
	return len(accepted) > 0
}

// byWeight returns the wheel of the members' weights, nil if they are all equal.
func byWeight(members []*member) *wheel {
	equal := true
	weights := make([]uint64, len(members))
	for i, m := range members {
		weights[i] = m.weight
		equal = equal && m.weight == members[0].weight
	}
	if equal {
		return nil
	}
	return weightedWheel(weights)
}
