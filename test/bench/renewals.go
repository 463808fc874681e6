package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

const (
	// renewalStreams are spread over all nodes.
	renewalStreams = 64
	// renewalWindow is how many renewals are under way on each.
	renewalWindow = 16
)

// renewing renews sessions in turn.
func renewing(owners int) measurement {
	return on(everywhere, func(ctx context.Context, c *cluster, wires []*wire, last time.Duration) (result, error) {
		all, err := opened(ctx, c, wires, owners, time.Hour)
		if err != nil {
			return result{}, err
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var acked atomic.Int64
		stop, err := renew(c, wires, all, &acked, cancel)
		if err != nil {
			return result{}, err
		}
		defer stop()
		warmUp(ctx, last)
		r := counted(ctx, c.cpu, last, acked.Load)
		return r, context.Cause(ctx)
	})
}

// renew has owners renewed on all streams until stop, and counts the answers.
func renew(s system, wires []*wire, owners []owner, acked *atomic.Int64, failed func(error)) (stop func(), err error) {
	var calls []*call
	stop = func() {
		for i, stream := range calls {
			wires[i%len(wires)].cancel(stream, context.Canceled)
		}
	}
	for i := range renewalStreams {
		mine := owners[i*len(owners)/renewalStreams : (i+1)*len(owners)/renewalStreams]
		w := wires[i%len(wires)]
		stream, err := keepRenewing(w, s.renewing(), mine, acked, failed)
		if err != nil {
			stop()
			return nil, err
		}
		calls = append(calls, stream)
		w.flush()
	}
	return stop, nil
}

// keepRenewing opens a stream that renews owners in turn, as many at a time as the window says, until it is cancelled.
func keepRenewing(w *wire, r renewals, owners []owner, acked *atomic.Int64, failed func(error)) (*call, error) {
	next := 0 // owner
	request := func(b []byte) []byte {
		b = r.request(b, owners[next])
		next = (next + 1) % len(owners)
		return b
	}
	stream := &call{kind: kind{method: r.method, stream: true}, request: request, more: true}
	stream.ended = func(err error) {
		if err == nil {
			err = errors.New("the stream of renewals has ended")
		}
		failed(err)
	}
	more := func(n int) error {
		for range n {
			if err := w.add(stream, request); err != nil {
				return err
			}
		}
		return nil
	}
	stream.heard = func(message []byte) error {
		n, err := r.answer(message)
		acked.Add(int64(n))
		if err == nil {
			err = more(n)
		}
		return err
	}
	if err := w.begin(stream); err != nil {
		return nil, err
	}
	return stream, more(renewalWindow - 1)
}

// opened opens many owners.
func opened(ctx context.Context, c *cluster, wires []*wire, n int, ttl time.Duration) ([]owner, error) {
	all := make([]owner, n)
	open := c.opening(ttl)
	answer := open.answer
	open.answer = func(t *turn, message []byte) error {
		err := answer(t, message)
		all[t.n] = t.who
		return err
	}
	t := &traffic{exchange: exchange{open}, wires: wires}
	return all, t.times(ctx, 64, n)
}
