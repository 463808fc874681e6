package balance

import "sync/atomic"

// maxDraws is how often a random choice is drawn anew when it may not be picked, before the next acceptable one is taken.
const maxDraws = 8

// spreadPolicy is the four policies that look at nothing but weights.
type spreadPolicy struct{ inTurn, weighted bool }

// RoundRobin gives every instance its turn, whatever its weight.
func RoundRobin() Policy { return spreadPolicy{inTurn: true} }

// WeightedRoundRobin gives instances turns in proportion to their weights, and spreads those of each as evenly as can be.
//
// The n-th pick goes to the instance in whose interval n times the golden ratio falls, modulo 1, the intervals having the
// lengths of the weights: the golden ratio policy (Itai and Rosberg: A golden ratio control policy for a multiple-access
// channel, IEEE Transactions on Automatic Control 29(8), 1984). Between two turns of an instance there is one of at most
// three numbers of picks, and after N picks each had its due but for O(log N). It needs one atomic counter and no lock,
// which the smooth schedules of nginx and EDF queues do.
func WeightedRoundRobin() Policy { return spreadPolicy{inTurn: true, weighted: true} }

// Random picks any instance with the same probability.
func Random() Policy { return spreadPolicy{} }

// WeightedRandom picks instances with probabilities in proportion to their weights.
func WeightedRandom() Policy { return spreadPolicy{weighted: true} }

// String implements Policy.
func (p spreadPolicy) String() string {
	name := "random"
	if p.inTurn {
		name = "round robin"
	}
	if p.weighted {
		name = "weighted " + name
	}
	return name
}

// check implements Policy.
func (spreadPolicy) check() error { return nil }

// build implements Policy.
func (p spreadPolicy) build(e *env, s set, old picker) picker {
	picker := &spread{env: e, policy: p, members: s.fit}
	if p.weighted {
		picker.wheel = byWeight(s.fit)
	}
	if p.inTurn {
		if was, ok := old.(*spread); ok {
			picker.turn = was.turn
		} else {
			picker.turn = new(atomic.Uint64)
			picker.turn.Store(e.random()) // so that clients that start together don't all start with the same instance
		}
	}
	return picker
}

// spread is the picker of a spreadPolicy.
type spread struct {
	env     *env
	policy  spreadPolicy
	members []*member
	wheel   *wheel         // nil for equal shares
	turn    *atomic.Uint64 // nil for random
}

// draw returns the index of the next candidate.
func (s *spread) draw() int {
	switch {
	case s.turn == nil && s.wheel == nil:
		return below(s.env.random(), len(s.members))
	case s.turn == nil:
		return s.wheel.find(s.env.random())
	case s.wheel == nil:
		return int(s.turn.Add(1) % uint64(len(s.members)))
	default:
		return s.wheel.find(s.turn.Add(1) * golden)
	}
}

// pick implements picker.
func (s *spread) pick(q query) choice {
	last := 0
	for range maxDraws {
		last = s.draw()
		if m := s.members[last]; q.accepts(m) {
			return choice{member: m}
		}
	}
	return choice{member: nextAccepted(q, s.members, last)}
}

// shares implements picker.
func (s *spread) shares(q query, mass float64, visit func(*member, float64)) bool {
	if s.policy.weighted {
		return visitByWeight(q, s.members, mass, visit)
	}
	accepted := acceptable(q, s.members)
	for _, m := range accepted {
		visit(m, mass/float64(len(accepted)))
	}
	return len(accepted) > 0
}

// nextAccepted returns the first acceptable member after the index, going round, nil if there is none.
func nextAccepted(q query, members []*member, i int) *member {
	for range members {
		if i++; i >= len(members) {
			i = 0
		}
		if q.accepts(members[i]) {
			return members[i]
		}
	}
	return nil
}
