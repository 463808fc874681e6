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
	r := &rendezvous{env: e, members: slices.Clone(s.fit), hashes: make([]uint64, len(s.fit))}
	slices.SortStableFunc(r.members, func(a, b *member) int { return cmp.Compare(a.weight, b.weight) })
	for i, m := range r.members {
		r.hashes[i] = m.hash
		if i == 0 || m.weight != r.members[i-1].weight {
			r.classes = append(r.classes, class{inverse: 1 / float64(m.weight), start: i})
		}
		r.classes[len(r.classes)-1].end = i + 1
	}
	return r
}

// rendezvous is the picker of Rendezvous.
type rendezvous struct {
	env     *env
	members []*member // ascending by weight
	hashes  []uint64  // of the members, close together
	classes []class
}

// class is the members of one weight.
type class struct {
	inverse    float64 // one over the weight
	start, end int
}

// pick implements picker. Among members of one weight, the one of the least d wins.
func (r *rendezvous) pick(q query) choice {
	key := q.key
	if !q.keyed {
		key = r.env.random()
	}
	var best *member
	var d, inverse float64
	for i := range r.classes {
		c := &r.classes[i]
		m, x := r.first(q, key, c.start, c.end)
		if m != nil && (best == nil || cheaper(unit(x), c.inverse, d, inverse)) {
			best, d, inverse = m, unit(x), c.inverse
		}
	}
	return choice{member: best}
}

// cost of a member whose hash with the key is d, from 0 to 1: it is less than all others' with a probability in proportion
// to the weight, for it is distributed exponentially with that rate.
func cost(d, inverse float64) float64 { return -math.Log(1-d) * inverse }

// cheaper tells whether the cost of the first is less. It seldom takes a logarithm to see that: -ln(1-d) lies between d and
// d/(1-d), which for the small d of a winner are close together.
func cheaper(d1, inverse1, d2, inverse2 float64) bool {
	switch low1, low2 := d1*inverse1, d2*inverse2; {
	case low1*(1-d2) >= low2:
		return false
	case low1 < low2*(1-d1):
		return true
	default:
		return cost(d1, inverse1) < cost(d2, inverse2)
	}
}

// first returns the acceptable member of the least hash with the key, and that hash, among members of one weight.
func (r *rendezvous) first(q query, key uint64, start, end int) (*member, uint64) {
	i := start + leastPair(key, r.hashes[start:end])
	if m := r.members[i]; q.accepts(m) {
		return m, pair(key, m.hash)
	}
	var best *member
	least := ^uint64(0)
	for _, m := range r.members[start:end] {
		if x := pair(key, m.hash); x < least && q.accepts(m) {
			best, least = m, x
		}
	}
	return best, least
}

// leastPair returns the index of the hash that has the least pair with the key. It looks for the least of eight at a time,
// without branches that could be mispredicted, and then for its place among them: it is most of the time of a pick.
func leastPair(key uint64, hashes []uint64) int {
	block, i := 0, 0
	least := ^uint64(0)
	for ; i+8 <= len(hashes); i += 8 {
		h := (*[8]uint64)(hashes[i:])
		x := min(pair(key, h[0]), pair(key, h[1]), pair(key, h[2]), pair(key, h[3]))
		y := min(pair(key, h[4]), pair(key, h[5]), pair(key, h[6]), pair(key, h[7]))
		if min(x, y) < least {
			block, least = i, min(x, y)
		}
	}
	for ; i < len(hashes); i++ {
		if x := pair(key, hashes[i]); x < least {
			block, least = i, x
		}
	}
	for pair(key, hashes[block]) != least {
		block++
	}
	return block
}

// shares implements picker.
func (r *rendezvous) shares(q query, mass float64, visit func(*member, float64)) bool {
	if !q.keyed {
		return visitByWeight(q, r.members, mass, visit)
	}
	members := acceptable(q, r.members)
	of := func(m *member) float64 { return cost(unit(pair(q.key, m.hash)), 1/float64(m.weight)) }
	slices.SortStableFunc(members, func(a, b *member) int { return cmp.Compare(of(a), of(b)) })
	for _, m := range members {
		visit(m, mass)
		mass = 0
	}
	return len(members) > 0
}
