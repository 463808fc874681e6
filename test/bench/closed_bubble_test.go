package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestAClosedLoopCountsWhatWasDoneAfterTheWarmUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var spent time.Duration // So much CPU time is taken from one look to the next.
		cpu := func() time.Duration { spent += time.Second; return spent }
		r, err := closed(t.Context(), cpu, 4, time.Second, func(ctx context.Context, _, k int) error {
			if k == 0 {
				wait(ctx, 300*time.Millisecond) // All of the warm-up.
			}
			wait(ctx, time.Millisecond)
			return nil
		})
		if err != nil || r.value < 3990 || r.value > 4010 || r.operations < 3990 || r.operations > 4010 {
			t.Errorf("%v/s, %d, %v; want 4000 in a second", r.value, r.operations, err)
		}
		if p99 := milliseconds(r.latency, 99); r.cpu != time.Second || p99 < 0.99 || p99 > 1.01 {
			t.Errorf("CPU time %v, p99 %v ms; want 1s and 1", r.cpu, p99)
		}
	})
}

func TestAnErrorEndsAClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		begun := time.Now()
		_, err := closed(t.Context(), func() time.Duration { return 0 }, 4, time.Minute, func(ctx context.Context, client, k int) error {
			wait(ctx, time.Millisecond)
			if client == 2 && k == 10 {
				return broken
			}
			return nil
		})
		if took := time.Since(begun); !errors.Is(err, broken) || took > time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}
