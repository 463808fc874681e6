package rpc

import (
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// How a watch works.
//
// A stream has one feed.Watcher with the topics of all its subscriptions. It is a job of the workers, who answer its requests
// and send, one at a time. An event is looked at once: it goes out with the numbers of all subscriptions whose filter matches it now (as a
// put) or matched it before (as a delete).
//
// A subscription begins with a cut, or with the history after its resume point, and is routed to the watcher before that
// State or history is read; what comes by both ways is told apart by its revision (subscription.from). A watcher that
// could not be given every event gives a feed.Resync instead, which becomes cuts of what may have changed. A client with
// a Synced therefore knows one State, whatever happened, and every cut brings it to a later one.
//
// A subscription that asks for a linearizable state is held back until this node is known to have all that was acknowledged
// before, or begins with what there is and is told later (unproven).
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

// watch serves any number of subscriptions on one stream.
func (s *registryServer) watch(stream grpc.ServerStream) error {
	return s.serveWatch(stream, decodeRequest)
}

// watchService serves one subscription.
func (s *registryServer) watchService(stream grpc.ServerStream) error {
	return s.serveWatch(stream, decodeOnlyRequest)
}

// enterWatch lets a watch in, or fails with ErrOverloaded. Whoever was let in calls leaveWatch in the end.
func (c *core) enterWatch() error {
	if err := c.admission.enter(classResync); err != nil {
		return err
	}
	c.admission.leave()
	select {
	case c.watches <- struct{}{}:
		return nil
	default:
		return explain(fmt.Errorf("%w: %d watches are open", ErrOverloaded, cap(c.watches)), "watch")
	}
}

func (c *core) leaveWatch() { <-c.watches }

// serveWatch serves a stream until it ends, with requests as decode finds them.
//
// Its goroutine and the one that receives do next to nothing, all else is done by workers: a stack that has grown once
// stays so large, and two of 4 kB are most of what an idle stream takes.
func (c *core) serveWatch(stream grpc.ServerStream, decode requestDecoder) error {
	if err := c.enterWatch(); err != nil {
		return err
	}
	defer c.leaveWatch()
	requests := make(chan watchRequest, watchRequests)
	w := &watchStream{core: c, stream: stream, decode: decode, requests: requests, ended: make(chan error, 1)}
	w.job.doer = w
	w.wake(newsBegun) // Before there is other news.
	c.tasks.Go(func() { w.receive(requests) })
	leaving, gone := c.leaving, stream.Context().Done()
	for {
		select {
		case err := <-w.ended:
			return err
		case <-gone:
			gone = nil
			w.wake(newsGone) // Which ends a send, too.
		case <-leaving:
			leaving = nil
			w.wake(newsLeaving)
		}
	}
}

// watchRequest is what came in on a stream. The bytes are not decoded.
type watchRequest struct {
	data undecoded
	err  error
}

// receive reads requests until the handler has returned, which ends RecvMsg, or the client asks for nothing more.
func (w *watchStream) receive(requests chan<- watchRequest) {
	defer func() {
		close(requests)
		w.wake(newsAsked)
	}()
	for {
		var r watchRequest
		r.err = w.stream.RecvMsg(&r.data)
		if errors.Is(r.err, io.EOF) {
			return // The client goes on reading.
		}
		select {
		case requests <- r:
			w.wake(newsAsked)
		case <-w.stream.Context().Done():
			return
		}
		if r.err != nil {
			return
		}
	}
}

// requestDecoder decodes what came in on a stream.
type requestDecoder func(undecoded) (*apiv1.WatchRequest, error)

func decodeRequest(data undecoded) (*apiv1.WatchRequest, error) {
	req := new(apiv1.WatchRequest)
	return req, data.decode(req)
}

// decodeOnlyRequest decodes that of a WatchService. gRPC itself refuses a second one.
func decodeOnlyRequest(data undecoded) (*apiv1.WatchRequest, error) {
	req := new(apiv1.WatchServiceRequest)
	err := data.decode(req)
	return &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: &apiv1.Subscribe{
		SubscriptionId:   1,
		Filter:           req.GetFilter(),
		Resume:           req.GetResume(),
		ProgressInterval: req.GetProgressInterval(),
		Linearizable:     req.GetLinearizable(),
	}}}, err
}
