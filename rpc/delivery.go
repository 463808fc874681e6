package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// How a delivery is awaited.
//
// The node that is asked asks all members, itself among them. Each waits until its feed has handed the revision to all
// watchers, then notes the delivery with every stream that hears of the service, and wakes it. A stream that delivers after
// that has told all up to the revision. Where a subscription acknowledges, it sends a marker behind that, for the answer
// to which the delivery waits too.
//
// A stream that is stuck does not run, so its delivery stays open and it is told as lagging; one that ends settles what
// it owes.

// AwaitDelivery tells who was told at all nodes.
func (s *registryServer) AwaitDelivery(
	ctx context.Context, req *apiv1.AwaitDeliveryRequest,
) (*apiv1.AwaitDeliveryResponse, error) {
	var f faults
	wanted := &peerv1.AwaitDeliveryRequest{
		Namespace: f.namespace("namespace", req.GetNamespace()), Service: req.GetService(), Revision: req.GetRevision(),
	}
	f.service(req.GetService())
	if req.GetRevision() == 0 {
		f.add("revision", "is required")
	}
	err := f.err()
	if err == nil {
		err = s.admission.enter(classDeregister)
	}
	if err != nil {
		return nil, err
	}
	s.admission.leave() // To wait is no work.
	nodes, err := s.deliveredAtAll(ctx, wanted)
	if err != nil {
		return nil, explain(err, "await delivery", "namespace", wanted.GetNamespace(), "service", wanted.GetService())
	}
	complete := !slices.ContainsFunc(nodes, func(n *apiv1.NodeDelivery) bool { return n.GetProblem() != "" || n.GetLagging() > 0 })
	header := s.writeHeader(s.node.Feed().State().Revision())
	return &apiv1.AwaitDeliveryResponse{Header: header, Complete: complete, Nodes: nodes}, nil
}

// deliveredAtAll asks all nodes, and ends in time for an answer.
func (c *core) deliveredAtAll(ctx context.Context, req *peerv1.AwaitDeliveryRequest) ([]*apiv1.NodeDelivery, error) {
	asking, cancel := endEarly(ctx)
	defer cancel()
	nodes := c.node.AwaitDelivery(asking, req)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return nodes, nil
}

// endEarly ends a moment before the deadline, so that an answer still arrives.
func endEarly(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-min(deliveryMargin, time.Until(end)/2)))
}

// delivered tells who was told at this node, once all are or ctx is about to end.
func (c *core) delivered(ctx context.Context, req *peerv1.AwaitDeliveryRequest) (*apiv1.NodeDelivery, error) {
	ctx, cancel := endEarly(ctx)
	defer cancel()
	if err := c.deliveries.enter(); err != nil {
		return nil, err
	}
	defer c.deliveries.leave()
	f := c.node.Feed()
	err := f.WaitQueued(ctx, req.GetRevision())
	switch {
	case errors.Is(err, feed.ErrClosed):
		return nil, cluster.ErrClosed
	case err != nil:
		at := f.Queued()
		return &apiv1.NodeDelivery{
			Revision: at, Problem: fmt.Sprintf("it has come to revision %d, and not to %d", at, req.GetRevision()),
		}, nil
	}
	d := c.deliveries.begin(f, req.GetNamespace(), req.GetService())
	select {
	case <-d.done:
	case <-ctx.Done():
	}
	return c.deliveries.end(d, f.Queued()), nil //nolint:contextcheck // Streams have contexts of their own.
}

// deliveries are the waits for delivery at this node, and the streams that may be concerned.
type deliveries struct {
	mu      sync.Mutex // guards all below, the marks of each stream and each delivery
	streams map[*feed.Watcher]*watchStream
	waits   int
}

// delivery is one wait: what has become of the streams that are concerned.
type delivery struct {
	namespace, service                string
	open                              map[*watchStream]bool // whether it was told
	streams, acknowledged, sent, gone uint32
	done                              chan struct{} // closed once none is open
}

// marks are what a stream owes to deliveries.
type marks struct {
	due    []*delivery          // that it has not told yet
	owed   map[uint64]*delivery // by the markers that wait for an answer
	number uint64               // of the last marker
}

// enter counts a wait in.
func (x *deliveries) enter() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waits == maxDeliveries {
		return fmt.Errorf("%w: %d deliveries are waited for", ErrOverloaded, maxDeliveries)
	}
	x.waits++
	return nil
}

func (x *deliveries) leave() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.waits--
}

// add takes a stream up.
func (x *deliveries) add(w *watchStream) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.streams == nil {
		x.streams = make(map[*feed.Watcher]*watchStream)
	}
	x.streams[w.watcher] = w
}

// remove lets a stream go that has ended.
func (x *deliveries) remove(w *watchStream) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.streams, w.watcher)
	for _, d := range w.marks.due {
		d.settle(w, &d.gone)
	}
	for _, d := range w.marks.owed {
		d.settle(w, &d.gone)
	}
	w.marks = marks{}
}

// all returns all streams.
func (x *deliveries) all() []*watchStream {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Collect(maps.Values(x.streams))
}

// begin has all streams that hear of the service tell what they have. The feed has handed it to them.
func (x *deliveries) begin(f *feed.Feed, namespace, service string) *delivery {
	d := &delivery{namespace: namespace, service: service, open: make(map[*watchStream]bool), done: make(chan struct{})}
	watchers := f.Watchers(feed.Topic{Kind: fsm.EventInstance, Namespace: namespace, Name: service})
	x.mu.Lock()
	for _, watcher := range watchers {
		if w := x.streams[watcher]; w != nil {
			d.open[w] = false
			w.marks.due = append(w.marks.due, d)
		}
	}
	concerned := make([]*watchStream, 0, len(d.open))
	for w := range d.open {
		concerned = append(concerned, w)
	}
	d.streams = uint32(len(concerned)) //nolint:gosec // The number of streams is bounded.
	if len(concerned) == 0 {
		close(d.done)
	}
	x.mu.Unlock()
	for _, w := range concerned {
		w.wake(newsDue)
	}
	return d
}

// end tells what has become of a delivery, and has the streams forget it.
func (x *deliveries) end(d *delivery, revision uint64) *apiv1.NodeDelivery {
	x.mu.Lock()
	defer x.mu.Unlock()
	told := &apiv1.NodeDelivery{
		Revision: revision, Streams: d.streams, Acknowledged: d.acknowledged, Sent: d.sent, Ended: d.gone,
		Lagging: uint32(len(d.open)), //nolint:gosec // The number of streams is bounded.
	}
	for w, sent := range d.open {
		if len(told.GetLaggards()) < maxLaggards {
			told.Laggards = append(told.Laggards, &apiv1.LaggingStream{Client: w.client(), Sent: sent})
		}
		w.marks.due = slices.DeleteFunc(w.marks.due, func(other *delivery) bool { return other == d })
		for number, other := range w.marks.owed {
			if other == d {
				delete(w.marks.owed, number)
			}
		}
	}
	d.open = nil
	return told
}

// take returns what the stream has to tell.
func (x *deliveries) take(w *watchStream) []*delivery {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(w.marks.due)
}

// told notes that the stream has told what it had to. It returns the number of a marker if an answer is waited for.
func (x *deliveries) told(w *watchStream, d *delivery, concerned, acknowledges bool) (marker uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := &w.marks
	i := slices.Index(m.due, d)
	if i < 0 {
		return 0 // Nobody waits for it any more.
	}
	m.due = slices.Delete(m.due, i, i+1)
	switch {
	case !concerned:
		d.settle(w, &d.gone)
	case !acknowledges:
		d.settle(w, &d.sent)
	default:
		if m.owed == nil {
			m.owed = make(map[uint64]*delivery)
		}
		m.number++
		marker = m.number
		m.owed[marker] = d
		d.open[w] = true
	}
	return marker
}

// acknowledge takes the answer to a marker.
func (x *deliveries) acknowledge(w *watchStream, marker uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d := w.marks.owed[marker]; d != nil {
		delete(w.marks.owed, marker)
		d.settle(w, &d.acknowledged)
	}
}

// settle counts a stream that is no longer waited for. deliveries.mu is held.
func (d *delivery) settle(w *watchStream, count *uint32) {
	if _, open := d.open[w]; !open {
		return
	}
	delete(d.open, w)
	*count++
	if len(d.open) == 0 {
		close(d.done)
	}
}

// tellDue tells what deliveries wait for. They began when the watcher had it.
func (w *watchStream) tellDue(ctx context.Context) error {
	due := w.core.deliveries.take(w)
	if len(due) == 0 {
		return nil
	}
	if err := w.deliver(ctx); err != nil {
		return err
	}
	for _, d := range due {
		var ids []uint32
		concerned := false
		w.routesOf(d.namespace, d.service, func(sub *subscription) {
			concerned = true
			if sub.acknowledges {
				ids = append(ids, sub.id)
			}
		})
		number := w.core.deliveries.told(w, d, concerned, len(ids) > 0)
		if number == 0 {
			continue
		}
		marker := &apiv1.Marker{Number: number, SubscriptionIds: ids}
		if err := w.sendMessage(ctx, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Marker{Marker: marker}}); err != nil {
			return err
		}
	}
	return nil
}

// client is where the stream's client is.
func (w *watchStream) client() string {
	if p, ok := peer.FromContext(w.stream.Context()); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
