package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestHistogramsAreRead(t *testing.T) {
	const text = `# HELP a_seconds What.
a_seconds_bucket{le="0.1"} 2
a_seconds_bucket{le="1"} 3
a_seconds_bucket{le="+Inf"} 4
a_seconds_sum 1.2
b_bucket{kind="x",le="1"} 7
`
	got, err := histograms(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	h := got["a_seconds"]
	if len(got) != 1 || !slices.Equal(h.counts, []float64{2, 3, 4}) {
		t.Fatalf("read %v", got)
	}
	var sum histogram
	sum.add(h)
	sum.add(h.since(histogram{}))
	for share, want := range map[float64]float64{0.5: 0.1, 0.51: 1, 0.75: 1, 1: 1} {
		if q := sum.quantile(share); q != want {
			t.Errorf("quantile %v is %v, want %v", share, q, want)
		}
	}
	if q := h.since(h).quantile(0.5); q != 0 {
		t.Errorf("a quantile of nothing is %v", q)
	}
	if _, err := histograms(strings.NewReader(`a_bucket{le="x"} 1`)); err == nil {
		t.Error("a bound that is no number was read")
	}
}

func TestACallIsBesideASnapshotThatItMeets(t *testing.T) {
	begun := time.Unix(100, 0)
	at := func(seconds int) time.Time { return begun.Add(time.Duration(seconds) * time.Second) }
	for name, tt := range map[string]struct {
		began, ended time.Time
		busy         bool
	}{
		"none yet":           {time.Time{}, time.Time{}, false},
		"one before":         {at(-9), at(-1), false},
		"one that has ended": {at(-9), at(1), true},
		"one within":         {at(1), at(2), true},
		"one under way":      {at(-1), at(-9), true},
		"one that began":     {at(1), at(-9), true},
	} {
		w := &beside{began: tt.began, ended: tt.ended, idle: newPause(), busy: newPause()}
		if busy := w.at(begun) == w.busy; busy != tt.busy {
			t.Errorf("%s: beside it %v, want %v", name, busy, tt.busy)
		}
	}
}

func TestMemoryIsBoundedByWhatIsRegistered(t *testing.T) {
	if err := bounded(500<<20, 200_000); err != nil {
		t.Error(err)
	}
	if bounded(500<<20, 50_000) == nil {
		t.Error("500 MB for 50,000 instances are no fault")
	}
}
