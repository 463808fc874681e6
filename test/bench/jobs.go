package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"google.golang.org/grpc"
)

// job is something that users have a registry do.
type job struct {
	name string
	unit string
	// goal is how many times better than etcd regd is to be.
	goal float64
	// less is better than more: the ratio is turned round.
	less bool
	// run returns the figure, in unit.
	run func(ctx context.Context, c *cluster, last time.Duration) (float64, error)
}

func (j job) text(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f %s", v, j.unit)
	}
	return fmt.Sprintf("%.3g %s", v, j.unit)
}

// connections is how many connections the clients of a job share.
const connections = 8

// jobs are all that are measured.
func jobs() []job {
	var list []job
	for _, r := range []struct {
		clients int
		goal    float64
	}{{1, 1}, {16, 2}, {64, 2.5}, {256, 3}} {
		list = append(list, job{
			name: fmt.Sprintf("register on a live session, %d clients", r.clients), unit: "/s", goal: r.goal, run: registering(r.clients),
		})
	}
	list = append(list,
		job{name: "register with its own session, 64 clients", unit: "/s", goal: 6, run: registeringAlone(64)},
		job{name: "linearizable read of a service of 10, 64 clients", unit: "/s", goal: 1.8, run: reading(64, true)},
		job{name: "stale read of a service of 10, 64 clients", unit: "/s", goal: 1.7, run: reading(64, false)},
		job{name: "renewals through any node, 10000 sessions", unit: "/s", goal: 5, run: renewing(10_000)},
		job{name: "write to last delivery, 1000 streams, p50", unit: "ms", less: true, run: delivering(1000)},
		job{name: "deliveries flat out, 1000 streams", unit: "/s", goal: 4, run: flooding(1000)},
		job{name: "kill of the leader to next write", unit: "ms", goal: 1 / 0.7, less: true, run: failingOver},
		job{name: "memory of an instance with its own session, of 20000", unit: "kB a node", goal: 2.5 / 0.6, less: true, run: filling(20_000)},
	)
	return list
}

// warm is the share of a measurement that is made before, and not counted.
const warm = 0.3

// closed runs an operation over and over in each of a number of clients, and returns how often a second it was done.
func closed(ctx context.Context, clients int, last time.Duration, op func(ctx context.Context, client, k int) error) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Int64
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				callCtx, stop := context.WithTimeout(ctx, 10*time.Second)
				err := op(callCtx, i, k)
				stop()
				if err != nil && ctx.Err() == nil {
					cancel(err)
					return
				}
				done.Add(1)
			}
		})
	}
	wait(ctx, time.Duration(warm*float64(last)))
	from, begun := done.Load(), time.Now()
	wait(ctx, last)
	rate := float64(done.Load()-from) / time.Since(begun).Seconds()
	err := context.Cause(ctx)
	cancel(nil)
	all.Wait()
	return rate, err
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// atLeader opens the connections of a job to the leader.
func atLeader(ctx context.Context, c *cluster) ([]*grpc.ClientConn, func(), error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c.dialled(connections, leader)
}

// connected opens the connections of a job to the leader, and closes them after it.
func connected(
	run func(context.Context, *cluster, []*grpc.ClientConn, time.Duration) (float64, error),
) func(context.Context, *cluster, time.Duration) (float64, error) {
	return func(ctx context.Context, c *cluster, last time.Duration) (float64, error) {
		conns, done, err := atLeader(ctx, c)
		if err != nil {
			return 0, err
		}
		defer done()
		return run(ctx, c, conns, last)
	}
}

func registering(clients int) func(context.Context, *cluster, time.Duration) (float64, error) {
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, last time.Duration) (float64, error) {
		who, err := c.open(ctx, conns[0])
		if err != nil {
			return 0, err
		}
		return closed(ctx, clients, last, func(ctx context.Context, client, k int) error {
			return c.register(ctx, conns[client%len(conns)], who, instance{
				client: client, sequence: k, service: fmt.Sprintf("s%d", (client*31+k)%1000), id: fmt.Sprintf("i%d", client),
			})
		})
	})
}

func registeringAlone(clients int) func(context.Context, *cluster, time.Duration) (float64, error) {
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, last time.Duration) (float64, error) {
		return closed(ctx, clients, last, func(ctx context.Context, client, k int) error {
			conn := conns[client%len(conns)]
			who, err := c.open(ctx, conn)
			if err != nil {
				return err
			}
			return c.register(ctx, conn, who, instance{
				client: client, sequence: k, service: fmt.Sprintf("s%d", k%1000), id: fmt.Sprintf("i%d-%d", client, k),
			})
		})
	})
}

func reading(clients int, linearizable bool) func(context.Context, *cluster, time.Duration) (float64, error) {
	const instances = 10
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, last time.Duration) (float64, error) {
		who, err := c.open(ctx, conns[0])
		if err != nil {
			return 0, err
		}
		for i := range instances {
			if err := c.register(ctx, conns[0], who, instance{sequence: i, service: "web", id: strconv.Itoa(i)}); err != nil {
				return 0, err
			}
		}
		return closed(ctx, clients, last, func(ctx context.Context, client, _ int) error {
			n, err := c.read(ctx, conns[client%len(conns)], "web", linearizable)
			if err == nil && n != instances {
				err = fmt.Errorf("read %d instances, want %d", n, instances)
			}
			return err
		})
	})
}

// renewing renews with 64 streams, spread over all nodes, 16 renewals under way on each.
func renewing(owners int) func(context.Context, *cluster, time.Duration) (float64, error) {
	const streams, window = 64, 16
	return func(ctx context.Context, c *cluster, last time.Duration) (float64, error) {
		conns, done, err := c.dialled(connections, 0, 1, 2)
		if err != nil {
			return 0, err
		}
		defer done()
		all, err := opened(ctx, c, conns, owners)
		if err != nil {
			return 0, err
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var acked atomic.Int64
		var running sync.WaitGroup
		for s := range streams {
			mine := all[s*len(all)/streams : (s+1)*len(all)/streams]
			stream, streamErr := c.renew(ctx, conns[s%len(conns)])
			if streamErr != nil {
				return 0, streamErr
			}
			running.Go(func() {
				if renewErr := keepRenewing(ctx, stream, mine, window, &acked); renewErr != nil && ctx.Err() == nil {
					cancel(renewErr)
				}
			})
		}
		wait(ctx, time.Duration(warm*float64(last)))
		from, begun := acked.Load(), time.Now()
		wait(ctx, last)
		rate := float64(acked.Load()-from) / time.Since(begun).Seconds()
		err = context.Cause(ctx)
		cancel(nil)
		running.Wait()
		return rate, err
	}
}

// keepRenewing renews owners in turn, as many at a time as the window says, until ctx ends.
func keepRenewing(ctx context.Context, stream renewals, owners []owner, window int, acked *atomic.Int64) error {
	for k, under := 0, 0; ctx.Err() == nil; {
		for ; under < window; under++ {
			if stream.ask(owners[k%len(owners)]) != nil {
				break // What it is, the answer tells.
			}
			k++
		}
		n, err := stream.answer()
		if err != nil {
			return err
		}
		under -= n
		acked.Add(int64(n))
	}
	return nil
}

// opened opens many owners, 64 at a time.
func opened(ctx context.Context, c *cluster, conns []*grpc.ClientConn, n int) ([]owner, error) {
	all, next := make([]owner, n), atomic.Int64{}
	return all, each(64, func(worker int) error {
		for {
			i := int(next.Add(1)) - 1
			if i >= n {
				return nil
			}
			callCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
			who, err := c.open(callCtx, conns[worker%len(conns)])
			cancel()
			if err != nil {
				return err
			}
			all[i] = who
		}
	})
}

// each runs f in a number of workers and returns what went wrong.
func each(workers int, f func(worker int) error) error {
	errs := make([]error, workers)
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// watchers opens streams on one service, spread over all nodes, and has heard called with each change that one sees, by
// many goroutines at once.
func watchers(ctx context.Context, c *cluster, streams int, heard func(version string)) (stop func() error, err error) {
	conns, done, err := c.dialled(connections, 0, 1, 2)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	list := make([]changes, streams)
	next := atomic.Int64{}
	err = each(64, func(int) error {
		for {
			i := int(next.Add(1)) - 1
			if i >= streams {
				return nil
			}
			var watchErr error
			if list[i], watchErr = c.watch(ctx, conns[i%len(conns)], "web"); watchErr != nil {
				return watchErr
			}
		}
	})
	if err != nil {
		cancel()
		done()
		return nil, err
	}
	errs := make([]error, streams)
	var running sync.WaitGroup
	for i, stream := range list {
		running.Go(func() {
			for {
				versions, err := stream.next()
				if err != nil {
					if ctx.Err() == nil {
						errs[i] = err
					}
					return
				}
				for _, v := range versions {
					heard(v)
				}
			}
		})
	}
	return func() error {
		cancel()
		running.Wait()
		done()
		return errors.Join(errs...)
	}, nil
}

// delivering writes at a steady pace and takes the time from the start of a write until the last stream has its change.
// Each write has its time in the schedule: what is late counts from there.
func delivering(streams int) func(context.Context, *cluster, time.Duration) (float64, error) {
	const pace = 100 * time.Millisecond
	return func(ctx context.Context, c *cluster, last time.Duration) (float64, error) {
		var mu sync.Mutex
		left, due := map[string]int{}, map[string]time.Time{}
		times := hdrhistogram.New(1, int64(time.Minute), 3)
		stop, err := watchers(ctx, c, streams, func(version string) {
			mu.Lock()
			defer mu.Unlock()
			if left[version]--; left[version] == 0 {
				_ = times.RecordValue(int64(time.Since(due[version]))) // In range: less than a minute.
			}
		})
		if err != nil {
			return 0, err
		}
		conns, done, err := atLeader(ctx, c)
		if err != nil {
			return 0, errors.Join(err, stop())
		}
		defer done()
		begun := time.Now()
		for k := 1; time.Since(begun) < last && err == nil; k++ {
			at := begun.Add(time.Duration(k) * pace)
			wait(ctx, time.Until(at))
			in := instance{sequence: k, service: "web", id: "one"}
			mu.Lock()
			left[in.version()], due[in.version()] = streams, at
			mu.Unlock()
			err = c.register(ctx, conns[0], owner{}, in)
		}
		wait(ctx, 2*pace)
		err = errors.Join(err, stop())
		mu.Lock()
		defer mu.Unlock()
		if err == nil && times.TotalCount() < int64(last/pace)/2 {
			err = fmt.Errorf("only %d changes reached all streams", times.TotalCount())
		}
		return float64(times.ValueAtQuantile(50)) / 1e6, err
	}
}

// flooding writes with 16 clients as fast as they can.
func flooding(streams int) func(context.Context, *cluster, time.Duration) (float64, error) {
	return func(ctx context.Context, c *cluster, last time.Duration) (float64, error) {
		var heard atomic.Int64
		stop, err := watchers(ctx, c, streams, func(string) { heard.Add(1) })
		if err != nil {
			return 0, err
		}
		conns, done, err := atLeader(ctx, c)
		if err != nil {
			return 0, errors.Join(err, stop())
		}
		defer done()
		var from, to int64
		var took time.Duration
		counting := make(chan struct{})
		go func() {
			defer close(counting)
			wait(ctx, time.Duration(warm*float64(last)))
			from = heard.Load()
			begun := time.Now()
			wait(ctx, last*9/10)
			to, took = heard.Load(), time.Since(begun)
		}()
		_, err = closed(ctx, 16, last, func(ctx context.Context, client, k int) error {
			return c.register(ctx, conns[client%len(conns)], owner{}, instance{
				client: client, sequence: k, service: "web", id: fmt.Sprintf("i%d", client),
			})
		})
		<-counting
		return float64(to-from) / took.Seconds(), errors.Join(err, stop())
	}
}

// failingOver kills the leader and takes the time until another node acknowledges a write.
func failingOver(ctx context.Context, c *cluster, _ time.Duration) (float64, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return 0, err
	}
	others := []*grpc.ClientConn{c.conns[(leader+1)%nodes], c.conns[(leader+2)%nodes]}
	for k := range 50 { // A cluster at work.
		if err := c.register(ctx, others[k%2], owner{}, instance{sequence: k, service: "web", id: "before"}); err != nil {
			return 0, err
		}
	}
	begun := time.Now()
	c.kill(leader)
	won := make(chan struct{}, len(others))
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i, conn := range others {
		go func() {
			for k := 0; ctx.Err() == nil; k++ {
				callCtx, stop := context.WithTimeout(ctx, 250*time.Millisecond)
				err := c.register(callCtx, conn, owner{}, instance{client: 100 + i, sequence: k, service: "web", id: "after"})
				stop()
				if err == nil {
					won <- struct{}{}
					return
				}
				wait(ctx, 5*time.Millisecond)
			}
		}()
	}
	select {
	case <-won:
		return float64(time.Since(begun).Microseconds()) / 1000, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("no write was acknowledged: %w", ctx.Err())
	}
}

// filling registers many instances, each with its own session, and returns what memory each costs.
func filling(instances int) func(context.Context, *cluster, time.Duration) (float64, error) {
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, _ time.Duration) (float64, error) {
		empty := c.usage().memory
		var next atomic.Int64
		err := each(64, func(worker int) error {
			for {
				i := int(next.Add(1)) - 1
				if i >= instances {
					return nil
				}
				conn := conns[worker%len(conns)]
				callCtx, cancel := context.WithTimeout(ctx, 20*time.Second)
				who, callErr := c.open(callCtx, conn)
				if callErr == nil {
					callErr = c.register(callCtx, conn, who, instance{
						client: worker, sequence: i, service: fmt.Sprintf("s%d", i%1000), id: strconv.Itoa(i),
					})
				}
				cancel()
				if callErr != nil {
					return callErr
				}
			}
		})
		wait(ctx, 2*time.Second)
		return float64(c.usage().memory-empty) / nodes / float64(instances) / 1024, err
	})
}
