package check

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// wanted is an event that a subscription must get.
type wanted struct {
	*fsm.Event
	key key
	put bool // else the instance is gone, or no longer matches
}

// String shows it in violations.
func (t wanted) String() string { return fmt.Sprintf("%v at %d (put %v)", t.key, t.Revision, t.put) }

// wanted returns what the subscription must get for the revisions after from, up to to.
func (f *facts) wanted(s *subscription, from, to uint64) []wanted {
	var list []wanted
	changes := f.changes(from, to)
	for i := range changes {
		e := &changes[i]
		put := f.matches(s.filter, e.New)
		if put || f.matches(s.filter, e.Old) {
			list = append(list, wanted{e, keyOfEvent(e), put})
		}
	}
	return list
}

// take judges a message of events.
func (w *watching) take(at string, m *apiv1.Events) {
	got := map[uint32][]*registryv1.Event{}
	last, upTo := uint64(0), m.GetRevision()
	for _, e := range m.GetEvents() {
		revision := e.GetEvent().GetRevision()
		if revision < last || revision > m.GetRevision() {
			w.fault("W1", "%s: revision %d after %d, in a message up to %d", at, revision, last, m.GetRevision())
		}
		last, upTo = revision, max(upTo, revision)
		for _, id := range e.GetSubscriptionIds() {
			got[id] = append(got[id], e.GetEvent())
		}
	}
	if !w.exists(at, upTo) {
		return
	}
	for id := range got {
		w.sub(at, id)
	}
	for _, s := range w.open() {
		w.deliver(at, s, got[s.id], upTo)
	}
}

// deliver judges what a message of events, which says that nothing is missing up to a revision, has for a subscription.
func (w *watching) deliver(at string, s *subscription, events []*registryv1.Event, upTo uint64) {
	w.figures.Events += len(events)
	switch {
	case len(events) == 0 && (!s.synced || s.at >= upTo || s.cut != nil):
		return // It speaks of others.
	case s.cut != nil:
		w.fault("W3", "%s: subscription %d gets events in the middle of a cut", at, s.id)
		return
	case !s.synced && s.resume == nil:
		w.fault("W9", "%s: subscription %d gets events before its first cut", at, s.id)
		return
	}
	fresh := events[:0:0]
	for _, e := range events {
		switch {
		case e.GetRevision() > s.at:
			fresh = append(fresh, e)
		case s.synced:
			w.fault("W2", "%s: subscription %d has revision %d and gets %d again", at, s.id, s.at, e.GetRevision())
		default:
			w.fault("W8", "%s: subscription %d goes on after revision %d and gets %d", at, s.id, s.at, e.GetRevision())
		}
	}
	w.compare(at, s, fresh, upTo)
	s.at = max(s.at, upTo)
}

// eventKey names an event among those of one subscription.
type eventKey struct {
	revision uint64
	key      key
}

// compare holds events against those that the subscription must get. Within a revision their order says nothing.
func (w *watching) compare(at string, s *subscription, got []*registryv1.Event, upTo uint64) {
	byKey := make(map[eventKey]*registryv1.Event, len(got))
	revisions := map[uint64]bool{}
	for _, e := range got {
		k := eventKey{e.GetRevision(), keyOf(e.GetInstance())}
		if byKey[k] != nil {
			w.fault("W2", "%s: subscription %d gets %v of revision %d twice", at, s.id, k.key, k.revision)
		}
		byKey[k] = e
		revisions[k.revision] = true
	}
	for _, t := range w.wanted(s, s.at, upTo) {
		k := eventKey{t.Revision, t.key}
		e := byKey[k]
		delete(byKey, k)
		switch {
		case e != nil && !w.shows(e, t):
			w.fault("W11", "%s: subscription %d gets %v, want %v for %v", at, s.id, e, t, t.Cause)
		case e != nil:
		case revisions[t.Revision]:
			w.fault("W3", "%s: subscription %d gets revision %d without %v", at, s.id, t.Revision, t.key)
		case s.synced:
			w.fault("W4", "%s: subscription %d is at revision %d and was not told of %v", at, s.id, upTo, t)
		default:
			w.fault("W5", "%s: subscription %d goes on after revision %d and was not told of %v", at, s.id, s.at, t)
		}
	}
	for k := range byKey {
		rule := "W12"
		for _, e := range w.changes(s.at, upTo) {
			if e.Revision == k.revision && keyOfEvent(&e) == k.key {
				rule = "W4" // It happened, and does not match.
			}
		}
		w.fault(rule, "%s: subscription %d gets %v of revision %d", at, s.id, k.key, k.revision)
	}
}

// shows tells whether an event shows what it must.
func (w *watching) shows(e *registryv1.Event, t wanted) bool {
	if e.GetCause() != t.Cause {
		return false
	}
	if t.put {
		return e.GetType() == registryv1.EventType_EVENT_TYPE_PUT && w.same(t.New, e.GetInstance())
	}
	return e.GetType() == registryv1.EventType_EVENT_TYPE_DELETE && proto.Equal(e.GetInstance(), &registryv1.Instance{
		Namespace: t.Old.Namespace(), Service: t.Old.Service(), Id: t.Old.ID(), Incarnation: t.Old.Incarnation(),
	})
}
