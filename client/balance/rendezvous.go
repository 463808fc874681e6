package balance

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
)

// rendezvousPolicy is the policy Rendezvous.
type rendezvousPolicy struct{}

// Rendezvous picks for a key the instance that scores highest for it: rendezvous or highest random weight hashing (Thaler
// and Ravishankar: Using name-based mappings to increase hit rates, 1998), weighted by the logarithmic method (Schindelhauer
// and Schomaker: Weighted distributed hash tables, 2005). All clients agree without a table; an instance that comes or goes
// moves no key but those that it gets or had, and so does a change of weight. A pick takes time in proportion to the number
// of instances, unless there are hundreds and the key was asked for not long ago: for many keys among many instances choose
// Ring. Requests without a key go to instances at random, by weight.
func Rendezvous() Policy { return rendezvousPolicy{} }

// String implements Policy.
func (rendezvousPolicy) String() string { return "rendezvous" }

// check implements Policy.
func (rendezvousPolicy) check() error { return nil }

// build implements Policy.
func (rendezvousPolicy) build(e *env, s set, _ picker) picker {
	r := &rendezvous{env: e, members: slices.Clone(s.fit)}
	slices.SortStableFunc(r.members, func(a, b *member) int { return cmp.Compare(a.weight, b.weight) })
	r.rates = make([]uint64, len(r.members))
	for i, m := range r.members {
		r.rates[i], _ = bits.Div64(r.members[0].weight-1, math.MaxUint64, m.weight)
	}
	for start, end := 0, 0; start < len(r.members); start = end {
		rate := r.rates[start]
		for end < len(r.members) && (r.rates[end] == rate || end < start+mixed && r.rates[end] >= rate/8*7) {
			end++
		}
		r.rows = append(r.rows, newRow(r.members[start:end], start, r.rates[end-1]))
	}
	return r
}

// rendezvous is the picker of Rendezvous.
type rendezvous struct {
	env     *env
	members []*member // ascending by weight
	rates   []uint64  // of the members: 2^64 for the least weight, and less in proportion as a weight is greater
	rows    []row
	memo    atomic.Pointer[memo] // nil before the first key
}

// mixed is how many members of several weights make a row at most.
const mixed = 8

// row is members in a row: all of one weight, or a few whose weights differ by about an eighth at most.
type row struct {
	quads      [][4]uint64 // their hashes, filled up with the last one's
	places     []uint32    // by the low bits of a hash, or one of the next places: where it is in the quads, plus one
	rate       uint64      // the least of theirs
	start, end int         // the first member, and the one after the last
}

// newRow makes the row of some members, of which the first has the index start.
func newRow(members []*member, start int, rate uint64) row {
	w := row{quads: make([][4]uint64, (len(members)+3)/4), rate: rate, start: start, end: start + len(members)}
	for i := range 4 * len(w.quads) {
		w.quads[i/4][i%4] = members[min(i, len(members)-1)].hash
	}
	w.places = make([]uint32, 1<<bits.Len(uint(2*len(members))))
	for i, m := range members {
		w.places[w.place(m.hash)] = uint32(i + 1)
	}
	return w
}

// place returns the place of a hash: where it is, or where it would be.
func (w *row) place(hash uint64) uint64 {
	last := uint64(len(w.places) - 1)
	at := hash & last
	for w.places[at] != 0 && w.hash(int(w.places[at])-1) != hash {
		at = (at + 1) & last
	}
	return at
}

// hash returns the hash of the member with an index in the row.
func (w *row) hash(i int) uint64 { return w.quads[i/4][i%4] }

// pick implements picker.
func (r *rendezvous) pick(q query) choice {
	key := q.key
	if key == 0 {
		key = r.env.random()
	}
	i, sure := 0, false
	if q.key != 0 && len(r.members) >= memoFrom {
		i, sure = r.recall(key)
	} else {
		i, sure = r.first(key)
	}
	if sure && q.accepts(r.members[i]) {
		return choice{member: r.members[i]}
	}
	return r.search(q, key)
}

// recall is first, for a key that may have been asked for before.
func (r *rendezvous) recall(key uint64) (i int, sure bool) {
	m := r.memo.Load()
	if m == nil {
		m = newMemo(len(r.members))
		r.memo.Store(m) // of several at the same time one stays
	}
	i, sure, spare := m.get(key)
	if !sure {
		if i, sure = r.first(key); sure && spare {
			m.put(key, i)
		}
	}
	return i, sure
}

// first returns the index of the member of the least cost for a key, if that can be told without logarithms. In a row of one
// weight it is the one of the least d. In one of several weights the least d times the row's rate bounds the cost of all
// from below, and they are looked at one by one if that bound is the least. If the cost of the best there is less than the
// next bound, it is the one. That fails for one key in 500 with 100 members of two weights, and for one in 40 if their weights
// all differ.
//
// It is most of the time of a pick, and has no branch that depends on the key but the search for a hash that is known: one
// that is mispredicted costs as much as ten members.
func (r *rendezvous) first(key uint64) (i int, sure bool) {
	l := lead{cost: math.MaxUint64, next: math.MaxUint64}
	for i := range r.rows {
		l = l.race(r.rows[i].least(key), r.rows[i].rate, i)
	}
	if w := &r.rows[l.at]; r.rates[w.start] == w.rate {
		l.at = uint64(w.find(unpair(key, l.d)))
	} else {
		l.cost = math.MaxUint64
		for m := w.start; m < w.end; m++ {
			l = l.race(pair(key, w.hash(m-w.start)), r.rates[m], m)
		}
	}
	if l.next == math.MaxUint64 {
		return int(l.at), true // there was but one
	}
	// For d in [0, 1): d + d*d/2 <= -ln(1-d) <= (d - d*d/2) / (1-d). The d of the next is not known, but is no less than its
	// bound. What rounding may have taken from the first is made up for.
	d, cost, next := unit(l.d), (float64(l.cost)+2)*0x1p-64, float64(l.next)*0x1p-64
	return int(l.at), cost*(1-d/2) < next*(1+next/2)*(1-d-0x1p-40)
}

// least returns the least hash with a key.
func (w *row) least(key uint64) uint64 {
	a, b, c, d := uint64(math.MaxUint64), uint64(math.MaxUint64), uint64(math.MaxUint64), uint64(math.MaxUint64)
	for i := range w.quads {
		q := &w.quads[i]
		a, b = min(a, pair(key, q[0])), min(b, pair(key, q[1]))
		c, d = min(c, pair(key, q[2])), min(d, pair(key, q[3]))
	}
	return min(a, b, c, d)
}

// find returns the index of the member with a hash, which is known to be there.
func (w *row) find(hash uint64) int { return w.start + int(w.places[w.place(hash)]) - 1 }

// lead is where a race for the least cost stands.
type lead struct {
	cost, next uint64 // bounds from below of the least cost and of the one after it, in units of 1/2^64 of the least weight
	d, at      uint64 // hash and index of the one who leads
}

// race lets one more take part: its hash times its rate is a bound of its cost. The compiler would make branches of
// comparisons.
func (l lead) race(d, rate uint64, i int) lead {
	cost, _ := bits.Mul64(d, rate)
	ahead, borrow := bits.Sub64(cost, l.cost, 0)
	ahead &= -borrow // 0 if it is not ahead
	return lead{
		cost: l.cost + ahead,
		next: min(l.next, cost-ahead),
		d:    l.d ^ (l.d^d)&-borrow,
		at:   l.at ^ (l.at^uint64(i))&-borrow,
	}
}

// memo remembers which members come first for the keys that were asked for of late, one a slot. It is never wrong, for the
// picker that it belongs to doesn't change. The low bits of a key name its slot. There the other bits are, and in place of
// the low ones the index of the member plus one, so that a word says it all.
type memo []atomic.Uint64

const (
	// memoFrom is the number of members from which on there is a memo. With fewer, finding the member anew takes no longer.
	memoFrom = 64
	// memoEvery is how many keys come to one that may take the place of another. To write the word costs a good part of finding
	// the member, and most new keys never come again.
	memoEvery = 8
	// memoBits is how many bits number the slots at least.
	memoBits = 10
)

// newMemo returns an empty memo for n members, of 8 to 16 bytes for each, and 8 kB at least.
func newMemo(n int) *memo {
	m := make(memo, 1<<max(memoBits, bits.Len(uint(n))))
	return &m
}

// get returns the index of the member for a key, and whether it is known. spare: it may be put there, as nobody has the place, or
// somebody whom the bits of both, as good as drawn by lot, tell to give way.
func (m memo) get(key uint64) (i int, known, spare bool) {
	low := uint64(len(m) - 1)
	word := m[key&low].Load()
	return int(word&low) - 1, word&low != 0 && word&^low == key&^low, word&low == 0 || word^key < math.MaxUint64/memoEvery
}

// put remembers the index of the member for a key, in place of another.
func (m memo) put(key uint64, i int) {
	low := uint64(len(m) - 1)
	m[key&low].Store(key&^low | uint64(i+1))
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
