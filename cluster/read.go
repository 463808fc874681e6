package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/regd-io/regd/fsm"
)

// Mode is a way to read.
type Mode int

const (
	// ModeLinearizable is never older than the last write acknowledged anywhere before the read began.
	ModeLinearizable Mode = iota
	// ModeBounded is at most Freshness.MaxStaleness old.
	ModeBounded
	// ModeAtLeast is at Freshness.MinRevision or later.
	ModeAtLeast
	// ModeStale is whatever the node has.
	ModeStale
)

// Freshness says how fresh a read must be.
type Freshness struct {
	Mode Mode
	// MaxStaleness is the oldest acceptable age, for ModeBounded.
	MaxStaleness time.Duration
	// MinRevision is the revision that must be reached, for ModeAtLeast.
	MinRevision uint64
}

// View is a State to read from, and how fresh it is.
type View struct {
	State *fsm.State
	Mode  Mode
	// Staleness bounds the age of State. Negative: unknown.
	Staleness time.Duration
}

// View returns a State that meets the freshness. What this node can't meet by itself it asks of the leader; what that
// can't meet either, within ctx and Config.LeaderWait, is an error (ErrTooStale, ErrNoLeader, ErrNotLeader), never an
// older State.
func (n *Node) View(ctx context.Context, f Freshness) (View, error) {
	if err := n.serving(); err != nil {
		return View{}, err
	}
	switch f.Mode {
	// Whatever the mode, the age is taken before the State: a State that arrives in between is only fresher.
	case ModeStale:
		age := n.Staleness()
		return View{n.feed.State(), ModeStale, age}, nil
	case ModeAtLeast:
		_, err := n.feed.WaitRevision(ctx, f.MinRevision)
		if err != nil {
			return View{}, fmt.Errorf("%w: revision %d was asked for, node %s has %d: %w",
				ErrTooStale, f.MinRevision, n.cfg.Name, n.feed.State().Revision(), err)
		}
		age := n.Staleness()
		return View{n.feed.State(), ModeAtLeast, age}, nil
	case ModeBounded:
		if age := n.Staleness(); age >= 0 && age <= f.MaxStaleness {
			return View{n.feed.State(), ModeBounded, age}, nil
		}
		began := time.Now()
		st, err := n.linearizable(ctx)
		if err != nil {
			return View{}, fmt.Errorf("%w: at most %v was asked for: %w", ErrTooStale, f.MaxStaleness, err)
		}
		age := time.Since(began)
		if age > f.MaxStaleness {
			return View{}, fmt.Errorf("%w: at most %v was asked for, the leader took %v to answer", ErrTooStale, f.MaxStaleness, age)
		}
		return View{st, ModeBounded, age}, nil
	default:
		began := time.Now()
		st, err := n.linearizable(ctx)
		if err != nil {
			return View{}, err
		}
		return View{st, ModeLinearizable, time.Since(began)}, nil
	}
}

// linearizable returns a State that holds every write acknowledged before the call. It waits for a leader up to
// Config.LeaderWait.
func (n *Node) linearizable(ctx context.Context) (*fsm.State, error) {
	if n.tracing == nil {
		return n.confirmed(ctx, nil)
	}
	r := TracedRead{Began: time.Now()}
	st, err := n.confirmed(ctx, &r)
	r.Ended, r.Err = time.Now(), err
	n.tracing.Read(ctx, r)
	return st, err
}

// confirmed is linearizable. It notes how it went in r, if it is not nil.
func (n *Node) confirmed(ctx context.Context, r *TracedRead) (*fsm.State, error) {
	var index uint64
	err := n.untilLed(ctx, leaderless, func() (err error) {
		index, err = n.readIndex(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r != nil {
		r.Index, r.Confirmed = index, time.Now()
	}
	st, err := n.feed.WaitIndex(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("wait for index %d, node %s has %d: %w", index, n.cfg.Name, n.feed.State().Index(), err)
	}
	return st, nil
}

// readIndex returns the index that a linearizable read which begins now must have reached.
func (n *Node) readIndex(ctx context.Context) (uint64, error) {
	if n.leads() {
		return n.confirmedIndex(ctx)
	}
	return n.asks.ask(ctx)
}

// confirmedIndex is readIndex on the leader: its own index, once a round that began after proves that it still leads.
// Every write that was acknowledged in this term is in the State by then, and those of earlier terms have been since
// the leader became ready; what a follower can show already, as it applies what is committed before the leader does, is
// waited for.
func (n *Node) confirmedIndex(ctx context.Context) (uint64, error) {
	l := n.leadership.Load()
	if l == nil {
		return 0, ErrNotLeader
	}
	// Of the entries of this term, at most the one under way is committed and not in the State.
	if n.raft.Load().CommitIndex() > n.feed.State().Index() {
		if err := n.proposer.settle(ctx); err != nil {
			return 0, fmt.Errorf("wait for the entry under way: %w", err)
		}
	}
	index := n.feed.State().Index()
	if err := l.rounds.ride(ctx); err != nil {
		return 0, err
	}
	return index, nil
}

// indexAsks asks the leader for read indexes, one question at a time: all who wait when a question is sent share it.
type indexAsks struct {
	fetch   func(context.Context) (uint64, error)
	timeout time.Duration // of one question, as it serves callers with different deadlines

	mu      sync.Mutex
	waiting []chan indexAnswer // for the next question
	asking  bool
	wg      sync.WaitGroup
}

type indexAnswer struct {
	index uint64
	err   error
}

// ask returns an index that the leader confirmed after the call began.
func (a *indexAsks) ask(ctx context.Context) (uint64, error) {
	ch := make(chan indexAnswer, 1)
	a.mu.Lock()
	a.waiting = append(a.waiting, ch)
	if !a.asking {
		a.asking = true
		a.wg.Go(a.run)
	}
	a.mu.Unlock()
	select {
	case got := <-ch:
		return got.index, got.err
	case <-ctx.Done():
		return 0, fmt.Errorf("ask the leader for a read index: %w", ctx.Err())
	}
}

// run asks until nobody waits.
func (a *indexAsks) run() {
	for {
		a.mu.Lock()
		batch := a.waiting
		a.waiting = nil
		if len(batch) == 0 {
			a.asking = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		// The question is nobody's in particular: it ends by its own time, or with the peer connections.
		ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
		index, err := a.fetch(ctx)
		cancel()
		for _, ch := range batch {
			ch <- indexAnswer{index, err}
		}
	}
}

// freshness is what a follower knows of the age of its State: points in its own time at which the leader, since proven
// to have led then, had a given index.
//
// The leader's question q was sent after this node's answer to question q-1, so the time of that answer is a lower bound
// of when q was sent: no clock but this node's own is involved.
type freshness struct {
	mu     sync.Mutex
	points []freshPoint // by growing index and time; all above the applied index but the first
}

type freshPoint struct {
	index uint64
	at    time.Time
}

// maxFreshPoints bounds the points of a follower that is far behind: then older ones are dropped first, which only makes
// the age it reports larger.
const maxFreshPoints = 1024

// note records that the State at index was current at the given time.
func (f *freshness) note(index uint64, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := len(f.points); k > 0 {
		last := &f.points[k-1]
		if !at.After(last.at) {
			return
		}
		if index == last.index {
			last.at = at
			return
		}
		if index < last.index {
			// Another leader, or a restore: what was noted before does not order with it.
			f.points = f.points[:0]
		}
	}
	if len(f.points) >= maxFreshPoints {
		f.points = f.points[1:]
	}
	f.points = append(f.points, freshPoint{index, at})
}

// age bounds the age of the State at the applied index. Negative: unknown.
func (f *freshness) age(applied uint64, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	best := -1
	for i, p := range f.points {
		if p.index > applied {
			break
		}
		best = i
	}
	if best < 0 {
		return -1
	}
	f.points = f.points[best:]
	return now.Sub(f.points[0].at)
}

// Staleness bounds the age of this node's State. Negative: unknown.
func (n *Node) Staleness() time.Duration {
	if l := n.leadership.Load(); l != nil {
		if age, ok := l.rounds.age(); ok {
			return age
		}
	}
	return n.fresh.age(n.feed.State().Index(), time.Now())
}
