package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// WatchFigures say what Watch judged.
type WatchFigures struct {
	// Streams, and the Subscriptions on them; Resumed are those that went on after a point.
	Streams, Subscriptions, Resumed int
	// Events that were delivered, once for each subscription.
	Events int
	// Cuts by reason, as in "SLOW_READER".
	Cuts map[string]int
}

// Watch holds every subscription of every stream against the log.
//
//   - W1: what it gets is in the order of revisions, and never goes back.
//   - W2: nothing comes twice.
//   - W3: a revision comes whole in one message, a cut in one piece.
//   - W4: every change that matches comes, and nothing else.
//   - W5: after a resume point it goes on with the next change.
//   - W6: progress marks are true and never fall.
//   - W7: where history is gone it is told so: each cut has the reason that fits, and equals the registry.
//   - W8: nothing comes that is older than the resume point.
//   - W9: it begins with a cut that equals the registry at the revision of its Synced.
//   - W10: a cut for a slow reader, or for a large revision, leads to the registry at the revision of its Synced.
//   - W11: an event shows the instance and the cause that the log has.
//   - W12: only what is in the log comes.
//   - W13: at the end of a settled run it has come up to the last change that matches.
//   - W14: a cut after the node installed a snapshot leads to the registry at the revision of its Synced.
func Watch(r *Run) ([]Violation, WatchFigures) {
	w := &watching{facts: r.facts(), figures: WatchFigures{Cuts: map[string]int{}}}
	for _, method := range []string{apiv1.RegistryService_Watch_FullMethodName, apiv1.RegistryService_WatchService_FullMethodName} {
		for _, messages := range r.History.Streams(method) {
			w.watch(messages)
		}
	}
	return w.list, w.figures
}

// watching is one stream, and what was found in those before it.
type watching struct {
	*facts
	verdict
	figures WatchFigures

	name   string
	subs   map[uint32]*subscription
	marked uint64 // by the last progress mark
}

// subscription is one on the stream, from its Subscribe on until it is said to have ended.
//
// Invariant: its reader has, of what matches, what the registry had at the revision at.
type subscription struct {
	id     uint32
	filter *apiv1.Filter
	resume *apiv1.ResumePoint // nil where it starts with a full cut, also as the point is of another history
	gone   bool               // it was asked to resume in another history
	asked  time.Duration
	at     uint64
	synced bool
	cut    *cut
	next   *subscription // for which the client uses the number again
}

// cut is one that is not synced yet.
type cut struct {
	full      bool
	reason    apiv1.CutReason
	instances map[key]instanceMessage
	deleted   map[key]bool
}

func (w *watching) watch(messages []history.Message) {
	w.figures.Streams++
	first := messages[0]
	w.name = fmt.Sprintf("stream %d of %s at %s", first.Stream, first.Client, first.Node)
	w.subs, w.marked = map[uint32]*subscription{}, 0
	ended := time.Duration(0)
	for i := range messages {
		m := &messages[i]
		switch m.Direction {
		case history.Sent:
			w.request(m)
		case history.Received:
			w.receive(m)
		case history.Ended:
			ended = m.At
		case history.Opened:
		}
	}
	if s := w.run.Settled; s > 0 && first.At <= s && (ended == 0 || ended >= s) {
		w.end()
	}
}

// request notes what the client asks for.
func (w *watching) request(m *history.Message) {
	switch req := m.Body.(type) {
	case *apiv1.WatchServiceRequest:
		w.subscribe(m.At, 1, req.GetFilter(), req.GetResume())
	case *apiv1.WatchRequest:
		if s := req.GetSubscribe(); s != nil {
			w.subscribe(m.At, s.GetSubscriptionId(), s.GetFilter(), s.GetResume())
		}
	}
}

func (w *watching) subscribe(at time.Duration, id uint32, filter *apiv1.Filter, resume *apiv1.ResumePoint) {
	w.figures.Subscriptions++
	s := &subscription{id: id, filter: filter, resume: resume, asked: at}
	final := w.run.Timeline.Final()
	switch {
	case resume == nil:
	case resume.GetClusterId() == final.ClusterID() && resume.GetEpoch() == final.Epoch():
		w.figures.Resumed++
		s.at = resume.GetRevision()
	default:
		s.resume, s.gone = nil, true
	}
	if old := w.subs[id]; old != nil {
		old.next = s // It is about to end.
		return
	}
	w.subs[id] = s
}

// receive takes what the server says.
func (w *watching) receive(m *history.Message) {
	body, ok := m.Body.(watchMessage)
	if !ok {
		return
	}
	at := fmt.Sprintf("%s, at %v", w.name, m.At)
	switch {
	case body.GetCut() != nil:
		if s := w.sub(at, body.GetCut().GetSubscriptionId()); s != nil {
			w.part(at, s, body.GetCut())
		}
	case body.GetSynced() != nil:
		if s := w.sub(at, body.GetSynced().GetSubscriptionId()); s != nil {
			w.sync(at, s, body.GetSynced().GetHeader())
		}
	case body.GetEvents() != nil:
		w.take(at, body.GetEvents())
	case body.GetProgress() != nil:
		w.progress(at, body.GetProgress().GetHeader())
	case body.GetEnded() != nil:
		id := body.GetEnded().GetSubscriptionId()
		if s := w.subs[id]; s != nil && s.next != nil {
			w.subs[id] = s.next
		} else {
			delete(w.subs, id)
		}
	}
}

// sub returns the subscription that a message is for.
func (w *watching) sub(at string, id uint32) *subscription {
	s := w.subs[id]
	if s == nil {
		w.fault("W4", "%s: a message for subscription %d, which is not open", at, id)
	}
	return s
}

// open are the subscriptions by number.
func (w *watching) open() []*subscription {
	subs := make([]*subscription, 0, len(w.subs))
	for _, id := range slices.Sorted(maps.Keys(w.subs)) {
		subs = append(subs, w.subs[id])
	}
	return subs
}

// exists tells whether the registry ever had a revision that a message names.
func (w *watching) exists(at string, revision uint64) bool {
	final := w.run.Timeline.Final().Revision()
	if revision > final {
		w.fault("W12", "%s: revision %d, the last one ever is %d", at, revision, final)
	}
	return revision <= final
}

// progress judges a progress mark.
func (w *watching) progress(at string, h *apiv1.ResponseHeader) {
	revision, ours := w.revision(h)
	if !ours {
		w.fault("W12", "%s: progress of another cluster or epoch: %v", at, h)
		return
	}
	if !w.exists(at, revision) {
		return
	}
	if revision < w.marked {
		w.fault("W6", "%s: progress falls from revision %d to %d", at, w.marked, revision)
	}
	w.marked = revision
	for _, s := range w.open() {
		if !s.synced || s.cut != nil || s.at >= revision {
			continue
		}
		if missing := w.wanted(s, s.at, revision); len(missing) > 0 {
			w.fault("W6", "%s: progress to revision %d, subscription %d has revision %d and not %v",
				at, revision, s.id, s.at, missing[0])
		}
		s.at = revision
	}
}

// end judges what the stream has come to.
func (w *watching) end() {
	final := w.run.Timeline.Final().Revision()
	for _, s := range w.open() {
		switch {
		case s.asked > w.run.Settled:
		case !s.synced:
			w.fault("W13", "%s: subscription %d was never synced", w.name, s.id)
		default:
			if missing := w.wanted(s, s.at, final); len(missing) > 0 {
				w.fault("W13", "%s: subscription %d ends with revision %d, and %d changes are missing up to %d, the first is %v",
					w.name, s.id, s.at, len(missing), final, missing[0])
			}
		}
	}
}

// reasonName is a reason as it is counted.
func reasonName(r apiv1.CutReason) string { return strings.TrimPrefix(r.String(), "CUT_REASON_") }
