package balance

import (
	"cmp"
	"sync/atomic"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// identity tells instances apart.
type identity struct{ namespace, service, id string }

// compare orders identities.
func (i identity) compare(j identity) int {
	return cmp.Or(cmp.Compare(i.namespace, j.namespace), cmp.Compare(i.service, j.service), cmp.Compare(i.id, j.id))
}

// String returns namespace/service/id.
func (i identity) String() string { return i.namespace + "/" + i.service + "/" + i.id }

// hash returns the place of the instance in consistent hashing. An incarnation more doesn't change it.
func (i identity) hash() uint64 {
	return mix(Hash(i.id) ^ mix(Hash(i.service)^mix(Hash(i.namespace))))
}

// defaultWeight is what a weight of 0 stands for.
const defaultWeight = 100

// member is an instance as of one update. It is immutable.
type member struct {
	id       identity
	hash     uint64
	weight   uint64
	instance *registryv1.Instance
	track    *track
}

// newMember takes from an instance what picks need. The track is still missing.
func newMember(instance *registryv1.Instance) *member {
	id := identity{instance.GetNamespace(), instance.GetService(), instance.GetId()}
	weight := uint64(instance.GetWeight())
	if weight == 0 {
		weight = defaultWeight
	}
	return &member{id: id, hash: id.hash(), weight: weight, instance: instance}
}

// Bits of a track's gate. While it is 0 the instance can be picked freely.
const (
	gateOpen    = 1 << iota // the breaker is open
	gateTrial               // the breaker is half-open: picks need a permit
	gateEjected             // put aside
)

// track is what is remembered of one incarnation of an instance across updates.
type track struct {
	id          identity
	incarnation uint64

	gate        atomic.Uint32
	permits     atomic.Int32  // calls that a half-open breaker still lets through
	round       atomic.Uint32 // grows each time the breaker becomes half-open
	consecutive atomic.Int32  // failures since the last success
	failedAt    atomic.Int64  // time of the last failure
	inFlight    atomic.Int64
	calls       atomic.Uint64 // that have ended in success or failure
	failures    atomic.Uint64
	latency     atomic.Int64 // of successes, smoothed, nanoseconds
	window      window
	interval    tally

	// Guarded by the balancer's lock. Times are never while they don't apply.
	openUntil    int64 // when the breaker becomes half-open; while it is, when permits are given out again
	successes    int   // of trials
	ejectedUntil int64
	ejectedLast  int64 // when the last ejection ended
	ejections    int   // how often in a row, the factor of the time
}

// newTrack starts afresh for a member.
func newTrack(m *member) *track {
	return &track{id: m.id, incarnation: m.instance.GetIncarnation(), openUntil: never, ejectedUntil: never}
}

// record counts an outcome. Latency is smoothed as TCP smooths its round trips, by an eighth of the difference (RFC 6298).
func (t *track) record(o Outcome, latency int64) {
	t.calls.Add(1)
	if o == Failure {
		t.failures.Add(1)
		return
	}
	// Two that end at once may lose one of the two samples, which is no loss worth a loop.
	if old := t.latency.Load(); old != 0 {
		latency = old + (latency-old)/8
	}
	t.latency.Store(max(latency, 1))
}

// enter takes what the gate demands before a call, and tells whether the call may be made and is a trial.
func (t *track) enter(ignore uint32) (ok, trial bool) {
	gate := t.gate.Load() &^ ignore
	if gate == 0 {
		return true, false
	}
	if gate != gateTrial {
		return false, false
	}
	for {
		left := t.permits.Load()
		if left <= 0 {
			return false, false
		}
		if t.permits.CompareAndSwap(left, left-1) {
			return true, true
		}
	}
}

// available tells whether enter would succeed, without taking anything.
func (t *track) available(ignore uint32) bool {
	gate := t.gate.Load() &^ ignore
	return gate == 0 || gate == gateTrial && t.permits.Load() > 0
}

// breaker returns the state of the circuit breaker.
func (t *track) breaker() BreakerState {
	switch gate := t.gate.Load(); {
	case gate&gateOpen != 0:
		return BreakerOpen
	case gate&gateTrial != 0:
		return BreakerHalfOpen
	default:
		return BreakerClosed
	}
}
