package regdgrpc

import (
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client/balance"
)

// minRetry is the least time after which calls that wait for ready look again for an instance.
const minRetry = 10 * time.Millisecond

// picker picks for calls. It is a balancer.Picker.
type picker struct {
	channel     *channel
	choice      *balance.Balancer
	hashHeader  string
	connections map[string]balancer.Picker // by instance
	apart       int                        // instances without a connection
	tracer      Tracer                     // nil: none
	refused     atomic.Bool                // a call found no instance available
}

// Pick picks an instance among those that are connected.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	request := balance.Request{Hash: p.hash(info)}
	pick, err := p.choice.Pick(request)
	if err != nil && p.refused.CompareAndSwap(false, true) {
		// gRPC has calls that wait for ready wait until there is another picker. From here on the end of a call brings one;
		// what ended just before is seen by picking again.
		if pick, err = p.choice.Pick(request); err != nil {
			p.channel.retryLater(p)
		}
	}
	if err != nil {
		if p.apart > 0 {
			err = fmt.Errorf("%w (%d without a connection count as draining)", err, p.apart)
		}
		return balancer.PickResult{}, err
	}
	connection := p.connections[pick.Instance().GetId()]
	if connection == nil { // The choice is newer than this picker: the next one is on its way.
		pick.Done(balance.Neutral)
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	result, err := connection.Pick(info)
	if err != nil {
		pick.Done(balance.Neutral)
		return result, err
	}
	if p.tracer != nil && info.Ctx != nil {
		p.tracer.Picked(info.Ctx, pick.Instance(), pick.Breaker())
	}
	inner := result.Done
	result.Done = func(done balancer.DoneInfo) {
		pick.Done(outcome(done))
		if inner != nil {
			inner(done)
		}
		if p.refused.Load() {
			p.channel.retryNow(p)
		}
	}
	return result, nil
}

// hash returns the hash of the header that decides, 0 without one.
func (p *picker) hash(info balancer.PickInfo) uint64 {
	if p.hashHeader == "" || info.Ctx == nil {
		return 0
	}
	header, _ := metadata.FromOutgoingContext(info.Ctx)
	if values := header.Get(p.hashHeader); len(values) > 0 {
		return balance.Hash(values[0])
	}
	return 0
}

// outcome judges a call by its end.
func outcome(done balancer.DoneInfo) balance.Outcome {
	if done.Err == nil && !done.BytesSent && !done.BytesReceived {
		return balance.Neutral // gRPC found the connection gone and never made the call.
	}
	switch status.Code(done.Err) {
	case codes.Canceled:
		return balance.Neutral
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.DataLoss:
		return balance.Failure
	default:
		return balance.Success
	}
}

// retryLater has calls look again when time has made an instance available: a breaker half-open, an ejection over.
func (b *channel) retryLater(p *picker) {
	after := time.Duration(0)
	for _, s := range p.choice.Stats() {
		if s.For > 0 && (after == 0 || s.For < after) {
			after = s.For
		}
	}
	if after == 0 {
		return // Only the end of a call, or an update, can change anything.
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retry != nil {
		b.retry.Stop()
	}
	if !b.closed {
		b.retry = time.AfterFunc(max(after, minRetry), func() { b.retryNow(p) })
	}
}

// retryNow has calls that wait look again, by giving gRPC a copy of the picker, unless there is a newer one.
func (b *channel) retryNow(p *picker) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.picker != p {
		return
	}
	b.picker = &picker{
		channel: b, choice: p.choice, hashHeader: p.hashHeader, connections: p.connections, apart: p.apart, tracer: p.tracer,
	}
	b.ClientConn.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: b.picker})
}
