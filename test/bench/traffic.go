package main

import (
	"context"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// exchange is something that a client does: calls of unary methods, one after the other.
type exchange []step

// step is a call of an exchange.
type step struct {
	method string
	// request appends what is sent.
	request func(b []byte, t *turn) []byte
	// answer judges what comes back, and may leave in the turn what the next step needs. nil: that the call did not fail is
	// enough.
	answer func(t *turn, message []byte) error
}

// turn is one time that a client does an exchange.
type turn struct {
	client int
	n      int   // how many turns of all clients were before
	who    owner // on whom the client registers
}

// call is the step as a call.
func (s step) call(t *turn, ended func(error)) *call {
	c := &call{kind: kind{method: s.method}, request: func(b []byte) []byte { return s.request(b, t) }, ended: ended}
	if s.answer != nil {
		c.heard = func(message []byte) error { return s.answer(t, message) }
	}
	return c
}

// do does an exchange once, on a wire.
func (x exchange) do(ctx context.Context, w *wire, t *turn) error {
	for _, s := range x {
		ended := make(chan error, 1)
		c := s.call(t, func(err error) { ended <- err })
		err := w.begin(c)
		if err != nil {
			return err
		}
		w.flush()
		select {
		case err = <-ended:
		case <-ctx.Done():
			w.cancel(c, ctx.Err())
			err = <-ended
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dialer opens a connection.
type dialer func(ctx context.Context, address string) (net.Conn, error)

// tcp dials.
func tcp(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// wired opens wires, spread over addresses. Until done, calls that get no answer in time are given up.
func wired(ctx context.Context, dial dialer, n int, addresses ...string) (wires []*wire, done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var expiring sync.WaitGroup
	done = func() {
		cancel()
		expiring.Wait()
		for _, w := range wires {
			w.close()
		}
	}
	for i := range n {
		conn, err := dial(ctx, addresses[i%len(addresses)])
		if err != nil {
			done()
			return nil, nil, err
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		wires = append(wires, newWire(conn))
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

// traffic is an exchange that clients do again and again on some wires, with as little work for the load as there can be.
type traffic struct {
	exchange exchange
	wires    []*wire
	who      owner        // on whom the clients register, at first
	turns    atomic.Int64 // that have begun
}

// client is one of a traffic's. It does one exchange at a time.
type client struct {
	turn
	traffic *traffic
	wire    *wire
	calls   []*call // the steps
	step    int     // which of them is under way
	due     time.Time
	ended   func(c *client, err error)
}

// client returns a client that makes its calls on a wire. ended is called after each turn, as that of a call.
func (t *traffic) client(number int, w *wire, ended func(*client, error)) *client {
	c := &client{turn: turn{client: number, who: t.who}, traffic: t, wire: w, ended: ended}
	for _, s := range t.exchange {
		c.calls = append(c.calls, s.call(&c.turn, c.stepped))
	}
	return c
}

// begin begins the nth turn of all, that was due then. Without an error it will end.
func (c *client) begin(n int, due time.Time) error {
	c.n, c.due, c.step = n, due, 0
	return c.wire.begin(c.calls[0])
}

// next is which turn is begun next.
func (t *traffic) next() int { return int(t.turns.Add(1) - 1) }

// stepped goes on to the next step.
func (c *client) stepped(err error) {
	if c.step++; err == nil && c.step < len(c.calls) {
		if err = c.wire.begin(c.calls[c.step]); err == nil {
			return
		}
	}
	c.ended(c, err)
}

// loop is clients that do an exchange over and over.
type loop struct {
	running context.Context // ends with the first error
	cancel  context.CancelCauseFunc
	clients sync.WaitGroup
}

// loop has clients do the exchange over and over, as long as fewer turns of the traffic than most were begun, and takes down
// how long each took.
func (t *traffic) loop(ctx context.Context, clients, most int, took *times) *loop {
	l := &loop{}
	l.running, l.cancel = context.WithCancelCause(ctx)
	l.clients.Add(clients)
	next := func(c *client, err error) {
		if err == nil && l.running.Err() == nil {
			if n := t.next(); n < most {
				if err = c.begin(n, time.Now()); err == nil {
					return
				}
			}
		}
		if err != nil {
			l.cancel(err) // Only the first cause is kept.
		}
		l.clients.Done()
	}
	ended := func(c *client, err error) {
		if err == nil {
			took.add(time.Since(c.due))
		}
		next(c, err)
	}
	for i := range clients {
		next(t.client(i, t.wires[i%len(t.wires)], ended), nil)
	}
	for _, w := range t.wires {
		w.flush()
	}
	return l
}

// stop ends it, and returns what went wrong before.
func (l *loop) stop() error {
	err := context.Cause(l.running)
	l.cancel(nil)
	l.clients.Wait()
	return err
}

// times has clients do the exchange so many times in all. The turns are numbered from 0.
func (t *traffic) times(ctx context.Context, clients, times int) error {
	l := t.loop(ctx, clients, times, newTimes())
	l.clients.Wait()
	return l.stop()
}

// closed measures a closed loop: its value is turns a second.
func (t *traffic) closed(ctx context.Context, cpu func() time.Duration, clients int, last time.Duration) (result, error) {
	took := newTimes()
	l := t.loop(ctx, clients, math.MaxInt, took)
	warmUp(l.running, last)
	took.take()
	r := counted(l.running, cpu, last, took.count)
	r.latency = took.take()
	return r, l.stop()
}

// trafficTick is how often paced traffic of high rates looks which calls are due.
const trafficTick = 2 * time.Millisecond

// wirePlaces is how many calls of paced traffic may be under way on a wire: half as many as regd lets a connection have.
const wirePlaces = 128

// openWires is how many connections an open loop has: enough that its calls wait for the server, not for a place.
const openWires = 32

// paced begins turns at a fixed rate, so many a second, whether or not earlier ones have ended, until stop, which waits for
// those under way. Those that have become due since the last look, which is at least a tick ago, go out together on one wire,
// as long as it has places, and those of the next look on the next one. One for which no place is free when it is due is not
// begun.
func (t *traffic) paced(ctx context.Context, rate float64, tick time.Duration, became *tally) (stop func()) {
	free := make([]chan *client, len(t.wires))
	var under sync.WaitGroup
	for i, w := range t.wires {
		free[i] = make(chan *client, wirePlaces)
		for place := range wirePlaces {
			free[i] <- t.client(i*wirePlaces+place, w, func(c *client, err error) {
				became.note(c.due, err)
				free[i] <- c
				under.Done()
			})
		}
	}
	wire := 0 // the next
	begin := func(due time.Time) bool {
		for range t.wires {
			select {
			case c := <-free[wire]:
				under.Add(1)
				if err := c.begin(t.next(), due); err != nil {
					c.ended(c, err)
				}
				return true
			default:
				t.wires[wire].flush()
				wire = (wire + 1) % len(t.wires)
			}
		}
		return false
	}
	s := schedule{time.Now(), rate}
	dispatching, cancel := context.WithCancel(ctx)
	under.Go(func() {
		s.keep(dispatching, tick, func(first, end int) {
			for k := first; k < end; k++ {
				became.due.Add(1)
				if !begin(s.due(k)) {
					became.late.Add(1)
				}
			}
			t.wires[wire].flush()
			wire = (wire + 1) % len(t.wires)
		})
	})
	return func() {
		cancel()
		under.Wait()
	}
}
