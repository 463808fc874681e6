package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// How a watch works.
//
// A stream has one feed.Watcher with the topics of all its subscriptions, and one goroutine that answers requests and
// sends. An event is looked at once: it goes out with the numbers of all subscriptions whose filter matches it now (as a
// put) or matched it before (as a delete).
//
// A subscription begins with a cut, or with the history after its resume point, and is routed to the watcher before that
// State or history is read; what comes by both ways is told apart by its revision (subscription.from). A watcher that
// could not be given every event gives a feed.Resync instead, which becomes cuts of what may have changed. A client with
// a Synced therefore knows one State, whatever happened, and every cut brings it to a later one.
//
// Events.revision and progress marks speak of subscriptions that are synced.
//
// A send blocks while its client does not read. That holds up only this stream: the feed coalesces what it misses, and
// after stuckAfter the handler returns, which is the one thing that ends a blocked send.

// Limits of a watch.
const (
	// MaxSubscriptions is the number of open subscriptions on one stream.
	MaxSubscriptions = 10_000
	// MinProgressInterval is the shortest progress_interval.
	MinProgressInterval = 100 * time.Millisecond
	// MaxProgressInterval is the longest progress_interval.
	MaxProgressInterval = 10 * time.Minute
	// DefaultProgressInterval is the progress_interval of a subscription that names none.
	DefaultProgressInterval = 5 * time.Second

	// watchMessage is the size at which a part of a cut or a message of events is full. What was added last usually still
	// fits into a pooled buffer.
	watchMessage = maxPooled - 2<<10
	// maxWatchMessage bounds a message of events: a revision that is larger is told as a cut, in parts. Clients accept
	// 4 MiB by default.
	maxWatchMessage = 2 << 20
	// cutBlock is how much of a cut is sent before a pause of cutPause, which lets the applier run on few cores.
	cutBlock = 256 << 10
	cutPause = time.Millisecond
	// catchUpEvents is how many events of the history are looked up at once for a subscription that resumes.
	catchUpEvents = 1024
	// stuckAfter is how long one send may take. Then the stream is ended: its client does not read.
	stuckAfter = 30 * time.Second
	// leavingGrace is how long a stream goes on after it was told to go elsewhere.
	leavingGrace = time.Second
	// watchRequests is the number of requests read ahead of what the stream does.
	watchRequests = 4
)

// Watch serves any number of subscriptions on one stream.
func (s *registryServer) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	requests := make(chan watchRequest, watchRequests)
	// Ends when the handler has returned, which ends Recv.
	s.tasks.Go(func() {
		defer close(requests)
		for {
			req, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return // The client asks for nothing more, and goes on reading.
			}
			select {
			case requests <- watchRequest{req, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return s.watch(ctx, stream, requests)
}

// WatchService serves one subscription.
func (s *registryServer) WatchService(
	req *apiv1.WatchServiceRequest, stream grpc.ServerStreamingServer[apiv1.WatchServiceResponse],
) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	requests := make(chan watchRequest, 1)
	requests <- watchRequest{req: &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: &apiv1.Subscribe{
		SubscriptionId:   1,
		Filter:           req.GetFilter(),
		Resume:           req.GetResume(),
		ProgressInterval: req.GetProgressInterval(),
	}}}}
	close(requests)
	return s.watch(ctx, stream, requests)
}

// watchRequest is what the reader of a stream found.
type watchRequest struct {
	req *apiv1.WatchRequest
	err error
}

// watch serves a stream until it ends. A goroutine of its own does all the sending, as a send can block for as long as
// the client likes, and only the return of the handler ends it then.
func (c *core) watch(ctx context.Context, stream grpc.ServerStream, requests <-chan watchRequest) error {
	if err := c.admission.enter(classResync); err != nil {
		return err
	}
	c.admission.leave()
	select {
	case c.watches <- struct{}{}:
		defer func() { <-c.watches }()
	default:
		return explain(fmt.Errorf("%w: %d watches are open", ErrOverloaded, cap(c.watches)), "watch")
	}
	// So that the client knows that it is connected, before there is anything to say.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	w := newWatchStream(c, stream, requests)
	ended := make(chan error, 1)
	c.tasks.Go(func() { ended <- w.run(ctx) })
	select {
	case err := <-ended:
		return err
	case <-w.stuck:
		return explain(fmt.Errorf("%w: its client has not read for %v", ErrOverloaded, stuckAfter), "send to watch")
	}
}
