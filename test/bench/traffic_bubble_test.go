package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// trafficTo returns registrations at a server that answers as it is told.
func trafficTo(t *testing.T, answer func(context.Context, *apiv1.RegisterRequest) error) *traffic {
	t.Helper()
	_, dial := serve(t, registry{register: answer})
	wires, done, err := wired(t.Context(), dial, openWires, "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	return &traffic{wires: wires, exchange: exchange{(&regd{}).registering(0, another)}}
}

func TestAClosedLoopOfTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under, most atomic.Int64
		f := trafficTo(t, func(ctx context.Context, _ *apiv1.RegisterRequest) error {
			most.Store(max(most.Load(), under.Add(1)))
			wait(ctx, 50*time.Millisecond)
			under.Add(-1)
			return nil
		})
		r, err := f.closed(t.Context(), func() time.Duration { return 0 }, 100, time.Second)
		if p50 := milliseconds(r.latency, 50); err != nil || most.Load() != 100 || r.value < 1900 || r.value > 2100 || p50 < 49 || p50 > 51 {
			t.Errorf("%v/s, %d under way, half within %v ms, %v; want 2000, 100 and 50", r.value, most.Load(), p50, err)
		}
	})
}

func TestAClosedLoopCountsWhatWasDoneAfterTheWarmUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		f := trafficTo(t, func(ctx context.Context, _ *apiv1.RegisterRequest) error {
			if calls.Add(1) <= 4 {
				wait(ctx, 300*time.Millisecond) // All of the warm-up.
			}
			wait(ctx, time.Millisecond)
			return nil
		})
		var spent time.Duration // So much CPU time is taken from one look to the next.
		r, err := f.closed(t.Context(), func() time.Duration { spent += time.Second; return spent }, 4, time.Second)
		if err != nil || r.value < 3990 || r.value > 4010 || r.operations < 3990 || r.operations > 4010 {
			t.Errorf("%v/s, %d, %v; want 4000 in a second", r.value, r.operations, err)
		}
		if p99 := milliseconds(r.latency, 99); r.cpu != time.Second || p99 < 0.99 || p99 > 1.01 {
			t.Errorf("CPU time %v, p99 %v ms; want 1s and 1", r.cpu, p99)
		}
	})
}

func TestTurnsAreDoneSoManyTimesAndNumbered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		ids := map[string]int{}
		f := trafficTo(t, func(ctx context.Context, req *apiv1.RegisterRequest) error {
			mu.Lock()
			ids[req.GetInstance().GetId()]++
			mu.Unlock()
			wait(ctx, time.Millisecond)
			return nil
		})
		if err := f.times(t.Context(), 100, 1010); err != nil {
			t.Fatal(err)
		}
		for n := range 1010 {
			if ids["i"+strconv.Itoa(n)] != 1 {
				t.Fatalf("turn %d was done %d times", n, ids["i"+strconv.Itoa(n)])
			}
		}
		if len(ids) != 1010 {
			t.Errorf("%d turns were done", len(ids))
		}
	})
}

func TestTheStepsOfATurnComeOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := trafficTo(t, func(ctx context.Context, req *apiv1.RegisterRequest) error {
			if req.GetInstance().GetSessionId() != "of bench" {
				return errors.New("not on the session that was opened before")
			}
			wait(ctx, 10*time.Millisecond)
			return nil
		})
		f.exchange = exchange{(&regd{}).opening(time.Hour), f.exchange[0], f.exchange[0]}
		r, err := f.closed(t.Context(), func() time.Duration { return 0 }, 10, time.Second)
		if p50 := milliseconds(r.latency, 50); err != nil || r.value < 490 || r.value > 510 || p50 < 19.9 || p50 > 20.1 {
			t.Errorf("%v/s, half within %v ms, %v; want 500 and 20: both registrations", r.value, p50, err)
		}
	})
}

func TestAnExchangeThatIsDoneOnceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := make(chan struct{}, 1)
		f := trafficTo(t, func(ctx context.Context, _ *apiv1.RegisterRequest) error {
			<-ctx.Done()
			left <- struct{}{}
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := f.exchange.do(ctx, f.wires[0], &turn{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		<-left
	})
}

func TestACallWithoutAnAnswerEndsALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		f := trafficTo(t, func(context.Context, *apiv1.RegisterRequest) error { <-answer; return nil })
		begun := time.Now()
		err := f.times(t.Context(), 3, 5)
		if took := time.Since(begun); err == nil || took < callTimeout || took > callTimeout+2*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		close(answer)
	})
}

func TestAnErrorEndsAClosedLoopOfTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused, begun := refusal(t, "OVERLOADED"), time.Now()
		var calls atomic.Int64
		f := trafficTo(t, func(ctx context.Context, _ *apiv1.RegisterRequest) error {
			wait(ctx, 10*time.Millisecond)
			if calls.Add(1) == 1000 {
				return refused
			}
			return nil
		})
		_, err := f.closed(t.Context(), func() time.Duration { return 0 }, 100, time.Minute)
		if took := time.Since(begun); err == nil || took > time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestPacedTrafficTellsWhatBecameOfCallsThatAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := refusal(t, "OVERLOADED")
		var calls atomic.Int64
		f := trafficTo(t, func(ctx context.Context, _ *apiv1.RegisterRequest) error {
			if calls.Add(1)%3 == 0 {
				return refused
			}
			wait(ctx, 100*time.Millisecond)
			return nil
		})
		got := newTally()
		stop := f.paced(t.Context(), 3000, trafficTick, got)
		wait(t.Context(), time.Second-trafficTick/2)
		if due, answered := got.due.Load(), got.answered.count(); due < 2995 || due > 3000 || answered > 1800 {
			t.Errorf("%d were due and %d answered after a second; want 3000 and 1800", due, answered)
		}
		stop() // Waits for the answers.
		due, h := got.due.Load(), got.answered.take()
		if n := h.TotalCount(); n != due-due/3 || got.refused.Load() != due/3 || got.lost() != due/3 {
			t.Errorf("%d answered; %v; want a third to be refused", n, got)
		}
		if fast, slow := milliseconds(h, 0), milliseconds(h, 100); fast < 99 || slow < 101 || slow > 103 {
			t.Errorf("answered within %v to %v ms of when they were due, want 100 and up to a tick", fast, slow)
		}
	})
}

func TestNoMoreCallsOfTrafficAreUnderWayThanThereArePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under, most atomic.Int64
		const crowd = openWires * wirePlaces
		var taken [crowd]atomic.Bool
		f := trafficTo(t, func(ctx context.Context, req *apiv1.RegisterRequest) error {
			client, _ := strconv.Atoi(strings.TrimPrefix(req.GetRequestId().GetClientId(), "bench-"))
			if taken[client].Swap(true) {
				t.Errorf("client %d makes two calls at a time", client)
			}
			most.Store(max(most.Load(), under.Add(1)))
			wait(ctx, time.Second-time.Millisecond)
			under.Add(-1)
			taken[client].Store(false)
			return nil
		})
		got := newTally()
		stop := f.paced(t.Context(), 5000, trafficTick, got)
		wait(t.Context(), time.Second-2*time.Millisecond)
		stop()
		if due, late, answered := got.due.Load(), got.late.Load(), got.answered.count(); most.Load() != crowd || answered != crowd || late != due-crowd {
			t.Errorf("%d under way, want %d: %d answered, %v", most.Load(), crowd, answered, got)
		}
	})
}
