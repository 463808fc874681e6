package feed

import (
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/regd-io/regd/fsm"
)

// Reason says why a Watcher has to look things up in the State instead of following events.
type Reason int

const (
	// ReasonSlowReader: more events came than the queue holds.
	ReasonSlowReader Reason = iota + 1
	// ReasonSkipped: this node skipped history itself, mostly by installing a snapshot.
	ReasonSkipped
	// ReasonRestored: an operator restored a snapshot; the epoch is another.
	ReasonRestored
)

// String returns the reason as a metric label.
func (r Reason) String() string {
	switch r {
	case ReasonSlowReader:
		return "slow_reader"
	case ReasonSkipped:
		return "skipped"
	case ReasonRestored:
		return "restored"
	default:
		return "unknown"
	}
}

// Resync takes the place of events that a Watcher was not given one by one.
type Resync struct {
	// Reason is the gravest that applies: restored, skipped, slow reader.
	Reason Reason
	// Full: anything may have changed. Keys is empty then.
	Full bool
	// Keys are what may have changed, sorted and unique. There may be some that are of no topic of the Watcher. They are
	// shared: not to be modified.
	Keys []Key
	// State is what the keys, or everything, are to be looked up in. The events that come later lead on from just this
	// State; a later one already holds changes of keys that are not named here.
	State *fsm.State
	// Revision is the last one that the resync stands for, not above State's: who knows all of a State of that revision
	// or a later one needs nothing of it.
	Revision uint64
}

// For returns the stretch of Keys that holds all of the topic, and whether somebody who knows all of the topic up to the
// revision has to hear of the resync: where history was skipped he has to even without keys, for something may have come
// and gone that differs in neither end.
func (r *Resync) For(t Topic, after uint64) (keys []Key, concerned bool) {
	keys = r.keysOf(t)
	switch {
	case r.Full || len(keys) > 0:
		return keys, true
	case r.Reason == ReasonSkipped:
		return nil, !t.unchanged(r.State, after)
	default:
		return nil, false
	}
}

func (r *Resync) keysOf(t Topic) []Key {
	if t.Namespace == AnyNamespace {
		return r.Keys
	}
	first := Key{Kind: t.Kind, Namespace: t.Namespace, Name: t.Name}
	from := sort.Search(len(r.Keys), func(i int) bool { return r.Keys[i].Compare(first) >= 0 })
	keys := r.Keys[from:]
	return keys[:sort.Search(len(keys), func(i int) bool {
		k := keys[i]
		return k.Kind != t.Kind || k.Namespace != t.Namespace || !t.coversName(k.Name)
	})]
}

// Taken is what a Watcher has received.
type Taken struct {
	// Events in revision order, each revision whole. Empty when there is a Resync.
	Events []*Event
	// Resync stands for all that came since the last Take.
	Resync *Resync
	// Revision: nothing of the topics up to here is missing after what has been taken.
	Revision uint64
	// Closed: the feed is closed, nothing comes any more.
	Closed bool
}

// Watcher receives the events of its topics. One goroutine reads it. While it is idle it holds no State and no event.
type Watcher struct {
	feed  *Feed
	ready chan struct{} // nil with a function
	wake  func()

	// Guarded by feed.topics.mu.
	lists  []*list  // of its topics, sorted by these
	round  uint64   // last round of the dispatcher that touched the watcher
	staged []*Event // of the round under way

	mu     sync.Mutex // guards all below
	queue  []*Event
	bytes  int
	behind *behind // nil while the queue has every event
	closed bool
}

// behind is a resync that is being gathered.
type behind struct {
	reason   Reason
	full     bool
	keys     map[Key]struct{}
	skipped  []*difference
	revision uint64
}

// difference is what differs between two States, shared by all watchers that it is for.
type difference struct {
	keys []Key // sorted
}

// maxDifferences bounds the skips that one watcher may have before it.
const maxDifferences = 4

// Watch returns a Watcher of the topics. It must be closed.
func (f *Feed) Watch(topics ...Topic) *Watcher {
	ready := make(chan struct{}, 1)
	return f.watch(&Watcher{feed: f, ready: ready, wake: func() { signal(ready) }}, topics)
}

// WatchFunc is Watch for a reader without a goroutine: wake is called whenever something has come in for Take. It must not
// block, nor call the feed.
func (f *Feed) WatchFunc(wake func(), topics ...Topic) *Watcher {
	return f.watch(&Watcher{feed: f, wake: wake}, topics)
}

func (f *Feed) watch(w *Watcher, topics []Topic) *Watcher {
	f.topics.enter(w)
	for _, t := range topics {
		w.Add(t)
	}
	return w
}

// Add adds a topic; adding it again changes nothing. All events of the topic after the revision that it returns are
// delivered. Those up to it are in the history (Since) and in any State that is read from now on.
func (w *Watcher) Add(t Topic) (revision uint64) { return w.feed.topics.add(w, t) }

// Watchers returns those with a topic that covers the subject, each once.
func (f *Feed) Watchers(subject Topic) []*Watcher {
	f.topics.mu.Lock()
	defer f.topics.mu.Unlock()
	found := make(map[*Watcher]struct{})
	f.topics.concerned(subject.Kind, subject.Namespace, subject.Name, func(w *Watcher) { found[w] = struct{}{} })
	return slices.Collect(maps.Keys(found))
}

// Remove takes a topic off. Some of its events may still be in the queue.
func (w *Watcher) Remove(t Topic) { w.feed.topics.remove(w, t) }

// Ready gives a token after something has come in for Take. One token may stand for much, or for what was taken already. It
// is nil with WatchFunc.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Close ends the watcher. It may be called more than once.
func (w *Watcher) Close() {
	w.feed.topics.leave(w)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.queue, w.bytes, w.behind = nil, 0, nil
}

// Take returns what has come in and empties the queue.
func (w *Watcher) Take() Taken {
	// Read before the queue: all up to done is in the queue by now.
	done := w.feed.done.Load()
	w.mu.Lock()
	if w.behind == nil {
		defer w.mu.Unlock()
		t := Taken{Events: w.queue, Revision: done, Closed: w.closed}
		if n := len(w.queue); n > 0 {
			t.Revision = max(done, w.queue[n-1].Revision)
		}
		w.queue, w.bytes = nil, 0
		return t
	}
	w.mu.Unlock()
	return w.takeResync()
}

// takeResync is Take for a watcher that is behind. Between two rounds the State of the dispatcher is what all queues
// lead to.
func (w *Watcher) takeResync() Taken {
	topics := &w.feed.topics
	topics.mu.Lock()
	defer topics.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	t := Taken{Revision: topics.state.Revision(), Closed: w.closed}
	if w.behind != nil { // Not closed meanwhile.
		t.Resync = w.behind.resync(topics.state)
	}
	w.behind = nil
	return t
}

// stage notes an event of the round under way. feed.topics.mu is held.
func (w *Watcher) stage(e *Event) {
	if n := len(w.staged); n > 0 && w.staged[n-1] == e {
		return // by another topic
	}
	w.staged = append(w.staged, e)
}

// commit makes the staged events takeable, at once and so with whole revisions. feed.topics.mu is held.
func (w *Watcher) commit(limits *Limits) {
	staged := w.staged
	w.staged = nil
	bytes := 0
	for _, e := range staged {
		bytes += e.Size()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fits := len(w.queue)+len(staged) <= limits.QueueEvents && w.bytes+bytes <= limits.QueueBytes
	switch {
	case w.behind != nil:
		w.fallBehind(staged, limits)
	case !fits:
		w.open(ReasonSlowReader)
		w.fallBehind(staged, limits)
	case len(w.queue) == 0:
		w.queue, w.bytes = staged, bytes
	default:
		w.queue, w.bytes = append(w.queue, staged...), w.bytes+bytes
	}
	w.wake()
}

// skip notes a resync other than for slowness. d is nil when everything may differ. feed.topics.mu is held.
func (w *Watcher) skip(reason Reason, revision uint64, d *difference) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open(reason)
	b := w.behind
	b.revision = revision
	if d == nil || len(b.skipped) == maxDifferences {
		b.everything()
	} else if !b.full {
		b.skipped = append(b.skipped, d)
	}
	w.wake()
}

// open begins a resync, or makes its reason graver, and turns the queue into keys. w.mu is held.
func (w *Watcher) open(reason Reason) {
	if w.behind == nil {
		w.behind = &behind{}
		w.feed.counters.resyncs.WithLabelValues(reason.String()).Inc()
	}
	w.behind.reason = max(w.behind.reason, reason)
	w.fallBehind(w.queue, &w.feed.limits)
	w.queue, w.bytes = nil, 0
}

// fallBehind turns events into keys. w.mu is held.
func (w *Watcher) fallBehind(events []*Event, limits *Limits) {
	b := w.behind
	for _, e := range events {
		b.revision = e.Revision
		if b.full {
			continue
		}
		if b.keys == nil {
			b.keys = map[Key]struct{}{}
		}
		b.keys[e.Key()] = struct{}{}
		if len(b.keys) > limits.DirtyKeys {
			b.everything()
		}
	}
}

// everything gives up on keys.
func (b *behind) everything() {
	b.full, b.keys, b.skipped = true, nil, nil
}

// resync returns what was gathered up to the State.
func (b *behind) resync(st *fsm.State) *Resync {
	r := &Resync{Reason: b.reason, Full: b.full, State: st, Revision: b.revision}
	if len(b.keys) == 0 && len(b.skipped) == 1 {
		r.Keys = b.skipped[0].keys
		return r
	}
	r.Keys = slices.Collect(maps.Keys(b.keys))
	for _, d := range b.skipped {
		r.Keys = append(r.Keys, d.keys...)
	}
	slices.SortFunc(r.Keys, Key.Compare)
	r.Keys = slices.Compact(r.Keys)
	return r
}
