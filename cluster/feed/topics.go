package feed

import (
	"slices"
	"sync"

	"github.com/regd-io/regd/fsm"
)

// topics knows who watches what. Its lock is held by the dispatcher for a round, and for moments by watchers that come,
// go or change their topics; never by the applier.
type topics struct {
	mu       sync.Mutex // guards all below, and some fields of each Watcher
	watchers map[*Watcher]struct{}
	scopes   map[scope]*lists
	round    uint64
	touched  []*Watcher // in the round under way
	state    *fsm.State // after the last round: watchers have all events up to it, and none beyond
	closed   bool
}

func (t *topics) init(st *fsm.State) {
	t.state = st
	t.watchers = map[*Watcher]struct{}{}
	t.scopes = map[scope]*lists{}
}

// scope is what many topics have in common.
type scope struct {
	kind      fsm.EventKind
	namespace string
	prefix    bool
}

// lists are those of one scope.
type lists struct {
	scope
	byName  map[string]*list
	lengths map[int]int // of prefixes: how many lists there are of each
}

// list is who watches a topic. There may be very many: it is kept small.
type list struct {
	in       *lists
	name     string
	watchers []*Watcher
}

func (l *list) topic() Topic { return Topic{l.in.kind, l.in.namespace, l.name, l.in.prefix} }

// find returns the place of the topic's list among those of the watcher, or where it would be. They are sorted: most watchers have
// one, and for those with thousands the search costs little beside what they do then.
func (w *Watcher) find(topic Topic) (int, bool) {
	return slices.BinarySearchFunc(w.lists, topic, func(l *list, topic Topic) int { return l.topic().Compare(topic) })
}

func (t Topic) scope() scope { return scope{t.Kind, t.Namespace, t.Prefix} }

// list returns the list of the topic, nil if nobody watches it.
func (t *topics) list(topic Topic) *list {
	if in := t.scopes[topic.scope()]; in != nil {
		return in.byName[topic.Name]
	}
	return nil
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
	for _, l := range w.lists {
		t.unlist(w, l)
	}
	w.lists = nil
	delete(t.watchers, w)
}

func (t *topics) add(w *Watcher, topic Topic) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, open := t.watchers[w]
	if i, listed := w.find(topic); open && !listed {
		l := t.list(topic)
		if l == nil {
			s := topic.scope()
			if t.scopes[s] == nil {
				t.scopes[s] = &lists{s, map[string]*list{}, map[int]int{}}
			}
			l = &list{in: t.scopes[s], name: topic.Name}
			l.in.byName[l.name] = l
			if topic.Prefix {
				l.in.lengths[len(l.name)]++
			}
		}
		w.lists = slices.Insert(w.lists, i, l)
		l.watchers = append(l.watchers, w)
	}
	return t.state.Revision()
}

func (t *topics) remove(w *Watcher, topic Topic) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, listed := w.find(topic); listed {
		t.unlist(w, w.lists[i])
		w.lists = slices.Delete(w.lists, i, i+1)
	}
}

// unlist takes the watcher off the list. To look for it there costs less than to note with each topic where it is. t.mu is held.
func (t *topics) unlist(w *Watcher, l *list) {
	last := len(l.watchers) - 1
	l.watchers[slices.Index(l.watchers, w)] = l.watchers[last]
	l.watchers[last] = nil
	l.watchers = l.watchers[:last]
	if last > 0 {
		return
	}
	delete(l.in.byName, l.name)
	if l.in.prefix {
		if l.in.lengths[len(l.name)]--; l.in.lengths[len(l.name)] == 0 {
			delete(l.in.lengths, len(l.name))
		}
	}
	if len(l.in.byName) == 0 {
		delete(t.scopes, l.in.scope)
	}
}

// each calls fn for each list. t.mu is held.
func (t *topics) each(fn func(*list)) {
	for _, in := range t.scopes {
		for _, l := range in.byName {
			fn(l)
		}
	}
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
	all := func(l *list) {
		if l == nil {
			return
		}
		for _, w := range l.watchers {
			fn(w)
		}
	}
	for _, ns := range [...]string{namespace, AnyNamespace} {
		if in := t.scopes[scope{kind, ns, false}]; in != nil {
			all(in.byName[name])
			all(in.byName[""])
		}
		if in := t.scopes[scope{kind, ns, true}]; in != nil {
			for n := range in.lengths {
				if n <= len(name) {
					all(in.byName[name[:n]])
				}
			}
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
	w.wake()
}

// count returns the number of watchers.
func (t *topics) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.watchers)
}
