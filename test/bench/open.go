package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// tally is what became of the calls of an open loop. Safe for concurrent use.
type tally struct {
	due      atomic.Int64
	late     atomic.Int64 // never begun: too many were under way
	refused  atomic.Int64 // by a server that has too much to do
	failed   atomic.Int64
	answered *times // from when they were due
	// where tells where the time of a call is taken down that was due then and has just ended; nil: in answered.
	where func(due time.Time) *times

	mu  sync.Mutex
	err error // of the last that failed
}

func newTally() *tally { return &tally{answered: newTimes()} }

// note takes down what became of a call that was due then.
func (t *tally) note(due time.Time, err error) {
	switch {
	case err == nil && t.where != nil:
		t.where(due).add(time.Since(due))
	case err == nil:
		t.answered.add(time.Since(due))
	case errors.Is(err, errOverloaded):
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

// errOverloaded is what a call ends with that regd refused, as it has too much to do.
var errOverloaded = errors.New("refused")

// judged tells what regd refused from other errors of gRPC.
func judged(err error) error {
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.ResourceExhausted {
		return err
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && "REASON_"+info.GetReason() == apiv1.Reason_REASON_OVERLOADED.String() {
			return fmt.Errorf("%w: %w", errOverloaded, err)
		}
	}
	return err
}

// schedule is when the calls of an open loop are due: the first of them when it begins, and from then on at a fixed rate, so
// many a second.
type schedule struct {
	begun time.Time
	rate  float64
}

func (s schedule) due(k int) time.Time {
	return s.begun.Add(time.Duration(float64(k) / s.rate * float64(time.Second)))
}

// keep has the calls begun that are due, from first to before end, until ctx ends. It looks again when the next one is, but
// no sooner than after a tick.
func (s schedule) keep(ctx context.Context, tick time.Duration, begin func(first, end int)) {
	for first := 0; ; {
		if early := time.Until(s.due(first)); early > 0 {
			wait(ctx, max(early, tick))
		}
		if ctx.Err() != nil {
			return
		}
		end := max(first+1, int(time.Since(s.begun).Seconds()*s.rate)+1)
		begin(first, end)
		first = end
	}
}
