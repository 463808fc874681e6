package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// renewing renews with 64 streams, spread over all nodes, 16 renewals under way on each.
func renewing(owners int) measurement {
	const streams, window = 64, 16
	return func(ctx context.Context, c *cluster, last time.Duration) (result, error) {
		conns, done, err := c.everywhere(ctx, connections)
		if err != nil {
			return result{}, err
		}
		defer done()
		all, err := opened(ctx, c, conns, owners)
		if err != nil {
			return result{}, err
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var acked atomic.Int64
		var running sync.WaitGroup
		for s := range streams {
			mine := all[s*len(all)/streams : (s+1)*len(all)/streams]
			stream, streamErr := c.renew(ctx, conns[s%len(conns)])
			if streamErr != nil {
				return result{}, streamErr
			}
			running.Go(func() {
				if renewErr := keepRenewing(ctx, stream, mine, window, &acked); renewErr != nil && ctx.Err() == nil {
					cancel(renewErr)
				}
			})
		}
		warmUp(ctx, last)
		r := counted(ctx, c.cpu, last, acked.Load)
		err = context.Cause(ctx)
		cancel(nil)
		running.Wait()
		return r, err
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
	all := make([]owner, n)
	return all, each(n, func(worker, i int) (err error) {
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		all[i], err = c.open(callCtx, conns[worker%len(conns)])
		return err
	})
}
