package rpc

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeDoer is a job that takes as long as it is told.
type fakeDoer struct {
	job     job
	takes   time.Duration
	atOnce  atomic.Int32
	t       *testing.T
	mu      sync.Mutex  // guards what is below
	done    []uint32    // the news of each time
	askedAt []time.Time // what holds it up
}

func newFakeDoer(t *testing.T, takes time.Duration) *fakeDoer {
	d := &fakeDoer{takes: takes, t: t}
	d.job.doer = d
	return d
}

func (d *fakeDoer) do(news uint32) {
	if d.atOnce.Add(1) > 1 {
		d.t.Error("done twice at once")
	}
	if d.takes > 0 {
		time.Sleep(d.takes)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done = append(d.done, news)
	d.atOnce.Add(-1)
}

func (d *fakeDoer) heldUp() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.askedAt = append(d.askedAt, time.Now())
	return time.Second
}

// so returns how often it was done and asked.
func (d *fakeDoer) so() (done, asked int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.done), len(d.askedAt)
}

func TestAJobHearsAllNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, d := &workers{most: 1}, newFakeDoer(t, time.Millisecond/2)
		p.wake(&d.job, 1)
		p.wake(&d.job, 2) // Both before it is done.
		synctest.Wait()
		p.wake(&d.job, 4) // While it is done.
		p.wake(&d.job, 4)
		p.ended.Wait()
		p.wake(&d.job, 8) // When nothing was to do.
		p.ended.Wait()
		if len(d.done) != 3 || d.done[0]|d.done[1] != 7 || d.done[1]&4 == 0 || d.done[2] != 8 {
			t.Errorf("done for %v, want all of 1, 2, 4, 4 in two times, and 8", d.done)
		}
		d.job.end()
		p.wake(&d.job, 16)
		p.ended.Wait()
		if len(d.done) != 3 {
			t.Errorf("an ended job was done for %v", d.done[3:])
		}
	})
}

func TestAJobThatEndsWhileItIsWokenIsNotDoneAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, d := &workers{most: 1}, newFakeDoer(t, time.Millisecond/2)
		p.wake(&d.job, 1)
		synctest.Wait()
		p.wake(&d.job, 2)
		d.job.end()
		p.ended.Wait()
		if len(d.done) != 1 {
			t.Errorf("done for %v, want once", d.done)
		}
	})
}

func TestWhoBlocksHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blocked, others = 10, 100
		p := &workers{most: 2}
		var slow, fast []*fakeDoer
		for range blocked {
			slow = append(slow, newFakeDoer(t, time.Minute))
		}
		for range others {
			fast = append(fast, newFakeDoer(t, 0))
		}
		began := time.Now()
		for _, d := range append(slow[:blocked:blocked], fast...) {
			p.wake(&d.job, 1)
		}
		// Two at a time give way after a millisecond.
		time.Sleep(blocked / 2 * heldUpAfter)
		synctest.Wait()
		for i, d := range fast {
			if done, _ := d.so(); done != 1 {
				t.Fatalf("after %v job %d of %d was not done", time.Since(began), i, others)
			}
		}
		for _, d := range slow {
			if done, asked := d.so(); done != 0 || asked != 1 {
				t.Errorf("a job that blocks was done %d times, and asked %d times what holds it up", done, asked)
			}
		}
		p.ended.Wait()
		for _, d := range slow {
			if done, asked := d.so(); done != 1 || asked != 60 {
				t.Errorf("a job that takes a minute was done %d times, and asked %d times what holds it up", done, asked)
			}
		}
		if p.running != 0 || p.first != nil || p.last != nil {
			t.Errorf("left behind: %d running, first %v", p.running, p.first)
		}
		// Whoever was held up goes on if it is needed: there are never more than two.
		p.wake(&fast[0].job, 1)
		p.ended.Wait()
		if len(fast[0].done) != 2 {
			t.Error("nothing is done any more")
		}
	})
}

func TestNoMoreWorkThanMayAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &workers{most: 3}
		var atOnce, most atomic.Int32
		jobs := make([]*countingDoer, 50)
		for i := range jobs {
			jobs[i] = &countingDoer{atOnce: &atOnce, most: &most}
			jobs[i].job.doer = jobs[i]
			p.wake(&jobs[i].job, 1)
		}
		p.ended.Wait()
		if most.Load() != 3 {
			t.Errorf("%d at once, want 3", most.Load())
		}
	})
}

// countingDoer counts how many of them are done at once. It takes less time than would hold others up.
type countingDoer struct {
	job          job
	atOnce, most *atomic.Int32
}

func (d *countingDoer) do(uint32) {
	d.most.Store(max(d.most.Load(), d.atOnce.Add(1)))
	time.Sleep(heldUpAfter / 2)
	d.atOnce.Add(-1)
}

func (*countingDoer) heldUp() time.Duration { return time.Second }
