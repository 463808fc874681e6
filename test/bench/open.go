package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// crowd is how many calls of an open loop may be under way.
const crowd = 4096

// tally is what became of the calls of an open loop. Safe for concurrent use.
type tally struct {
	due      atomic.Int64
	late     atomic.Int64 // never begun: too many were under way
	refused  atomic.Int64 // by a server that has too much to do
	failed   atomic.Int64
	answered *times // from when they were due

	mu  sync.Mutex
	err error // of the last that failed
}

func newTally() *tally { return &tally{answered: newTimes()} }

// note takes down what became of a call that was due then.
func (t *tally) note(due time.Time, err error) {
	switch {
	case err == nil:
		t.answered.add(time.Since(due))
	case overloaded(err):
		t.refused.Add(1)
	default:
		t.failed.Add(1)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.err = err
	}
}

// lost is how many calls did not do what they were to.
func (t *tally) lost() int64 { return t.late.Load() + t.refused.Load() + t.failed.Load() }

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := fmt.Sprintf("of %d calls %d were refused, %d failed, %d were not begun", t.due.Load(), t.refused.Load(), t.failed.Load(), t.late.Load())
	if t.err != nil {
		text += fmt.Sprintf("; last error: %v", t.err)
	}
	return text
}

// overloaded tells whether regd refused a call because it has too much to do.
func overloaded(err error) bool {
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.ResourceExhausted {
		return false
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && "REASON_"+info.GetReason() == apiv1.Reason_REASON_OVERLOADED.String() {
			return true
		}
	}
	return false
}

// pacing begins calls at a fixed rate, so many a second, whether or not earlier ones were answered, until stop, which
// waits for those under way. The first is due at the given time. Each has one of the places of those that may be under way, which is the client that op is
// given. One for which no place is free when it is due is not begun.
func pacing(ctx context.Context, begun time.Time, rate float64, places int, op operation, t *tally) (stop func()) {
	free := make(chan int, places)
	for i := range places {
		free <- i
	}
	dispatching, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() {
		for k := 0; ; k++ {
			due := begun.Add(time.Duration(float64(k) / rate * float64(time.Second)))
			if early := time.Until(due); early > 0 {
				wait(dispatching, early)
			}
			if dispatching.Err() != nil {
				return
			}
			t.due.Add(1)
			select {
			case place := <-free:
				all.Go(func() {
					callCtx, done := context.WithTimeout(ctx, callTimeout)
					t.note(due, op(callCtx, place, k))
					done()
					free <- place
				})
			default:
				t.late.Add(1)
			}
		}
	})
	return func() {
		cancel()
		all.Wait()
	}
}
