package balance

import (
	"cmp"
	"math"
	"slices"
)

// rendezvousPolicy is the policy Rendezvous.
type rendezvousPolicy struct{}

// Rendezvous picks for a key the instance that scores highest for it: rendezvous or highest random weight hashing (Thaler
// and Ravishankar: Using name-based mappings to increase hit rates, 1998), weighted by the logarithmic method (Schindelhauer
// and Schomaker: Weighted distributed hash tables, 2005). All clients agree without a table; an instance that comes or goes
// moves no key but those that it gets or had, and so does a change of weight. A pick takes time in proportion to the number
// of instances: above a few hundred choose Ring. Requests without a key go to instances at random, by weight.
func Rendezvous() Policy { return rendezvousPolicy{} }

// String implements Policy.
func (rendezvousPolicy) String() string { return "rendezvous" }

// check implements Policy.
func (rendezvousPolicy) check() error { return nil }

// build implements Policy.
func (rendezvousPolicy) build(e *env, s set, _ picker) picker {
	r := &rendezvous{env: e, members: s.fit, hashes: make([]uint64, len(s.fit))}
	for i, m := range s.fit {
		r.hashes[i] = m.hash
	}
	if byWeight(s.fit) != nil {
		r.inverse = make([]float64, len(s.fit))
		for i, m := range s.fit {
			r.inverse[i] = 1 / float64(m.weight)
		}
	}
	return r
}

// rendezvous is the picker of Rendezvous.
type rendezvous struct {
	env     *env
	members []*member
	hashes  []uint64  // of the members, close together
	inverse []float64 // one over the weights, nil if they are equal
}

// pick implements picker.
func (r *rendezvous) pick(q query) choice {
	key := q.key
	if !q.keyed {
		key = r.env.random()
	}
	if r.inverse != nil {
		return choice{member: r.weighted(q, key)}
	}
	var best *member
	least := ^uint64(0)
	for i, h := range r.hashes {
		if x := fold(key, h); x < least && q.accepts(r.members[i]) {
			best, least = r.members[i], x
		}
	}
	return choice{member: best}
}

// weighted returns the acceptable member of the least cost: with u uniform in (0, 1], -ln(u)/weight is least for each with
// a probability in proportion to its weight. As -ln(1-d) is at least d, most are ruled out without a logarithm.
func (r *rendezvous) weighted(q query, key uint64) *member {
	var best *member
	least := math.Inf(1)
	for i, h := range r.hashes {
		d := unit(fold(key, h))
		if d*r.inverse[i] >= least {
			continue
		}
		if c := -math.Log1p(-d) * r.inverse[i]; c < least && q.accepts(r.members[i]) {
			best, least = r.members[i], c
		}
	}
	return best
}

// shares implements picker.
func (r *rendezvous) shares(q query, mass float64, visit func(*member, float64)) bool {
	if !q.keyed {
		return visitByWeight(q, r.members, mass, visit)
	}
	members := acceptable(q, r.members)
	cost := func(m *member) float64 { return -math.Log1p(-unit(fold(q.key, m.hash))) / float64(m.weight) }
	slices.SortStableFunc(members, func(a, b *member) int { return cmp.Compare(cost(a), cost(b)) })
	for _, m := range members {
		visit(m, mass)
		mass = 0
	}
	return len(members) > 0
}
