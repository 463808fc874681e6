package balance

import (
	"cmp"
	"slices"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Status is what a Balancer knows of an instance.
type Status struct {
	// Instance, shared: do not modify it.
	Instance *registryv1.Instance
	// Reason why it is not picked, ReasonNone if it can be.
	Reason Reason
	// Share is the probability, from 0 to 1, with which Explain's request would pick it now. Not set by Stats.
	Share float64
	// InFlight is the number of picks whose Done is still to come.
	InFlight int64
	// Calls that ended in success or failure, and Failures among them.
	Calls, Failures uint64
	// Latency from Pick to Done of successes, smoothed, 0 before the first.
	Latency time.Duration
	// Breaker is the state of its circuit breaker.
	Breaker BreakerState
	// Ejections is how often it was put aside in a row.
	Ejections int
	// For is the time until its breaker becomes half-open, or until its ejection ends, whichever is the Reason. Else 0.
	For time.Duration
}

// Explanation says what a request would pick, and why.
type Explanation struct {
	// Policy in words.
	Policy string
	// Panic says that health is disregarded, see WithPanicThreshold.
	Panic bool
	// Instances, the likeliest pick first, and those that can't be picked last. With a key, the first is the pick, and those
	// after it on the same side of Split and Local are in the order in which they would take its place.
	Instances []Status
	// Err is what Pick would return, nil if there is an instance to pick.
	Err error
}

// Stats returns what is known of each instance, in the order of namespace, service and id, for metrics. The Reasons are
// those that hold for every request; an instance outside the client's Subset has ReasonNone.
func (b *Balancer) Stats() []Status {
	now := b.now()
	b.refreshIfDue(now)
	b.catchUp()
	b.mu.Lock()
	defer b.mu.Unlock()
	ps := b.plans.Load()
	out := make([]Status, len(ps.members))
	for i, m := range ps.members {
		out[i] = b.status(m, ps.all, now)
	}
	return out
}

// Counts are sums over all instances that a Balancer has had. They only grow.
type Counts struct {
	// Calls that ended in success or failure while their instance was there, and Failures among them.
	Calls, Failures uint64
	// Openings of closed breakers. One that opens again as a trial failed is not counted.
	Openings uint64
	// Ejections begun.
	Ejections uint64
}

// Counts returns what has happened since the balancer was made, for metrics.
func (b *Balancer) Counts() Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := b.counts
	for _, t := range b.tracks {
		sum.Calls += t.calls.Load()
		sum.Failures += t.failures.Load()
	}
	return sum
}

// Explain says for every instance whether the request could pick it, why not, and how likely it is that it would.
func (b *Balancer) Explain(r Request) Explanation {
	now := b.now()
	b.refreshIfDue(now)
	b.catchUp()
	ps := b.plans.Load()
	p := b.plan(ps, r.Filter)
	q := p.query(r)
	shares, order := p.shares(q)
	e := Explanation{Policy: b.cfg.policy.String(), Panic: p.panic}
	if len(order) == 0 {
		e.Err = p.unavailable
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.SortStableFunc(order, func(x, y *member) int { return cmp.Compare(shares[y], shares[x]) })
	for _, m := range order {
		s := b.status(m, p, now)
		s.Reason, s.Share, s.For = ReasonNone, shares[m], 0
		e.Instances = append(e.Instances, s)
	}
	for _, m := range ps.members {
		if _, can := shares[m]; can {
			continue
		}
		s := b.status(m, p, now)
		switch {
		case r.Filter != nil && !r.Filter.match(m.instance):
			s.Reason, s.For = ReasonFiltered, 0
		case s.Reason == ReasonNone && q.avoid.has(m.track):
			s.Reason = ReasonAvoided
		case s.Reason == ReasonNone:
			s.Reason = ReasonSubset
		}
		e.Instances = append(e.Instances, s)
	}
	return e
}

// shares returns the probability of each member that the query could pick, and those members in the order of the policy.
func (p *plan) shares(q query) (shares map[*member]float64, order []*member) {
	shares = map[*member]float64{}
	visit := func(m *member, mass float64) {
		if _, seen := shares[m]; !seen {
			order = append(order, m)
		}
		shares[m] += mass
	}
	for _, tier := range p.tiers {
		if tier != nil && tier.shares(q, 1, visit) {
			return shares, order
		}
	}
	if q.avoid == (Avoid{}) {
		return shares, order
	}
	q.avoid = Avoid{}
	return p.shares(q)
}

// status returns what is known of a member, and why it can't be picked by any request. The lock is held.
func (b *Balancer) status(m *member, p *plan, now int64) Status {
	t := m.track
	s := Status{
		Instance: m.instance, InFlight: t.inFlight.Load(), Calls: t.calls.Load(), Failures: t.failures.Load(),
		Latency: time.Duration(t.latency.Load()), Ejections: t.ejections, Breaker: t.breaker(),
	}
	s.Reason = b.cfg.healthReason(m.instance)
	switch {
	case s.Reason == ReasonMaintenance, s.Reason == ReasonDraining:
	case s.Breaker == BreakerOpen:
		s.Reason, s.For = ReasonOpen, time.Duration(max(t.openUntil-now, 0))
	case s.Breaker == BreakerHalfOpen && t.permits.Load() <= 0:
		s.Reason = ReasonOpen
	case p.panic:
		s.Reason = ReasonNone
	case t.gate.Load()&gateEjected != 0 && s.Reason == ReasonNone:
		s.Reason, s.For = ReasonEjected, time.Duration(max(t.ejectedUntil-now, 0))
	}
	return s
}
