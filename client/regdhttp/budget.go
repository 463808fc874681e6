package regdhttp

import (
	"sync"
	"time"
)

// budgetWindow is what a retry budget looks back on. A slot is how finely.
const (
	budgetSlots  = 10
	budgetSlot   = time.Second
	budgetWindow = budgetSlots * budgetSlot
)

// budget bounds the retries to a service by the share that they add to its load, so that a service in trouble isn't given
// the rest by those who wait for it. It is Finagle's RetryBudget: each request of the last 10 s deposits a share of a
// retry, and a floor keeps retries possible where there are few requests.
type budget struct {
	share float64 // retries for each request
	floor float64 // retries in any window

	mu    sync.Mutex
	now   int64 // slot of the last call, counted from the start of the clock
	slots [budgetSlots]struct{ requests, retries int }
	// Sums of the slots.
	requests, retries int
	total             totals
}

// totals are what was counted since the beginning.
type totals struct{ requests, retries, denied uint64 }

// request counts a first attempt.
func (b *budget) request(at time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slots[b.turn(at)].requests++
	b.requests++
	b.total.requests++
}

// retry tells whether there may be one more retry, and counts it.
func (b *budget) retry(at time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	slot := b.turn(at)
	if float64(b.retries+1) > b.floor+b.share*float64(b.requests) {
		b.total.denied++
		return false
	}
	b.slots[slot].retries++
	b.retries++
	b.total.retries++
	return true
}

// sums returns what was counted within the window, and since the beginning.
func (b *budget) sums(at time.Duration) (requests, retries int, total totals) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn(at)
	return b.requests, b.retries, b.total
}

// turn forgets what has left the window, and returns the slot of now. The caller holds mu.
func (b *budget) turn(at time.Duration) int64 {
	now := int64(at / budgetSlot)
	for i := max(b.now+1, now-budgetSlots+1); i <= now; i++ {
		old := &b.slots[i%budgetSlots]
		b.requests -= old.requests
		b.retries -= old.retries
		old.requests, old.retries = 0, 0
	}
	b.now = max(b.now, now)
	return b.now % budgetSlots
}
