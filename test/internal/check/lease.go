package check

import (
	"fmt"
	"time"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/oracle"
)

// LeaseFigures say what Lease judged.
type LeaseFigures struct {
	// Renewals that were acknowledged, of sessions and leases.
	Renewals int
	// Expired sessions and leases, of those that anybody saw ended.
	Expired int
	// Margin is the least time between the end of what was guaranteed and the first sight of an expiry. It is never
	// negative in a run without violation. 0 when nothing expired.
	Margin time.Duration
	// Lateness is the longest time for which anything is known to have lived on after its TTL, leader changes and faults
	// included.
	Lateness time.Duration
}

// Lease judges sessions and leases by the clock of the clients alone. An acknowledged renewal guarantees one for its TTL
// from when the renewal was sent; nobody knows more than that.
//
//   - lease-early: one expired before the end of what was guaranteed.
//   - lease-late: one lived on for longer than its TTL and the grace, after its last renewal, the first sight of anything
//     that the last leader before its end did, and not counting faults.
//   - lease-resurrection: after its end had been seen, one was renewed, or something was hung on it.
//   - lease-told-ended: a renewal was told that it had ended, and it never did.
func Lease(r *Run) ([]Violation, LeaseFigures) {
	l := &leasing{facts: r.facts(), holders: map[holderKey]*holder{}, terms: r.Timeline.Terms()}
	l.readLog()
	l.readHistory()
	for _, h := range l.order {
		l.early(h)
		l.late(h)
		l.resurrection(h)
		if r.Settled > 0 && h.toldEnded != nil && h.ended == maxRevision {
			l.fault("lease-told-ended", "%v: %v was told that it has ended, and it never did", h, h.toldEnded)
		}
	}
	return l.list, l.figures
}

type leasing struct {
	*facts
	verdict
	holders map[holderKey]*holder
	order   []*holder // as they came to be
	terms   []oracle.Step
	figures LeaseFigures
}

type holderKey struct {
	kind fsm.EventKind // EventSession or EventLease
	id   string
}

// holder is a session or a lease.
type holder struct {
	holderKey
	ttl     time.Duration
	session string // that a lease hangs on
	created uint64 // revision
	ended   uint64 // revision, maxRevision when it never ended
	expired bool   // by its own time

	renewals  []renewal
	uses      []renewal // acknowledged requests that hung something on it
	toldEnded *renewal  // the first renewal that was told that it had ended
}

func (h *holder) String() string { return fmt.Sprintf("%v %s (TTL %v)", h.kind, h.id, h.ttl) }

// renewal is what was asked for one holder. Its creation counts as one.
type renewal struct {
	what         string
	begun, ended time.Duration
	acked        bool // else nobody knows whether it was taken: an error promises nothing, neither way
}

// String shows it in violations.
func (r *renewal) String() string { return fmt.Sprintf("%s (%v to %v)", r.what, r.begun, r.ended) }

// readLog finds what came to be and how it ended.
func (l *leasing) readLog() {
	for _, step := range l.run.Timeline.Steps() {
		born := map[holderKey]*holder{}
		opens := func(c *raftlogv1.OpenSession) { // nil: nothing that an event could name
			k := holderKey{fsm.EventSession, c.GetId()}
			born[k] = &holder{holderKey: k, ttl: millis(c.GetTtlMs()), ended: maxRevision}
		}
		for _, cmd := range step.Entry.GetCommands() {
			switch c := cmd.GetKind().(type) {
			case *raftlogv1.Command_OpenSession:
				opens(c.OpenSession)
			case *raftlogv1.Command_Register:
				opens(c.Register.GetOpenSession())
			case *raftlogv1.Command_Batch:
				for _, r := range c.Batch.GetRegister() {
					opens(r.GetOpenSession())
				}
			case *raftlogv1.Command_GrantLease:
				k := holderKey{fsm.EventLease, c.GrantLease.GetId()}
				born[k] = &holder{
					holderKey: k, ttl: millis(c.GrantLease.GetTtlMs()), session: c.GrantLease.GetSessionId(), ended: maxRevision,
				}
			}
		}
		for i := range step.Result.Events {
			e := &step.Result.Events[i]
			k := holderKey{e.Kind, e.Name}
			switch h := l.holders[k]; {
			case e.Kind != fsm.EventSession && e.Kind != fsm.EventLease:
			case e.Created && born[k] != nil:
				born[k].created = e.Revision
				l.holders[k] = born[k]
				l.order = append(l.order, born[k])
			case !e.Created && h != nil:
				h.ended = e.Revision
				h.expired = e.Cause == registryv1.Cause_CAUSE_SESSION_EXPIRED || e.Cause == registryv1.Cause_CAUSE_LEASE_EXPIRED
			}
		}
	}
	for _, h := range l.order {
		// A lease that ends with its session has not come to its own end.
		if s := l.holders[holderKey{fsm.EventSession, h.session}]; s != nil && s.ended == h.ended {
			h.expired = false
		}
	}
}

func millis(ms uint64) time.Duration { return time.Duration(ms) * time.Millisecond }

// seenEnded is when somebody first saw that it had ended.
func (l *leasing) seenEnded(h *holder) (time.Duration, bool) {
	if h.ended == maxRevision {
		return 0, false
	}
	at, ok := l.observedAt(h.ended)
	if h.toldEnded != nil && (!ok || h.toldEnded.ended < at) {
		at, ok = h.toldEnded.ended, true
	}
	return at, ok
}

// early: no renewal that was acknowledged, were it after the end, guaranteed it beyond its end.
func (l *leasing) early(h *holder) {
	seen, ok := l.seenEnded(h)
	if !ok || !h.expired {
		return
	}
	for i := range h.renewals {
		r := &h.renewals[i]
		if !r.acked || r.begun > seen { // That is a resurrection.
			continue
		}
		margin := seen - r.begun - h.ttl
		if margin < 0 {
			l.fault("lease-early", "%v was seen ended at %v (revision %d); %v guaranteed it until %v",
				h, seen, h.ended, r, r.begun+h.ttl)
			return
		}
		if l.figures.Margin == 0 || margin < l.figures.Margin {
			l.figures.Margin = margin
		}
	}
	l.figures.Expired++
}

// late looks at when it is last known to have lived: an answer that is at least as new as its question came from before
// its end.
func (l *leasing) late(h *holder) {
	lived, ok := l.lastBelow(h.ended)
	since, born := l.observedAt(h.created)
	if !ok || !born {
		return
	}
	for i := range h.renewals {
		r := &h.renewals[i]
		since = max(since, r.ended)
		if r.acked {
			continue
		}
		// It may have been on its way for as long as something was wrong.
		for _, f := range l.run.History.Faults {
			if f.From <= r.ended && over(f.To, f.Recovered) >= r.begun {
				since = max(since, over(f.To, f.Recovered))
			}
		}
	}
	if since < lived {
		l.figures.Lateness = max(l.figures.Lateness, lived-since-h.ttl)
	}
	for _, step := range l.terms {
		if at, seen := l.observedAt(step.State.Revision()); seen && step.Result.Events[0].Revision <= h.ended {
			since = max(since, at)
		}
	}
	if late := lived - since - h.ttl - l.run.Grace; late > 0 && late > l.faulty(since, lived) {
		l.fault("lease-late", "%v lived at %v, %v after %v; faults took %v of that",
			h, lived, lived-since, since, l.faulty(since, lived))
	}
}

// over is when a fault was over.
func over(undone, recovered time.Duration) time.Duration { return max(undone, recovered) }

// faulty is how much of a time was part of a fault.
func (l *leasing) faulty(from, to time.Duration) time.Duration {
	var total time.Duration
	for _, f := range l.run.History.Faults { // What overlaps counts twice: too much excuse, never too little.
		total += max(0, min(to, over(f.To, f.Recovered))-max(from, f.From))
	}
	return total
}

// resurrection: nothing that began after its end was seen was acknowledged.
func (l *leasing) resurrection(h *holder) {
	seen, ok := l.seenEnded(h)
	if !ok {
		return
	}
	for _, list := range [][]renewal{h.renewals, h.uses} {
		for i := range list {
			if r := &list[i]; r.acked && r.begun > seen {
				l.fault("lease-resurrection", "%v was seen ended at %v (revision %d), and %v was acknowledged", h, seen, h.ended, r)
				return
			}
		}
	}
}
