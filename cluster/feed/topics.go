package feed

import (
	"sync"

	"github.com/regd-io/regd/fsm"
)

// topics knows who watches what. Its lock is held by the dispatcher for a round, and for moments by watchers that come,
// go or change their topics; never by the applier.
type topics struct {
	mu       sync.Mutex // guards all below, and some fields of each Watcher
	watchers map[*Watcher]struct{}
	lists    map[Topic][]*Watcher
	round    uint64
	touched  []*Watcher // in the round under way
	state    *fsm.State // after the last round: watchers have all events up to it, and none beyond
	closed   bool
}

func (t *topics) init(st *fsm.State) {
	t.state = st
	t.watchers = map[*Watcher]struct{}{}
	t.lists = map[Topic][]*Watcher{}
}

func (t *topics) enter(w *Watcher) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watchers[w] = struct{}{}
	if t.closed {
		w.shut()
	}
}

func (t *topics) leave(w *Watcher) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for topic := range w.places {
		t.unlist(w, topic)
	}
	delete(t.watchers, w)
}

func (t *topics) add(w *Watcher, topic Topic) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, open := t.watchers[w]
	if _, listed := w.places[topic]; open && !listed {
		w.places[topic] = len(t.lists[topic])
		t.lists[topic] = append(t.lists[topic], w)
	}
	return t.state.Revision()
}

func (t *topics) remove(w *Watcher, topic Topic) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unlist(w, topic)
}

// unlist takes w out of the topic's list, the last one takes its place. t.mu is held.
func (t *topics) unlist(w *Watcher, topic Topic) {
	place, ok := w.places[topic]
	if !ok {
		return
	}
	delete(w.places, topic)
	list := t.lists[topic]
	last := len(list) - 1
	moved := list[last]
	list[last] = nil
	if moved != w {
		list[place] = moved
		moved.places[topic] = place
	}
	if last == 0 {
		delete(t.lists, topic)
		return
	}
	t.lists[topic] = list[:last]
}

// begin starts the round that leads to st. t.mu is held.
func (t *topics) begin(st *fsm.State) {
	t.round++
	t.state = st
	clear(t.touched)
	t.touched = t.touched[:0]
}

// touch notes that the round is for w. t.mu is held.
func (t *topics) touch(w *Watcher) {
	if w.round != t.round {
		w.round = t.round
		t.touched = append(t.touched, w)
	}
}

// concerned calls fn for each watcher with a topic that covers the subject, once for each such topic. t.mu is held.
func (t *topics) concerned(kind fsm.EventKind, namespace, name string, fn func(*Watcher)) {
	for _, topic := range [...]Topic{
		{kind, namespace, name}, {kind, namespace, ""}, {kind, AnyNamespace, ""}, {kind, AnyNamespace, name},
	} {
		for _, w := range t.lists[topic] {
			fn(w)
		}
	}
}

// close wakes all watchers for the last time.
func (t *topics) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for w := range t.watchers {
		w.shut()
	}
}

// shut tells the watcher that the feed is closed.
func (w *Watcher) shut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	signal(w.ready)
}

// count returns the number of watchers.
func (t *topics) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.watchers)
}
