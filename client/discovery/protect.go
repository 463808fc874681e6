package discovery

import (
	"cmp"
	"slices"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// suspect is an instance that the registry lost.
type suspect struct {
	instance *registryv1.Instance
	since    time.Time
}

// guard decides when lost instances stay in the view. Eureka's self-preservation is the same idea for all services at
// once and without end; here it is by service and bounded.
//
// Invariant: what is listed and the suspects together are never more than were listed at one time, as each instance that
// is new takes the place of a suspect. So instances that crash and come back under new ids don't pile up.
type guard struct {
	keep     float64
	hold     time.Duration
	suspects map[string]suspect
	on       bool
}

// lost tells whether a removal may be due to a fault between the instance and the registry. Of a resync it is not known.
func lost(cause registryv1.Cause) bool {
	switch cause {
	case registryv1.Cause_CAUSE_SESSION_EXPIRED, registryv1.Cause_CAUSE_LEASE_EXPIRED,
		registryv1.Cause_CAUSE_CRITICAL_TOO_LONG, registryv1.Cause_CAUSE_RESYNC:
		return true
	default:
		return false
	}
}

// note takes in which instances were lost, and the ids of those that are new.
func (g *guard) note(gone []suspect, fresh []string) {
	if g.hold == 0 {
		return
	}
	for _, s := range gone {
		g.suspects[s.instance.GetId()] = s
	}
	others := 0
	for _, id := range fresh {
		if _, back := g.suspects[id]; back {
			delete(g.suspects, id)
		} else {
			others++
		}
	}
	if others > 0 && len(g.suspects) > 0 {
		for _, s := range g.byAge()[:min(others, len(g.suspects))] {
			delete(g.suspects, s.instance.GetId())
		}
	}
}

// judge begins the protection when too few are left, and ends it with the last suspect. It tells whether it began.
func (g *guard) judge(left int) bool {
	n := len(g.suspects)
	switch {
	case n == 0:
		g.on = false
	case !g.on && (left == 0 || float64(left) < g.keep*float64(left+n)):
		g.on = true
		return true
	}
	return false
}

// release lets those go that have been held for long enough, and tells whether there were any.
func (g *guard) release(now time.Time) bool {
	before := len(g.suspects)
	for id, s := range g.suspects {
		if !now.Before(s.since.Add(g.hold)) {
			delete(g.suspects, id)
		}
	}
	return len(g.suspects) < before
}

// next returns when release has something to do. Zero: never.
func (g *guard) next() time.Time {
	var first time.Time
	for _, s := range g.suspects {
		if end := s.since.Add(g.hold); first.IsZero() || end.Before(first) {
			first = end
		}
	}
	return first
}

// protected returns those that stay in the view, by id.
func (g *guard) protected() []suspect {
	if !g.on {
		return nil
	}
	all := g.byAge()
	slices.SortFunc(all, func(a, b suspect) int { return byID(a.instance, b.instance) })
	return all
}

// byAge returns the suspects, those first that have been gone longest.
func (g *guard) byAge() []suspect {
	all := make([]suspect, 0, len(g.suspects))
	for _, s := range g.suspects {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b suspect) int {
		return cmp.Or(a.since.Compare(b.since), byID(a.instance, b.instance))
	})
	return all
}
