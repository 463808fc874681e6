package balance

import (
	"cmp"
	"math"
	"math/bits"
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
	r := &rendezvous{env: e, members: slices.Clone(s.fit), index: 1<<bits.Len(uint(len(s.fit))) - 1}
	slices.SortStableFunc(r.members, func(a, b *member) int { return cmp.Compare(a.weight, b.weight) })
	var last *quad
	for i, m := range r.members {
		rate, _ := bits.Div64(r.members[0].weight-1, math.MaxUint64, m.weight)
		r.rates = append(r.rates, rate)
		if last == nil || i == last.start+len(last.hashes) || rate < r.rates[last.start]/8*7 {
			r.quads = append(r.quads, quad{hashes: [4]uint64{m.hash, m.hash, m.hash, m.hash}, start: i})
			last = &r.quads[len(r.quads)-1]
		}
		last.hashes[i-last.start], last.rate, last.end = m.hash, rate, i+1
	}
	return r
}

// rendezvous is the picker of Rendezvous.
type rendezvous struct {
	env     *env
	members []*member // ascending by weight
	rates   []uint64  // of the members: 2^64 for the least weight, and less in proportion as a weight is greater
	quads   []quad
	index   uint64 // the bits that it takes to number the members
}

// quad is up to four members in a row whose weights differ by about an eighth at most.
type quad struct {
	hashes     [4]uint64 // filled up with the first one's
	rate       uint64    // the least of theirs
	start, end int       // the first member, and the one after the last
}

// pick implements picker.
func (r *rendezvous) pick(q query) choice {
	key := q.key
	if key == 0 {
		key = r.env.random()
	}
	if i, sure := r.first(key); sure && q.accepts(r.members[i]) {
		return choice{member: r.members[i]}
	}
	return r.search(q, key)
}

// first returns the index of the member of the least cost for a key, if that can be told from bounds: the least d of a quad
// times its rate is no more than the cost of any of the four. The quad of the least such bound is looked at one by one. If
// the cost of the best there is less than the next bound, it is the one. With 100 members that fails for less than one key in
// a hundred, with 3 for one in six.
//
// It is most of the time of a pick, and has no branch that depends on the key: one that is mispredicted costs as much as four
// quads.
func (r *rendezvous) first(key uint64) (i int, sure bool) {
	least, second := uint64(math.MaxUint64), uint64(math.MaxUint64)
	for i := range r.quads {
		h := &r.quads[i].hashes
		d := min(min(pair(key, h[0]), pair(key, h[1])), min(pair(key, h[2]), pair(key, h[3])))
		least, second = race(least, second, r.bound(d, r.quads[i].rate, i))
	}
	best := &r.quads[least&r.index]
	least = math.MaxUint64
	for m := best.start; m < best.end; m++ {
		least, second = race(least, second, r.bound(pair(key, r.members[m].hash), r.rates[m], m))
	}
	i = int(least & r.index)
	// For d in [0, 1): d + d*d/2 <= -ln(1-d) <= (d - d*d/2) / (1-d). The d of the second is not known, but is no less than its
	// bound. What rounding may have taken from the first is made up for.
	d := unit(pair(key, r.members[i].hash))
	low, next := (float64(least|r.index)+2)*0x1p-64, float64(second&^r.index)*0x1p-64
	return i, low*(1-d/2) < next*(1+next/2)*(1-d-0x1p-40)
}

// bound returns a lower bound of the cost of a member, in units of the least weight: its hash d times its rate. The last bits
// are given up for an index.
func (r *rendezvous) bound(d, rate uint64, i int) uint64 {
	low, _ := bits.Mul64(d, rate)
	return low&^r.index | uint64(i)
}

// race returns the least two of three, of which the first is known not to exceed the second. The compiler would make branches
// of comparisons.
func race(least, second, x uint64) (uint64, uint64) {
	less, borrow := bits.Sub64(x, least, 0)
	less &= -borrow
	return least + less, min(second, x-less)
}

// search returns the acceptable member of the least cost for a key.
func (r *rendezvous) search(q query, key uint64) choice {
	var best *member
	var d, inverse float64
	for _, m := range r.members {
		x, by := unit(pair(key, m.hash)), 1/float64(m.weight)
		if (best == nil || cheaper(x, by, d, inverse)) && q.accepts(m) {
			best, d, inverse = m, x, by
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

// shares implements picker.
func (r *rendezvous) shares(q query, mass float64, visit func(*member, float64)) bool {
	if q.key == 0 {
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
