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
		rate, err := closed(t.Context(), 4, time.Second, func(ctx context.Context, _, k int) error {
			if k == 0 {
				wait(ctx, 300*time.Millisecond) // All of the warm-up.
			}
			wait(ctx, time.Millisecond)
			return nil
		})
		if err != nil || rate < 3990 || rate > 4010 {
			t.Errorf("%v/s, %v; want 4000/s", rate, err)
		}
	})
}

func TestAnErrorEndsAClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		begun := time.Now()
		_, err := closed(t.Context(), 4, time.Minute, func(ctx context.Context, client, k int) error {
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
