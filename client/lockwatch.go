package client

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"google.golang.org/grpc"
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
		w := &lockWatch{yield: yield}
		req := &apiv1.WatchLockRequest{
			Namespace: full.namespace, Name: full.name, ProgressInterval: durationpb.New(progressInterval),
		}
		f := follower[*apiv1.WatchLockResponse]{
			c: c, what: "a lock", pause: pause{limit: maxWatchPause}, take: w.take,
			open: func(ctx context.Context, conn grpc.ClientConnInterface) (func() (*apiv1.WatchLockResponse, error), error) {
				stream, err := apiv1.NewLockServiceClient(conn).WatchLock(ctx, req)
				if err != nil {
					return nil, err
				}
				return stream.Recv, nil
			},
		}
		if err := f.run(bound); !errors.Is(err, errStopped) {
			yield(LockResult{}, fmt.Errorf("watch lock %s: %w", full, err))
		}
	}
}

// lockWatch is what the watch of one lock has yielded.
type lockWatch struct {
	yield func(LockResult, error) bool

	served bool // the fields below are set
	last   *registryv1.Lock
	point  ResumePoint
}

// take yields a lock that has changed, unless it is older than what was yielded: another node may lag behind the last one.
func (w *lockWatch) take(resp *apiv1.WatchLockResponse) error {
	header, lock := resp.GetHeader(), resp.GetLock()
	at := pointOf(header)
	if w.served && at.before(w.point) {
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
