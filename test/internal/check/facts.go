package check

import (
	"bytes"
	"cmp"
	"slices"
	"sort"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// facts are what several checkers need of a run, worked out once.
type facts struct {
	run *Run
	// writes are the requests with an id, and after them each call of a write without one.
	writes []*history.Write

	acked    curve // revisions of acknowledged writes by the time of the answer
	known    curve // of linearizable reads too
	observed curve // when which revision was seen by anybody, mirrored
	begun    curve // when linearizable calls began, by their revision
	later    curve // revisions of effective writes by when they began, mirrored

	decoded map[*fsm.Record]*registryv1.Instance
	scratch []byte
	// from, to and events are the last answer of changes.
	from, to uint64
	events   []fsm.Event
}

func (r *Run) facts() *facts {
	if r.seen == nil {
		r.seen = &facts{run: r, decoded: map[*fsm.Record]*registryv1.Instance{}}
		r.seen.gather()
	}
	return r.seen
}

func (f *facts) gather() {
	f.writes = f.run.History.Writes()
	var acked, known, observed, begun, later []point
	see := func(at time.Duration, revision uint64) {
		observed = append(observed, point{-int64(revision), -int64(at)})
	}
	for i := range f.run.History.Calls {
		c := &f.run.History.Calls[i]
		if w := withoutID(c); w != nil {
			f.writes = append(f.writes, w)
		}
		revision, ok := f.revision(c.Header())
		if !ok {
			continue
		}
		see(c.Ended, revision)
		if linearizable(c) {
			known = append(known, point{int64(c.Ended), int64(revision)})
			begun = append(begun, point{int64(revision), int64(c.Begun)})
		}
	}
	for i := range f.run.History.Messages {
		m := &f.run.History.Messages[i]
		if revision, ok := f.told(m); ok {
			see(m.At, revision)
		}
	}
	for _, w := range f.writes {
		kind := orderOf(w)
		revision, ok := f.revision(headerOf(w.Response))
		if kind == unordered || !ok {
			continue
		}
		acked = append(acked, point{int64(w.Ended), int64(revision)})
		begun = append(begun, point{int64(revision), int64(w.Begun)})
		if kind == effective {
			later = append(later, point{-int64(w.Begun), -int64(revision)})
		}
	}
	known = append(known, acked...)
	f.acked, f.known, f.observed = newCurve(acked), newCurve(known), newCurve(observed)
	f.begun, f.later = newCurve(begun), newCurve(later)
}

// revision is that of a header of the run's epoch.
func (f *facts) revision(h *apiv1.ResponseHeader) (uint64, bool) {
	return h.GetRevision(), h != nil && f.ours(h)
}

// ours tells whether a header is of the run's cluster and epoch.
func (f *facts) ours(h *apiv1.ResponseHeader) bool {
	final := f.run.Timeline.Final()
	return h.GetEpoch() == final.Epoch() && h.GetClusterId() == final.ClusterID()
}

// told is the revision that a message of a watch names.
func (f *facts) told(m *history.Message) (uint64, bool) {
	w, ok := m.Body.(watchMessage)
	switch {
	case !ok || m.Direction != history.Received:
		return 0, false
	case w.GetSynced() != nil:
		return f.revision(w.GetSynced().GetHeader())
	case w.GetProgress() != nil:
		return f.revision(w.GetProgress().GetHeader())
	case w.GetEvents() != nil:
		return w.GetEvents().GetRevision(), true
	default:
		return 0, false
	}
}

// watchMessage is what a server sends on a watch of either kind.
type watchMessage interface {
	GetCut() *apiv1.Cut
	GetSynced() *apiv1.Synced
	GetEvents() *apiv1.Events
	GetProgress() *apiv1.Progress
	GetEnded() *apiv1.SubscriptionEnded
}

func headerOf(m proto.Message) *apiv1.ResponseHeader {
	if h, ok := m.(interface{ GetHeader() *apiv1.ResponseHeader }); ok {
		return h.GetHeader()
	}
	return nil
}

// withoutID returns a call of a write that carries no request id as a request of its own, nil for any other call.
func withoutID(c *history.Call) *history.Write {
	if _, ok := c.Request.(interface{ GetRequestId() *apiv1.RequestID }); !ok || c.RequestID().GetClientId() != "" {
		return nil
	}
	return &history.Write{
		Method: c.Method, Begun: c.Begun, Ended: c.Ended, Request: c.Request, Response: c.Response, Outcome: c.Outcome,
		Calls: []*history.Call{c},
	}
}

// order is what the revision of an acknowledged write says.
type order int

const (
	// unordered: nothing. It may be that of an older State.
	unordered order = iota
	// current: the write changed nothing, and the registry had that revision when it was applied.
	current
	// effective: it is the write's own.
	effective
)

func orderOf(w *history.Write) order {
	switch resp := w.Response.(type) {
	case nil:
		return unordered
	case *apiv1.AcquireResponse:
		return current // Its revision may be that at which another released the lock.
	case *apiv1.SetHealthResponse:
		if !resp.GetChanged() {
			return unordered // It cost no log entry.
		}
		return effective
	case interface{ GetChanged() bool }:
		if !resp.GetChanged() {
			return current
		}
		return effective
	default: // Open, Grant, Release.
		return effective
	}
}

// freshnessOf returns what a read asks for. later: it is a page of a list that is not the first.
func freshnessOf(c *history.Call) (fresh *apiv1.Freshness, later, isRead bool) {
	read, ok := c.Request.(interface{ GetFreshness() *apiv1.Freshness })
	if !ok {
		return nil, false, false
	}
	paged, ok := c.Request.(interface{ GetPageToken() string })
	return read.GetFreshness(), ok && paged.GetPageToken() != "", true
}

// modeOf is the mode that is asked for.
func modeOf(fresh *apiv1.Freshness) apiv1.Mode {
	return cmp.Or(fresh.GetMode(), apiv1.Mode_MODE_LINEARIZABLE)
}

func linearizable(c *history.Call) bool {
	fresh, later, isRead := freshnessOf(c)
	return isRead && !later && modeOf(fresh) == apiv1.Mode_MODE_LINEARIZABLE
}

// ackedBefore is the largest revision of a write that was acknowledged before t.
func (f *facts) ackedBefore(t time.Duration) uint64 {
	y, _ := f.acked.below(int64(t))
	return uint64(y)
}

// knownBefore is ackedBefore, and that of linearizable reads that were answered before t.
func (f *facts) knownBefore(t time.Duration) uint64 {
	y, _ := f.known.below(int64(t))
	return uint64(y)
}

// observedAt is when the revision, or a larger one, was first seen by anybody. It had come to be by then.
func (f *facts) observedAt(revision uint64) (time.Duration, bool) {
	y, ok := f.observed.below(-int64(revision) + 1)
	return time.Duration(-y), ok
}

// lastBelow is the last time at which the registry is known to have had a smaller revision.
func (f *facts) lastBelow(revision uint64) (time.Duration, bool) {
	y, ok := f.begun.below(int64(min(revision, maxRevision)))
	return time.Duration(y), ok
}

// mostAt is the largest revision that the registry can have had at t: that of any write begun after t is larger.
func (f *facts) mostAt(t time.Duration) uint64 {
	if y, ok := f.later.below(-int64(t)); ok {
		return uint64(-y) - 1
	}
	return f.run.Timeline.Final().Revision()
}

// maxRevision is above all revisions.
const maxRevision = 1 << 62

// point is a sample of a curve.
type point struct{ x, y int64 }

// curve answers how high the points to the left of a place reach.
type curve []point

func newCurve(points []point) curve {
	slices.SortFunc(points, func(a, b point) int { return cmp.Compare(a.x, b.x) })
	for i := 1; i < len(points); i++ {
		points[i].y = max(points[i].y, points[i-1].y)
	}
	return points
}

// below returns the largest y of the points with a smaller x.
func (c curve) below(x int64) (int64, bool) {
	i := sort.Search(len(c), func(i int) bool { return c[i].x >= x })
	if i == 0 {
		return 0, false
	}
	return c[i-1].y, true
}

// key names an instance.
type key struct{ namespace, service, id string }

func (k key) String() string { return k.namespace + "/" + k.service + "/" + k.id }

// named is whatever names an instance.
type named interface {
	GetNamespace() string
	GetService() string
	GetId() string
}

func keyOf(n named) key { return key{namespaceOf(n), n.GetService(), n.GetId()} }

func namespaceOf(n interface{ GetNamespace() string }) string {
	return cmp.Or(n.GetNamespace(), "default")
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.service, b.service), cmp.Compare(a.id, b.id))
}

func keyOfRecord(r *fsm.Record) key { return key{r.Namespace(), r.Service(), r.ID()} }

func keyOfEvent(e *fsm.Event) key {
	if e.New != nil {
		return keyOfRecord(e.New)
	}
	return keyOfRecord(e.Old)
}

// instance decodes a record.
func (f *facts) instance(r *fsm.Record) *registryv1.Instance {
	i := f.decoded[r]
	if i == nil {
		var err error
		if i, err = r.Proto(); err != nil {
			i = &registryv1.Instance{} // Equal to nothing that a client can have got.
		}
		f.decoded[r] = i
	}
	return i
}

// same tells whether a client got the instance as it is in the log.
func (f *facts) same(r *fsm.Record, got *registryv1.Instance) bool {
	var err error
	f.scratch, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(f.scratch[:0], got)
	if err == nil && bytes.Equal(f.scratch, r.Encoded()) {
		return true
	}
	return proto.Equal(f.instance(r), got) // The same, though encoded in another order.
}

// matches is the meaning of a filter, written from its description.
func (f *facts) matches(filter *apiv1.Filter, r *fsm.Record) bool {
	if r == nil {
		return false
	}
	i := f.instance(r)
	namespace := namespaceOf(filter)
	if namespace != "*" && namespace != i.GetNamespace() ||
		filter.GetService() != "" && filter.GetService() != i.GetService() ||
		filter.GetZone() != "" && filter.GetZone() != i.GetZone() ||
		i.GetHealth() < filter.GetMinHealth() {
		return false
	}
	for _, tag := range filter.GetTags() {
		if !slices.Contains(i.GetTags(), tag) {
			return false
		}
	}
	for name, value := range filter.GetMetadata() {
		if got, ok := i.GetMetadata()[name]; !ok || got != value {
			return false
		}
	}
	return true
}

// matching returns the instances that match, sorted by namespace, service and id.
func (f *facts) matching(filter *apiv1.Filter, st *fsm.State) []*fsm.Record {
	var records []*fsm.Record
	st.Services("", "", func(svc *fsm.Service) bool {
		if filter.GetService() == "" || filter.GetService() == svc.Name() {
			svc.Ascend("", func(r *fsm.Record) bool {
				if f.matches(filter, r) {
					records = append(records, r)
				}
				return true
			})
		}
		return true
	})
	return records
}

// upTo is the newest state that a reader can have seen and that is not above the revision.
func (f *facts) upTo(revision uint64) *fsm.State {
	steps := f.run.Timeline.Steps()
	after := sort.Search(len(steps), func(i int) bool { return steps[i].State.Revision() > revision })
	if after == 0 {
		return f.run.Timeline.AtIndex(0)
	}
	return steps[after-1].State
}

// next is the revision of the first state above the one given, maxRevision when there is none.
func (f *facts) next(revision uint64) uint64 {
	steps := f.run.Timeline.Steps()
	after := sort.Search(len(steps), func(i int) bool { return steps[i].State.Revision() > revision })
	if after == len(steps) {
		return maxRevision
	}
	return steps[after].State.Revision()
}

// record is an instance at a revision, also at one within an entry. Nil: it was not there.
func (f *facts) record(k key, revision uint64) *fsm.Record {
	st := f.upTo(revision)
	r := st.Instance(k.namespace, k.service, k.id)
	if st.Revision() == revision {
		return r
	}
	for _, e := range f.changes(st.Revision(), revision) {
		if keyOfEvent(&e) == k {
			r = e.New
		}
	}
	return r
}

// changes are the events of instances after the revision from, up to the revision to. They must not be modified.
func (f *facts) changes(from, to uint64) []fsm.Event {
	if f.from == from && f.to == to {
		return f.events
	}
	f.from, f.to = from, to
	f.events = slices.DeleteFunc(f.run.Timeline.Between(from, to), func(e fsm.Event) bool { return e.Kind != fsm.EventInstance })
	return f.events
}
