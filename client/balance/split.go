package balance

import (
	"errors"
	"fmt"
)

// splitPolicy is the policy Split.
type splitPolicy struct {
	share  float64
	filter *Filter
	inner  Policy
}

// Split gives a share of the calls, from 0 to 1, to the instances that match the filter, and the rest to the others: a
// canary. With 0, instances that match are picked only where no others are available, and the other way round. On each side
// the inner policy chooses. Requests with a key fall on the same side each time, and as the share grows none falls back.
func Split(share float64, filter *Filter, inner Policy) Policy {
	return splitPolicy{share: share, filter: filter, inner: inner}
}

// String implements Policy.
func (p splitPolicy) String() string {
	return fmt.Sprintf("split(%.4g%% to %v, %v)", 100*p.share, p.filter, p.inner)
}

// check implements Policy.
func (p splitPolicy) check() error {
	var errs []error
	if !(p.share >= 0 && p.share <= 1) {
		errs = append(errs, fmt.Errorf("split: share %v: must be from 0 to 1", p.share))
	}
	if p.filter == nil {
		errs = append(errs, errors.New("split: no filter"))
	}
	return errors.Join(append(errs, checkInner("split", p.inner))...)
}

// build implements Policy.
func (p splitPolicy) build(e *env, s set, old picker) picker {
	var in, out set
	part := func(members []*member) (in, out []*member) {
		for _, m := range members {
			if p.filter.match(m.instance) {
				in = append(in, m)
			} else {
				out = append(out, m)
			}
		}
		return in, out
	}
	in.fit, out.fit = part(s.fit)
	in.all, out.all = part(s.all)
	was, ok := old.(*split)
	if !ok {
		was = &split{}
	}
	return &split{env: e, share: p.share, in: build(p.inner, e, in, was.in), out: build(p.inner, e, out, was.out)}
}

// split is the picker of Split. At least one side is not nil.
type split struct {
	env     *env
	share   float64
	in, out picker
}

// splitSalt is the salt of Split's draws.
const splitSalt = 0x73706c6974

// pick implements picker.
func (s *split) pick(q query) choice {
	first, second := s.out, s.in
	if unit(q.draw(s.env, splitSalt)) < s.share {
		first, second = s.in, s.out
	}
	if first != nil {
		if c := first.pick(q); c.member != nil {
			return c
		}
	}
	if second == nil {
		return choice{}
	}
	return second.pick(q)
}

// shares implements picker.
func (s *split) shares(q query, mass float64, visit func(*member, float64)) bool {
	share := s.share
	if q.key != 0 {
		if unit(q.draw(s.env, splitSalt)) < share {
			share = 1
		} else {
			share = 0
		}
	}
	in := s.in != nil && s.in.shares(q, mass*share, visit)
	out := s.out != nil && s.out.shares(q, mass*(1-share), visit)
	switch {
	case in && !out:
		s.in.shares(q, mass*(1-share), visit)
	case out && !in:
		s.out.shares(q, mass*share, visit)
	}
	return in || out
}
