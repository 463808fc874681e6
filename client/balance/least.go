package balance

import (
	"cmp"
	"math/bits"
	"slices"
	"time"
)

// leastPolicy is the policy LeastRequests.
type leastPolicy struct{}

// failureWeighs is how long failures in a row count as calls in flight after the last one.
const failureWeighs = time.Second

// LeastRequests draws two instances at random, by weight, and picks the one with fewer calls in flight for its weight. Two
// choices are enough to keep the longest queue at log log n, where one gives log n / log log n (Mitzenmacher: The power of
// two choices in randomized load balancing, 2001), and unlike the choice of the least of all they don't make every client
// run to the same instance at once.
//
// An instance that fails at once never has calls in flight, and would draw them all. So its failures since its last success
// count as calls in flight, until a second after the last of them: from then on it gets little more than what is drawn for it
// and another one that fails, until a call succeeds.
func LeastRequests() Policy { return leastPolicy{} }

// String implements Policy.
func (leastPolicy) String() string { return "least requests" }

// check implements Policy.
func (leastPolicy) check() error { return nil }

// build implements Policy.
func (leastPolicy) build(e *env, s set, _ picker) picker {
	return &least{env: e, members: s.fit, wheel: byWeight(s.fit)}
}

// least is the picker of LeastRequests.
type least struct {
	env     *env
	members []*member
	wheel   *wheel // nil for equal weights
}

// draw returns the indices of two different members, of which there are two at least.
func (l *least) draw() (i, j int) {
	x := l.env.random()
	y := mix(x) // a bijection: where both points may lie is as even as it was for one
	if l.wheel == nil {
		i, j = below(x, len(l.members)), below(y, len(l.members)-1)
		if j >= i {
			j++
		}
		return i, j
	}
	i = l.wheel.find(x)
	start, length := l.wheel.span(i)
	// The second point is anywhere but in the first's interval: the range is cut short by its length, and points from its
	// start on are moved behind it.
	point, _ := bits.Mul64(y, -length)
	if point >= start {
		point += length
	}
	return i, l.wheel.find(point)
}

// pick implements picker.
func (l *least) pick(q query) choice {
	if len(l.members) == 1 {
		return choice{member: nextAccepted(q, l.members, 0)}
	}
	last := 0
	for range maxDraws {
		i, j := l.draw()
		drawn := [2]*member{l.members[i], l.members[j]}
		// Which has less load is as good as random: a branch on it would be mispredicted every other time.
		_, second := bits.Sub64(l.load(drawn[1])*drawn[0].weight, l.load(drawn[0])*drawn[1].weight, 0)
		if m := drawn[second]; q.accepts(m) {
			return choice{member: m}
		}
		if m := drawn[1-second]; q.accepts(m) {
			return choice{member: m}
		}
		last = j
	}
	return choice{member: nextAccepted(q, l.members, last)}
}

// load returns the calls in flight of a member, and its failures in a row while the last one is recent.
func (l *least) load(m *member) uint64 {
	load := max(m.track.inFlight.Load(), 0)
	if failures := m.track.consecutive.Load(); failures != 0 && l.env.now()-m.track.failedAt.Load() < int64(failureWeighs) {
		load += int64(failures)
	}
	return uint64(load)
}

// shares implements picker. A member is picked when drawn first against one with no less load, or second against one with
// more; sums over those are had by sorting.
func (l *least) shares(q query, mass float64, visit func(*member, float64)) bool {
	members := acceptable(q, l.members)
	if len(members) == 1 {
		visit(members[0], mass)
		return true
	}
	type row struct {
		member *member
		load   float64 // calls in flight for the weight, read once
	}
	var total uint64 // sums of weights are kept as integers: of 1 and 2^32 none is lost
	rows := make([]row, len(members))
	for i, m := range members {
		rows[i] = row{m, float64(l.load(m)) / float64(m.weight)}
		total += m.weight
	}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(b.load, a.load) })
	var more uint64      // weight of members with more load
	var moreOdds float64 // sum over them of weight / weight of the others: to be drawn first, and another second
	for i := 0; i < len(rows); {
		same, end := uint64(0), i
		for ; end < len(rows) && rows[end].load == rows[i].load; end++ {
			same += rows[end].member.weight
		}
		for _, r := range rows[i:end] {
			w := r.member.weight
			visit(r.member, mass*float64(w)/float64(total)*(float64(more+same-w)/float64(total-w)+moreOdds))
		}
		for _, r := range rows[i:end] {
			more += r.member.weight
			moreOdds += float64(r.member.weight) / float64(total-r.member.weight)
		}
		i = end
	}
	return len(members) > 0
}
