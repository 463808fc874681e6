package main

import (
	"context"
	"sync"
	"time"
)

// operation is what a client does for the kth time. A client does one at a time.
type operation func(ctx context.Context, client, k int) error

// looping has a number of clients each do an operation over and over, and takes down how long each took. The context
// that it returns ends with the first error. Stop ends it and returns what went wrong before.
func looping(ctx context.Context, clients int, op operation, took *times) (_ context.Context, stop func() error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				begun := time.Now()
				callCtx, done := context.WithTimeout(ctx, callTimeout)
				err := op(callCtx, i, k)
				done()
				if err != nil {
					cancel(err) // Only the first cause is kept: what stop brings about is none.
					return
				}
				took.add(time.Since(begun))
			}
		})
	}
	return ctx, func() error {
		err := context.Cause(ctx)
		cancel(nil)
		all.Wait()
		return err
	}
}

// closed measures a closed loop: its value is operations a second.
func closed(ctx context.Context, cpu func() time.Duration, clients int, last time.Duration, op operation) (result, error) {
	took := newTimes()
	running, stop := looping(ctx, clients, op, took)
	warmUp(running, last)
	took.take()
	r := counted(running, cpu, last, took.count)
	r.latency = took.take()
	return r, stop()
}
