package main

import (
	"context"
	"fmt"
	"time"
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
	// then is measured next, on the same cluster.
	then *job
}

// asked tells whether a job is asked for, or one that comes after it on its cluster.
func (j job) asked(o options) bool {
	return o.only.MatchString(j.name) || j.then != nil && j.then.asked(o)
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
			name: fmt.Sprintf("register on a live session, %d clients", r.clients), unit: "/s", goal: r.goal, run: registering(atLeader, r.clients, 0),
		})
	}
	list = append(list,
		job{name: "register through any node, 64 clients", unit: "/s", goal: 2.5, run: registering(everywhere, 64, 0)},
		job{name: "register with its own session, 64 clients", unit: "/s", goal: 6, run: registeringAlone(64)},
		job{name: "linearizable read of a service of 10, 64 clients", unit: "/s", goal: 1.8, run: reading(64, true)},
		job{name: "stale read of a service of 10, 64 clients", unit: "/s", goal: 1.7, run: reading(64, false)},
		job{name: "renewals through any node, 10000 sessions", unit: "/s", goal: 5, run: renewing(10_000)},
		job{name: "write to last delivery, 1000 streams, p50", unit: "ms", less: true, run: delivering(1000)},
		job{name: "deliveries flat out, 1000 streams", unit: "/s", goal: 4, run: flooding(1000)},
		job{name: "kill of the leader to next write", unit: "ms", goal: 1 / 0.7, less: true, run: failingOver},
		job{name: "register at half of the capacity of 64 clients, p99", unit: "ms", less: true, run: halfLoaded},
		job{name: "registrations at 3 times the peak, share of the peak", unit: "%", goal: 70, alone: true, run: overloading(overload)},
		job{
			name: "memory of an instance with its own session, of 100,000", unit: "KiB a node", goal: 2.5 / 0.6, less: true, run: filling(100_000),
			then: &job{name: "cold start with 100,000 instances to first stale read", unit: "s", goal: 1.6, less: true, run: startingCold(100_000)},
		},
	)
	return list
}

// on is a measurement whose clients share some wires.
func on(where place, measure func(ctx context.Context, c *cluster, wires []*wire, last time.Duration) (result, error)) measurement {
	return func(ctx context.Context, c *cluster, last time.Duration) (result, error) {
		wires, done, err := where.wired(ctx, c, connections)
		if err != nil {
			return result{}, err
		}
		defer done()
		return measure(ctx, c, wires, last)
	}
}
