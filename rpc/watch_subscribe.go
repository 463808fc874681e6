package rpc

import (
	"context"
	"fmt"
	"slices"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// answer does what the client asks for. An error ends the stream: the client broke the protocol.
func (w *watchStream) answer(ctx context.Context) error {
	for range watchRequests { // Others have their turn, too.
		select {
		case r, ok := <-w.requests:
			if !ok {
				w.requests = nil
				return nil
			}
			if err := w.handle(ctx, r); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	w.wake(newsAsked)
	return nil
}

func (w *watchStream) handle(ctx context.Context, r watchRequest) error {
	if r.err != nil {
		return r.err
	}
	req, err := w.decode(r.data)
	if err != nil {
		return err
	}
	switch action := req.GetAction().(type) {
	case *apiv1.WatchRequest_Subscribe:
		return w.subscribe(ctx, action.Subscribe)
	case *apiv1.WatchRequest_Unsubscribe:
		return w.unsubscribe(ctx, action.Unsubscribe.GetSubscriptionId())
	case *apiv1.WatchRequest_Acknowledge:
		w.core.deliveries.acknowledge(w, action.Acknowledge.GetNumber())
		return nil
	default:
		return invalid("action", "is required")
	}
}

// subscribe starts a subscription, or tells the client why not.
func (w *watchStream) subscribe(ctx context.Context, req *apiv1.Subscribe) error {
	id := req.GetSubscriptionId()
	if id == 0 {
		return invalid("subscribe.subscription_id", "must be at least 1")
	}
	if w.subs.get(id) != nil {
		return invalid("subscribe.subscription_id", "%d is open already", id)
	}
	sub, err := newSubscription(req)
	if err == nil {
		err = w.allow(ctx, sub)
	}
	if err == nil && len(w.subs.byID) == MaxSubscriptions {
		err = fmt.Errorf("%w: %d subscriptions are open on this stream", fsm.ErrLimit, MaxSubscriptions)
	}
	if err == nil {
		err = w.core.quotas.watch(w.core.node.Feed().State(), sub.filter.namespace)
	}
	if err != nil {
		fault, _ := faultOf(Faults(), err)
		return w.sendEnded(ctx, id, reasonName(fault.Reason), err.Error())
	}
	w.subs.add(sub)
	if sub.interval < w.interval {
		w.interval = sub.interval
		w.progress.Reset(w.interval)
	}
	a := awaited{sub, req.GetResume()}
	if req.GetLinearizable() {
		return w.claim(ctx, a)
	}
	return w.begin(ctx, a)
}

func newSubscription(req *apiv1.Subscribe) (*subscription, error) {
	var f faults
	sub := &subscription{
		id: req.GetSubscriptionId(), acknowledges: req.GetAcknowledges(),
		filter: compileFilter(f.filter(req.GetFilter())),
		interval: f.duration("progress_interval", req.GetProgressInterval(), span{
			least: MinProgressInterval, most: MaxProgressInterval, byDefault: DefaultProgressInterval,
		}),
	}
	return sub, f.err()
}

// unsubscribe ends a subscription. One that is not open has just been ended by the server, or never began: the client
// hears the same.
func (w *watchStream) unsubscribe(ctx context.Context, id uint32) error {
	if sub := w.subs.get(id); sub != nil {
		w.drop(sub)
	}
	return w.sendEnded(ctx, id, "", "")
}

// drop forgets a subscription.
func (w *watchStream) drop(sub *subscription) {
	w.unroute(sub)
	w.subs.remove(sub)
	w.core.quotas.unwatch(sub.filter.namespace)
	w.waiting = slices.DeleteFunc(w.waiting, func(a awaited) bool { return a.sub == sub })
	w.disclaim(sub)
}

func (w *watchStream) sendEnded(ctx context.Context, id uint32, reason, message string) error {
	return w.sendMessage(ctx, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Ended{
		Ended: &apiv1.SubscriptionEnded{SubscriptionId: id, Reason: reason, Message: message},
	}})
}

// begin brings a subscription to its first Synced, or has it wait for the revision that it resumes after. It starts with a
// full cut if it resumes nowhere.
func (w *watchStream) begin(ctx context.Context, a awaited) error {
	if w.ahead(a.resume) {
		w.await(ctx, a)
		return nil
	}
	sub := a.sub
	upTo := w.route(sub)
	reason, err := w.catchUp(ctx, sub, a.resume, upTo)
	if err != nil {
		return err
	}
	v, err := w.viewOf(ctx, sub)
	if err != nil {
		return err
	}
	if reason == apiv1.CutReason_CUT_REASON_UNSPECIFIED {
		return w.sendSynced(ctx, sub, v, sub.from)
	}
	return w.cutFull(ctx, sub, v, reason)
}

// catchUp sends what happened after the resume point, up to the revision after which the subscription is routed. Where
// that is not possible it returns the reason for a full cut.
func (w *watchStream) catchUp(
	ctx context.Context, sub *subscription, resume *apiv1.ResumePoint, upTo uint64,
) (apiv1.CutReason, error) {
	const caughtUp = apiv1.CutReason_CUT_REASON_UNSPECIFIED
	f := w.core.node.Feed()
	switch {
	case resume == nil:
		return apiv1.CutReason_CUT_REASON_INITIAL, nil
	case resume.GetClusterId() != w.core.node.Info().ClusterID:
		return apiv1.CutReason_CUT_REASON_HISTORY_GONE, nil
	}
	// The others first: then they have everything up to the revisions that the messages below name. What this one is not
	// given with them is in the history.
	if err := w.deliver(ctx); err != nil {
		return caughtUp, err
	}
	upTo = max(upTo, w.delivered)
	for after := resume.GetRevision(); ; {
		// First: the history is that of the epoch before for a moment after a restore.
		if f.State().Epoch() != resume.GetEpoch() {
			return apiv1.CutReason_CUT_REASON_RESTORED, nil
		}
		span, kept := f.Since(sub.filter.topic(), resume.GetEpoch(), after, upTo, catchUpEvents)
		if !kept {
			return apiv1.CutReason_CUT_REASON_HISTORY_GONE, nil
		}
		if err := w.sendEvents(ctx, span.Events, span.Revision, sub); err != nil {
			return caughtUp, err
		}
		after = span.Revision
		if after >= upTo {
			sub.from = after
			return caughtUp, nil
		}
	}
}

// ahead tells whether the client has seen more than watchers of this node have: it was connected to one that is further.
// What it would get now it has already, and if the node installs a snapshot it would get too little: what differs from
// where the node was, not from where the client is.
func (w *watchStream) ahead(resume *apiv1.ResumePoint) bool {
	f := w.core.node.Feed()
	return resume.GetRevision() > f.Queued() && resume.GetEpoch() >= f.State().Epoch() &&
		resume.GetClusterId() == w.core.node.Info().ClusterID
}

// awaited is a subscription that has not begun, and after what it resumes. nil: nothing.
type awaited struct {
	sub    *subscription
	resume *apiv1.ResumePoint
}

// await has beginAwaited called when the revision is reached.
func (w *watchStream) await(ctx context.Context, a awaited) {
	w.waiting = append(w.waiting, a)
	revision := a.resume.GetRevision()
	if w.stopWaiting != nil {
		if w.waitingFor <= revision {
			return // It will be seen then that this one has to wait on.
		}
		w.stopWaiting()
	}
	ctx, stop := context.WithCancel(ctx)
	w.waitingFor, w.stopWaiting = revision, stop
	w.core.tasks.Go(func() {
		defer stop()
		if err := w.core.node.Feed().WaitQueued(ctx, revision); err == nil {
			w.wake(newsReached)
		}
	})
}

// beginAwaited begins the subscriptions whose revision is there.
func (w *watchStream) beginAwaited(ctx context.Context) error {
	if w.stopWaiting != nil {
		w.stopWaiting() // The news may be of one that it took the place of.
	}
	waiting := w.waiting
	w.waiting, w.stopWaiting = nil, nil
	for _, a := range waiting {
		if err := w.begin(ctx, a); err != nil {
			return err
		}
	}
	return nil
}
