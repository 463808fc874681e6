package main

import (
	"context"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// result is what a run of a job found.
type result struct {
	value      float64                 // in the job's unit
	operations int64                   // done in the measured time; 0: the job is not about many
	cpu        time.Duration           // of the servers, in the same time
	latency    *hdrhistogram.Histogram // of the operations, in ns; nil: they are not calls
	note       string                  // for the reader
}

// callTimeout is how long a call of a load may take.
const callTimeout = 10 * time.Second

// times gathers how long calls took. Safe for concurrent use.
type times struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
}

func newTimes() *times { return &times{h: newHistogram()} }

// newHistogram is one for times of up to a minute, in ns.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(time.Minute), 3) }

// milliseconds is a quantile, in percent.
func milliseconds(h *hdrhistogram.Histogram, quantile float64) float64 {
	return float64(h.ValueAtQuantile(quantile)) / 1e6
}

func (t *times) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.h.RecordValue(int64(min(d, time.Minute))) // In range.
}

// count is how many were added since the last take.
func (t *times) count() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.h.TotalCount()
}

// take returns what was added since the last take.
func (t *times) take() *hdrhistogram.Histogram {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.h
	t.h = newHistogram()
	return h
}

// warm is the share of a measurement that is made before, and not counted.
const warm = 0.3

func warmUp(ctx context.Context, last time.Duration) { wait(ctx, time.Duration(warm*float64(last))) }

// counted looks for a time at a load that runs: how often a second it does its operations, which done counts, and what
// CPU time the servers take for them.
func counted(ctx context.Context, cpu func() time.Duration, last time.Duration, done func() int64) result {
	from, spent, begun := done(), cpu(), time.Now()
	wait(ctx, last)
	operations, took := done()-from, time.Since(begun)
	return result{value: float64(operations) / took.Seconds(), operations: operations, cpu: cpu() - spent}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
