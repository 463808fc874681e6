package client

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// errBehind says that a node has not come as far as the watch: it is no use there.
var errBehind = errors.New("the node is behind what was already received")

// cutParts is what has come of a cut.
type cutParts struct {
	full      bool
	instances []*registryv1.Instance
	deleted   []*apiv1.InstanceKey
	after     []*registryv1.Event // that came before the end of the cut
}

// subscribe returns the request that starts the watch on a new stream.
func (w *Watch) subscribe() *apiv1.Subscribe {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.live, w.cut = false, nil
	s := &apiv1.Subscribe{SubscriptionId: w.id, Filter: w.filter, Acknowledges: true, Linearizable: w.verify && !w.fresh}
	if w.synced {
		s.Resume = w.point.proto()
	}
	return s
}

// takeCut keeps a part of a cut.
func (w *Watch) takeCut(part *apiv1.Cut) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut == nil {
		w.cut = &cutParts{full: part.GetFull()}
	}
	w.cut.instances = append(w.cut.instances, part.GetInstances()...)
	w.cut.deleted = append(w.cut.deleted, part.GetDeleted()...)
}

// takeSynced applies the cut that has come, as one. Without a cut it says that a resume succeeded, or that nothing matches.
//
// through is what the stream had announced before: only what it announces from now on speaks of this watch.
func (w *Watch) takeSynced(header *apiv1.ResponseHeader, through uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	cut, to := w.cut, pointOf(header)
	w.cut = nil
	if cut == nil {
		cut = &cutParts{full: !w.synced}
	}
	if behind := w.synced && to.ClusterID == w.point.ClusterID &&
		(to.Epoch < w.point.Epoch || to.Epoch == w.point.Epoch && to.Revision < w.point.Revision); behind {
		return errBehind
	}
	w.fresh = w.fresh || header.GetMode() == apiv1.Mode_MODE_LINEARIZABLE
	if cut.full {
		w.replace(cut, to)
	} else {
		w.amend(cut, to)
	}
	w.point, w.synced, w.live, w.floor = to, true, true, through
	for _, event := range cut.after {
		w.apply(event)
	}
	w.mark(header)
	return nil
}

// replace goes to a whole new state: what differs are changes, what is not in it is gone.
func (w *Watch) replace(cut *cutParts, to ResumePoint) {
	gone := w.view
	before, first := w.point, !w.synced
	w.view = make(map[Key]uint64, len(cut.instances))
	cause := registryv1.Cause_CAUSE_RESYNC
	if first {
		cause = registryv1.Cause_CAUSE_UNSPECIFIED
	}
	slices.SortStableFunc(cut.instances, byModifyRevision)
	for _, i := range cut.instances {
		key := keyOf(i)
		had, known := gone[key]
		delete(gone, key)
		w.view[key] = i.GetModifyRevision()
		// Only within one history does an equal revision mean an equal instance.
		if known && had == i.GetModifyRevision() && before.sameHistory(to) {
			continue
		}
		revision := i.GetModifyRevision()
		if !first && revision <= before.Revision {
			revision = to.Revision
		}
		w.enqueue(Change{Kind: ChangePut, Key: key, Instance: i, Revision: revision, Cause: cause}, !known)
	}
	for _, key := range sortedKeys(gone) {
		w.enqueue(Change{Kind: ChangeDelete, Key: key, Revision: to.Revision, Cause: cause}, false)
	}
}

// amend applies what changed since the view.
func (w *Watch) amend(cut *cutParts, to ResumePoint) {
	slices.SortStableFunc(cut.instances, byModifyRevision)
	for _, i := range cut.instances {
		key := keyOf(i)
		had, known := w.view[key]
		if known && had == i.GetModifyRevision() && w.point.sameHistory(to) {
			continue
		}
		revision := i.GetModifyRevision()
		if revision <= w.point.Revision {
			revision = to.Revision
		}
		w.view[key] = i.GetModifyRevision()
		w.enqueue(Change{Kind: ChangePut, Key: key, Instance: i, Revision: revision, Cause: registryv1.Cause_CAUSE_RESYNC}, !known)
	}
	for _, k := range cut.deleted {
		key := Key{Namespace: k.GetNamespace(), Service: k.GetService(), ID: k.GetId()}
		if _, known := w.view[key]; known {
			delete(w.view, key)
			w.enqueue(Change{Kind: ChangeDelete, Key: key, Revision: to.Revision, Cause: registryv1.Cause_CAUSE_RESYNC}, false)
		}
	}
}

// takeEvent applies an event for this watch, or holds it until the cut that is under way has ended. through is as in
// takeSynced.
func (w *Watch) takeEvent(event *registryv1.Event, through uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut == nil && !w.synced {
		w.cut = &cutParts{full: true}
	}
	if w.cut != nil {
		w.cut.after = append(w.cut.after, event)
		return
	}
	if !w.live {
		w.live, w.floor = true, through
	}
	w.apply(event)
}

// apply makes an event a change unless it is known. The caller holds mu.
func (w *Watch) apply(event *registryv1.Event) {
	if event.GetRevision() <= w.point.Revision {
		return
	}
	key := keyOf(event.GetInstance())
	had, known := w.view[key]
	change := Change{Key: key, Revision: event.GetRevision(), Cause: event.GetCause()}
	switch event.GetType() {
	case registryv1.EventType_EVENT_TYPE_PUT:
		if known && had >= event.GetRevision() {
			return
		}
		w.view[key] = event.GetRevision()
		change.Kind, change.Instance = ChangePut, event.GetInstance()
	case registryv1.EventType_EVENT_TYPE_DELETE:
		if !known {
			return
		}
		delete(w.view, key)
		change.Kind = ChangeDelete
	default:
		return // of a newer registry
	}
	w.enqueue(change, !known)
}

// reached notes that nothing is missing up to a revision. Before the stream has taken the subscription up, it does not
// speak of this watch. The reader is told when it has had changes since the last time, or in any case if asked to.
func (w *Watch) reached(header *apiv1.ResponseHeader, tell bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.live || w.cut != nil || header.GetRevision() < w.point.Revision {
		return
	}
	w.point.Revision = header.GetRevision()
	if tell || w.unmarked {
		w.mark(header)
	}
}

// mark tells the reader that all up to the point has been delivered. The caller holds mu.
func (w *Watch) mark(header *apiv1.ResponseHeader) {
	info := infoOf(header)
	w.put(entry{point: w.point, change: Change{
		Kind: ChangeSynced, Revision: w.point.Revision, Epoch: w.point.Epoch, Staleness: info.Staleness,
		Received: time.Now(), Node: info.Node, Fresh: w.fresh,
	}})
	w.unmarked, w.trouble, w.told = false, nil, false
	w.signal()
}

// enqueue hands a change to the reader. The caller holds mu.
func (w *Watch) enqueue(change Change, fresh bool) {
	w.put(entry{change: change, fresh: fresh})
	w.unmarked = true
	w.signal()
}

// settle notes how far the stream had got when it ended.
func (w *Watch) settle(through uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live && w.cut == nil && through > max(w.floor, w.point.Revision) {
		w.point.Revision = through
	}
}

// passed is reached for a stream that has announced the revision to others. Every watch that it serves has everything up
// to there, unless it joined when that had been announced already.
func (w *Watch) passed(header *apiv1.ResponseHeader) {
	w.mu.Lock()
	late := header.GetRevision() <= w.floor
	w.mu.Unlock()
	if !late {
		w.reached(header, true)
	}
}

// stalled notes why nothing comes.
func (w *Watch) stalled(err error) {
	w.mu.Lock()
	w.trouble, w.told = err, false
	w.mu.Unlock()
	if w.stalls {
		w.signal()
	}
}

// served tells whether the watch has ever had a state.
func (w *Watch) served() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.synced
}

// byModifyRevision orders the instances of a cut as they changed.
func byModifyRevision(a, b *registryv1.Instance) int {
	return cmp.Compare(a.GetModifyRevision(), b.GetModifyRevision())
}

// sortedKeys returns the keys of a view in order.
func sortedKeys(view map[Key]uint64) []Key {
	return slices.SortedFunc(maps.Keys(view), func(a, b Key) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Service, b.Service), strings.Compare(a.ID, b.ID))
	})
}
