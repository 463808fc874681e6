package balance

import (
	"cmp"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// never is a time that doesn't come, in nanoseconds after the balancer's start.
const never = math.MaxInt64

// rebuildShare bounds the time that goes into new plans on account of breakers and ejections: after one that took t, the
// next is made no earlier than this many times t later. Until then picks pass by those that are out of the running.
const rebuildShare = 20

// Balancer chooses among the instances of a service. It is safe for concurrent use.
type Balancer struct {
	cfg   config
	start time.Time

	plans    atomic.Pointer[plans]
	due      atomic.Int64 // when refresh has something to do
	ejected  atomic.Int64 // instances that are put aside
	ejectMax atomic.Int64 // and how many may be

	mu        sync.Mutex // guards the fields below, and those of tracks that say so
	members   []*member  // ascending by identity
	tracks    map[identity]*track
	sweepAt   int64 // next comparison of success rates
	rebuildAt int64 // when a plan that is outdated is made anew
	builtAt   int64
	buildTime int64
	counts    Counts               // without the calls of the tracks
	news      []func(*slog.Logger) // that unlock logs
}

// Request says what a pick is for. The zero value asks for any instance.
type Request struct {
	// Hash of the key that the call is about, 0 for none; see the function Hash. By it the policies Rendezvous and Ring
	// choose, Split decides which side, and Local whether to stay. Other policies have no use for it.
	Hash uint64
	// Avoid holds instances that are picked only when no other is available.
	Avoid Avoid
	// Filter restricts the pick to instances that match. Nil: all.
	Filter *Filter
}

// maxAvoid is how many instances an Avoid holds: the first attempt's and those of three retries.
const maxAvoid = 4

// Avoid is a small set of instances, those that a call was tried on in vain. The zero value is empty.
// It has no array, so that it is passed on in registers.
type Avoid struct{ last, second, third, fourth *track }

// Add puts the instance of a pick into the set. It holds four, a further one takes the place of the eldest.
func (a *Avoid) Add(p Pick) {
	if p.member != nil {
		a.add(p.member.track)
	}
}

// add puts a track into the set.
func (a *Avoid) add(t *track) {
	a.last, a.second, a.third, a.fourth = t, a.last, a.second, a.third
}

// has tells whether the set holds the track.
func (a *Avoid) has(t *track) bool {
	return a.last == t || a.second == t || a.third == t || a.fourth == t
}

// Outcome is how a call went.
type Outcome uint8

const (
	// Success: the instance did what an instance should.
	Success Outcome = iota
	// Failure: the call failed in a way that speaks against the instance.
	Failure
	// Neutral: the call says nothing of the instance: it was cancelled, or never sent.
	Neutral
	// Unreachable: no connection came about. That is a Failure which ejects at once, if there is ejection: an instance that
	// nobody can reach has no calls in flight and fails faster than others answer, so that policies would flock to it.
	Unreachable
)

// Pick is a chosen instance. Whoever has one must call Done once the call is over, on the one copy of it that is kept.
type Pick struct {
	balancer *Balancer
	member   *member
	load     *atomic.Int64 // further count of calls in flight, nil for none
	start    int64
	round    uint32 // of the track's breaker
	trial    bool   // lets a half-open breaker judge
	done     bool
}

// Instance returns the instance, nil if Pick returned an error. It is shared: do not modify it.
func (p *Pick) Instance() *registryv1.Instance {
	if p.member == nil {
		return nil
	}
	return p.member.instance
}

// Breaker returns the state of the instance's circuit breaker now. Half-open before Done: the call is let through on trial.
// Once Done has returned: what has become of it. Closed if Pick returned an error.
func (p *Pick) Breaker() BreakerState {
	if p.member == nil {
		return BreakerClosed
	}
	return p.member.track.breaker()
}

// New makes a balancer without instances. The error reports all faults of policy and options at once.
func New(policy Policy, opts ...Option) (*Balancer, error) {
	cfg, err := newConfig(policy, opts)
	if err != nil {
		return nil, err
	}
	b := &Balancer{cfg: cfg, start: time.Now(), sweepAt: never, rebuildAt: never}
	if cfg.ejection.SuccessRate {
		b.sweepAt = int64(cfg.ejection.Interval)
	}
	b.Update(nil)
	return b, nil
}

// now returns the time since the balancer's start, by the monotonic clock.
func (b *Balancer) now() int64 { return int64(time.Since(b.start)) }

// Update replaces the instances. They may come in any order; of several with the same identity the one of the highest
// incarnation counts, and nil is skipped. The balancer keeps the messages: do not modify them afterwards.
func (b *Balancer) Update(instances []*registryv1.Instance) {
	b.mu.Lock()
	defer b.mu.Unlock()
	tracks := make(map[identity]*track, len(instances))
	members := make([]*member, 0, len(instances))
	for _, instance := range instances {
		if instance != nil {
			members = append(members, newMember(instance))
		}
	}
	slices.SortStableFunc(members, func(a, b *member) int {
		return cmp.Or(a.id.compare(b.id), cmp.Compare(b.instance.GetIncarnation(), a.instance.GetIncarnation()))
	})
	members = slices.CompactFunc(members, func(a, b *member) bool { return a.id == b.id })
	for _, m := range members {
		m.track = b.tracks[m.id]
		if m.track == nil || m.track.incarnation != m.instance.GetIncarnation() {
			m.track = newTrack(m)
		}
		tracks[m.id] = m.track
	}
	for id, t := range b.tracks {
		if tracks[id] != t {
			b.counts.Calls += t.calls.Load()
			b.counts.Failures += t.failures.Load()
		}
	}
	b.members, b.tracks = members, tracks
	b.rebuild()
}

// Pick chooses an instance. The error is an *UnavailableError and matches ErrNoInstances, ErrNoneHealthy or ErrNoMatch. Once Update has
// returned, no Pick returns what it took away, also none that had begun before, unless it counted as in flight before that.
func (b *Balancer) Pick(r Request) (Pick, error) {
	now := b.now()
	for {
		b.refreshIfDue(now)
		plans := b.plans.Load()
		plan := b.plan(plans, r.Filter)
		c, trial := plan.pick(plan.query(r))
		if c.member == nil && b.catchUp() {
			plans = b.plans.Load()
			plan = b.plan(plans, r.Filter)
			c, trial = plan.pick(plan.query(r))
		}
		if c.member == nil {
			return Pick{}, plan.unavailable
		}
		t := c.member.track
		t.inFlight.Add(1)
		if c.load != nil {
			c.load.Add(1)
		}
		if b.plans.Load() == plans {
			return Pick{balancer: b, member: c.member, load: c.load, start: now, round: t.round.Load(), trial: trial}, nil
		}
		again := Pick{balancer: b, member: c.member, load: c.load, start: now, round: t.round.Load(), trial: trial}
		again.Done(Neutral) // By a plan that holds no longer.
	}
}

// Done reports the outcome of the call that the pick was for. All but the first call on a pick do nothing.
func (p *Pick) Done(o Outcome) {
	if p.done || p.member == nil {
		return
	}
	p.done = true
	t := p.member.track
	t.inFlight.Add(-1)
	if p.load != nil {
		p.load.Add(-1)
	}
	b := p.balancer
	now := b.now()
	gone := o == Unreachable
	if gone {
		o = Failure
	}
	if o != Neutral {
		t.record(o, now-p.start)
	}
	if p.trial {
		b.judge(t, p.round, o, now)
	} else if o != Neutral && p.round == t.round.Load() {
		b.guard(t, o, gone, now)
	}
}

// guard lets breaker and ejection take an outcome into account. gone: it was Unreachable.
func (b *Balancer) guard(t *track, o Outcome, gone bool, now int64) {
	if b.cfg.ejection.SuccessRate {
		t.interval.add(o)
	}
	if b.cfg.breaker.enabled() {
		t.window.add(b.cfg.breaker.Window, now, o)
	}
	if o == Success {
		if t.consecutive.Load() != 0 {
			t.consecutive.Store(0)
		}
		return
	}
	t.failedAt.Store(now)
	run := int(t.consecutive.Add(1))
	open, eject := b.shouldOpen(t, run, now), b.shouldEject(t, run, gone)
	if !open && !eject {
		return
	}
	b.mu.Lock()
	defer b.unlock()
	changed := eject && b.eject(t, now)
	if open {
		changed = b.open(t, now) || changed
	}
	if changed {
		b.outdate(now)
	}
}

// refreshIfDue calls refresh when it has something to do.
func (b *Balancer) refreshIfDue(now int64) {
	if now >= b.due.Load() {
		b.refresh(now)
	}
}

// refresh does what time has brought about: breakers become half-open, ejections end, success rates are compared, and plans
// that have waited long enough are made anew. When another goroutine is at it the plans are used as they are.
func (b *Balancer) refresh(now int64) {
	if !b.mu.TryLock() {
		return
	}
	defer b.unlock()
	changed := false
	for _, m := range b.members {
		if now >= m.track.openUntil {
			b.halfOpen(m.track, now)
			changed = true
		}
		if now >= m.track.ejectedUntil {
			b.endEjection(m.track, now)
			changed = true
		}
	}
	if now >= b.sweepAt {
		changed = b.sweep(now) || changed
		b.sweepAt = now + int64(b.cfg.ejection.Interval)
	}
	if changed {
		b.outdate(now)
	}
	if now >= b.rebuildAt {
		b.rebuild()
	}
	b.setDue()
}

// outdate has the plans made anew: at once, or as soon as the last time has been made up for. The lock is held.
func (b *Balancer) outdate(now int64) {
	if at := b.builtAt + rebuildShare*b.buildTime; now < at {
		b.rebuildAt = at
		b.setDue()
		return
	}
	b.rebuild()
}

// catchUp has plans made anew at once that would have waited, for they may hold what the old ones don't. It tells whether
// there were any.
func (b *Balancer) catchUp() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rebuildAt == never {
		return false
	}
	b.rebuild()
	return true
}

// setDue works out when refresh has something to do. The lock is held.
func (b *Balancer) setDue() {
	due := min(b.sweepAt, b.rebuildAt)
	for _, m := range b.members {
		due = min(due, m.track.openUntil, m.track.ejectedUntil)
	}
	b.due.Store(due)
}

// rebuild makes the plans for the members as they are now. The lock is held.
func (b *Balancer) rebuild() {
	before := b.now()
	b.readmit()
	b.plans.Store(b.newPlans(b.plans.Load()))
	b.builtAt, b.rebuildAt = b.now(), never
	b.buildTime = min(b.builtAt-before, int64(time.Second))
	b.setDue()
}

// note has unlock log something. The lock is held.
func (b *Balancer) note(news func(*slog.Logger)) {
	if b.cfg.log != nil {
		b.news = append(b.news, news)
	}
}

// unlock releases the lock, and logs what has happened under it: a logger may take its time.
func (b *Balancer) unlock() {
	news := b.news
	b.news = nil
	b.mu.Unlock()
	for _, tell := range news {
		tell(b.cfg.log)
	}
}
