package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// perStream is how many subscriptions a stream may have.
const perStream = 10_000

// subscribing has a number of services watched at the leader, and heard called with each change, by many goroutines at once.
type subscribing func(ctx context.Context, c *cluster, size int, heard func(version string)) (stop func() error, err error)

func subscribed(i int) string { return "s" + strconv.Itoa(i) }

// streams has each service watched on a stream of its own, few enough on a connection.
func streams(ctx context.Context, c *cluster, size int, heard func(version string)) (func() error, error) {
	conns, done, err := atLeader(ctx, c, size/200+1)
	if err != nil {
		return nil, err
	}
	stop, err := watching(ctx, c, conns, size, subscribed, heard)
	if err != nil {
		done()
		return nil, err
	}
	return func() error {
		defer done()
		return stop()
	}, nil
}

// subscriptions has the services watched on as few streams as the API allows.
func subscriptions(ctx context.Context, c *cluster, size int, heard func(version string)) (func() error, error) {
	conns, done, err := atLeader(ctx, c, connections)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	synced := make(chan struct{}, size)
	var running sync.WaitGroup
	for first := 0; first < size; first += perStream {
		stream, err := apiv1.NewRegistryServiceClient(conns[first/perStream%len(conns)]).Watch(ctx)
		if err != nil {
			cancel(err)
			break
		}
		running.Go(func() { cancel(hearing(stream, synced, heard)) })
		running.Go(func() {
			for i := first; i < min(size, first+perStream); i++ {
				if stream.Send(subscribeTo(i)) != nil {
					return // What it is, the answer tells.
				}
			}
		})
	}
	stop := func() error {
		err := context.Cause(ctx)
		cancel(nil)
		running.Wait()
		done()
		return err
	}
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for range size {
		select {
		case <-synced:
			continue
		case <-ctx.Done():
		case <-limit.C:
			cancel(errors.New("not all subscriptions are synced after a minute"))
		}
		return nil, stop()
	}
	return stop, nil
}

func subscribeTo(i int) *apiv1.WatchRequest {
	return &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: &apiv1.Subscribe{
		SubscriptionId: uint32(i%perStream + 1), Filter: &apiv1.Filter{Service: subscribed(i)}, //nolint:gosec // Small.
	}}}
}

// hearing reads a stream until it ends, and returns why it did.
func hearing(stream grpc.BidiStreamingClient[apiv1.WatchRequest, apiv1.WatchResponse], synced chan<- struct{}, heard func(version string)) error {
	for {
		m, err := stream.Recv()
		switch {
		case err != nil:
			return err
		case m.GetSynced() != nil:
			select {
			case synced <- struct{}{}:
			default:
				return errors.New("a subscription fell behind")
			}
		case m.GetEnded() != nil:
			return fmt.Errorf("subscription %d ended: %s", m.GetEnded().GetSubscriptionId(), m.GetEnded().GetMessage())
		}
		for _, e := range m.GetEvents().GetEvents() {
			heard(e.GetEvent().GetInstance().GetMetadata()["commit"])
		}
	}
}

// littering is how many reads leave more garbage than a node keeps.
const littering = 20_000

// watched changes one of many watched services at a time, and takes the time until the watcher has heard of the change and
// the writer has its answer.
func watched(subscribe subscribing) func(context.Context, *cluster, int, time.Duration) ([]measured, error) {
	return func(ctx context.Context, c *cluster, size int, last time.Duration) ([]measured, error) {
		conns, done, err := atLeader(ctx, c, 1)
		if err != nil {
			return nil, err
		}
		defer done()
		// A node keeps some garbage before it collects any: that is no memory of a watch.
		err = each(littering, func(int, int) error {
			_, readErr := c.read(ctx, conns[0], "none", false)
			return readErr
		})
		if err != nil {
			return nil, err
		}
		before := c.usage().memory
		versions := make(chan string, 1)
		stop, err := subscribe(ctx, c, size, func(version string) {
			select {
			case versions <- version:
			default: // Of a change that nobody waits for any more.
			}
		})
		if err != nil {
			return nil, err
		}
		wait(ctx, settling)
		memory := c.usage().memory - before
		r, err := closed(ctx, c.cpu, 1, last, func(ctx context.Context, _, k int) error {
			in := instance{sequence: k, service: subscribed(k * 7919 % size), id: "one"}
			if writeErr := c.register(ctx, conns[0], owner{}, in); writeErr != nil {
				return writeErr
			}
			select {
			case v := <-versions:
				if v != in.version() {
					return fmt.Errorf("heard of version %q, want %q", v, in.version())
				}
				return nil
			case <-ctx.Done():
				return fmt.Errorf("not heard of version %q: %w", in.version(), ctx.Err())
			}
		})
		return []measured{
			{Name: "write to delivery and answer, p50", Unit: "ms", Value: milliseconds(r.latency, 50)},
			{Name: "CPU of a change", Unit: "µs", Value: microseconds(r.cpu, r.operations)},
			{Name: "memory of each", Unit: "kB", Value: float64(memory) / float64(size) / 1024},
		}, errors.Join(err, stop())
	}
}

// atBehind makes a watcher fall behind by as many revisions, of a service of a thousand instances, and takes the time until
// it knows all again. The median of some.
func atBehind(ctx context.Context, c *cluster, size int, _ time.Duration) ([]measured, error) {
	conns, done, err := atLeader(ctx, c, connections)
	if err != nil {
		return nil, err
	}
	defer done()
	_, synced, err := syncing(ctx, conns[0], nil)
	if err != nil {
		return nil, err
	}
	err = each(size, func(worker, i int) error {
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return c.register(callCtx, conns[worker%len(conns)], owner{}, instance{client: worker, sequence: i, service: "web", id: strconv.Itoa(i % 1000)})
	})
	if err != nil {
		return nil, err
	}
	resume := &apiv1.ResumePoint{ClusterId: synced.GetClusterId(), Epoch: synced.GetEpoch(), Revision: synced.GetRevision()}
	var took []float64
	var events int
	for range 5 {
		begun := time.Now()
		if events, _, err = syncing(ctx, conns[0], resume); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(begun).Microseconds())/1000)
	}
	slices.Sort(took)
	return []measured{
		{Name: "resumed until synced", Unit: "ms", Value: took[len(took)/2]},
		{Name: "of that changes, else a cut", Unit: "events", Value: float64(events)},
	}, nil
}

// syncing watches a service until the watch is synced, and returns how many changes came before, and as of when it is.
func syncing(ctx context.Context, conn *grpc.ClientConn, resume *apiv1.ResumePoint) (events int, _ *apiv1.ResponseHeader, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stream, err := apiv1.NewRegistryServiceClient(conn).WatchService(ctx, &apiv1.WatchServiceRequest{
		Filter: &apiv1.Filter{Service: "web"}, Resume: resume,
	})
	if err != nil {
		return 0, nil, err
	}
	for {
		m, err := stream.Recv()
		switch {
		case err != nil:
			return 0, nil, err
		case m.GetEnded() != nil:
			return 0, nil, fmt.Errorf("the watch ended: %s", m.GetEnded().GetMessage())
		case m.GetSynced() != nil:
			return events, m.GetSynced().GetHeader(), nil
		}
		events += len(m.GetEvents().GetEvents())
	}
}
