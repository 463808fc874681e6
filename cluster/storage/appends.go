package storage

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// appendWindow is how many appends the latency figures cover.
const appendWindow = 512

// appendClock measures appends, and shows one that hangs while it hangs.
type appendClock struct {
	start time.Time
	since atomic.Int64 // when the append under way began, in ns after start, at least 1; 0: none

	mu    sync.Mutex // guards what follows
	ring  [appendWindow]time.Duration
	count uint64 // of all appends so far
}

func newAppendClock() *appendClock { return &appendClock{start: time.Now()} }

// begin starts an append and returns what ends it. raft appends one batch at a
// time; should two overlap, the first is the one that is shown.
func (c *appendClock) begin() (end func()) {
	began := time.Now()
	shown := c.since.CompareAndSwap(0, max(1, int64(began.Sub(c.start))))
	return func() {
		if shown {
			c.since.Store(0)
		}
		took := time.Since(began)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ring[c.count%appendWindow] = took
		c.count++
	}
}

func (c *appendClock) stall() time.Duration {
	since := c.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(c.start) - time.Duration(since)
}

func (c *appendClock) latency() (p50, p99 time.Duration) {
	c.mu.Lock()
	took := c.ring
	n := int(min(c.count, appendWindow))
	c.mu.Unlock()
	if n == 0 {
		return 0, 0
	}
	slices.Sort(took[:n])
	return took[(n-1)/2], took[(n-1)*99/100]
}
