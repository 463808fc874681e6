package balance

import (
	"errors"
	"fmt"
)

// overprovisioning is by how much more a locality is assumed to bear than its share, as in Envoy: it keeps all its calls
// until less than 1/1.4 of its capacity is fit
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority).
const overprovisioning = 1.4

// levels of a localPolicy: the same zone, the same region, elsewhere.
const levels = 3

// localPolicy is the policy Local.
type localPolicy struct {
	region, zone string
	inner        Policy
}

// Local keeps calls in the client's zone, else in its region, as far as what is fit there can bear them; the rest spills
// over to the next of the three levels zone, region and elsewhere. Within a level the inner policy chooses. zone or region
// may be empty: no zone, so that the region is the nearest; zones of the name in any region.
//
// The health of a level is the weight of its fit instances, by the weight of all, times 1.4, at most 1. The zone takes its
// health's share of the calls, the region and elsewhere what is left in turn by theirs; when all three together fall short
// of 1, their shares are scaled up. So does Envoy with its priorities. A level's capacity in absolute terms isn't known: a
// zone with few instances and many clients needs to be told so by leaving Local away.
func Local(region, zone string, inner Policy) Policy {
	return localPolicy{region: region, zone: zone, inner: inner}
}

// String implements Policy.
func (p localPolicy) String() string {
	return fmt.Sprintf("local(%s/%s, %v)", p.region, p.zone, p.inner)
}

// check implements Policy.
func (p localPolicy) check() error {
	if p.region == "" && p.zone == "" {
		return errors.New("local: neither region nor zone given")
	}
	return checkInner("local", p.inner)
}

// checkInner checks the policy inside another.
func checkInner(outer string, inner Policy) error {
	if inner == nil {
		return fmt.Errorf("%s: no inner policy", outer)
	}
	return inner.check()
}

// level returns how far away a member is.
func (p localPolicy) level(m *member) int {
	inRegion := p.region == "" || m.instance.GetRegion() == p.region
	switch {
	case inRegion && p.zone != "" && m.instance.GetZone() == p.zone:
		return 0
	case inRegion && p.region != "":
		return 1
	default:
		return 2
	}
}

// build implements Policy.
func (p localPolicy) build(e *env, s set, old picker) picker {
	var parts [levels]set
	var fit, all [levels]float64
	for _, m := range s.fit {
		level := p.level(m)
		parts[level].fit = append(parts[level].fit, m)
		fit[level] += float64(m.weight)
	}
	for _, m := range s.all {
		level := p.level(m)
		parts[level].all = append(parts[level].all, m)
		all[level] += float64(m.weight)
	}
	l := &local{env: e, loads: levelLoads(fit, all)}
	was, _ := old.(*local)
	for i, part := range parts {
		var before picker
		if was != nil {
			before = was.levels[i]
		}
		l.levels[i] = build(p.inner, e, part, before)
	}
	return l
}

// levelLoads returns the share of calls of each level.
func levelLoads(fit, all [levels]float64) (loads [levels]float64) {
	var health [levels]float64
	total := 0.0
	for i := range health {
		if all[i] > 0 {
			health[i] = min(1, overprovisioning*fit[i]/all[i])
			total += health[i]
		}
	}
	left := 1.0
	for i := range loads {
		loads[i] = min(left, health[i]/min(total, 1))
		left -= loads[i]
	}
	return loads
}

// local is the picker of Local.
type local struct {
	env    *env
	levels [levels]picker // nil for none
	loads  [levels]float64
}

// localSalt is the salt of Local's draws.
const localSalt = 0x6c6f63616c

// pick implements picker.
func (l *local) pick(q query) choice {
	drawn := l.draw(q)
	if c := l.levels[drawn].pick(q); c.member != nil {
		return c
	}
	for i, level := range l.levels {
		if i != drawn && level != nil {
			if c := level.pick(q); c.member != nil {
				return c
			}
		}
	}
	return choice{}
}

// draw returns the level to try first, which is one that has a picker.
func (l *local) draw(q query) int {
	point := -1.0
	last := 0
	for i, load := range l.loads {
		if load >= 1 {
			return i
		}
		if l.levels[i] == nil {
			continue
		}
		if point < 0 {
			point = unit(q.draw(l.env, localSalt))
		}
		if point < load {
			return i
		}
		point -= load
		last = i
	}
	return last
}

// shares implements picker.
func (l *local) shares(q query, mass float64, visit func(*member, float64)) bool {
	loads := l.loads
	if q.key != 0 {
		loads = [levels]float64{}
		loads[l.draw(q)] = 1
	}
	spill := 0.0
	first := -1
	for i, level := range l.levels {
		switch {
		case level == nil || !level.shares(q, mass*loads[i], visit):
			spill += loads[i]
		case first < 0:
			first = i
		}
	}
	if first >= 0 && spill > 0 {
		l.levels[first].shares(q, mass*spill, visit)
	}
	return first >= 0
}
