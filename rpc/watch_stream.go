package rpc

import (
	"context"
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// watchStream is one stream: its subscriptions, and the one watcher of the feed that they share. One goroutine runs it
// and calls all its methods.
//
// Invariant: a client with a Synced has every matching change up to the larger of that revision and the last one that
// an Events or Progress named; each change was told once.
type watchStream struct {
	core     *core
	stream   grpc.ServerStream
	requests <-chan watchRequest
	watcher  *feed.Watcher

	subs subscriptions
	// delivered: nothing up to here is missing that was sent as events or resyncs.
	delivered uint64
	// synced is the largest revision of a Synced.
	synced uint64
	batch  eventBatch

	// awaited are the revisions for which somebody waits, reached gives a token when one may be there. Both are nil while
	// there never was one.
	awaited map[uint64]struct{}
	reached chan struct{}

	interval time.Duration // of progress marks
	progress *time.Timer
	lastSent time.Time

	sending *time.Timer   // runs while a send does
	stuck   chan struct{} // gives a token when sending has run out
	unpaced int           // bytes of cuts since the last pause
}

func newWatchStream(c *core, stream grpc.ServerStream, requests <-chan watchRequest) *watchStream {
	w := &watchStream{
		core:     c,
		stream:   stream,
		requests: requests,
		watcher:  c.node.Feed().Watch(),
		interval: DefaultProgressInterval,
		progress: time.NewTimer(DefaultProgressInterval),
		lastSent: time.Now(),
		stuck:    make(chan struct{}, 1),
	}
	w.sending = time.AfterFunc(stuckAfter, func() { leaveToken(w.stuck) })
	w.sending.Stop()
	return w
}

// leaveToken puts a token into a channel of capacity 1.
func leaveToken(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// run serves the stream until ctx or the stream ends, or there is nothing left to serve.
func (w *watchStream) run(ctx context.Context) error {
	defer w.watcher.Close()
	defer w.progress.Stop()
	defer w.sending.Stop()
	leaving := w.core.leaving
	var end <-chan time.Time
	for w.requests != nil || len(w.subs.byID) > 0 {
		var err error
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case r, ok := <-w.requests:
			if !ok {
				w.requests = nil
				break
			}
			err = w.handle(ctx, r)
		case <-w.watcher.Ready():
			err = w.deliver(ctx)
		case <-w.reached:
			err = w.beginAwaited(ctx)
		case <-w.progress.C:
			err = w.showProgress(ctx)
		case <-leaving:
			leaving, end = nil, time.After(leavingGrace)
			err = w.sendMessage(ctx, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_GoElsewhere{
				GoElsewhere: &apiv1.GoElsewhere{Leader: w.core.node.Info().LeaderAddress},
			}})
		case <-end:
			err = explain(cluster.ErrClosed, "watch")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// view is the current State and how old it is.
func (w *watchStream) view(ctx context.Context) (cluster.View, error) {
	v, err := w.core.node.View(ctx, cluster.Freshness{Mode: cluster.ModeStale})
	return v, explain(err, "watch")
}

// header is the header of a message that says something up to the revision, which is not above the view's.
func (w *watchStream) header(v cluster.View, revision uint64) *apiv1.ResponseHeader {
	h := w.core.readHeader(v)
	if revision != h.GetRevision() {
		h.Revision, h.Staleness = revision, nil // Its age is that of the next revision, which is not known.
	}
	return h
}

// deliver sends what the watcher has.
func (w *watchStream) deliver(ctx context.Context) error {
	t := w.watcher.Take()
	if t.Closed {
		return explain(cluster.ErrClosed, "watch")
	}
	if t.Resync != nil {
		if err := w.resync(ctx, t.Resync); err != nil {
			return err
		}
	}
	if err := w.sendEvents(ctx, t.Events, t.Revision, nil); err != nil {
		return err
	}
	w.delivered = t.Revision
	return nil
}

// resync brings the subscriptions that it concerns to the State that it comes with.
func (w *watchStream) resync(ctx context.Context, r *feed.Resync) error {
	v, err := w.view(ctx)
	if err != nil {
		return err
	}
	if v.State != r.State {
		v = cluster.View{State: r.State, Mode: v.Mode, Staleness: -1}
	}
	for _, sub := range w.before(r.Revision) {
		keys, concerned := r.For(sub.filter.topic(), max(sub.from, w.delivered))
		switch {
		case !concerned:
		case r.Full:
			err = w.cutFull(ctx, sub, v, cutReason(r.Reason))
		default:
			err = w.cutKeys(ctx, sub, v, keys, cutReason(r.Reason))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// before returns the subscriptions that are told of changes and have not everything up to the revision, by id.
func (w *watchStream) before(revision uint64) []*subscription {
	var subs []*subscription
	for _, sub := range w.subs.byID {
		if sub.routed && sub.from < revision {
			subs = append(subs, sub)
		}
	}
	return subs
}

func cutReason(r feed.Reason) apiv1.CutReason {
	switch r {
	case feed.ReasonRestored:
		return apiv1.CutReason_CUT_REASON_RESTORED
	case feed.ReasonSkipped:
		return apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED
	default:
		return apiv1.CutReason_CUT_REASON_SLOW_READER
	}
}

// showProgress sends a progress mark if the client has heard nothing for its interval.
func (w *watchStream) showProgress(ctx context.Context) error {
	w.interval = w.leastInterval()
	if left := time.Until(w.lastSent.Add(w.interval)); left > 0 {
		w.progress.Reset(left)
		return nil
	}
	w.progress.Reset(w.interval)
	v, err := w.view(ctx)
	if err != nil {
		return err
	}
	before := w.lastSent
	if err := w.deliver(ctx); err != nil || w.lastSent != before {
		return err
	}
	revision := min(w.delivered, v.State.Revision())
	if revision < w.synced {
		w.progress.Reset(time.Millisecond) // The feed is about to deliver up to there.
		return nil
	}
	return w.sendMessage(ctx, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Progress{
		Progress: &apiv1.Progress{Header: w.header(v, revision)},
	}})
}

func (w *watchStream) leastInterval() time.Duration {
	if len(w.subs.byID) == 0 {
		return DefaultProgressInterval
	}
	least := time.Duration(math.MaxInt64)
	for _, sub := range w.subs.byID {
		least = min(least, sub.interval)
	}
	return least
}

// sendMessage encodes and sends one of the small messages. WatchResponse and WatchServiceResponse have equal encodings.
func (w *watchStream) sendMessage(ctx context.Context, m *apiv1.WatchResponse) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode watch message: %w", err)
	}
	return w.send(ctx, newEncoded(len(b), func(dst []byte) []byte { return append(dst, b...) }))
}

// send sends a message. It blocks while the client does not read; see core.watch.
func (w *watchStream) send(ctx context.Context, m *encoded) error {
	if err := ctx.Err(); err != nil {
		return err // The handler may have returned: nothing may be sent any more.
	}
	w.sending.Reset(stuckAfter)
	err := w.stream.SendMsg(m)
	w.sending.Stop()
	w.core.watchMessages.Add(1)
	w.lastSent = time.Now()
	return err
}

// route has the subscription told of changes: those after the revision that it returns. The caller brings it to a
// revision first.
func (w *watchStream) route(sub *subscription) uint64 {
	w.subs.route(sub)
	return w.watcher.Add(sub.filter.topic())
}

// unroute is the opposite of route.
func (w *watchStream) unroute(sub *subscription) {
	if !sub.routed {
		return
	}
	w.subs.unroute(sub)
	if topic := sub.filter.topic(); len(w.subs.of(topic)) == 0 {
		w.watcher.Remove(topic)
	}
}

// routesOf calls fn for the subscriptions that a change of the service can concern.
func (w *watchStream) routesOf(namespace, service string, fn func(*subscription)) {
	for _, topic := range [...]feed.Topic{
		{Kind: fsm.EventInstance, Namespace: namespace, Name: service},
		{Kind: fsm.EventInstance, Namespace: namespace},
		{Kind: fsm.EventInstance, Namespace: feed.AnyNamespace},
		{Kind: fsm.EventInstance, Namespace: feed.AnyNamespace, Name: service},
	} {
		for _, sub := range w.subs.of(topic) {
			fn(sub)
		}
	}
}
