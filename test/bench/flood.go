package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

const (
	// floodWires is how many connections a flood has.
	floodWires = 32
	// floodTick is how often a flood that is paced looks which calls are due.
	floodTick = time.Millisecond
)

// flood is registrations on a live session, with as little work for the load as there can be. Each registers an instance
// of its own: to register one that is there already costs less.
type flood struct {
	dial    func(context.Context) (net.Conn, error) // the leader
	message func(b []byte, client int) []byte       // appends a request of a client
}

func newFlood(ctx context.Context, c *cluster) (*flood, error) {
	system, ok := c.system.(*regd)
	if !ok {
		return nil, errors.New("only regd is flooded")
	}
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	who, err := c.open(ctx, c.conns[leader])
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", c.addresses[leader].client)
	}
	return &flood{dial, system.registration(who)}, nil
}

// begin begins a registration.
func (f *flood) begin(w *wire, c call) error {
	return w.begin(c, func(b []byte) []byte { return f.message(b, c.client) })
}

// wires opens the connections. Until done, calls that get no answer in time are given up.
func (f *flood) wires(ctx context.Context, ended func(*wire, call, error)) (wires []*wire, done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var expiring sync.WaitGroup
	done = func() {
		cancel()
		expiring.Wait()
		for _, w := range wires {
			w.close()
		}
	}
	for range floodWires {
		conn, err := f.dial(ctx)
		if err != nil {
			done()
			return nil, nil, err
		}
		wires = append(wires, newWire(conn, apiv1.RegistryService_Register_FullMethodName, ended))
	}
	expiring.Go(func() {
		for ; ctx.Err() == nil; wait(ctx, time.Second) {
			for _, w := range wires {
				w.expire(time.Now())
			}
		}
	})
	return wires, done, nil
}

// closed measures a closed loop of registrations, as the function of that name does.
func (f *flood) closed(ctx context.Context, cpu func() time.Duration, clients int, last time.Duration) (result, error) {
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	took := newTimes()
	var under sync.WaitGroup
	begin := func(w *wire, client int) {
		if running.Err() != nil {
			return
		}
		now := time.Now()
		under.Add(1)
		if err := f.begin(w, call{client, now, now}); err != nil {
			under.Done()
			cancel(err)
		}
	}
	wires, done, err := f.wires(ctx, func(w *wire, c call, err error) {
		defer under.Done()
		if err != nil {
			cancel(err) // Only the first cause is kept.
			return
		}
		took.add(time.Since(c.due))
		begin(w, c.client)
	})
	if err != nil {
		return result{}, err
	}
	defer done()
	for client := range clients {
		begin(wires[client%len(wires)], client)
	}
	for _, w := range wires {
		w.flush()
	}
	warmUp(running, last)
	took.take()
	r := counted(running, cpu, last, took.count)
	r.latency = took.take()
	err = context.Cause(running)
	cancel(nil)
	under.Wait()
	return r, err
}

// paced begins registrations at a fixed rate, as pacing does. Those that have become due since the last look go out together on
// one wire, as long as it has places, and those of the next look on the next one.
func (f *flood) paced(ctx context.Context, rate float64, t *tally) (stop func(), err error) {
	const places = crowd / floodWires // of a wire
	free := make([]chan int, floodWires)
	for i := range free {
		free[i] = make(chan int, places)
		for place := range places {
			free[i] <- i*places + place
		}
	}
	var under sync.WaitGroup
	ended := func(_ *wire, c call, err error) {
		t.note(c.due, err)
		free[c.client/places] <- c.client
		under.Done()
	}
	wires, done, err := f.wires(ctx, ended)
	if err != nil {
		return nil, err
	}
	next := 0 // wire
	begin := func(due, now time.Time) bool {
		for range wires {
			select {
			case client := <-free[next]:
				under.Add(1)
				c := call{client, due, now}
				if err := f.begin(wires[next], c); err != nil {
					ended(wires[next], c, err)
				}
				return true
			default:
				wires[next].flush()
				next = (next + 1) % len(wires)
			}
		}
		return false
	}
	s := schedule{time.Now(), rate}
	dispatching, cancel := context.WithCancel(ctx)
	under.Go(func() {
		s.keep(dispatching, floodTick, func(first, end int) {
			now := time.Now()
			for k := first; k < end; k++ {
				t.due.Add(1)
				if !begin(s.due(k), now) {
					t.late.Add(1)
				}
			}
			wires[next].flush()
			next = (next + 1) % len(wires)
		})
	})
	return func() {
		cancel()
		under.Wait()
		done()
	}, nil
}
