package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatIsDueIsBegunHoweverLateItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := schedule{time.Now().Add(-time.Second), 100} // As a loop is whose machine had no time for it.
		ctx, cancel := context.WithTimeout(t.Context(), 45*time.Millisecond)
		defer cancel()
		var begun []int
		s.keep(ctx, 0, func(first, end int) {
			for k := first; k < end; k++ {
				begun = append(begun, k)
			}
		})
		if len(begun) != 105 || !slices.IsSorted(begun) || begun[104] != 104 {
			t.Errorf("begun %v, want 105", begun)
		}
		if at := s.due(100); !at.Equal(s.begun.Add(time.Second)) {
			t.Errorf("the 100th was due at %v of %v", at, s.begun)
		}
	})
}

func TestTheTimeOfACallCountsFromWhenItWasDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := newTally()
		got.note(time.Now().Add(-time.Second), nil)
		if p50 := milliseconds(got.answered.take(), 50); p50 < 990 || p50 > 1010 {
			t.Errorf("it took %v ms, want 1000", p50)
		}
		elsewhere := newTimes()
		got.where = func(time.Time) *times { return elsewhere }
		got.note(time.Now(), nil)
		if elsewhere.count() != 1 || got.answered.count() != 0 {
			t.Errorf("%d elsewhere, %d answered", elsewhere.count(), got.answered.count())
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
