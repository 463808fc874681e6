package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// WatchLock yields who holds a lock, first as it is and then after each change, whatever becomes of connections and nodes.
// Namespace empty: the client's. Each result has the whole lock but its queue, Lock nil when nobody holds it. A reader that
// is slow misses owners in between, never the last one, and nobody comes before one that was yielded earlier.
//
// The loop ends with ctx, with the client's Close, and when the registry refuses the watch; the last pair has the error.
func (c *Client) WatchLock(ctx context.Context, namespace, name string) iter.Seq2[LockResult, error] {
	full := lockName{namespace: c.namespace(namespace), name: name}
	return func(yield func(LockResult, error) bool) {
		if c.life.Err() != nil {
			yield(LockResult{}, fmt.Errorf("watch lock %s: %w", full, ErrClosed))
			return
		}
		bound, unbind := c.bind(ctx)
		defer unbind()
		w := &lockWatch{c: c, pause: pause{limit: maxWatchPause}, yield: yield}
		w.req = &apiv1.WatchLockRequest{
			Namespace: full.namespace, Name: full.name, ProgressInterval: durationpb.New(progressInterval),
		}
		if err := w.run(bound); !errors.Is(err, errStopped) {
			yield(LockResult{}, fmt.Errorf("watch lock %s: %w", full, err))
		}
	}
}

// errStopped says that the reader wants no more.
var errStopped = errors.New("reader has stopped")

// lockWatch is the watch of one lock. It has a stream of its own, and nothing is held for a slow reader: the node keeps
// what there is to say until it is read, and says only the last of it.
type lockWatch struct {
	c     *Client
	req   *apiv1.WatchLockRequest
	yield func(LockResult, error) bool
	pause pause

	served bool // the fields below are set
	last   *registryv1.Lock
	point  ResumePoint
}

// run has one node after the other serve the watch, and returns why it ended.
func (w *lockWatch) run(ctx context.Context) error {
	var trouble error
	for {
		if ctx.Err() != nil {
			err := context.Cause(ctx)
			if trouble != nil && !errors.Is(err, ErrClosed) {
				err = fmt.Errorf("%w: %w", err, trouble)
			}
			return err
		}
		ep := w.c.pool.take(false, nil)
		if ep == nil {
			return ErrClosed
		}
		err := w.follow(ctx, ep)
		w.c.pool.release(ep)
		var e *Error
		if errors.Is(err, errStopped) || !w.served && errors.As(err, &e) && e.verdict() == giveUp {
			return err
		}
		if ctx.Err() != nil {
			continue
		}
		w.c.counts.brokenWatchStreams.Add(1)
		trouble = fmt.Errorf("%s: %w", ep.address, err)
		w.c.cfg.log.Debug("watch of a lock ended", "endpoint", ep.address, "err", err)
		w.c.pool.failed(ep)
		w.pause.wait(ctx, 0)
	}
}

// follow reads one stream until it fails.
func (w *lockWatch) follow(ctx context.Context, ep *endpoint) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(context.Canceled)
	watchdog := time.AfterFunc(watchStall, func() { cancel(errStalled) })
	defer watchdog.Stop()
	stream, err := apiv1.NewLockServiceClient(ep.conn).WatchLock(ctx, w.req)
	if err != nil {
		return streamError(ctx, err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return streamError(ctx, err)
		}
		watchdog.Stop() // The reader may take its time.
		if err := w.take(resp); err != nil {
			return err
		}
		w.c.observe(resp.GetHeader())
		w.c.pool.succeeded(ep)
		w.pause.reset()
		watchdog.Reset(watchStall)
	}
}

// take yields a lock that has changed, unless it is older than what was yielded: another node may lag behind the last one.
func (w *lockWatch) take(resp *apiv1.WatchLockResponse) error {
	header, lock := resp.GetHeader(), resp.GetLock()
	at := pointOf(header)
	if w.served && at.ClusterID == w.point.ClusterID &&
		(at.Epoch < w.point.Epoch || at.Epoch == w.point.Epoch && at.Revision < w.point.Revision) {
		return nil
	}
	changed := !w.served || !proto.Equal(lock, w.last)
	w.served, w.last, w.point = true, lock, at
	if changed && !w.yield(LockResult{ReadInfo: infoOf(header), Lock: lock}, nil) {
		return errStopped
	}
	if header.GetStaleness().AsDuration() > watchStale {
		return errStale
	}
	return nil
}
