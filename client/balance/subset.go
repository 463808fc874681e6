package balance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// subsetPolicy is the policy Subset.
type subsetPolicy struct {
	client string
	seed   uint64
	size   int
	inner  Policy
}

// Subset keeps a client to size instances, at least 1, so that a large fleet of clients and instances does with few
// connections. The inner policy chooses among them.
//
// A client's subset are the fit instances that score highest for its id, by rendezvous hashing. So each client has its own,
// the same after a restart, and an instance that comes, goes or fails changes one place in the subsets that it enters or
// leaves, and no others. Instances are in size/n of the subsets on average, with a binomial spread: the choice of gRPC
// (proposal A68, random subsetting). The deterministic subsetting of Google's "Site Reliability Engineering" (2016, chapter
// 20) spreads perfectly, but needs clients numbered without gaps, and moves most places when an instance comes or goes.
//
// Inside Local, the subset is one of each level. Around Local, it may leave the client without any instance in its zone.
func Subset(client string, size int, inner Policy) Policy {
	return subsetPolicy{client: client, seed: mix(Hash(client)), size: size, inner: inner}
}

// String implements Policy.
func (p subsetPolicy) String() string { return fmt.Sprintf("subset(%d, %v)", p.size, p.inner) }

// check implements Policy.
func (p subsetPolicy) check() error {
	var errs []error
	if p.client == "" {
		errs = append(errs, errors.New("subset: no client id: all clients would have the same"))
	}
	if p.size < 1 {
		errs = append(errs, fmt.Errorf("subset: size %d: must be at least 1", p.size))
	}
	return errors.Join(append(errs, checkInner("subset", p.inner))...)
}

// build implements Policy.
func (p subsetPolicy) build(e *env, s set, old picker) picker {
	fit := p.rank(s.fit)
	fit = fit[:min(p.size, len(fit))]
	// All that rank no lower are the subset as it would be if they were fit.
	last := p.score(fit[len(fit)-1])
	all := slices.DeleteFunc(slices.Clone(s.all), func(m *member) bool { return p.score(m) > last })
	return build(p.inner, e, set{fit: fit, all: all}, old)
}

// score returns a member's score for the client. Less is better.
func (p subsetPolicy) score(m *member) uint64 { return pair(p.seed, m.hash) }

// rank returns the members by score.
func (p subsetPolicy) rank(members []*member) []*member {
	ranked := slices.Clone(members)
	slices.SortFunc(ranked, func(a, b *member) int { return cmp.Compare(p.score(a), p.score(b)) })
	return ranked
}
