package balance

import (
	"sync/atomic"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// maxFilters is how many filters have a plan at a time.
const maxFilters = 32

// Reason says why an instance is not picked.
type Reason uint8

const (
	// ReasonNone: it can be picked.
	ReasonNone Reason = iota
	// ReasonMaintenance: an operator has taken it out of service.
	ReasonMaintenance
	// ReasonDraining: it has announced its end.
	ReasonDraining
	// ReasonUnhealthy: its health is less than is asked for, and there are better ones.
	ReasonUnhealthy
	// ReasonOpen: its breaker is open, or half-open with all trials under way.
	ReasonOpen
	// ReasonEjected: it did worse than the others.
	ReasonEjected
	// ReasonFiltered: it doesn't match the filter of the request.
	ReasonFiltered
	// ReasonAvoided: the request avoids it.
	ReasonAvoided
	// ReasonSubset: it is not in the client's subset.
	ReasonSubset
)

// String returns the reason in words.
func (r Reason) String() string {
	return [...]string{
		"none", "maintenance", "draining", "unhealthy", "breaker open", "ejected", "filtered out", "avoided", "outside the subset",
	}[r]
}

// healthReason judges an instance by what the registry says of it.
func (c *config) healthReason(i *registryv1.Instance) Reason {
	switch health := i.GetHealth(); {
	case i.GetMaintenance() || health == registryv1.Health_HEALTH_MAINTENANCE:
		return ReasonMaintenance
	case i.GetDraining() || health == registryv1.Health_HEALTH_DRAINING:
		return ReasonDraining
	case health < c.minHealth:
		return ReasonUnhealthy
	default:
		return ReasonNone
	}
}

// plans is what picks read: immutable but for the plans of filters, which are added when first asked for.
type plans struct {
	members []*member
	all     *plan
	byList  atomic.Pointer[[]filterPlan]
}

// filterPlan is the plan for the members that match a filter. A stale one is of the plans before these, and serves only as
// what the new one is made from.
type filterPlan struct {
	filter *Filter
	plan   *plan
	stale  bool
}

// plan says how to choose among certain members.
type plan struct {
	tiers       [2]picker // the second is for when the first gives nothing; nil for none
	ignore      uint32    // bits of gates that don't count
	panic       bool      // health is disregarded
	unavailable *UnavailableError
}

// pick chooses a member and takes what its gate demands.
func (p *plan) pick(q query) (c choice, trial bool) {
	for range maxAvoid {
		if c = p.choose(q); c.member == nil {
			break
		}
		ok, trial := c.member.track.enter(p.ignore)
		if ok {
			return c, trial
		}
		q.avoid.add(c.member.track) // another took its last permit just now
	}
	return choice{}, false
}

// choose asks the tiers, at first with regard to what is to be avoided, then without.
func (p *plan) choose(q query) choice {
	for _, tier := range p.tiers {
		if tier != nil {
			if c := tier.pick(q); c.member != nil {
				return c
			}
		}
	}
	if q.avoid == (Avoid{}) {
		return choice{}
	}
	q.avoid = Avoid{}
	return p.choose(q)
}

// query returns the query for a request.
func (p *plan) query(r Request) query {
	return query{key: mix(r.Hash), ignore: p.ignore, avoid: r.Avoid}
}

// plan returns the plan for a filter, nil for none.
func (b *Balancer) plan(p *plans, f *Filter) *plan {
	if f == nil {
		return p.all
	}
	if list := p.byList.Load(); list != nil {
		for i := range *list {
			if entry := &(*list)[i]; entry.filter == f && !entry.stale {
				return entry.plan
			}
		}
	}
	return b.addFilter(p, f)
}

// addFilter makes the plan for a filter, and keeps it in place of a stale one of the same filter, or of the eldest if there
// are too many.
func (b *Balancer) addFilter(p *plans, f *Filter) *plan {
	b.mu.Lock()
	defer b.mu.Unlock()
	var kept []filterPlan
	var old *plan
	if list := p.byList.Load(); list != nil {
		for _, entry := range *list {
			switch {
			case entry.filter != f:
				kept = append(kept, entry)
			case !entry.stale: // another goroutine was quicker
				return entry.plan
			default:
				old = entry.plan
			}
		}
	}
	matching := make([]*member, 0, len(p.members))
	for _, m := range p.members {
		if f.match(m.instance) {
			matching = append(matching, m)
		}
	}
	fresh := b.newPlan(matching, len(p.members), f.name, old)
	if len(kept) >= maxFilters {
		kept = kept[1:]
	}
	kept = append(kept, filterPlan{filter: f, plan: fresh})
	p.byList.Store(&kept)
	return fresh
}

// newPlans makes the plans for the members. Those of filters that were used since the last time are made when asked for. The
// lock is held.
func (b *Balancer) newPlans(old *plans) *plans {
	fresh := &plans{members: b.members}
	var was *plan
	if old != nil {
		was = old.all
		if list := old.byList.Load(); list != nil {
			var stale []filterPlan
			for _, entry := range *list {
				if !entry.stale {
					stale = append(stale, filterPlan{filter: entry.filter, plan: entry.plan, stale: true})
				}
			}
			fresh.byList.Store(&stale)
		}
	}
	fresh.all = b.newPlan(b.members, len(b.members), "", was)
	return fresh
}

// newPlan sorts members into who can be picked and who can't, and has the policy make its pickers. The lock is held.
func (b *Balancer) newPlan(matching []*member, instances int, filter string, old *plan) *plan {
	u := &UnavailableError{Instances: instances, Matching: len(matching), Filter: filter}
	p := &plan{unavailable: u}
	var fit, warning, others []*member
	for _, m := range matching {
		reason, gate := b.cfg.healthReason(m.instance), m.track.gate.Load()
		switch {
		case reason == ReasonMaintenance:
			u.Maintenance++
		case reason == ReasonDraining:
			u.Draining++
		case gate&gateOpen != 0:
			u.Open++
		case reason == ReasonUnhealthy && gate&gateEjected == 0 && m.instance.GetHealth() == registryv1.Health_HEALTH_WARNING:
			u.Unhealthy++
			warning = append(warning, m)
		case reason == ReasonUnhealthy:
			u.Unhealthy++
			others = append(others, m)
		case gate&gateEjected != 0:
			u.Ejected++
			others = append(others, m)
		default:
			if gate != 0 {
				u.Probing++
			}
			fit = append(fit, m)
		}
	}
	least := b.cfg.panicAt * float64(len(matching)-u.Maintenance-u.Draining)
	if float64(len(fit)) < least {
		fit, warning = append(fit, warning...), nil
	}
	if float64(len(fit)) < least {
		fit, p.panic, p.ignore = append(fit, others...), true, gateEjected
	}
	for i, tier := range [][]*member{fit, warning} {
		var was picker
		if old != nil {
			was = old.tiers[i]
		}
		p.tiers[i] = build(b.cfg.policy, &env{random: b.cfg.random, now: b.now}, set{fit: tier, all: matching}, was)
	}
	return p
}
