package balance

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// Breaker configures the circuit breaker of each instance. Closed, it counts. After too many failures it opens: the
// instance gets no calls for OpenTime. Then it is half-open: a few trial calls are let through, and their success closes
// it, while one failure opens it again. Calls that were under way when it changed don't count for its new state.
type Breaker struct {
	// ConsecutiveFailures open it. Default 5.
	ConsecutiveFailures int
	// FailureRatio opens it: the share of failures, at most 1, among the calls of the last Window, if these are MinCalls
	// at least. Window is at least 10 ms. Defaults 0.5, 20 and 10 s.
	FailureRatio float64
	MinCalls     int
	Window       time.Duration
	// OpenTime is how long it stays open. Default 5 s.
	OpenTime time.Duration
	// Trials is how many calls it lets through at a time when half-open, and how many must succeed to close it. Default 1.
	Trials int
}

// BreakerState is the state of a circuit breaker.
type BreakerState uint8

const (
	// BreakerClosed: calls pass. Also when there is no breaker.
	BreakerClosed BreakerState = iota
	// BreakerOpen: no call passes.
	BreakerOpen
	// BreakerHalfOpen: a few calls pass, to find out.
	BreakerHalfOpen
)

// String returns the state's name.
func (s BreakerState) String() string {
	switch s {
	case BreakerOpen:
		return "open"
	case BreakerHalfOpen:
		return "half-open"
	default:
		return "closed"
	}
}

// minWindow is the shortest window of a breaker.
const minWindow = 10 * time.Millisecond

// check reports values out of range.
func (k Breaker) check() error {
	if k.ConsecutiveFailures < 0 || k.MinCalls < 0 || k.Trials < 0 || k.Window < 0 || k.OpenTime < 0 ||
		!(k.FailureRatio >= 0 && k.FailureRatio <= 1) {
		return fmt.Errorf("breaker %+v: nothing may be negative, nor the failure ratio above 1", k)
	}
	if k.Window != 0 && k.Window < minWindow {
		return fmt.Errorf("breaker window %v: must be at least %v", k.Window, minWindow)
	}
	return nil
}

// withDefaults fills in what is 0.
func (k Breaker) withDefaults() Breaker {
	return Breaker{
		ConsecutiveFailures: positive(k.ConsecutiveFailures, 5),
		FailureRatio:        positive(k.FailureRatio, 0.5),
		MinCalls:            positive(k.MinCalls, 20),
		Window:              positive(k.Window, 10*time.Second),
		OpenTime:            positive(k.OpenTime, 5*time.Second),
		Trials:              positive(k.Trials, 1),
	}
}

// enabled tells whether there is a breaker.
func (k *Breaker) enabled() bool { return k.Trials > 0 }

// shouldOpen tells whether a breaker is to open after this many failures in a row and what its window counts.
func (b *Balancer) shouldOpen(t *track, run int, now int64) bool {
	k := &b.cfg.breaker
	if !k.enabled() || t.gate.Load()&(gateOpen|gateTrial) != 0 {
		return false
	}
	if run >= k.ConsecutiveFailures {
		return true
	}
	c := t.window.sum(k.Window, now)
	return c.calls >= k.MinCalls && float64(c.failures) >= k.FailureRatio*float64(c.calls)
}

// open opens a closed breaker, and tells whether it was closed. The lock is held.
func (b *Balancer) open(t *track, now int64) bool {
	if t.gate.Load()&(gateOpen|gateTrial) != 0 {
		return false
	}
	t.gate.Or(gateOpen)
	t.openUntil = now + int64(b.cfg.breaker.OpenTime)
	b.counts.Openings++
	failures := t.consecutive.Load()
	b.note(func(log *slog.Logger) {
		log.Warn("breaker opened", "instance", t.id.String(), "consecutive_failures", failures, "for", b.cfg.breaker.OpenTime)
	})
	return true
}

// halfOpen makes a breaker half-open whose time is over. One that is half-open already gives its permits out anew, since
// the calls that hold them don't seem to end. The lock is held.
func (b *Balancer) halfOpen(t *track, now int64) {
	t.round.Add(1)
	t.successes = 0
	t.openUntil = now + int64(b.cfg.breaker.OpenTime)
	t.permits.Store(int32(b.cfg.breaker.Trials))
	t.gate.Or(gateTrial)
	t.gate.And(^uint32(gateOpen))
}

// judge decides a half-open breaker by the outcome of a trial of the round.
func (b *Balancer) judge(t *track, round uint32, o Outcome, now int64) {
	b.mu.Lock()
	defer b.unlock()
	if t.gate.Load()&gateTrial == 0 || t.round.Load() != round {
		return
	}
	switch o {
	case Failure, Unreachable:
		t.openUntil = now + int64(b.cfg.breaker.OpenTime)
		t.gate.Or(gateOpen)
		t.gate.And(^uint32(gateTrial))
	case Neutral:
		t.permits.Add(1)
		return
	case Success:
		if t.successes++; t.successes < b.cfg.breaker.Trials {
			return
		}
		t.openUntil = never
		t.consecutive.Store(0)
		t.window.reset()
		t.gate.And(^uint32(gateTrial))
		b.note(func(log *slog.Logger) { log.Info("breaker closed", "instance", t.id.String()) })
	}
	b.outdate(now)
}

// windowSlots is into how many slots a window is divided. What leaves it does so a slot at a time.
const windowSlots = 8

// counts are calls and, among them, failures.
type counts struct{ calls, failures int }

// window counts outcomes over a sliding time. Each slot packs the slot's number in time, calls and failures into one word,
// so that outcomes are counted without a lock.
type window [windowSlots]atomic.Uint64

// A slot's word: 24 bits of the number, 20 of calls, 20 of failures. A full count stops counting.
const (
	slotCountBits = 20
	slotCountMask = 1<<slotCountBits - 1
)

// slotNumber returns the number of the slot of a time, as much as a word holds of it, plus one so that no word is 0.
func slotNumber(length time.Duration, now int64) uint64 {
	return uint64(now)/uint64(length/windowSlots) + 1
}

// add counts an outcome.
func (w *window) add(length time.Duration, now int64, o Outcome) {
	number := slotNumber(length, now)
	slot := &w[number%windowSlots]
	for {
		old := slot.Load()
		word := old
		if tag := number << (2 * slotCountBits); word&^(1<<(2*slotCountBits)-1) != tag {
			word = tag
		}
		if word>>slotCountBits&slotCountMask < slotCountMask {
			word += 1 << slotCountBits
			if o == Failure {
				word++
			}
		}
		if slot.CompareAndSwap(old, word) {
			return
		}
	}
}

// sum returns what the window counts now.
func (w *window) sum(length time.Duration, now int64) counts {
	var c counts
	number := slotNumber(length, now)
	for age := range min(number, windowSlots) {
		word := w[(number-age)%windowSlots].Load()
		if word>>(2*slotCountBits) == (number-age)<<(2*slotCountBits)>>(2*slotCountBits) {
			c.calls += int(word >> slotCountBits & slotCountMask)
			c.failures += int(word & slotCountMask)
		}
	}
	return c
}

// reset forgets all.
func (w *window) reset() {
	for i := range w {
		w[i].Store(0)
	}
}
