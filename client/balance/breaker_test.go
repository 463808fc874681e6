package balance

import (
	"testing"
	"time"
)

// TestPermitsAreCounted checks enter by itself, which in picks only matters to those that race for the last permit.
func TestPermitsAreCounted(t *testing.T) {
	var tr track
	tr.gate.Store(gateTrial)
	tr.permits.Store(2)
	for _, want := range []bool{true, true, false} {
		if ok, _ := tr.enter(0); ok != want {
			t.Fatalf("entered: %v, want %v", ok, want)
		}
	}
}

func TestWindowCounts(t *testing.T) {
	const length = 8 * time.Second
	var w window
	second := int64(time.Second)
	for now := range int64(8) {
		w.add(length, now*second, Failure)
		w.add(length, now*second, Success)
	}
	for now, want := range map[int64]counts{7: {16, 8}, 8: {14, 7}, 11: {8, 4}, 14: {2, 1}, 15: {}, 1000: {}} {
		if got := w.sum(length, now*second); got != want {
			t.Errorf("at %d s the window has %+v, want %+v", now, got, want)
		}
	}
	w[0].Store(slotNumber(length, 7*second)<<40 | slotCountMask<<20 | 5)
	w.add(length, 7*second, Failure) // full: stays as it is
	if got := w.sum(length, 7*second); got.calls < slotCountMask || got.failures < 5 {
		t.Errorf("a full slot: %+v", got)
	}
}
