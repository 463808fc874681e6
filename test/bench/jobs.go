package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// measurement measures something on a cluster of its own, for so long.
type measurement func(ctx context.Context, c *cluster, last time.Duration) (result, error)

// job is something that users have a registry do.
type job struct {
	name string
	unit string
	// goal is how many times better than etcd regd is to be; of a job that regd alone has, the value itself.
	goal float64
	// alone is a job that etcd does not have.
	alone bool
	// less is better than more: the ratio is turned round.
	less bool
	run  measurement
}

func (j job) text(v float64) string { return number(v) + " " + j.unit }

// connections is how many connections the clients of a job share.
const connections = 8

// jobs are all that are measured. The overload lasts as long as is said.
func jobs(overload time.Duration) []job {
	var list []job
	for _, r := range []struct {
		clients int
		goal    float64
	}{{1, 1}, {16, 2}, {64, 2.5}, {256, 3}} {
		list = append(list, job{
			name: fmt.Sprintf("register on a live session, %d clients", r.clients), unit: "/s", goal: r.goal, run: registering(r.clients, 0),
		})
	}
	list = append(list,
		job{name: "register through any node, 64 clients", unit: "/s", goal: 2.5, run: registeringAnywhere(64)},
		job{name: "register with its own session, 64 clients", unit: "/s", goal: 6, run: registeringAlone(64)},
		job{name: "linearizable read of a service of 10, 64 clients", unit: "/s", goal: 1.8, run: reading(64, true)},
		job{name: "stale read of a service of 10, 64 clients", unit: "/s", goal: 1.7, run: reading(64, false)},
		job{name: "renewals through any node, 10000 sessions", unit: "/s", goal: 5, run: renewing(10_000)},
		job{name: "write to last delivery, 1000 streams, p50", unit: "ms", less: true, run: delivering(1000)},
		job{name: "deliveries flat out, 1000 streams", unit: "/s", goal: 4, run: flooding(1000)},
		job{name: "kill of the leader to next write", unit: "ms", goal: 1 / 0.7, less: true, run: failingOver},
		job{name: "register at half of the capacity of 64 clients, p99", unit: "ms", less: true, run: halfLoaded},
		job{name: "registrations at 3 times the peak, share of the peak", unit: "%", goal: 70, alone: true, run: overloading(overload)},
		job{name: "memory of an instance with its own session, of 20000", unit: "kB a node", goal: 2.5 / 0.6, less: true, run: filling(20_000)},
	)
	return list
}

// atLeader opens connections to the leader.
func atLeader(ctx context.Context, c *cluster, n int) ([]*grpc.ClientConn, func(), error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c.dialled(ctx, n, leader)
}

// connected opens the connections of a job to the leader, and closes them after it.
func connected(measure func(context.Context, *cluster, []*grpc.ClientConn, time.Duration) (result, error)) measurement {
	return func(ctx context.Context, c *cluster, last time.Duration) (result, error) {
		conns, done, err := atLeader(ctx, c, connections)
		if err != nil {
			return result{}, err
		}
		defer done()
		return measure(ctx, c, conns, last)
	}
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
