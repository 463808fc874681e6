package health

import (
	"context"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// check is an active check of an instance. The slot says when its next probe starts.
type check struct {
	slot

	key  instanceKey
	name string
	plan *plan

	incarnation uint64
	status      registryv1.CheckStatus // As the State has it.
	trend       trend
	mark        mark
	fell        time.Duration // When the status last became critical.
	retry       bool          // The probe under way is of a check that does not pass so far.
	removed     bool
}

// finding is what a probe was asked to find out, and for whom.
type finding struct {
	incarnation uint64
	verdict     registryv1.CheckStatus
	output      string
}

// prober runs the active checks of one tenure: one heap, one timer, and a goroutine for each probe under way.
type prober struct {
	cfg   Config
	term  uint64
	p     Proposer
	state func() *fsm.State
	probe func(context.Context, *plan) result
	stats *metrics
	start time.Time

	wake  chan struct{} // Capacity 1: an earlier probe was put into the queue.
	slots chan struct{} // One token for each probe under way.

	mu        sync.Mutex // Guards all below, and all checks.
	queue     queue[*check]
	count     map[string]int // Checks by kind.
	suspicion suspicion
	// retries is the number of probes under way of checks that do not pass so far, and parked are more of those that are
	// due. There may be fewer of them than slots, so that targets which only time out leave room for the others.
	retries int
	parked  []*check
}

// maxRetries is how many of the slots may be taken by checks that do not pass so far.
func maxRetries(slots int) int { return max(1, slots*3/4) }

func newProber(m *Monitor, term uint64) *prober {
	return &prober{
		cfg: m.cfg, term: term, p: m.proposer, state: m.state, probe: m.probe, stats: m.stats, start: time.Now(),
		wake:      make(chan struct{}, 1),
		slots:     make(chan struct{}, m.cfg.MaxProbes),
		count:     map[string]int{},
		suspicion: suspicion{abstain: m.cfg.Abstain, hosts: map[string]*hostMarks{}},
	}
}

// now is the prober's time.
func (p *prober) now() time.Duration { return time.Since(p.start) }

// add starts a check. The first probe comes within spread, at random.
func (p *prober) add(c *check, spread time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count[c.plan.kind()]++
	p.schedule(c, p.now()+rand.N(spread))
}

// schedule sets when the next probe of c starts. Called with mu held.
func (p *prober) schedule(c *check, at time.Duration) {
	p.queue.set(c, at)
	if p.queue[0] == c {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// update tells a check what the State says about it.
func (p *prober) update(c *check, incarnation uint64, status registryv1.CheckStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.incarnation = incarnation
	p.setStatus(c, status)
}

// setStatus is called with mu held.
func (p *prober) setStatus(c *check, status registryv1.CheckStatus) {
	if status != c.status && status == registryv1.CheckStatus_CHECK_STATUS_CRITICAL {
		c.fell = p.now()
	}
	c.status = status
}

// remove ends a check. A probe under way has no effect any more.
func (p *prober) remove(c *check) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.removed = true
	p.count[c.plan.kind()]--
	p.queue.remove(c)
	p.setMark(c, unmarked)
}

// counts returns the number of checks of each kind.
func (p *prober) counts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.count)
}

// setMark is called with mu held.
func (p *prober) setMark(c *check, m mark) {
	p.suspicion.move(c.plan.host, c.mark, m)
	c.mark = m
}

// run probes until ctx ends, and returns when the probes under way have.
func (p *prober) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		c, wait := p.next()
		if c == nil {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			case <-p.wake:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case p.slots <- struct{}{}:
		}
		wg.Go(func() {
			defer func() { <-p.slots }()
			p.examine(ctx, c)
		})
	}
}

// idle is how long an empty queue is left alone.
const idle = time.Hour

// next takes the check whose probe is due, or says how long there is none.
func (p *prober) next() (*check, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 {
		c := p.queue[0]
		if wait := c.at - p.now(); wait > 0 {
			return nil, wait
		}
		p.queue.remove(c)
		c.retry = c.trend.failures > 0 || !serving(c.status)
		if !c.retry {
			return c, 0
		}
		if p.retries < maxRetries(p.cfg.MaxProbes) {
			p.retries++
			return c, 0
		}
		p.parked = append(p.parked, c)
	}
	return nil, idle
}

// done schedules the next probe of c, and lets a parked one go ahead.
func (p *prober) done(c *check, next time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.removed {
		p.schedule(c, max(p.now(), next))
	}
	if !c.retry {
		return
	}
	p.retries--
	for len(p.parked) > 0 {
		first := p.parked[0]
		p.parked = p.parked[1:]
		if !first.removed {
			p.schedule(first, first.at) // Long due, so ahead of c.
			return
		}
	}
}

// examine probes once, proposes what follows, and schedules the next probe.
func (p *prober) examine(ctx context.Context, c *check) {
	p.mu.Lock()
	f := finding{incarnation: c.incarnation}
	began := p.now()
	p.mu.Unlock()

	r := p.probe(ctx, c.plan)
	if ctx.Err() != nil {
		return // Its failure may be ours.
	}
	p.stats.observe(c.plan.kind(), r.status, p.now()-began)
	f.output = r.output
	if p.judge(c, &f, r.status) {
		p.propose(ctx, c, f)
	}
	p.done(c, began+jittered(c.plan.interval))
}

// jittered is d, up to 10 % more or less.
func jittered(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5) }

// judge takes a result into account and tells whether there is a verdict to propose.
func (p *prober) judge(c *check, f *finding, status registryv1.CheckStatus) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.removed || c.incarnation != f.incarnation {
		return false
	}
	p.setMark(c, c.markAfter(status, p.now()))
	p.suspicion.calm()
	f.verdict = c.trend.add(c.plan, c.status, status)
	if f.verdict == c.status {
		return false
	}
	if f.verdict != registryv1.CheckStatus_CHECK_STATUS_CRITICAL || !serving(c.status) {
		return true
	}
	withhold, begun := p.suspicion.withhold(p.now())
	if begun {
		p.stats.abstentions.Inc()
		p.cfg.Logger.Warn("most targets fail at once, suspecting this node's network: no check turns critical for a while",
			"hosts", len(p.suspicion.hosts), "failing", p.suspicion.failing, "for", p.cfg.Abstain)
	}
	if withhold {
		p.stats.withheld.Inc()
	}
	return !withhold
}

// markAfter is what a result says about the host of c.
func (c *check) markAfter(result registryv1.CheckStatus, now time.Duration) mark {
	switch {
	case serving(result):
		return answers
	case serving(c.status), c.mark == fails && now < c.fell+fallenKept:
		return fails
	default:
		return unmarked
	}
}

// serving reports whether a check with this status lets its instance serve.
func serving(s registryv1.CheckStatus) bool {
	return s == registryv1.CheckStatus_CHECK_STATUS_PASSING || s == registryv1.CheckStatus_CHECK_STATUS_WARNING
}

// propose puts a verdict into the State. When that fails, the next probe leads to the same verdict again.
func (p *prober) propose(ctx context.Context, c *check, f finding) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ProposeTimeout)
	defer cancel()
	cmd := setCheck(c.key, &raftlogv1.SetCheck{
		Incarnation: f.incarnation,
		Check:       c.name,
		Status:      f.verdict,
		Output:      f.output,
		Term:        p.term,
	})
	sign(cmd, p.state(), p.cfg.Node)
	outcome, err := p.p.Propose(ctx, cmd)
	if err == nil {
		err = outcome.Err()
	}
	if err != nil {
		p.cfg.Logger.Debug("the verdict of a check waits", "instance", c.key, "check", c.name, "err", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.incarnation == f.incarnation {
		p.setStatus(c, f.verdict)
	}
}
