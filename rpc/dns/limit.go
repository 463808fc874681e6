package dns

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// limiter bounds the queries a second of each client. Clients share a fixed number of buckets, chosen by a secret hash, so
// that no number of them, true or forged, takes more memory; two that share a bucket share its rate. Its methods may be called
// from any goroutine.
//
// A bucket is the generic cell rate algorithm (ITU-T I.371): the time at which it would be empty again.
type limiter struct {
	every   time.Duration // between two queries
	start   time.Time
	seed    maphash.Seed
	buckets [1 << 14]atomic.Int64 // ns since start
	excess  atomic.Uint64
}

// newLimiter allows perSecond queries a second, and as many at once. 0: any number; the limiter is nil.
func newLimiter(perSecond int, now time.Time) *limiter {
	if perSecond == 0 {
		return nil
	}
	return &limiter{every: time.Second / time.Duration(perSecond), start: now, seed: maphash.MakeSeed()}
}

// burst is how far ahead of its rate a client may be.
const burst = time.Second

// allow tells whether a client may ask at a given time. This machine always may: what it asks, it asks for others.
func (l *limiter) allow(client netip.Addr, now time.Time) bool {
	if l == nil || client.IsLoopback() {
		return true
	}
	if client.Is6() {
		const site = 64
		prefix, _ := client.WithZone("").Prefix(site) // It has as many bits.
		client = prefix.Addr()
	}
	bucket := &l.buckets[maphash.Comparable(l.seed, client)%uint64(len(l.buckets))]
	for {
		was := bucket.Load()
		since := now.Sub(l.start)
		next := max(time.Duration(was), since) + l.every
		if next-since > burst {
			return false
		}
		if bucket.CompareAndSwap(was, int64(next)) {
			return true
		}
	}
}

// slip tells, of the queries beyond the limit, whether this one should be answered shortly: every second is, so that a client
// whose address somebody forges can still come by TCP, and gets no more bytes than were sent.
func (l *limiter) slip() bool { return l.excess.Add(1)%2 == 0 }
