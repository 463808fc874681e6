package main

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// trafficTo returns registrations at a server that answers as it is told.
func trafficTo(t *testing.T, answer func(context.Context, *apiv1.RegisterRequest) error) *traffic {
	t.Helper()
	_, dial := serve(t, answer)
	return &traffic{
		method: apiv1.RegistryService_Register_FullMethodName, nodes: []string{"", ""}, dial: func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) },
		message: (&regd{}).registration(owner{}),
	}
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
		stop, err := f.paced(t.Context(), 3000, got)
		if err != nil {
			t.Fatal(err)
		}
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
		stop, err := f.paced(t.Context(), 5000, got)
		if err != nil {
			t.Fatal(err)
		}
		wait(t.Context(), time.Second-2*time.Millisecond)
		stop()
		if due, late, answered := got.due.Load(), got.late.Load(), got.answered.count(); most.Load() != crowd || answered != crowd || late != due-crowd {
			t.Errorf("%d under way, want %d: %d answered, %v", most.Load(), crowd, answered, got)
		}
	})
}
