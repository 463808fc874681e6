package balance

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
)

// ringPolicy is the policies Ring and BoundedRing.
type ringPolicy struct{ factor float64 } // 0: not bounded

// Ring picks for a key the instance whose point on a ring follows the key's: consistent hashing (Karger et al.: Consistent
// hashing and random trees, 1997). An instance has 64 to 127 points, one of a lesser weight fewer in proportion, so shares
// are within some 10 % of the weights. All clients agree, and an instance that comes or goes moves no keys but those that it
// gets or had; so does a change of weight, but for one that takes the greatest weight past a power of two. A pick takes the
// same time for any number of instances. Requests without a key go to a random place on the ring.
func Ring() Policy { return ringPolicy{} }

// BoundedRing is a Ring on which no instance gets more than factor times its fair share of the calls in flight, by weight:
// what would exceed it goes to the next on the ring that has room (Mirrokni, Thorup, Zadimoghaddam: Consistent hashing with
// bounded loads, 2018). factor is more than 1; with 1.25, common in practice, a key that all ask for is spread over as many
// instances as it takes.
func BoundedRing(factor float64) Policy {
	if factor == 0 {
		factor = math.NaN() // which is no factor, whereas 0 is how Ring says so
	}
	return ringPolicy{factor: factor}
}

// String implements Policy.
func (p ringPolicy) String() string {
	if p.factor == 0 {
		return "ring"
	}
	return fmt.Sprintf("bounded ring(%v)", p.factor)
}

// check implements Policy.
func (p ringPolicy) check() error {
	if p.factor != 0 && !(p.factor > 1 && p.factor <= math.MaxInt32) {
		return fmt.Errorf("bounded ring: factor %v: must be more than 1", p.factor)
	}
	return nil
}

// ring is the picker of Ring and BoundedRing.
type ring struct {
	env     *env
	members []*member
	points  []int32 // how many each member has
	wheel   *wheel
	owners  []int32 // of the points, as indices of members
	factor  float64
	weight  float64       // of all members
	load    *atomic.Int64 // calls in flight; nil if not bounded
}

// point is a place on the ring.
type point struct {
	at    uint64
	owner int32
}

// build implements Policy. What stays of an old ring is taken over in order, so that only points that are new are sorted.
func (p ringPolicy) build(e *env, s set, old picker) picker {
	r := &ring{env: e, members: s.fit, points: make([]int32, len(s.fit)), factor: p.factor}
	greatest := uint64(0)
	for _, m := range s.fit {
		greatest = max(greatest, m.weight)
		r.weight += float64(m.weight)
	}
	for i, m := range s.fit {
		r.points[i] = int32(max(m.weight<<7>>bits.Len64(greatest), 1))
	}
	was, ok := old.(*ring)
	if !ok {
		was = &ring{wheel: &wheel{}}
	}
	if p.factor != 0 {
		if r.load = was.load; r.load == nil {
			r.load = new(atomic.Int64)
		}
	}
	r.place(was)
	return r
}

// place makes the ring's wheel.
func (r *ring) place(was *ring) {
	index := make(map[uint64]int32, len(r.members))
	for i, m := range r.members {
		index[m.hash] = int32(i)
	}
	kept := make([]bool, len(r.members))
	moved := make([]int32, len(was.members)) // from old index to new, -1 for none
	for i, m := range was.members {
		moved[i] = -1
		if j, ok := index[m.hash]; ok && r.points[j] == was.points[i] {
			moved[i], kept[j] = j, true
		}
	}
	var fresh []point
	for i, m := range r.members {
		if !kept[i] {
			for n := range r.points[i] {
				fresh = append(fresh, point{mix(m.hash + uint64(n)*golden), int32(i)})
			}
		}
	}
	slices.SortFunc(fresh, func(a, b point) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.owner, b.owner)) })
	ends := make([]uint64, 0, len(was.owners)+len(fresh))
	r.owners = make([]int32, 0, len(was.owners)+len(fresh))
	for i, owner := range was.owners {
		if moved[owner] < 0 {
			continue
		}
		for len(fresh) > 0 && fresh[0].at < was.wheel.ends[i] {
			ends, r.owners = append(ends, fresh[0].at), append(r.owners, fresh[0].owner)
			fresh = fresh[1:]
		}
		ends, r.owners = append(ends, was.wheel.ends[i]), append(r.owners, moved[owner])
	}
	for _, p := range fresh {
		ends, r.owners = append(ends, p.at), append(r.owners, p.owner)
	}
	r.wheel = newWheel(ends)
}

// pick implements picker.
func (r *ring) pick(q query) choice {
	key := q.key
	if key == 0 {
		key = r.env.random()
	}
	var full *member // the first that has no room
	i := r.wheel.find(key)
	for range r.owners {
		if i >= len(r.owners) {
			i = 0
		}
		if m := r.members[r.owners[i]]; q.accepts(m) {
			if r.hasRoom(m) {
				return choice{member: m, load: r.load}
			}
			if full == nil {
				full = m
			}
		}
		i++
	}
	return choice{member: full, load: r.load}
}

// hasRoom tells whether one more call keeps the member within its bound.
func (r *ring) hasRoom(m *member) bool {
	if r.load == nil {
		return true
	}
	bound := math.Ceil(r.factor * float64(r.load.Load()+1) * float64(m.weight) / r.weight)
	return float64(m.track.inFlight.Load())+1 <= bound
}

// shares implements picker.
func (r *ring) shares(q query, mass float64, visit func(*member, float64)) bool {
	accepted := acceptable(q, r.members)
	if len(accepted) == 0 {
		return false
	}
	takes := make(map[*member]bool, len(accepted)) // whether it has room
	anyRoom := false
	for _, m := range accepted {
		takes[m] = r.hasRoom(m)
		anyRoom = anyRoom || takes[m]
	}
	if q.key != 0 {
		r.walk(q.key, takes, mass, visit)
		return true
	}
	// An arc belongs to the first taker at or after its end. Two rounds backwards find it for each.
	var taker *member
	for i := 2*len(r.owners) - 1; i >= 0; i-- {
		at := i % len(r.owners)
		m := r.members[r.owners[at]]
		if room, ok := takes[m]; ok && (room || !anyRoom) {
			taker = m
		}
		if i < len(r.owners) {
			_, length := r.wheel.span(at)
			arc := float64(length)
			if at == 0 {
				arc += float64(^r.wheel.ends[len(r.owners)-1])
			}
			visit(taker, mass*arc/0x1p64)
		}
	}
	for _, m := range accepted {
		visit(m, 0)
	}
	return true
}

// walk visits members in the order in which a key would try them: those with room, then the others.
func (r *ring) walk(key uint64, takes map[*member]bool, mass float64, visit func(*member, float64)) {
	first := r.wheel.find(key)
	for _, room := range []bool{true, false} {
		for i := range r.owners {
			m := r.members[r.owners[(first+i)%len(r.owners)]]
			if has, ok := takes[m]; ok && has == room {
				visit(m, mass)
				mass = 0
				delete(takes, m)
			}
		}
	}
}
