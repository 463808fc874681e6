package rpc

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// WatchLock streams who holds a lock. It counts as a watch in admission and among those that may be open.
func (s *lockServer) WatchLock(
	req *apiv1.WatchLockRequest, stream grpc.ServerStreamingServer[apiv1.WatchLockResponse],
) error {
	var f faults
	w := &lockWatch{core: s.core, stream: stream, stuck: make(chan struct{}, 1)}
	w.namespace, w.name = f.lock(req.GetNamespace(), req.GetName())
	w.interval = f.duration("progress_interval", req.GetProgressInterval(), span{
		least: MinProgressInterval, most: MaxProgressInterval, byDefault: DefaultProgressInterval,
	})
	if err := f.err(); err != nil {
		return err
	}
	if err := s.enterWatch(); err != nil {
		return aboutLock(err, "watch", w.namespace, w.name)
	}
	defer s.leaveWatch()
	if err := s.quotas.watch(s.node.Feed().State(), w.namespace); err != nil {
		return aboutLock(err, "watch", w.namespace, w.name)
	}
	defer s.quotas.unwatch(w.namespace)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	ended := make(chan error, 1)
	s.tasks.Go(func() { ended <- w.run(ctx) })
	select {
	case err := <-ended:
		return aboutLock(err, "watch", w.namespace, w.name)
	case <-w.stuck:
		return aboutLock(fmt.Errorf("%w: its client has not read for %v", ErrOverloaded, stuckAfter), "watch", w.namespace, w.name)
	}
}

// lockWatch is one stream of WatchLock. It has no queue: whenever something has changed, and the client has taken what was
// sent before, it is sent what there is now. One goroutine runs it, apart from the handler: a send blocks for as long as
// the client does not read, and only the return of the handler ends it then.
type lockWatch struct {
	core            *core
	stream          grpc.ServerStream
	namespace, name string
	interval        time.Duration // of repetitions
	stuck           chan struct{} // gives a token when a send takes too long
}

// run serves the stream until it ends, or the node leaves.
func (w *lockWatch) run(ctx context.Context) error {
	watcher := w.core.node.Feed().Watch(
		feed.Topic{Kind: fsm.EventLock, Namespace: w.namespace, Name: w.name}, feed.Topic{Kind: fsm.EventAccess})
	defer watcher.Close()
	sending := time.AfterFunc(stuckAfter, func() {
		select {
		case w.stuck <- struct{}{}:
		default:
		}
	})
	sending.Stop()
	defer sending.Stop()
	idle := time.NewTimer(w.interval)
	defer idle.Stop()
	var last *registryv1.Lock
	for first, due := true, false; ; first = false {
		closed := watcher.Take().Closed
		if err := w.allow(ctx); err != nil {
			return err
		}
		v, err := w.core.node.View(ctx, cluster.Freshness{Mode: cluster.ModeStale})
		if err != nil {
			return err
		}
		if now := holders(v.State.Lock(w.namespace, w.name)); first || due || !proto.Equal(now, last) {
			if err = ctx.Err(); err != nil {
				return err // The handler may have returned: nothing may be sent any more.
			}
			sending.Reset(stuckAfter)
			err = w.stream.SendMsg(&apiv1.WatchLockResponse{Header: w.core.readHeader(v), Lock: now})
			sending.Stop()
			if err != nil {
				return err
			}
			w.core.watchMessages.Add(1)
			last, due = now, false
			idle.Reset(w.interval)
		}
		if closed {
			return cluster.ErrClosed
		}
		select {
		case <-watcher.Ready():
		case <-idle.C:
			due = true
		case <-w.core.leaving:
			return cluster.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// allow checks that the caller still is who it was and may see the lock.
func (w *lockWatch) allow(ctx context.Context) error {
	if err := w.core.known(ctx); err != nil {
		return err
	}
	return w.core.authorize(ctx, need{action: registryv1.Action_ACTION_SEE_LOCK, namespace: w.namespace, name: w.name})
}

// holders is a lock without its queue, which may be long and is nothing to those who watch, nil if nobody holds it.
func holders(l *fsm.Lock) *registryv1.Lock {
	if l == nil {
		return nil
	}
	held := *l
	held.Waiters = nil
	return held.Proto()
}
