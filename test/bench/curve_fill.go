package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// fillWatchers are the watches in a registry that was filled, one of which hears of each change.
const fillWatchers = 100

// collected is how many times as long reads and writes of a registry that was filled are measured: the garbage that they
// leave is collected, with a million instances, every few seconds, and that is a part of what they cost.
const collected = 3

// atFill fills a registry, and looks at what it does and costs when it is so full.
func atFill(ctx context.Context, c *cluster, size int, last time.Duration) ([]measured, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	conns, done, err := c.dialled(ctx, connections, leader)
	if err != nil {
		return nil, err
	}
	defer done()
	wires, hangUp, err := c.wired(ctx, connections, leader)
	if err != nil {
		return nil, err
	}
	defer hangUp()
	empty, begun := c.usage().memory, time.Now()
	if err = fill(ctx, conns, size); err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	took := time.Since(begun)
	rest(ctx, c)
	values := []measured{
		{Name: "registered in batches of 200", Unit: "/s", Value: float64(size) / took.Seconds()},
		{Name: "memory of an instance on a node", Unit: "KiB", Value: float64(c.usage().memory-empty) / nodes / float64(size) / 1024},
	}
	read := &traffic{wires: wires, exchange: exchange{c.reading(func(t *turn) string { return filled(t.n % (size / ten)) }, true, ten)}}
	reads, err := read.closed(ctx, c.cpu, 64, collected*last)
	if err != nil {
		return nil, err
	}
	values = append(values, rated("linearizable reads of 10", reads)...)
	write := &traffic{wires: wires, exchange: exchange{c.registering(0, func(t *turn) instance {
		n := t.n % size // One that is there: what is measured keeps its size.
		return instance{service: filled(n / ten), id: strconv.Itoa(n), version: size + t.n}
	})}}
	writes, err := write.closed(ctx, c.cpu, 64, collected*last)
	if err != nil {
		return nil, err
	}
	values = append(values, rated("registrations", writes)...)
	changes, _, err := delivered(ctx, c, wires[0], streams, fillWatchers, last)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	values = append(values, told(changes)...)
	saved, err := saving(ctx, conns[0])
	if err != nil {
		return nil, fmt.Errorf("save a snapshot: %w", err)
	}
	back, err := restarting(ctx, c, leader)
	return append(append(values, saved...), measured{Name: "restart of a follower", Unit: "s", Value: back.Seconds()}), err
}

const (
	// restTick is how often the nodes are looked at until they rest, which restTimeout bounds.
	restTick, restTimeout = time.Second, time.Minute
	// resting is the part of a core that nodes take at most which rest.
	resting = 0.1
)

// rest waits until the nodes have nothing more to do for what was written: a snapshot of a million takes seconds, in which
// whatever else they do would seem to cost more.
func rest(ctx context.Context, c *cluster) {
	ctx, cancel := context.WithTimeout(ctx, restTimeout)
	defer cancel()
	for before := c.cpu(); ctx.Err() == nil; {
		wait(ctx, restTick)
		now := c.cpu()
		if now-before < time.Duration(resting*float64(restTick)) {
			return
		}
		before = now
	}
}

// filled is the name of a service of a registry that was filled.
func filled(service int) string { return "filled-" + strconv.Itoa(service) }

// fill registers instances, ten in each service, in batches, as fast as it goes.
func fill(ctx context.Context, conns []*grpc.ClientConn, size int) error {
	const batch = 200
	return each(size/batch, func(worker, i int) error {
		list := make([]*registryv1.Instance, batch)
		for k := range list {
			n := i*batch + k
			list[k] = described(instance{service: filled(n / ten), id: strconv.Itoa(n), version: n}, 0)
		}
		callCtx, cancel := context.WithTimeout(ctx, 3*callTimeout)
		defer cancel()
		_, err := apiv1.NewRegistryServiceClient(conns[worker%len(conns)]).RegisterBatch(callCtx, &apiv1.RegisterBatchRequest{Register: list})
		return err
	})
}

// each calls f for each number below n, in 64 workers, until one fails, and returns the first error.
func each(n int, f func(worker, i int) error) error {
	var next atomic.Int64
	var first error
	var once sync.Once
	var all sync.WaitGroup
	for worker := range 64 {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(worker, i); err != nil {
					once.Do(func() { first = err })
					next.Store(int64(n))
				}
			}
		})
	}
	all.Wait()
	return first
}

// saving saves a snapshot, to nowhere.
func saving(ctx context.Context, conn *grpc.ClientConn) ([]measured, error) {
	begun := time.Now()
	stream, err := apiv1.NewClusterServiceClient(conn).SaveSnapshot(ctx, &apiv1.SaveSnapshotRequest{})
	if err != nil {
		return nil, err
	}
	size := 0
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		size += len(part.GetChunk())
	}
	return []measured{
		{Name: "save of a snapshot", Unit: "s", Value: time.Since(begun).Seconds()},
		{Name: "size of the snapshot", Unit: "MB", Value: float64(size) / 1e6},
	}, nil
}

// restarting kills a follower, starts it again, and takes the time until it serves and has what the leader has.
func restarting(ctx context.Context, c *cluster, leader int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	want, err := revisionOf(ctx, c.conns[leader])
	if err != nil {
		return 0, err
	}
	follower := (leader + 1) % nodes
	c.kill(follower)
	begun := time.Now()
	if err = c.start(follower); err != nil {
		return 0, err
	}
	for last := errors.New("not asked"); ; wait(ctx, 20*time.Millisecond) {
		if ctx.Err() != nil {
			return 0, fmt.Errorf("node %d is not back: %w; last of its log: %s", follower, last, c.log(follower))
		}
		if last = ready(ctx, c.addresses[follower].metrics); last != nil {
			continue
		}
		got := uint64(0)
		if got, last = revisionOf(ctx, c.conns[follower]); last == nil && got >= want {
			return time.Since(begun), nil
		}
		if last == nil {
			last = fmt.Errorf("it is at revision %d of %d", got, want)
		}
	}
}

// revisionOf is the revision that a node has applied.
func revisionOf(ctx context.Context, conn *grpc.ClientConn) (uint64, error) {
	s, err := apiv1.NewClusterServiceClient(conn).Status(ctx, &apiv1.StatusRequest{Local: true})
	return s.GetHeader().GetRevision(), err
}

// ready asks a node whether it serves.
func ready(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	reply, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(reply.Body)
		return fmt.Errorf("not ready: %s", text)
	}
	return nil
}
