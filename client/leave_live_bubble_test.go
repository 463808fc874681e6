package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/livetest"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// slowConn gives out what comes in late.
type slowConn struct {
	net.Conn
	late time.Duration
}

func (c slowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	time.Sleep(c.late)
	return n, err
}

// at makes a client of one node, on a network that is late.
func at(t *testing.T, l *livetest.Cluster, node string, late time.Duration) *client.Client {
	t.Helper()
	link := l.Link()
	c, err := client.New([]string{node + ":7400"}, client.WithDialOptions(grpc.WithContextDialer(
		func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := link.Dial(ctx, address)
			return slowConn{conn, late}, err
		})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// fleet is instances, and consumers that send them requests.
type fleet struct {
	mu    sync.Mutex // guards all below
	gone  map[string]bool
	sent  int
	wrong []string // requests that were begun when the instance had gone
	seen  map[string]map[string]bool
}

// consume sends a request each millisecond, to all that can serve, until ctx ends.
func (f *fleet) consume(ctx context.Context, name string, s *discovery.Service) {
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		gone := make(map[string]bool, len(f.gone))
		for id := range f.gone {
			gone[id] = true
		}
		f.mu.Unlock()
		v, err := s.View(ctx)
		if err != nil {
			continue
		}
		f.mu.Lock()
		for _, i := range v.Healthy {
			f.sent++
			if f.seen[i.GetId()] == nil {
				f.seen[i.GetId()] = map[string]bool{}
			}
			f.seen[i.GetId()][name] = true
			if gone[i.GetId()] {
				f.wrong = append(f.wrong, name+" to "+i.GetId())
			}
		}
		f.mu.Unlock()
	}
}

// known waits until all three send to the instance.
func (f *fleet) known(id string) {
	for n := 0; n < 3; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		n = len(f.seen[id])
		f.mu.Unlock()
	}
}

// TestNobodySendsToWhoHasLeft has a consumer at each node, of which the farthest hears a tenth of a second late.
func TestNobodySendsToWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		provider, _ := l.Client()
		f := &fleet{gone: map[string]bool{}, seen: map[string]map[string]bool{}}
		ctx, cancel := context.WithCancel(t.Context())
		var consuming sync.WaitGroup
		defer consuming.Wait()
		defer cancel()
		for name, late := range map[string]time.Duration{"n1": 0, "n2": 10 * time.Millisecond, "n3": 100 * time.Millisecond} {
			d, err := discovery.New(at(t, l, name, late))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			s, err := d.Service("web")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			consuming.Go(func() { f.consume(ctx, name, s) })
		}
		end := func(id string, how func(*client.Registration)) {
			reg, err := provider.Register(ctx, &registryv1.Instance{Service: "web", Id: id, Address: "10.0.0.1"})
			if err != nil {
				t.Fatal(err)
			}
			f.known(id)
			how(reg)
			f.mu.Lock()
			f.gone[id] = true
			f.mu.Unlock()
			time.Sleep(200 * time.Millisecond)
		}
		for i := range 20 {
			end(fmt.Sprint("i", i), func(reg *client.Registration) {
				telling, done := context.WithTimeout(ctx, 10*time.Second)
				defer done()
				began := time.Now()
				d, err := reg.Leave(telling)
				if err != nil || d.Err != nil || len(d.Delivery.Nodes) != 3 {
					t.Fatalf("Leave: %+v, %v", d, err)
				}
				if took := time.Since(began); took < 100*time.Millisecond || took > 5*time.Second {
					t.Errorf("took %v, the farthest hears after 100ms", took)
				}
				for _, n := range d.Delivery.Nodes {
					if n.Streams != 1 || n.Acknowledged != 1 || n.Revision < d.Revision {
						t.Errorf("node %+v, want one acknowledgement", n)
					}
				}
			})
		}
		f.mu.Lock()
		sent, wrong := f.sent, slices.Clone(f.wrong)
		f.mu.Unlock()
		if len(wrong) > 0 || sent < 1000 {
			t.Errorf("%d of %d requests went to instances that had left: %v", len(wrong), sent, wrong[:min(len(wrong), 5)])
		}
		t.Logf("%d requests, none to an instance that had left", sent)

		// Without the wait there are some: this test can see them.
		end("abrupt", func(reg *client.Registration) {
			if err := reg.Drain(ctx); err != nil {
				t.Fatal(err)
			}
			if err := reg.Deregister(ctx); err != nil {
				t.Fatal(err)
			}
		})
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.wrong) == 0 {
			t.Error("no request went to an instance that was deregistered at once")
		}
		t.Logf("%d requests to one that was deregistered at once", len(f.wrong))
	})
}

// TestWhoLeavesWaitsForLoops has loops over the views of a service that take their time. Who leaves waits until each of them has come
// back, and for none that has ended. Whoever asks for a view has the newest one meanwhile.
func TestWhoLeavesWaitsForLoops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		provider, _ := l.Client()
		d, err := discovery.New(at(t, l, "n2", 0))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s, err := d.Service("web")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		register := func(id string) *client.Registration {
			reg, err := provider.Register(t.Context(), &registryv1.Instance{Service: "web", Id: id, Address: "10.0.0.1"})
			if err != nil {
				t.Fatal(err)
			}
			return reg
		}
		a, b := register("a"), register("b")
		for v, err := range s.All(t.Context()) { // It ends, and is not waited for.
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Healthy) == 2 {
				break
			}
		}
		leave := func(reg *client.Registration, most time.Duration) (client.Departure, time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), most)
			defer cancel()
			began := time.Now()
			d, err := reg.Leave(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return d, time.Since(began)
		}

		ctx, cancel := context.WithCancel(t.Context())
		var loops sync.WaitGroup
		for _, slow := range []time.Duration{0, 3 * time.Second} {
			loops.Go(func() {
				for range s.All(ctx) { //nolint:errcheck // The last pair has the error of ctx.
					time.Sleep(slow)
				}
			})
		}
		time.Sleep(10 * time.Second)
		if d, took := leave(a, 10*time.Second); d.Err != nil || took < 3*time.Second || took > 4*time.Second {
			t.Errorf("left after %v with %v, want once the loop that takes 3s has come back", took, d.Err)
		}
		// The loop has begun to take in that it is gone when the next one leaves.
		done := make(chan struct{})
		go func() {
			defer close(done)
			if d, took := leave(b, time.Second); !errors.Is(d.Err, client.ErrUndelivered) || took < time.Second {
				t.Errorf("left after %v with %v, want ErrUndelivered: one loop is still at it", took, d.Err)
			}
		}()
		time.Sleep(500 * time.Millisecond)
		if v, err := s.View(t.Context()); err != nil || len(v.Healthy) != 0 {
			t.Errorf("meanwhile the view is %v, %v, want none who can serve", v.Healthy, err)
		}
		<-done
		cancel()
		loops.Wait()
		if d, took := leave(register("c"), time.Second); d.Err != nil || took > 500*time.Millisecond {
			t.Errorf("left after %v with %v although no loop runs", took, d.Err)
		}
	})
}
