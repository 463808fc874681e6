package rpc

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// watchStream is one stream: its subscriptions, and the one watcher of the feed that they share. One worker at a time calls
// its methods.
//
// Invariant: a client with a Synced has every matching change up to the larger of that revision and the last one that
// an Events or Progress named; each change was told once.
type watchStream struct {
	core     *core
	stream   grpc.ServerStream
	job      job
	decode   requestDecoder
	requests <-chan watchRequest // nil when no more can come
	ended    chan error          // has what the handler is to return

	watcher *feed.Watcher
	subs    subscriptions
	// delivered: nothing up to here is missing that was sent as events or resyncs.
	delivered uint64
	// synced is the largest revision of a Synced.
	synced uint64
	batch  eventBatch
	marks  marks // guarded by core.deliveries

	// waiting are subscriptions that have not begun. stopWaiting, unless nil, ends the wait for the least revision of them.
	waiting     []awaited
	waitingFor  uint64
	stopWaiting context.CancelFunc

	unproven *unproven // nil until somebody asks for a linearizable state

	interval time.Duration // of progress marks
	progress *time.Timer
	grace    *time.Timer // runs once the client was told to go elsewhere
	lastSent time.Time

	sending atomic.Int64 // when the send under way began, by Unix nanoseconds; sendIdle or sendForbidden
	unpaced int          // bytes of cuts since the last pause
}

// Values of watchStream.sending that are no time.
const (
	sendIdle      = 0
	sendForbidden = -1 // The handler has returned, or is about to.
)

// News of a stream, in the order in which they are looked after.
const (
	newsGone uint32 = 1 << iota // its client, or the connection
	newsBegun
	newsAsked    // there are requests
	newsEvents   // the watcher has something
	newsDue      // somebody waits until it is told
	newsAccess   // who may see what has changed
	newsReached  // an awaited revision
	newsProved   // whether the state is linearizable
	newsProgress // a mark may be due
	newsLeaving  // the node leaves
	newsLeft     // and the client has had time to do so
)

// wake has a worker look after the news.
func (w *watchStream) wake(news uint32) { w.core.workers.wake(&w.job, news) }

// do serves the stream until it ends, or there is nothing left to serve.
func (w *watchStream) do(news uint32) {
	err := w.react(news)
	if err == nil && (w.requests != nil || len(w.subs.byID) > 0) {
		return
	}
	w.job.end()
	for _, sub := range w.subs.byID {
		w.core.quotas.unwatch(sub.filter.namespace)
	}
	if w.watcher != nil {
		w.core.deliveries.remove(w)
		w.watcher.Close()
		w.progress.Stop()
	}
	if w.grace != nil {
		w.grace.Stop()
	}
	w.finish(err)
}

// finish has the handler return.
func (w *watchStream) finish(err error) {
	select {
	case w.ended <- err:
	default: // It has: this send was stuck.
	}
}

func (w *watchStream) react(news uint32) (err error) {
	ctx := w.stream.Context()
	for news != 0 && err == nil {
		first := news & -news
		news &^= first
		switch first {
		case newsGone:
			err = ctx.Err()
		case newsBegun:
			err = w.start()
		case newsAsked:
			err = w.answer(ctx)
		case newsEvents:
			err = w.deliver(ctx)
		case newsDue:
			err = w.tellDue(ctx)
		case newsAccess:
			err = w.recheck(ctx)
		case newsReached:
			err = w.beginAwaited(ctx)
		case newsProved:
			err = w.takeProof(ctx)
		case newsProgress:
			err = w.showProgress(ctx)
		case newsLeaving:
			err = w.leave(ctx)
		case newsLeft:
			err = explain(cluster.ErrClosed, "watch")
		}
	}
	return err
}

// start is the first that is done.
func (w *watchStream) start() error {
	// So that the client knows that it is connected, before there is anything to say.
	if err := w.stream.SendHeader(nil); err != nil {
		return err
	}
	w.watcher = w.core.node.Feed().WatchFunc(func() { w.wake(newsEvents) })
	w.core.deliveries.add(w)
	w.interval = DefaultProgressInterval
	w.progress = time.AfterFunc(w.interval, func() { w.wake(newsProgress) })
	w.lastSent = time.Now()
	return nil
}

// leave tells the client to go elsewhere.
func (w *watchStream) leave(ctx context.Context) error {
	w.grace = time.AfterFunc(leavingGrace, func() { w.wake(newsLeft) })
	return w.sendMessage(ctx, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_GoElsewhere{
		GoElsewhere: &apiv1.GoElsewhere{Leader: w.core.node.Info().LeaderAddress},
	}})
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
	if err = w.core.known(ctx); err != nil {
		return err // Nobody is told when a token expires.
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

// send sends a message. It blocks while the client does not read; see heldUp.
func (w *watchStream) send(ctx context.Context, m *encoded) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	began := time.Now().UnixNano()
	if !w.sending.CompareAndSwap(sendIdle, began) {
		return errStuck()
	}
	err := w.stream.SendMsg(m)
	if !w.sending.CompareAndSwap(began, sendIdle) {
		return errStuck()
	}
	w.core.watchMessages.Add(1)
	w.lastSent = time.Now()
	return err
}

// heldUp ends a stream of which a send takes too long: the handler returns, and then the send does.
func (w *watchStream) heldUp() time.Duration {
	began := w.sending.Load()
	if began == sendIdle || began == sendForbidden {
		return stuckAfter
	}
	if left := stuckAfter - time.Since(time.Unix(0, began)); left > 0 {
		return left
	}
	if w.sending.CompareAndSwap(began, sendForbidden) {
		w.finish(errStuck())
	}
	return stuckAfter
}

func errStuck() error {
	return explain(fmt.Errorf("%w: its client has not read for %v", ErrOverloaded, stuckAfter), "send to watch")
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
