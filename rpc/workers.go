package rpc

import (
	"sync"
	"sync/atomic"
	"time"
)

// heldUpAfter is how long a worker may be at one job before another one takes its place.
const heldUpAfter = time.Millisecond

// workers do jobs that have little to do most of the time: a few goroutines for all of them, and none while there is
// nothing to do. A goroutine of its own, with the stack that a send needs, would take more memory than all else of an idle
// watch, and a change that many hear of would have to wake them all.
//
// A job that blocks holds up none but itself, as its worker is replaced: there are at most as many goroutines as jobs, and
// as many as may run at once unless some block.
type workers struct {
	most  int            // that are at work and not held up
	ended sync.WaitGroup // has each worker

	mu          sync.Mutex // guards all below, and those of each worker
	first, last *job       // that wait, by next
	running     int        // workers that are not held up
}

// job is work that is done again and again: whenever it was woken, and never twice at once.
type job struct {
	doer  doer
	state atomic.Uint32 // news of what is to be done, and the two below
	next  *job          // guarded by workers.mu
}

// doer does a job.
type doer interface {
	// do does what the news are about.
	do(news uint32)
	// heldUp is called while do is under way for long. It must not block. It returns after which time it wants to be called
	// again.
	heldUp() time.Duration
}

const (
	// jobScheduled: it waits or is done, so that nobody has to make it wait.
	jobScheduled uint32 = 1 << 31
	// jobEnded: it is not done any more.
	jobEnded uint32 = 1 << 30
	// jobNews are what a doer can be woken for.
	jobNews = jobEnded - 1
)

// wake has the job done soon, with the news. It doesn't block.
func (p *workers) wake(j *job, news uint32) {
	if j.state.Or(news|jobScheduled)&(jobScheduled|jobEnded) == 0 {
		p.schedule(j)
	}
}

// end is called by a doer that has nothing left to do: later news are for nobody.
func (j *job) end() { j.state.Or(jobEnded) }

// schedule has the job wait for a worker.
func (p *workers) schedule(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.first = j
	} else {
		p.last.next = j
	}
	p.last = j
	p.call()
}

// call starts a worker if one more can be of use. p.mu is held.
func (p *workers) call() {
	if p.first == nil || p.running >= p.most {
		return
	}
	p.running++
	p.ended.Go(func() {
		w := &worker{workers: p}
		w.clock = time.AfterFunc(heldUpAfter, w.late)
		defer w.clock.Stop()
		w.work()
	})
}

// worker is one goroutine.
type worker struct {
	*workers
	clock    *time.Timer // runs out when the job takes long
	job      *job        // under way
	replaced bool        // not among those that run: it was held up
}

// work does jobs until there are none.
func (w *worker) work() {
	for j := w.take(); j != nil; j = w.take() {
		w.clock.Reset(heldUpAfter)
		j.doer.do(j.state.And(^jobNews) & jobNews)
		if state := j.state.Load(); state&jobEnded == 0 && !j.state.CompareAndSwap(jobScheduled, 0) {
			w.schedule(j) // Woken meanwhile.
		}
	}
}

// take returns what is to be done next, or nil when the worker is not needed any more.
func (w *worker) take() *job {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.replaced && w.running < w.most {
		w.replaced = false
		w.running++
	}
	w.job = nil
	if w.replaced {
		return nil
	}
	j := w.first
	if j == nil {
		w.running--
		return nil
	}
	if w.first, j.next = j.next, nil; w.first == nil {
		w.last = nil
	}
	w.job = j
	w.call()
	return j
}

// late is called while a job takes long: others don't wait for it.
func (w *worker) late() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.job == nil {
		return
	}
	if !w.replaced {
		w.replaced = true
		w.running--
		w.call()
	}
	w.clock.Reset(w.job.doer.heldUp())
}
