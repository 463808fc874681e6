package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"sync"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// defaultWatchBuffer is how many changes a watch holds for its reader before it keeps only the last of each instance.
const defaultWatchBuffer = 4096

// ChangeKind says what a Change is.
type ChangeKind int

const (
	// ChangePut says that the instance is now as given.
	ChangePut ChangeKind = iota + 1
	// ChangeDelete says that the instance is gone, or no longer matches the filter.
	ChangeDelete
	// ChangeSynced says that all changes up to the revision have been delivered: what the reader has now equals the
	// registry there. While the watch is served there is one every few seconds, also when nothing changes.
	ChangeSynced
	// ChangeStalled says that the watch is not served at present: what the reader has may grow old. It is delivered only if
	// WatchStalls asks for it, after all that was received before, and again after each try to change that which failed.
	// The next ChangeSynced says that all is well again.
	ChangeStalled
)

// Change is what a watch delivers.
type Change struct {
	// Kind of the change.
	Kind ChangeKind
	// Key of the instance. Set only in a ChangePut and a ChangeDelete.
	Key Key
	// Instance after a put, else nil. It is shared with other watches: do not modify it.
	Instance *registryv1.Instance
	// Revision of the change, or up to which all is synced. It never falls while the epoch stays. 0 in a ChangeStalled.
	Revision uint64
	// Cause of a change of an instance. CAUSE_UNSPECIFIED in the first state.
	Cause registryv1.Cause
	// Epoch, in a ChangeSynced: it grows when an operator restores a snapshot.
	Epoch uint64
	// Staleness, in a ChangeSynced: upper bound of the state's age when it was received, or UnknownStaleness.
	Staleness time.Duration
	// Received, in a ChangeSynced: when the node's word of it came, which may be long before the reader takes it.
	Received time.Time
	// Node, in a ChangeSynced: the name of the node that serves the watch.
	Node string
	// Fresh, in a ChangeSynced: the state holds every change that was acknowledged anywhere before the watch was made. It is
	// known only if WatchFresh asks for it.
	Fresh bool
	// Err, in a ChangeStalled: why.
	Err error
}

// ResumePoint is a place in the history of one cluster, from which a watch can go on at any node. It may be stored. The
// zero value is no place.
type ResumePoint struct {
	// ClusterID is the UUID of the cluster.
	ClusterID string `json:"cluster_id"`
	// Epoch of the registry.
	Epoch uint64 `json:"epoch"`
	// Revision up to which all is known.
	Revision uint64 `json:"revision"`
}

// proto returns the point as it travels, nil for none.
func (p ResumePoint) proto() *apiv1.ResumePoint {
	if p == (ResumePoint{}) {
		return nil
	}
	return &apiv1.ResumePoint{ClusterId: p.ClusterID, Epoch: p.Epoch, Revision: p.Revision}
}

// sameHistory tells whether revisions of two points can be compared.
func (p ResumePoint) sameHistory(q ResumePoint) bool {
	return p.ClusterID == q.ClusterID && p.Epoch == q.Epoch
}

// before tells whether a point of the same cluster is earlier than q.
func (p ResumePoint) before(q ResumePoint) bool {
	return p.ClusterID == q.ClusterID && (p.Epoch < q.Epoch || p.Epoch == q.Epoch && p.Revision < q.Revision)
}

// pointOf returns the point that a header describes.
func pointOf(h *apiv1.ResponseHeader) ResumePoint {
	return ResumePoint{ClusterID: h.GetClusterId(), Epoch: h.GetEpoch(), Revision: h.GetRevision()}
}

// watchOptions is what the options made.
type watchOptions struct {
	buffer int
	point  ResumePoint
	known  []*registryv1.Instance
	stalls bool
	fresh  bool
	says   bool
}

// WatchOption changes how a watch is done.
type WatchOption func(*watchOptions) error

// WatchBuffer sets how many changes are held for a slow reader, at least 1; beyond that only the last change of each
// instance is. Default: 4,096.
func WatchBuffer(changes int) WatchOption {
	return func(o *watchOptions) error {
		if changes < 1 {
			return fmt.Errorf("watch buffer %d: need at least 1", changes)
		}
		o.buffer = changes
		return nil
	}
}

// WatchFrom goes on after a stored point instead of starting with all matching instances. known must be all instances that
// the reader had there, by the same filter: when the history since then is gone, they are what the difference is made
// against.
func WatchFrom(point ResumePoint, known []*registryv1.Instance) WatchOption {
	return func(o *watchOptions) error {
		if point.ClusterID == "" || point.Revision == 0 {
			return errors.New("resume point: no cluster or revision in it")
		}
		o.point, o.known = point, known
		return nil
	}
}

// WatchStalls has a ChangeStalled delivered when the watch is no longer served, as when no node can be reached.
func WatchStalls() WatchOption {
	return func(o *watchOptions) error {
		o.stalls = true
		return nil
	}
}

// WatchFresh has the first state hold every change that was acknowledged anywhere before Watch was called, as a linearizable
// read does: without it that of a node that lags may lack them. While there is no leader who could tell, the state is what
// a node has, after some seconds; it may be old, and Change.Fresh says so until it is known not to be.
func WatchFresh() WatchOption {
	return func(o *watchOptions) error {
		o.fresh = true
		return nil
	}
}

// WatchAccepts leaves it to the reader to say when it knows what was delivered: by Watch.Accepter, and not by asking for the next
// change. It is for who passes changes on, and goes on reading while others take them in. A reader that never says so is waited
// for by all who leave, each for as long as it has.
func WatchAccepts() WatchOption {
	return func(o *watchOptions) error {
		o.says = true
		return nil
	}
}

// Watch delivers the instances that match a filter and then every change, in the order of revisions, without gap or
// repeat, whatever becomes of connections and nodes. Where history was lost on the way, it delivers what has changed,
// deletions included. It is read by one goroutine at a time.
//
// Who deregisters an instance may wait until all who watch it know (Registration.Leave). A change counts as known here once
// its reader has asked for the next one: finish what a change is to bring about before that. With WatchAccepts the reader says
// so itself.
type Watch struct {
	hub    *hub
	id     uint32
	filter *apiv1.Filter
	unbind func() bool   // from the context that it was made with
	wake   chan struct{} // has one place, filled when there is something to read
	stalls bool          // the reader wants to be told
	verify bool          // the reader wants to know whether the state is fresh
	says   bool          // the reader says itself what it knows

	mu        sync.Mutex // guards the fields below
	view      map[Key]uint64
	point     ResumePoint // up to which the view is whole
	synced    bool        // the point is one, and the view belongs to it
	live      bool        // the stream has taken the subscription up
	fresh     bool        // the view has all that was acknowledged before the watch was made
	floor     uint64      // what the stream had announced before that
	cut       *cutParts   // what has come of a cut that is not synced yet
	queue     queue
	unmarked  bool // the queue does not end with a ChangeSynced
	delivered ResumePoint
	handled   uint64       // number of the last entry after which the reader came back
	awaited   []acceptance // by number
	err       error        // why there will be no more
	trouble   error        // why there is nothing now
	told      bool         // the reader knows the trouble
}

// Watch starts a watch. It needs no node for that: the first state comes as soon as one answers. All watches of a client
// share one stream. The watch ends with ctx, with its Close and with the client's.
func (c *Client) Watch(ctx context.Context, filter Filter, opts ...WatchOption) (*Watch, error) {
	o := watchOptions{buffer: defaultWatchBuffer}
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(&o))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	w := &Watch{
		hub: c.hub, filter: filter.proto(c.cfg.namespace),
		wake: make(chan struct{}, 1), stalls: o.stalls, verify: o.fresh, says: o.says, view: make(map[Key]uint64, len(o.known)),
		point: o.point, delivered: o.point, synced: o.point != (ResumePoint{}),
		queue: queue{limit: o.buffer},
	}
	for _, i := range o.known {
		w.view[keyOf(i).in(c.cfg.namespace)] = i.GetModifyRevision()
	}
	if !c.hub.add(w) {
		return nil, fmt.Errorf("watch: %w", ErrClosed)
	}
	w.unbind = context.AfterFunc(ctx, func() { w.end(context.Cause(ctx)) })
	return w, nil
}

// Next returns the next change. It blocks until there is one, ctx ends, or the watch has ended: with the error of the
// watch's context, ErrClosed, or what the registry refused it for. What was received before the end is delivered first.
// When ctx ends while no node can be reached, the error tells why.
func (w *Watch) Next(ctx context.Context) (Change, error) {
	for {
		change, ok, err := w.take()
		if ok || err != nil {
			return change, err
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			err := fmt.Errorf("watch: %w", context.Cause(ctx))
			if trouble := w.unwell(); trouble != nil {
				err = fmt.Errorf("%w: %w", err, trouble)
			}
			return Change{}, err
		}
	}
}

// All yields changes until ctx or the watch ends; the last pair has the error that Next returned.
func (w *Watch) All(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for {
			change, err := w.Next(ctx)
			if !yield(change, err) || err != nil {
				return
			}
		}
	}
}

// ResumePoint returns the place up to which everything has been delivered: that of the last ChangeSynced.
func (w *Watch) ResumePoint() ResumePoint {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.delivered
}

// Accepter returns a function by which the reader says that it knows all that has been delivered so far, for WatchAccepts. It may
// be called later, or never, from any goroutine, and does not block. It stands for those before it.
func (w *Watch) Accepter() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	number := w.queue.popped
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.accept(number)
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.unbind()
	w.end(ErrClosed)
}

// end ends the watch with an error. Only the first one counts.
func (w *Watch) end(err error) {
	w.hub.remove(w)
	w.fail(err)
}

// fail notes why there will be no more.
func (w *Watch) fail(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = fmt.Errorf("watch: %w", err)
	}
	w.accept(math.MaxUint64) // Nobody needs to know any more.
	w.mu.Unlock()
	w.signal()
}

// take returns the next change if there is one.
func (w *Watch) take() (Change, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.says {
		w.accept(w.queue.popped)
	}
	entry, ok := w.queue.pop()
	switch {
	case !ok && w.err != nil:
		return Change{}, false, w.err
	case !ok && w.stalls && w.trouble != nil && !w.told:
		w.told = true
		return Change{Kind: ChangeStalled, Err: w.trouble}, true, nil
	case !ok:
		return Change{}, false, nil
	}
	if entry.change.Kind == ChangeSynced {
		w.delivered = entry.point
	}
	return entry.change, true, nil
}

// unwell returns why nothing comes.
func (w *Watch) unwell() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trouble
}

// signal wakes the reader.
func (w *Watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
