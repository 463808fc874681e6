package rpc

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// accessWatch has all watch streams check again what they may see whenever policies, grants or tokens have changed. It is a
// job, as a wake of the feed must not block.
type accessWatch struct {
	core *core
	job  job

	mu      sync.Mutex // guards watcher, which may wake the job before it is here
	watcher *feed.Watcher
}

func watchAccess(c *core) *accessWatch {
	a := &accessWatch{core: c}
	a.job.doer = a
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watcher = c.node.Feed().WatchFunc(func() { c.workers.wake(&a.job, newsEvents) }, feed.Topic{Kind: fsm.EventAccess})
	return a
}

// close ends it.
func (a *accessWatch) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watcher.Close()
}

// do wakes all streams.
func (a *accessWatch) do(uint32) {
	a.mu.Lock()
	a.watcher.Take() // What has changed doesn't matter.
	a.mu.Unlock()
	for _, w := range a.core.deliveries.all() {
		w.wake(newsAccess)
	}
}

// heldUp does nothing: do does not wait for anybody.
func (a *accessWatch) heldUp() time.Duration { return stuckAfter }

// allow checks that the caller may have a subscription. One of several services has those that he may see.
func (w *watchStream) allow(ctx context.Context, sub *subscription) error {
	if !sub.filter.wide() {
		return w.core.authorize(ctx, need{
			action: registryv1.Action_ACTION_DISCOVER, namespace: sub.filter.namespace, name: sub.filter.service,
		})
	}
	sub.filter.visible = w.core.visible(ctx, registryv1.Action_ACTION_DISCOVER)
	return nil
}

// recheck brings the subscriptions to what the caller may see now. Those of a service that he may not see any more end, those of
// several are told anew. The stream itself ends with the caller's token.
func (w *watchStream) recheck(ctx context.Context) error {
	if err := w.core.known(ctx); err != nil {
		return err
	}
	for _, sub := range slices.Clone(w.subs.byID) {
		before := sub.filter.visible
		err := w.allow(ctx, sub)
		switch {
		case errors.Is(err, fsm.ErrDenied):
			w.drop(sub)
			err = w.sendEnded(ctx, sub.id, reasonName(apiv1.Reason_REASON_PERMISSION_DENIED), err.Error())
		case err != nil || !sub.routed || before == nil && sub.filter.visible == nil:
		default:
			err = w.tellAnew(ctx, sub)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tellAnew sends all that matches.
func (w *watchStream) tellAnew(ctx context.Context, sub *subscription) error {
	v, err := w.view(ctx)
	if err != nil {
		return err
	}
	return w.cutFull(ctx, sub, v, apiv1.CutReason_CUT_REASON_ACCESS_CHANGED)
}
