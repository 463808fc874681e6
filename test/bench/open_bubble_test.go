package main

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnOpenLoopBeginsCallsWhetherOrNotEarlierOnesWereAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := newTally()
		stop := pacing(t.Context(), time.Now(), 100, 1000, func(ctx context.Context, _, _ int) error {
			wait(ctx, 3*time.Second)
			return nil
		}, got)
		wait(t.Context(), time.Second-time.Millisecond)
		if due, answered := got.due.Load(), got.answered.count(); due != 100 || answered != 0 {
			t.Errorf("after a second %d were due, %d answered; want 100 and none", due, answered)
		}
		stop() // Waits for the answers.
		h := got.answered.take()
		if p50 := milliseconds(h, 50); h.TotalCount() != 100 || got.lost() != 0 || p50 < 2990 || p50 > 3010 {
			t.Errorf("%d answered, half within %v ms; %v", h.TotalCount(), p50, got)
		}
	})
}

func TestTheTimeOfACallCountsFromWhenItWasDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := newTally()
		behind := time.Now().Add(-time.Second) // As a loop is whose machine had no time for it.
		stop := pacing(t.Context(), behind, 100, 1000, func(ctx context.Context, _, _ int) error {
			wait(ctx, time.Millisecond)
			return nil
		}, got)
		wait(t.Context(), 10*time.Millisecond-time.Microsecond)
		stop()
		h := got.answered.take()
		if n, p50, slowest := h.TotalCount(), milliseconds(h, 50), milliseconds(h, 100); n != 101 || p50 < 490 || p50 > 510 || slowest < 1000 || slowest > 1002 {
			t.Errorf("%d answered, half within %v ms, all within %v; want 101, 501 and 1001: all that were due, from when they were", n, p50, slowest)
		}
	})
}

func TestNoMoreCallsAreUnderWayThanThereArePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places = 7
		got := newTally()
		var under, most atomic.Int64
		var taken [places]atomic.Bool
		stop := pacing(t.Context(), time.Now(), 100, places, func(ctx context.Context, place, _ int) error {
			if taken[place].Swap(true) {
				t.Errorf("place %d is taken twice", place)
			}
			most.Store(max(most.Load(), under.Add(1)))
			wait(ctx, time.Second-time.Millisecond)
			under.Add(-1)
			taken[place].Store(false)
			return nil
		}, got)
		wait(t.Context(), 2*time.Second-time.Millisecond)
		stop()
		if n := most.Load(); n != places {
			t.Errorf("%d were under way, want %d", n, places)
		}
		if due, late, answered := got.due.Load(), got.late.Load(), got.answered.count(); due != 200 || late != 200-2*places || answered != 2*places {
			t.Errorf("%d due, %d late, %d answered; want 200, %d, %d", due, late, answered, 200-2*places, 2*places)
		}
	})
}

func TestACallThatARegistryRefusesDoesNotFail(t *testing.T) {
	got := newTally()
	for _, err := range []error{refusal(t, "OVERLOADED"), refusal(t, "OVERLOADED"), refusal(t, "DISK_FULL"), errors.New("broken"), nil} {
		got.note(time.Now(), judged(err))
	}
	if r, f, n := got.refused.Load(), got.failed.Load(), got.answered.count(); r != 2 || f != 2 || n != 1 || !strings.Contains(got.String(), "broken") {
		t.Errorf("%d refused, %d failed, %d answered: %v", r, f, n, got)
	}
}
