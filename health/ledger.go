package health

import (
	"log/slog"
	"sync"
	"time"

	"github.com/regd-io/regd/fsm"
)

// kind says what a deadline is of.
type kind uint8

const (
	ofSession  kind = iota // Silence ends the session.
	ofLease                // Silence ends the lease.
	ofReport               // Silence turns a TTL check critical.
	ofCritical             // Being critical for so long ends the instance.
	kinds
)

// String is the cause as it is named in metrics.
func (k kind) String() string { return [kinds]string{"session", "lease", "check", "critical"}[k] }

// subject is the instance, and check, that a report or critical deadline is about.
type subject struct {
	key         instanceKey
	check       string // Empty for critical ones.
	incarnation uint64
}

// deadline is the end of something for want of renewals.
type deadline struct {
	slot // When to look at it. It may be before the end: renewals move due and leave the queue alone.

	id  string
	ttl time.Duration
	due time.Duration // By the ledger's clock. It only grows.
	of  *subject      // Nil for sessions and leases.
	// since tells what the deadline is of from what had the same id before: a session from its namesake, one verdict of a
	// check, or one time of being critical, from the next.
	since uint64

	kind kind
	// deciding is set while a command that ends it may yet be applied. Invariant: a session or lease that is being
	// decided is not renewed, as an acknowledged renewal must hold.
	deciding bool
	unknown  bool // The outcome of a proposal is not known.
	// refused is set when a renewal was told that the session or lease has ended: then it must end.
	refused  bool
	attempts int // Proposals that failed in a row.
}

// ledger keeps the deadlines of one tenure. Its clock is monotonic, starts with the tenure and stands still while the
// process does: who could not hear renewals must not judge by their absence.
type ledger struct {
	term  uint64
	node  string
	state func() *fsm.State
	grace time.Duration
	log   *slog.Logger
	stats *metrics

	mu      sync.Mutex // Guards all below.
	start   time.Time
	seen    time.Duration // When tick last ran, since start.
	lost    time.Duration // All interruptions together.
	entries [kinds]map[string]*deadline
	queue   queue[*deadline]
	// revision is the newest one of which all changes have reached the entries.
	revision uint64
}

func newLedger(m *Monitor, term uint64) *ledger {
	l := &ledger{
		term: term, node: m.cfg.Node, state: m.state, grace: m.cfg.Grace, log: m.cfg.Logger, stats: m.stats, start: time.Now(),
	}
	for k := range l.entries {
		l.entries[k] = map[string]*deadline{}
	}
	expected := m.state().Counts()
	l.entries[ofSession] = make(map[string]*deadline, expected.Sessions)
	l.entries[ofLease] = make(map[string]*deadline, expected.Leases)
	l.queue = make(queue[*deadline], 0, expected.Sessions+expected.Leases)
	return l
}

// now is the ledger's time. Called with mu held.
func (l *ledger) now() time.Duration { return time.Since(l.start) - l.lost }

// tickEvery is the time between looks at the queue.
func tickEvery(grace time.Duration) time.Duration { return grace / 4 }

// tick returns the time to judge by. It notices that the process did not run: then it comes late, and all deadlines move
// by the gap before anybody is judged. Shorter gaps are what the grace is for. Called with mu held.
//
// The clock is read once: an interruption after that is the next tick's.
func (l *ledger) tick() time.Duration {
	elapsed := time.Since(l.start)
	gap := elapsed - l.seen
	l.seen = elapsed
	if gap <= 2*tickEvery(l.grace) {
		return elapsed - l.lost
	}
	before := elapsed - l.lost
	l.lost += gap
	after := elapsed - l.lost
	spared := 0
	for _, d := range l.queue {
		if end := d.due + l.grace; !d.deciding && end <= before && end > after {
			spared++
		}
	}
	l.stats.suppressed.Add(float64(spared))
	if spared > 0 {
		l.log.Warn("did not run for a while, deadlines extended", "gap", gap, "spared", spared)
	}
	return after
}

// arm starts a deadline with its full time, unless the same is running. Called with mu held.
func (l *ledger) arm(next *deadline) {
	if d := l.entries[next.kind][next.id]; d != nil && d.continues(next) {
		d.of = next.of
		return
	}
	// Not the old one set back: a decision about that may be under way.
	l.disarm(next.kind, next.id)
	l.entries[next.kind][next.id] = next
	next.due = l.now() + next.ttl
	l.queue.set(next, next.due+l.grace)
}

// continues reports whether next is what d is, so that d goes on. A new incarnation counts as a report of a TTL check,
// but not as a recovery from being critical.
func (d *deadline) continues(next *deadline) bool {
	reported := d.kind == ofReport && d.of.incarnation != next.of.incarnation
	return d.since == next.since && d.ttl == next.ttl && !reported
}

// disarm forgets a deadline. Called with mu held.
func (l *ledger) disarm(k kind, id string) {
	if d := l.entries[k][id]; d != nil {
		l.queue.remove(d)
		delete(l.entries[k], id)
	}
}

// clear forgets all deadlines. Called with mu held.
func (l *ledger) clear() {
	for k := range l.entries {
		clear(l.entries[k])
	}
	clear(l.queue)
	l.queue = l.queue[:0]
}

// counts returns the number of deadlines of each kind.
func (l *ledger) counts() (n [kinds]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.entries {
		n[k] = len(l.entries[k])
	}
	return n
}

// update changes the entries under the lock.
func (l *ledger) update(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// renew moves the deadlines of ids to taken + TTL and returns those that have ended, or are being ended. What the
// current State has and the ledger has not yet seen is fine: it will start with its full time.
func (l *ledger) renew(k kind, ids []string, taken time.Time) (ended []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Loaded under the lock: what was settled is no longer in it.
	st := l.state()
	current := l.revision >= st.Revision()
	from := taken.Sub(l.start) - l.lost
	entries := l.entries[k]
	for _, id := range ids {
		d := entries[id]
		switch known := d != nil && current; {
		case !known && !l.exists(st, k, id):
			ended = append(ended, id)
		case d == nil:
		case d.deciding || d.refused:
			ended = append(ended, id)
			d.refused = d.of == nil
			d.due = max(d.due, from+d.ttl) // A TTL check is judged by it if the decision fails.
		default:
			d.due = max(d.due, from+d.ttl)
		}
	}
	return ended
}

// exists tells whether st has what is to be renewed. A TTL check that is critical has no deadline: it comes back by a
// report that is a command.
func (l *ledger) exists(st *fsm.State, k kind, id string) bool {
	switch k {
	case ofSession:
		return st.Session(id) != nil
	case ofLease:
		return st.Lease(id) != nil
	default:
		key, check, err := parseCheckID(id)
		if err != nil {
			return false
		}
		return ticking(st.Instance(key.namespace, key.service, key.id), check)
	}
}
