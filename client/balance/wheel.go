package balance

import "math/bits"

// wheel divides the range of uint64 into consecutive intervals and finds the one in which a point lies. A guide says for
// each of a power of two of equal slices where its first interval is, so that a search takes constant time on average and
// logarithmic time at worst (Chen and Asau: On generating random variates from an empirical distribution, 1974).
//
// It serves whoever needs shares by weight, fed with random points or with a sequence that visits the range evenly, and as
// the ring of consistent hashing.
type wheel struct {
	ends  []uint64 // last point of each interval, ascending
	guide []int32  // first interval that ends in or after the slice; one entry more than slices
	shift uint     // from a point to its slice
}

// weightedWheel gives each weight, at least one and none 0, an interval in proportion. The sum must fit 64 bits.
func weightedWheel(weights []uint64) *wheel {
	var total, sum uint64
	for _, w := range weights {
		total += w
	}
	ends := make([]uint64, len(weights))
	for i, w := range weights[:len(weights)-1] {
		sum += w
		end, _ := bits.Div64(sum, 0, total)
		ends[i] = end - 1
	}
	ends[len(ends)-1] = ^uint64(0)
	return newWheel(ends)
}

// fineSlices bounds the size of wheels whose guide is eight times as fine: a search in it seldom has to look further, so
// that the processor foresees its end, and it still fits the nearest cache.
const fineSlices = 9

// newWheel makes the guide for interval ends in ascending order.
func newWheel(ends []uint64) *wheel {
	slices := uint(bits.Len(uint(len(ends)))) // 2^slices > len(ends)
	if slices <= fineSlices {
		slices += 3
	}
	w := &wheel{ends: ends, guide: make([]int32, 1<<slices+1), shift: 64 - slices}
	i := 0
	for g := range 1 << slices {
		for start := uint64(g) << w.shift; i < len(ends) && ends[i] < start; {
			i++
		}
		w.guide[g] = int32(i)
	}
	w.guide[1<<slices] = int32(len(ends))
	return w
}

// find returns the interval in which the point lies, len(ends) if it lies behind the last.
func (w *wheel) find(point uint64) int {
	slice := point >> w.shift
	lo, hi := w.guide[slice], w.guide[slice+1]
	for lo < hi {
		mid := int32(uint32(lo+hi) / 2)
		if w.ends[mid] < point {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return int(lo)
}

// span returns where the interval starts and how long it is, 0 for the whole range.
func (w *wheel) span(i int) (start, length uint64) {
	if i > 0 {
		start = w.ends[i-1] + 1
	}
	return start, w.ends[i] - start + 1
}
