package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// standing is how long streams may take until all stand.
const standing = time.Minute

// watching opens streams, each on a service, and has heard called with each change that one sees, by as many goroutines at
// once as there are wires. Stop ends them and returns what went wrong before.
func watching(
	ctx context.Context, system system, wires []*wire, streams int, service func(i int) string, heard func(version int),
) (stop func() error, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stand := make(chan struct{}, streams)
	var calls []*call
	stop = func() error {
		err := context.Cause(ctx)
		cancel(nil)
		for i, stream := range calls {
			wires[i%len(wires)].cancel(stream, context.Canceled)
		}
		return err
	}
	for i := range streams {
		stream := watch(system.watching(service(i)), func() { stand <- struct{}{} }, heard, cancel)
		if err := wires[i%len(wires)].begin(stream); err != nil {
			return nil, errors.Join(err, stop())
		}
		calls = append(calls, stream)
	}
	for _, w := range wires {
		w.flush()
	}
	limit := time.NewTimer(standing)
	defer limit.Stop()
	for range streams {
		select {
		case <-stand:
			continue
		case <-ctx.Done():
		case <-limit.C:
			cancel(errors.New("not all streams stand"))
		}
		return nil, stop()
	}
	return stop, nil
}

// watch is a stream of changes, as a call. stands is called once.
func watch(changes changes, stands func(), heard func(version int), failed func(error)) *call {
	stood := false
	return &call{
		kind:    kind{method: changes.method, stream: true},
		request: func(b []byte) []byte { return append(b, changes.request...) },
		more:    changes.open,
		heard: func(message []byte) error {
			now, err := changes.heard(message, heard)
			if now && !stood {
				stood = true
				stands()
			}
			return err
		},
		ended: func(err error) {
			if err == nil {
				err = errors.New("the stream of changes has ended")
			}
			failed(err)
		},
	}
}

// listened is a measurement of what streams, spread over all nodes, hear of what is written at the leader.
func listened(measure func(ctx context.Context, c *cluster, listeners, writers []*wire, last time.Duration) (result, error)) measurement {
	return on(everywhere, func(ctx context.Context, c *cluster, listeners []*wire, last time.Duration) (result, error) {
		return on(atLeader, func(ctx context.Context, c *cluster, writers []*wire, last time.Duration) (result, error) {
			return measure(ctx, c, listeners, writers, last)
		})(ctx, c, last)
	})
}

func alike(service string) func(int) string { return func(int) string { return service } }

// delivering writes at a steady pace and takes the time from the start of a write until the last stream has its change.
// Each write has its time in the schedule: what is late counts from there.
func delivering(streams int) measurement {
	const pace = 100 * time.Millisecond
	return listened(func(ctx context.Context, c *cluster, listeners, writers []*wire, last time.Duration) (result, error) {
		var mu sync.Mutex
		left, due := map[int]int{}, map[int]time.Time{}
		took := newTimes()
		stop, err := watching(ctx, c, listeners, streams, alike("web"), func(version int) {
			mu.Lock()
			defer mu.Unlock()
			if left[version]--; left[version] == 0 {
				took.add(time.Since(due[version]))
			}
		})
		if err != nil {
			return result{}, err
		}
		register := exchange{c.registering(0, func(t *turn) instance { return instance{service: "web", id: "one", version: t.n} })}
		begun, spent := time.Now(), c.cpu()
		for k := 1; time.Since(begun) < last && err == nil; k++ {
			at := begun.Add(time.Duration(k) * pace)
			wait(ctx, time.Until(at))
			mu.Lock()
			left[k], due[k] = streams, at
			mu.Unlock()
			err = register.do(ctx, writers[0], &turn{n: k})
		}
		wait(ctx, 2*pace)
		spent = c.cpu() - spent
		err = errors.Join(err, stop())
		h := took.take()
		if err == nil && h.TotalCount() < int64(last/pace)/2 {
			err = fmt.Errorf("only %d changes reached all streams", h.TotalCount())
		}
		return result{value: milliseconds(h, 50), operations: h.TotalCount() * int64(streams), cpu: spent, latency: h}, err
	})
}

// flooding writes with 16 clients as fast as they can.
func flooding(streams int) measurement {
	return listened(func(ctx context.Context, c *cluster, listeners, writers []*wire, last time.Duration) (result, error) {
		var heard atomic.Int64
		stop, err := watching(ctx, c, listeners, streams, alike("web"), func(int) { heard.Add(1) })
		if err != nil {
			return result{}, err
		}
		register := &traffic{wires: writers, exchange: exchange{c.registering(0, func(t *turn) instance {
			return instance{service: "web", id: "i" + strconv.Itoa(t.client), version: t.n}
		})}}
		l := register.loop(ctx, 16, math.MaxInt, newTimes())
		warmUp(l.running, last)
		r := counted(l.running, c.cpu, last, heard.Load)
		return r, errors.Join(l.stop(), stop())
	})
}
