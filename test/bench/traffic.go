package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

const (
	// trafficWires is how many connections there are for traffic.
	trafficWires = 32
	// trafficTick is how often paced traffic looks which calls are due.
	trafficTick = 2 * time.Millisecond
)

// traffic is calls of one unary method of regd, with as little work for the load as there can be.
type traffic struct {
	method  string
	nodes   []string // addresses that its connections go to, in turn
	dial    func(ctx context.Context, address string) (net.Conn, error)
	message func(b []byte, client int) []byte // appends the next request of a client
}

// tcp dials.
func tcp(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// registrations are on one live session, at the leader. Each registers an instance of its own: to register one that is
// there already costs less.
func (s *regd) registrations(ctx context.Context, c *cluster) (*traffic, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	who, err := s.open(ctx, c.conns[leader])
	return &traffic{
		method: apiv1.RegistryService_Register_FullMethodName, nodes: []string{c.addresses[leader].client}, dial: tcp,
		message: s.registration(who),
	}, err
}

// renewals renew one session each, in turn, through all nodes.
func (s *regd) renewals(c *cluster, sessions []string) (*traffic, error) {
	var messages [][]byte
	for _, id := range sessions {
		m, err := proto.Marshal(&apiv1.RenewRequest{SessionIds: []string{id}})
		if err != nil {
			return nil, fmt.Errorf("renewal of session %q: %w", id, err)
		}
		messages = append(messages, m)
	}
	var next atomic.Uint64
	var nodes []string
	for _, a := range c.addresses {
		nodes = append(nodes, a.client)
	}
	return &traffic{method: apiv1.SessionService_Renew_FullMethodName, nodes: nodes, dial: tcp, message: func(b []byte, _ int) []byte {
		return append(b, messages[next.Add(1)%uint64(len(messages))]...)
	}}, nil
}

// begin begins a call.
func (t *traffic) begin(w *wire, c call) error {
	return w.begin(c, func(b []byte) []byte { return t.message(b, c.client) })
}

// wires opens the connections. Until done, calls that get no answer in time are given up.
func (t *traffic) wires(ctx context.Context, ended func(*wire, call, error)) (wires []*wire, done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var expiring sync.WaitGroup
	done = func() {
		cancel()
		expiring.Wait()
		for _, w := range wires {
			w.close()
		}
	}
	for i := range trafficWires {
		conn, err := t.dial(ctx, t.nodes[i%len(t.nodes)])
		if err != nil {
			done()
			return nil, nil, err
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		wires = append(wires, newWire(conn, t.method, ended))
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

// closed measures a closed loop, as the function of that name does.
func (t *traffic) closed(ctx context.Context, cpu func() time.Duration, clients int, last time.Duration) (result, error) {
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
		if err := t.begin(w, call{client, now, now}); err != nil {
			under.Done()
			cancel(err)
		}
	}
	wires, done, err := t.wires(ctx, func(w *wire, c call, err error) {
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

// paced begins calls at a fixed rate, as pacing does. Those that have become due since the last look go out together on
// one wire, as long as it has places, and those of the next look on the next one.
func (t *traffic) paced(ctx context.Context, rate float64, became *tally) (stop func(), err error) {
	const places = crowd / trafficWires // of a wire
	free := make([]chan int, trafficWires)
	for i := range free {
		free[i] = make(chan int, places)
		for place := range places {
			free[i] <- i*places + place
		}
	}
	var under sync.WaitGroup
	ended := func(_ *wire, c call, err error) {
		became.note(c.due, err)
		free[c.client/places] <- c.client
		under.Done()
	}
	wires, done, err := t.wires(ctx, ended)
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
				if err := t.begin(wires[next], c); err != nil {
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
		s.keep(dispatching, trafficTick, func(first, end int) {
			now := time.Now()
			for k := first; k < end; k++ {
				became.due.Add(1)
				if !begin(s.due(k), now) {
					became.late.Add(1)
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
