package balance

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Ejection configures what puts an instance aside that does worse than the others. It follows Envoy's outlier detection
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier) in triggers, times and defaults.
//
// The last available instance is never put aside. When instances leave so that more than MaxShare would be ejected, those
// whose time would end first come back.
type Ejection struct {
	// ConsecutiveFailures eject. Default 5. One call that ends as Unreachable does, too.
	ConsecutiveFailures int
	// SuccessRate also ejects, every Interval (default 10 s), instances whose rate of success was more than 1.9 standard
	// deviations below the mean, among those with at least 100 calls, if these are at least 5.
	SuccessRate bool
	Interval    time.Duration
	// BaseTime times the number of ejections in a row is how long one lasts, at most MaxTime. That number falls by one for
	// each BaseTime that passes without an ejection. Defaults 30 s and 300 s.
	BaseTime, MaxTime time.Duration
	// MaxShare is the share of instances, of those healthy by the registry, that may be ejected at once, at most 1. One
	// may always be, of two or more. Default 0.1.
	MaxShare float64
}

// Envoy's defaults of what is not configured.
const (
	rateMinCalls     = 100
	rateMinInstances = 5
	rateFactor       = 1.9
)

// check reports values out of range.
func (e Ejection) check() error {
	if e.ConsecutiveFailures < 0 || e.Interval < 0 || e.BaseTime < 0 || e.MaxTime < 0 || !(e.MaxShare >= 0 && e.MaxShare <= 1) {
		return fmt.Errorf("ejection %+v: nothing may be negative, nor the greatest share above 1", e)
	}
	return nil
}

// withDefaults fills in what is 0.
func (e Ejection) withDefaults() Ejection {
	return Ejection{
		ConsecutiveFailures: positive(e.ConsecutiveFailures, 5),
		SuccessRate:         e.SuccessRate,
		Interval:            positive(e.Interval, 10*time.Second),
		BaseTime:            positive(e.BaseTime, 30*time.Second),
		MaxTime:             positive(e.MaxTime, 300*time.Second),
		MaxShare:            positive(e.MaxShare, 0.1),
	}
}

// enabled tells whether instances are ejected.
func (e *Ejection) enabled() bool { return e.ConsecutiveFailures > 0 }

// limit returns how many of n healthy instances may be ejected at once.
func (e *Ejection) limit(n int) int {
	switch {
	case !e.enabled() || n < 2:
		return 0
	default:
		return min(max(int(e.MaxShare*float64(n)), 1), n-1)
	}
}

// shouldEject tells whether an instance is to be put aside after this many failures in a row, or as it is gone, as far as is
// known without the lock.
func (b *Balancer) shouldEject(t *track, run int, gone bool) bool {
	e := &b.cfg.ejection
	return e.enabled() && (gone || run >= e.ConsecutiveFailures) && t.gate.Load() == 0 && b.ejected.Load() < b.ejectMax.Load()
}

// eject puts an instance aside unless the ceiling is reached or nothing else would be left, and tells whether it did. The
// lock is held.
func (b *Balancer) eject(t *track, now int64) bool {
	if t.gate.Load() != 0 || b.ejected.Load() >= b.ejectMax.Load() || !b.othersLeft(t) {
		return false
	}
	base := int64(b.cfg.ejection.BaseTime)
	if t.ejections > 0 {
		t.ejections = max(0, t.ejections-int((now-t.ejectedLast)/base))
	}
	t.ejections++
	t.ejectedUntil = now + int64(min(b.cfg.ejection.MaxTime, saturated(b.cfg.ejection.BaseTime, t.ejections)))
	t.gate.Or(gateEjected)
	b.ejected.Add(1)
	b.counts.Ejections++
	lasts, times := time.Duration(t.ejectedUntil-now), t.ejections
	b.note(func(log *slog.Logger) {
		log.Warn("instance ejected", "instance", t.id.String(), "for", lasts, "times_in_a_row", times)
	})
	return true
}

// saturated returns n times d, or the longest duration if that is less.
func saturated(d time.Duration, n int) time.Duration {
	if d > math.MaxInt64/time.Duration(n) {
		return math.MaxInt64
	}
	return d * time.Duration(n)
}

// othersLeft tells whether t is one of the healthy instances and another of them can be picked.
func (b *Balancer) othersLeft(t *track) bool {
	present, others := false, false
	for _, m := range b.members {
		if b.cfg.healthReason(m.instance) == ReasonNone {
			present = present || m.track == t
			others = others || m.track != t && m.track.gate.Load() == 0
		}
	}
	return present && others
}

// endEjection lets an instance come back. It ended when it was due, even if no pick has come by since. The lock is held.
func (b *Balancer) endEjection(t *track, now int64) {
	t.ejectedLast = min(now, t.ejectedUntil)
	t.ejectedUntil = never
	t.consecutive.Store(0)
	t.interval.take()
	t.gate.And(^uint32(gateEjected))
}

// readmit counts who is ejected and lets those who exceed the ceiling come back. The lock is held.
func (b *Balancer) readmit() {
	healthy := 0
	var out []*track
	for _, m := range b.members {
		if b.cfg.healthReason(m.instance) != ReasonNone {
			continue
		}
		healthy++
		if m.track.gate.Load()&gateEjected != 0 {
			out = append(out, m.track)
		}
	}
	limit := b.cfg.ejection.limit(healthy)
	if len(out) > limit {
		slices.SortStableFunc(out, func(x, y *track) int { return cmp.Compare(x.ejectedUntil, y.ejectedUntil) })
		for _, t := range out[:len(out)-limit] {
			b.endEjection(t, b.now())
		}
	}
	b.ejected.Store(int64(min(len(out), limit)))
	b.ejectMax.Store(int64(limit))
}

// sweep compares the rates of success since the last sweep, and tells whether any instance was ejected. The lock is held.
func (b *Balancer) sweep(now int64) bool {
	var tracks []*track
	var rates []float64
	for _, m := range b.members {
		c := m.track.interval.take()
		if c.calls >= rateMinCalls {
			tracks = append(tracks, m.track)
			rates = append(rates, 1-float64(c.failures)/float64(c.calls))
		}
	}
	if len(tracks) < rateMinInstances {
		return false
	}
	mean, variance := 0.0, 0.0
	for _, r := range rates {
		mean += r / float64(len(rates))
	}
	for _, r := range rates {
		variance += (r - mean) * (r - mean) / float64(len(rates))
	}
	least := mean - rateFactor*math.Sqrt(variance)
	changed := false
	for i, t := range tracks {
		if rates[i] < least {
			changed = b.eject(t, now) || changed
		}
	}
	return changed
}

// tally counts calls and failures since it was last taken, in one word.
type tally struct{ word atomic.Uint64 }

// add counts an outcome.
func (t *tally) add(o Outcome) {
	if o == Failure {
		t.word.Add(1<<32 | 1)
	} else {
		t.word.Add(1 << 32)
	}
}

// take returns the counts and starts again.
func (t *tally) take() counts {
	word := t.word.Swap(0)
	return counts{calls: int(word >> 32), failures: int(uint32(word))}
}
