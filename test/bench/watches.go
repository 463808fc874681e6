package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// watchers opens streams on one service, spread over all nodes, and has heard called with each change that one sees, by
// many goroutines at once.
func watchers(ctx context.Context, c *cluster, streams int, heard func(version string)) (func() error, error) {
	conns, done, err := c.everywhere(ctx, connections)
	if err != nil {
		return nil, err
	}
	stop, err := watching(ctx, c, conns, streams, func(int) string { return "web" }, heard)
	if err != nil {
		done()
		return nil, err
	}
	return func() error {
		defer done()
		return stop()
	}, nil
}

// watching opens streams on the given connections, each on a service.
func watching(
	ctx context.Context, c *cluster, conns []*grpc.ClientConn, streams int, service func(i int) string, heard func(version string),
) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	list := make([]changes, streams)
	err = each(streams, func(_, i int) (watchErr error) {
		list[i], watchErr = c.watch(ctx, conns[i%len(conns)], service(i))
		return watchErr
	})
	if err != nil {
		cancel()
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
		return errors.Join(errs...)
	}, nil
}

// delivering writes at a steady pace and takes the time from the start of a write until the last stream has its change.
// Each write has its time in the schedule: what is late counts from there.
func delivering(streams int) measurement {
	const pace = 100 * time.Millisecond
	return func(ctx context.Context, c *cluster, last time.Duration) (result, error) {
		var mu sync.Mutex
		left, due := map[string]int{}, map[string]time.Time{}
		took := newTimes()
		stop, err := watchers(ctx, c, streams, func(version string) {
			mu.Lock()
			defer mu.Unlock()
			if left[version]--; left[version] == 0 {
				took.add(time.Since(due[version]))
			}
		})
		if err != nil {
			return result{}, err
		}
		conns, done, err := atLeader(ctx, c, connections)
		if err != nil {
			return result{}, errors.Join(err, stop())
		}
		defer done()
		begun, spent := time.Now(), c.cpu()
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
		spent = c.cpu() - spent
		err = errors.Join(err, stop())
		h := took.take()
		if err == nil && h.TotalCount() < int64(last/pace)/2 {
			err = fmt.Errorf("only %d changes reached all streams", h.TotalCount())
		}
		return result{value: milliseconds(h, 50), operations: h.TotalCount() * int64(streams), cpu: spent, latency: h}, err
	}
}

// flooding writes with 16 clients as fast as they can.
func flooding(streams int) measurement {
	return func(ctx context.Context, c *cluster, last time.Duration) (result, error) {
		var heard atomic.Int64
		stop, err := watchers(ctx, c, streams, func(string) { heard.Add(1) })
		if err != nil {
			return result{}, err
		}
		conns, done, err := atLeader(ctx, c, connections)
		if err != nil {
			return result{}, errors.Join(err, stop())
		}
		defer done()
		running, stopWriting := looping(ctx, 16, func(ctx context.Context, client, k int) error {
			return c.register(ctx, conns[client%len(conns)], owner{}, instance{
				client: client, sequence: k, service: "web", id: fmt.Sprintf("i%d", client),
			})
		}, newTimes())
		warmUp(running, last)
		r := counted(running, c.cpu, last, heard.Load)
		return r, errors.Join(stopWriting(), stop())
	}
}
