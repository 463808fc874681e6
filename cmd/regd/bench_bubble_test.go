package main

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestBenchBeginsWhatIsDueAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{rate: 200, last: time.Second}
		due, begun, calls := make(chan call), time.Now(), 0
		go func() {
			defer close(due)
			b.dispatch(t.Context(), due) // Which does not end before.
		}()
		for c := range due {
			if late := time.Since(begun) - time.Duration(calls)*5*time.Millisecond; c.number != calls || late != 0 {
				t.Errorf("call %d is handed out as number %d, %v late", calls, c.number, late)
			}
			calls++
		}
		if calls != 200 {
			t.Errorf("%d calls in a second, want 200", calls)
		}
	})
}
