package consul

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
)

// ledger knows for each topic of queries the revision at which it last changed, and wakes who waits for the next; and it keeps a
// census of what a State has no order for. It follows the feed, in a goroutine, and whenever a
// reader wants it to be as far as a State.
//
// The revision of a topic never falls at a node. A service that is there knows its own. That of one that has gone is remembered,
// for the last tombs of them; of what was never seen it is the revision since which the ledger knows (gone). After a restore, or
// a leap over history, everything counts as changed (since).
type ledger struct {
	feed    *feed.Feed
	watcher *feed.Watcher
	applied atomic.Uint64 // all events up to it are in what follows

	mu      sync.Mutex // guards all below
	since   uint64
	gone    uint64
	members uint64 // when one of the cluster's nodes changed last
	// sessions is when one was opened or ended last.
	sessions uint64
	// prefixes has for each namespace the lengths of the prefixes of keys that somebody waits for, and for how many of each.
	prefixes map[string]map[int]int
	topics   map[topic]*subject
	tombs    []topic // of services and nodes that have gone, the oldest first
	census   census
}

// topic is what a query is about.
type topic struct {
	kind            topicKind
	namespace, name string
}

type topicKind uint8

const (
	ofService  topicKind = iota + 1 // instances of a service, with their health
	ofNode                          // instances of a node, with their health
	ofServices                      // the names of services with their tags
	ofNodes                         // the nodes
	ofChecks                        // anything at all
	ofKey                           // a key
	ofKeys                          // the keys that begin with a name
	ofSession                       // a session
	ofSessions                      // the sessions
)

// subject is what is known of a topic. It is there while there is a node or namespace, while somebody waits, and as a tomb.
type subject struct {
	changed            uint64
	instances, waiting int
	facts              map[string]int // of a node: how many instances say what of it
	buried             bool
	woken              chan struct{} // closed at the next change; nil: nobody waits
}

// maxTombs is how many services and nodes that have gone are remembered.
const maxTombs = 10_000

func newLedger(f *feed.Feed) *ledger {
	l := &ledger{feed: f, watcher: f.Watch(
		feed.Topic{Kind: fsm.EventInstance, Namespace: feed.AnyNamespace}, feed.Topic{Kind: fsm.EventMember},
		feed.Topic{Kind: fsm.EventKey, Namespace: feed.AnyNamespace}, feed.Topic{Kind: fsm.EventSession},
	)}
	st := f.State()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.topics, l.prefixes = map[topic]*subject{}, map[string]map[int]int{}
	l.gone = st.Revision()
	if st.Epoch() > 1 { // Services may be older than what clients saw before the restore.
		l.since = st.Revision()
	}
	l.rebuild(st)
	return l
}

// follow keeps the ledger up to date until ctx ends.
func (l *ledger) follow(ctx context.Context) {
	defer l.watcher.Close()
	for {
		select {
		case <-l.watcher.Ready():
			if l.drain() {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// reach returns once the ledger has all events up to the revision.
func (l *ledger) reach(ctx context.Context, revision uint64) error {
	if l.applied.Load() >= revision {
		return nil
	}
	if err := l.feed.WaitQueued(ctx, revision); err != nil {
		return err
	}
	l.drain()
	return nil
}

// drain takes in what has come, and tells whether the feed is closed.
func (l *ledger) drain() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.watcher.Take()
	if r := taken.Resync; r != nil {
		l.since, l.gone = r.State.Revision(), r.State.Revision()
		l.rebuild(r.State)
		for _, s := range l.topics {
			s.change(l.since)
		}
	}
	for _, e := range taken.Events {
		l.take(e)
	}
	l.applied.Store(max(l.applied.Load(), taken.Revision))
	return taken.Closed
}

// rebuild takes everything from a State. l.mu is held.
func (l *ledger) rebuild(st *fsm.State) {
	l.census = census{}
	for _, s := range l.topics {
		s.instances, s.facts = 0, nil
	}
	st.Services("", "", func(svc *fsm.Service) bool {
		svc.Ascend("", func(r *fsm.Record) bool {
			l.count(r, +1, st.Revision()) // What has gone before that is not in the State.
			return true
		})
		return true
	})
	for t, s := range l.topics {
		l.tidy(t, s)
	}
	l.applied.Store(st.Revision())
}

// take takes an event in. l.mu is held.
func (l *ledger) take(e *feed.Event) {
	namespace, service := e.Subject()
	switch e.Kind {
	case fsm.EventKey:
		l.takeKey(namespace, service, e.Revision)
		return
	case fsm.EventSession:
		l.sessions = e.Revision
		l.wake(topic{ofSession, "", service}, e.Revision)
		l.wake(topic{kind: ofSessions}, e.Revision)
		return
	case fsm.EventMember:
		l.members = e.Revision
		for t, s := range l.topics {
			if t.kind == ofNodes {
				s.change(e.Revision)
			}
		}
		return
	default:
	}
	if e.Old != nil && e.New != nil && sameHere(e.Old, e.New) {
		l.touch(topic{ofNode, namespace, placeOf(e.New).node}, e.Revision)
	} else {
		if e.New != nil { // First: so that what stays does not seem to come and go.
			l.count(e.New, +1, e.Revision)
		}
		if e.Old != nil {
			l.count(e.Old, -1, e.Revision)
		}
	}
	l.touch(topic{ofService, namespace, service}, e.Revision)
	l.touch(topic{ofChecks, namespace, ""}, e.Revision)
	if e.New == nil && l.feed.State().Service(namespace, service) == nil {
		l.bury(topic{ofService, namespace, service}, e.Revision)
	}
}

// takeKey wakes who waits for a key, or for keys that begin as it does: the State knows when it has changed. l.mu is held.
func (l *ledger) takeKey(namespace, key string, revision uint64) {
	l.wake(topic{ofKey, namespace, key}, revision)
	for n := range l.prefixes[namespace] {
		if n <= len(key) {
			l.wake(topic{ofKeys, namespace, key[:n]}, revision)
		}
	}
}

// wake wakes who waits for a topic of which nothing is kept. l.mu is held.
func (l *ledger) wake(t topic, revision uint64) {
	if s := l.topics[t]; s != nil {
		s.change(revision)
	}
}

// sameHere tells whether two records of an instance have all in common that the ledger counts: only their status differs.
func sameHere(old, now *fsm.Record) bool { return slices.Equal(old.Spec(), now.Spec()) }

// count adds or takes away an instance. l.mu is held.
func (l *ledger) count(r *fsm.Record, by int, revision uint64) {
	at := placeOf(r)
	l.countNode(topic{ofNode, r.Namespace(), at.node}, nodeKey(r.Metadata), by, revision)
	if l.census.count(r, at, by) {
		l.touch(topic{ofServices, r.Namespace(), ""}, revision)
	}
	l.touch(topic{ofChecks, r.Namespace(), ""}, revision)
}

// countNode counts the instances of a node, and notes when it comes, goes, or is another. l.mu is held.
func (l *ledger) countNode(t topic, says string, by int, revision uint64) {
	s := l.subject(t)
	before := s.instances
	s.instances += by
	s.change(revision)
	other := before == 0 || s.instances == 0
	if says != "" {
		if s.facts == nil {
			s.facts = map[string]int{}
		}
		s.facts[says] += by
		other = other || by > 0 && s.facts[says] == by || s.facts[says] == 0
		if s.facts[says] == 0 {
			delete(s.facts, says)
		}
	}
	if other {
		l.touch(topic{ofNodes, t.namespace, ""}, revision)
	}
	if s.instances == 0 {
		l.bury(t, revision)
	}
}

// subject returns what is known of a topic, from now on. l.mu is held.
func (l *ledger) subject(t topic) *subject {
	s := l.topics[t]
	if s == nil {
		s = &subject{}
		l.topics[t] = s
		if t.kind == ofKeys {
			if l.prefixes[t.namespace] == nil {
				l.prefixes[t.namespace] = map[int]int{}
			}
			l.prefixes[t.namespace][len(t.name)]++
		}
	}
	return s
}

// touch notes a change of a topic. A service of which nothing is kept knows by itself. l.mu is held.
func (l *ledger) touch(t topic, revision uint64) {
	s := l.topics[t]
	if s == nil {
		if t.kind == ofService {
			return
		}
		s = l.subject(t)
	}
	s.change(revision)
}

func (s *subject) change(revision uint64) {
	s.changed = max(s.changed, revision)
	if s.woken != nil {
		close(s.woken)
		s.woken = nil
	}
}

// bury remembers what has gone, and forgets the oldest of what went before. l.mu is held.
func (l *ledger) bury(t topic, revision uint64) {
	s := l.subject(t)
	s.changed = max(s.changed, revision)
	if !s.buried {
		s.buried = true
		l.tombs = append(l.tombs, t)
	}
	if len(l.tombs) <= maxTombs {
		return
	}
	oldest := l.tombs[0]
	l.tombs = slices.Delete(l.tombs, 0, 1)
	if s := l.topics[oldest]; s != nil {
		s.buried = false
		if s.instances == 0 {
			l.gone = max(l.gone, s.changed)
		}
		l.tidy(oldest, s)
	}
}

// tidy forgets a topic for which nobody has a use. l.mu is held.
func (l *ledger) tidy(t topic, s *subject) {
	switch t.kind {
	case ofService, ofNode, ofKey, ofKeys, ofSession, ofSessions:
	default:
		return
	}
	if s.waiting > 0 || s.instances > 0 || s.buried || l.topics[t] != s {
		return
	}
	delete(l.topics, t)
	if t.kind != ofKeys {
		return
	}
	lengths := l.prefixes[t.namespace]
	if lengths[len(t.name)]--; lengths[len(t.name)] == 0 {
		delete(lengths, len(t.name))
	}
	if len(lengths) == 0 {
		delete(l.prefixes, t.namespace)
	}
}

// index returns the revision at which the last of the topics changed, at most that of the State, which must have been reached.
func (l *ledger) index(st *fsm.State, topics ...topic) uint64 {
	index := uint64(1)
	for _, t := range topics {
		index = max(index, keyed(st, t)) // Without the lock: there may be many keys.
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range topics {
		index = max(index, l.changed(st, t))
	}
	return max(1, min(index, st.Revision()))
}

// keyed is when keys changed last, as the State has it: with what has gone. 0 for other topics.
func keyed(st *fsm.State, t topic) uint64 {
	index := uint64(0)
	switch t.kind {
	case ofKey:
		if k := st.Key(t.namespace, t.name); k != nil {
			return k.ModifyRevision
		}
	case ofKeys:
		st.Keys(t.namespace, t.name, "", func(k *fsm.KeyValue) bool {
			index = max(index, k.ModifyRevision)
			return true
		})
	default:
		return 0
	}
	return max(index, st.KeysDeleted(t.namespace))
}

// changed is index for one topic. l.mu is held.
func (l *ledger) changed(st *fsm.State, t topic) uint64 {
	if t.kind == ofService {
		if svc := st.Service(t.namespace, t.name); svc != nil {
			return max(svc.Revision(), l.since)
		}
	}
	switch t.kind {
	case ofKey, ofKeys:
		return l.since
	case ofSession:
		if found := st.Session(t.name); found != nil {
			return max(found.CreateRevision, l.since)
		}
		return max(l.gone, l.sessions)
	case ofSessions:
		return max(l.gone, l.sessions)
	default:
	}
	index := l.gone
	if s := l.topics[t]; s != nil && s.changed > 0 {
		index = max(s.changed, l.since)
	}
	if t.kind == ofNodes {
		index = max(index, l.members)
	}
	return index
}

// wait returns a channel that is closed once one of the topics has changed after a revision, and what must be called in the end.
func (l *ledger) wait(after uint64, t topic) (woken <-chan struct{}, leave func()) {
	l.mu.Lock()
	s := l.subject(t)
	s.waiting++
	if s.woken == nil {
		s.woken = make(chan struct{})
	}
	woken = s.woken
	changed := l.changed(l.feed.State(), t)
	l.mu.Unlock()
	if max(changed, keyed(l.feed.State(), t)) > after {
		now := make(chan struct{})
		close(now)
		woken = now
	}
	return woken, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		s.waiting--
		l.tidy(t, s)
	}
}

// find returns the instances of a locator that a State has.
func (l *ledger) find(st *fsm.State, at locator) []*fsm.Record {
	l.mu.Lock()
	refs := l.census.find(at)
	l.mu.Unlock()
	slices.SortFunc(refs, compareRefs)
	records := make([]*fsm.Record, 0, len(refs))
	for _, here := range refs {
		if r := st.Instance(at.namespace, here.service, here.id); r != nil {
			records = append(records, r)
		}
	}
	return records
}

// nodes returns the names of the nodes of a namespace, sorted.
func (l *ledger) nodes(namespace string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.census.nodes(namespace)
}

// names returns the services of a namespace with their tags. Nobody may change the map.
func (l *ledger) names(namespace string) map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.census.names(namespace)
}
