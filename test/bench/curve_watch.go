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
type subscribing func(ctx context.Context, c *cluster, size int, heard func(version int)) (stop func() error, err error)

func subscribed(i int) string { return "s" + strconv.Itoa(i) }

// streams has each service watched on a stream of its own, few enough on a connection.
func streams(ctx context.Context, c *cluster, size int, heard func(version int)) (func() error, error) {
	wires, done, err := place(atLeader).wired(ctx, c, size/200+1)
	if err != nil {
		return nil, err
	}
	stop, err := watching(ctx, c, wires, size, subscribed, heard)
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
func subscriptions(ctx context.Context, c *cluster, size int, heard func(version int)) (func() error, error) {
	conns, done, err := place(atLeader).dialled(ctx, c, connections)
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
func hearing(stream grpc.BidiStreamingClient[apiv1.WatchRequest, apiv1.WatchResponse], synced chan<- struct{}, heard func(version int)) error {
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
			version, err := strconv.Atoi(e.GetEvent().GetInstance().GetMetadata()["commit"])
			if err != nil {
				return err
			}
			heard(version)
		}
	}
}

// littering is how many reads leave more garbage than a node keeps.
const littering = 20_000

// watched has services watched, and takes what that and a change cost.
func watched(subscribe subscribing) func(context.Context, *cluster, int, time.Duration) ([]measured, error) {
	return func(ctx context.Context, c *cluster, size int, last time.Duration) ([]measured, error) {
		wires, done, err := place(atLeader).wired(ctx, c, 1)
		if err != nil {
			return nil, err
		}
		defer done()
		// A node keeps some garbage before it collects any: that is no memory of a watch.
		litter := &traffic{wires: wires, exchange: exchange{c.reading(func(*turn) string { return "none" }, false, 0)}}
		if err = litter.times(ctx, 64, littering); err != nil {
			return nil, err
		}
		r, memory, err := delivered(ctx, c, wires[0], subscribe, size, last)
		return append(told(r), measured{Name: "memory of each", Unit: "KiB", Value: float64(memory) / float64(size) / 1024}), err
	}
}

// told is what changes cost that a watcher hears of.
func told(r result) []measured {
	return []measured{
		{Name: "write to delivery and answer, p50", Unit: "ms", Value: milliseconds(r.latency, 50)},
		{Name: "CPU of a change", Unit: "µs", Value: microseconds(r.cpu, r.operations)},
	}
}

// delivered changes one of many watched services at a time, and takes the time until the watcher has heard of the change and
// the writer has its answer, and the memory of the watches.
func delivered(ctx context.Context, c *cluster, w *wire, subscribe subscribing, size int, last time.Duration) (r result, memory int64, err error) {
	before := c.usage().memory
	versions := make(chan int, 1)
	stop, err := subscribe(ctx, c, size, func(version int) {
		select {
		case versions <- version:
		default: // Of a change that nobody waits for any more.
		}
	})
	if err != nil {
		return result{}, 0, err
	}
	wait(ctx, settling)
	memory = c.usage().memory - before
	change := exchange{c.registering(0, func(t *turn) instance {
		return instance{service: subscribed(t.n * 7919 % size), id: "one", version: t.n}
	})}
	r, err = changing(ctx, c, last, func(ctx context.Context, k int) error {
		if writeErr := change.do(ctx, w, &turn{n: k}); writeErr != nil {
			return writeErr
		}
		select {
		case v := <-versions:
			if v != k {
				return fmt.Errorf("heard of version %d, want %d", v, k)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("not heard of version %d: %w", k, ctx.Err())
		}
	})
	return r, memory, errors.Join(err, stop())
}

// changing makes one change after the other, and takes the time of each after a warm-up.
func changing(ctx context.Context, c *cluster, last time.Duration, change func(ctx context.Context, k int) error) (result, error) {
	var r result
	took := newTimes()
	from, spent := time.Now().Add(time.Duration(warm*float64(last))), time.Duration(0)
	for k := 0; time.Since(from) < last; k++ {
		begun := time.Now()
		if begun.After(from) && spent == 0 {
			spent = c.cpu()
		}
		callCtx, done := context.WithTimeout(ctx, callTimeout)
		err := change(callCtx, k)
		done()
		if err != nil {
			return result{}, err
		}
		if spent > 0 {
			took.add(time.Since(begun))
		}
	}
	r.latency, r.cpu = took.take(), c.cpu()-spent
	r.operations = r.latency.TotalCount()
	return r, nil
}

// atBehind makes a watcher fall behind by as many revisions, of a service of a thousand instances, and takes the time until
// it knows all again. The median of some.
func atBehind(ctx context.Context, c *cluster, size int, _ time.Duration) ([]measured, error) {
	conns, done, err := place(atLeader).dialled(ctx, c, connections)
	if err != nil {
		return nil, err
	}
	defer done()
	_, synced, err := syncing(ctx, conns[0], nil)
	if err != nil {
		return nil, err
	}
	wires, hangUp, err := place(atLeader).wired(ctx, c, connections)
	if err != nil {
		return nil, err
	}
	defer hangUp()
	change := &traffic{wires: wires, exchange: exchange{c.registering(0, func(t *turn) instance {
		return instance{service: "web", id: strconv.Itoa(t.n % 1000), version: t.n}
	})}}
	if err = change.times(ctx, 64, size); err != nil {
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
