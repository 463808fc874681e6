package balance

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestWheel compares with a search from the front, at the ends of intervals above all.
func TestWheel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		weights := make([]uint64, 1+rng.IntN(40))
		for i := range weights {
			weights[i] = 1 + rng.Uint64()>>(rng.IntN(32)+32)
		}
		w := weightedWheel(weights)
		points := []uint64{0, 1, math.MaxUint64, rng.Uint64()}
		length := 0.0
		for i, end := range w.ends {
			points = append(points, end-1, end, end+1)
			_, l := w.span(i)
			length += float64(l)
		}
		for _, point := range points {
			if got, want := w.find(point), slices.IndexFunc(w.ends, func(end uint64) bool { return end >= point }); got != want {
				t.Fatalf("find(%d) = %d, want %d of %v", point, got, want, w.ends)
			}
		}
		if len(weights) > 1 && math.Abs(length/0x1p64-1) > 1e-9 {
			t.Fatalf("the intervals are %v of the range", length/0x1p64)
		}
	}
	if got := newWheel([]uint64{10, 20}).find(21); got != 2 {
		t.Errorf("behind the last interval: %d, want 2", got)
	}
	if math.Abs(golden/0x1p64-1/math.Phi) > 1e-15 {
		t.Errorf("golden is %v of the range, want %v", golden/0x1p64, 1/math.Phi)
	}
}
