package feed

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/regd-io/regd/fsm"
)

// ErrClosed is returned by whatever waits for a feed that is closed.
var ErrClosed = errors.New("feed is closed")

// Limits bound what a feed keeps. A zero field means its default.
type Limits struct {
	// Events is the number of events kept for Since. Default 100,000.
	Events int
	// Bytes bounds the same events by their encoded size. Default 64 MiB.
	Bytes int
	// QueueEvents is the number of events that wait for one watcher before they are coalesced. Default 16,384.
	QueueEvents int
	// QueueBytes bounds the same queue by encoded size. Events are shared by all queues that hold them. Default 4 MiB.
	QueueBytes int
	// DirtyKeys is the number of coalesced keys of one watcher. With more it has to read everything. Default 10,000.
	DirtyKeys int
}

const (
	defaultEvents      = 100_000
	defaultBytes       = 64 << 20
	defaultQueueEvents = 16_384
	defaultQueueBytes  = 4 << 20
	defaultDirtyKeys   = 10_000
)

// withDefaults fills what is not set.
func (l Limits) withDefaults() Limits {
	set := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.Events, defaultEvents)
	set(&l.Bytes, defaultBytes)
	set(&l.QueueEvents, defaultQueueEvents)
	set(&l.QueueBytes, defaultQueueBytes)
	set(&l.DirtyKeys, defaultDirtyKeys)
	return l
}

// maxPending bounds the events that wait for the dispatcher. With more, they are dropped, and all watchers are told that
// everything may differ.
const maxPending = 1 << 17

// Feed holds the current State and what has changed of late. Publish and Reset are for one goroutine, the applier; all
// else is safe for concurrent use.
type Feed struct {
	limits Limits
	state  atomic.Pointer[fsm.State]
	// done is the last revision whose events are in the queues of all watchers.
	done atomic.Uint64

	mu      sync.Mutex // guards the next three, for moments only
	pending []item
	events  int // in pending
	closed  bool

	kick     chan struct{} // capacity 1: pending is not empty, or closed
	wake     chan struct{} // capacity 1: somebody waits for what State has reached, or closed
	quit     chan struct{}
	wg       sync.WaitGroup
	indexes  waiters
	revs     waiters
	queued   waiters
	points   points
	kept     keptStates
	history  history
	topics   topics
	counters counters
}

// item is one step of the applier.
type item struct {
	state  *fsm.State
	events []fsm.Event
	// reset says that the events between the previous item's State and this one are not known.
	reset bool
	// lost says that States lie between, which somebody may have seen: what came and went since differs in neither end.
	lost bool
}

// New returns a feed that shows st. Close ends it.
func New(st *fsm.State, limits Limits) *Feed {
	limits = limits.withDefaults()
	f := &Feed{
		limits: limits,
		kick:   make(chan struct{}, 1),
		wake:   make(chan struct{}, 1),
		quit:   make(chan struct{}),
	}
	f.state.Store(st)
	f.done.Store(st.Revision())
	f.indexes.init()
	f.revs.init()
	f.queued.init()
	f.points.put(st)
	f.history.init(limits.Events, limits.Bytes, st)
	f.topics.init(st)
	f.counters.init()
	f.wg.Go(func() { f.dispatch(st) })
	f.wg.Go(f.wakeWaiters)
	return f
}

// Close ends the dispatcher and wakes everybody who waits: waits return ErrClosed, watchers see Taken.Closed. The State
// stays readable. It may be called more than once.
func (f *Feed) Close() {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		close(f.quit)
	}
	f.mu.Unlock()
	f.wg.Wait()
}

// Publish makes st the current State. The events are what changed since the previous one, in revision order, with all
// events of each revision; they are not modified afterwards by either side. It never blocks and its cost does not
// depend on who watches or waits. Only the applier may call it.
func (f *Feed) Publish(st *fsm.State, events []fsm.Event) {
	f.put(item{state: st, events: events})
}

// Reset makes st the current State when the steps from the previous one are not known: a snapshot was installed, or an
// operator restored one (then the epoch differs). The history is cut, and watchers are told which keys differ. The cost
// is as that of Publish. Only the applier may call it.
func (f *Feed) Reset(st *fsm.State) {
	f.put(item{state: st, reset: true})
}

func (f *Feed) put(it item) {
	old := f.state.Load()
	f.points.put(it.state)
	f.state.Store(it.state)
	if f.indexes.due(it.state.Index()) || f.revs.due(it.state.Revision()) {
		signal(f.wake)
	}
	if !it.reset && len(it.events) == 0 && old.Revision() == it.state.Revision() && old.Epoch() == it.state.Epoch() {
		return
	}
	f.mu.Lock()
	if f.events += len(it.events); f.events > maxPending {
		f.events = 0
		clear(f.pending)
		f.pending = f.pending[:0]
		it = item{state: it.state, reset: true, lost: true}
		f.counters.overruns.Inc()
	}
	if !f.closed {
		f.pending = append(f.pending, it)
	}
	f.mu.Unlock()
	signal(f.kick)
}

// signal leaves one token in a channel of capacity 1.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// State returns the current State.
func (f *Feed) State() *fsm.State { return f.state.Load() }

// WaitIndex returns a State that has applied the log up to index at least, as soon as there is one. Its errors are those
// of ctx and ErrClosed.
func (f *Feed) WaitIndex(ctx context.Context, index uint64) (*fsm.State, error) {
	st, err := f.wait(ctx, &f.indexes, index, (*fsm.State).Index)
	if err != nil {
		return nil, fmt.Errorf("wait for index %d: %w", index, err)
	}
	return st, nil
}

// WaitRevision returns a State of at least the revision, as soon as there is one. Its errors are those of ctx and
// ErrClosed.
func (f *Feed) WaitRevision(ctx context.Context, revision uint64) (*fsm.State, error) {
	st, err := f.wait(ctx, &f.revs, revision, (*fsm.State).Revision)
	if err != nil {
		return nil, fmt.Errorf("wait for revision %d: %w", revision, err)
	}
	return st, nil
}

// Queued returns the last revision whose events are in the queues of all watchers. It is that of the State, or behind it
// for a moment.
func (f *Feed) Queued() uint64 { return f.done.Load() }

// WaitQueued returns once Queued is at least the revision. A reader who is told more by another node has to wait for that
// here before it adds a topic: until then the next step can lead past the revision, and tells only what differs at its two
// ends. Its errors are those of ctx and ErrClosed.
func (f *Feed) WaitQueued(ctx context.Context, revision uint64) error {
	_, err := f.wait(ctx, &f.queued, revision, func(*fsm.State) uint64 { return f.done.Load() })
	if err != nil {
		return fmt.Errorf("wait for revision %d: %w", revision, err)
	}
	return nil
}

// wait returns a State of which reached gives the target or more.
func (f *Feed) wait(ctx context.Context, w *waiters, target uint64, reached func(*fsm.State) uint64) (*fsm.State, error) {
	if st := f.State(); reached(st) >= target {
		return st, nil
	}
	g := w.join(target)
	defer w.leave(g)
	// Who joined before the State was stored is woken; who joined after sees it here.
	if st := f.State(); reached(st) >= target {
		return st, nil
	}
	select {
	case <-g.ready:
		return f.State(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.quit:
		return nil, ErrClosed
	}
}

// wakeWaiters wakes who waits for what the State has reached. It is a goroutine of its own, so that neither the applier
// pays for the readers nor the readers wait for a long round of the dispatcher.
func (f *Feed) wakeWaiters() {
	for {
		select {
		case <-f.wake:
			st := f.State()
			f.indexes.release(st.Index())
			f.revs.release(st.Revision())
		case <-f.quit:
			return
		}
	}
}
