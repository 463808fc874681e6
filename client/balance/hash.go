package balance

import "math/bits"

// Hash returns the hash of a key for Request.Hash. It is the same in every process and release, so that all clients agree
// on where a key belongs: 64-bit FNV-1a, whose weak high bits are then mixed. It never returns 0, which means no key.
func Hash(key string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 0x100000001b3
	}
	return max(mix(h), 1)
}

// golden is 2^64 divided by the golden ratio, made odd: multiples of it spread over the range as evenly as a sequence can.
const golden = 0x9e3779b97f4a7c15

// mix is a bijection in which every bit of the input changes every bit of the output with a chance near one half: the
// finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// pair hashes two values that are mixed already, at the cost of one multiplication. What it gives is for comparisons: only its
// high bits depend on all of the input.
func pair(a, b uint64) uint64 { return (a ^ b) * 0xa0761d6478bd642f }

// unpair returns the b of which pair made d with a: the factor is the inverse of pair's, modulo 2^64.
func unpair(a, d uint64) uint64 { return a ^ d*0x939c72e4af1e62cf }

// below turns 64 random bits into a number below n, without the bias or the cost of a division.
func below(x uint64, n int) int {
	hi, _ := bits.Mul64(x, uint64(n))
	return int(hi)
}

// unit turns 64 random bits into a number in [0, 1).
func unit(x uint64) float64 { return float64(int64(x>>11)) * 0x1p-53 }
