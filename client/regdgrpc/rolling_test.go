package regdgrpc_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdgrpc"
)

// TestRolling replaces every instance, one after the other, under load: a new one is registered, an old one drains, falls
// silent, is deregistered and stopped. No call fails.
func TestRolling(t *testing.T) {
	t.Parallel()
	for name, config := range configs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.New(t)
			moment := func(context.Context) error {
				<-time.After(100 * time.Microsecond)
				return nil
			}
			var old []*server
			for i := range 3 {
				s := serve(t, fmt.Sprintf("first-%d", i), moment)
				old = append(old, s)
				r.Put(s.instance)
			}
			conn := dial(t, r.Discovery(), "regd:///payment", config)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var work sync.WaitGroup
			var calls atomic.Int64
			for range 8 {
				work.Go(func() {
					for ctx.Err() == nil {
						calls.Add(1)
						if _, err := check(t.Context(), conn); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for i := range 6 {
				s := serve(t, fmt.Sprintf("next-%d", i), moment)
				old = append(old, s)
				r.Put(s.instance)
				leaving := old[0]
				old = old[1:]
				eventually(t, s.instance.GetId()+" is called", func() bool { return s.served() > 10 && leaving.served() > 10 })
				leaving.instance.Draining = true
				r.Put(leaving.instance)
				if i%2 == 0 { // It waits to fall silent, or trusts GracefulStop.
					quiet(t, conn, leaving)
				}
				leaving.GracefulStop()
				r.Remove(leaving.instance)
			}
			cancel()
			work.Wait()
			t.Logf("%d calls", calls.Load())
		})
	}
}

// quiet waits until a server gets no calls any more.
func quiet(t *testing.T, conn *grpc.ClientConn, s *server) {
	t.Helper()
	before := -1
	eventually(t, s.instance.GetId()+" is silent", func() bool {
		for range 10 {
			if _, err := check(t.Context(), conn); err != nil {
				t.Fatal(err)
			}
		}
		last := before
		before = s.served()
		return last == before
	})
}

// TestDrain checks that a call under way on an instance that drains goes on to its end, while new ones go elsewhere at once.
func TestDrain(t *testing.T) {
	t.Parallel()
	for name, config := range configs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.New(t)
			entered, leave := make(chan struct{}, 1), make(chan struct{})
			a := serve(t, "a", func(ctx context.Context) error {
				if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("hold")) > 0 {
					entered <- struct{}{}
					<-leave
				}
				return nil
			})
			b := serve(t, "b", nil)
			r.Put(a.instance)
			conn := dial(t, r.Discovery(), "regd:///payment", config)
			stream, err := healthpb.NewHealthClient(conn).Watch(timed(t), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			held := make(chan error, 1)
			go func() {
				_, err := check(metadata.AppendToOutgoingContext(timed(t), "hold", "1"), conn)
				held <- err
			}()
			<-entered
			r.Put(b.instance)
			connected(t, conn, b)
			a.instance.Draining = true
			r.Put(a.instance)
			quiet(t, conn, a)
			r.Remove(a.instance)
			a.set(healthpb.HealthCheckResponse_NOT_SERVING) // is streamed on the connection that is being closed
			if m, err := stream.Recv(); err != nil || m.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
				t.Errorf("stream: %v, %v", m, err)
			}
			close(leave)
			if err := <-held; err != nil {
				t.Errorf("call under way: %v", err)
			}
		})
	}
}

// TestOutage checks that calls go on while the registry is away, and that a closed channel leaves nothing behind.
func TestOutage(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	a := serve(t, "a", nil)
	r.Put(a.instance)
	d := r.Discovery()
	t.Run("calls", func(t *testing.T) {
		conn := dial(t, d, "regd:///payment", regdgrpc.Config{}.ServiceConfig())
		connected(t, conn, a)
		r.Stop()
		for range 100 {
			if _, err := check(timed(t), conn); err != nil {
				t.Fatal(err)
			}
		}
	})
	// The channel is closed.
	eventually(t, "nobody uses the service", func() bool { return d.Stats()[0].Users == 0 })
}

// BenchmarkCall compares calls by name with those by address and gRPC's round_robin, to the same servers.
func BenchmarkCall(b *testing.B) {
	r := registrytest.New(b)
	var servers []*server
	for i := range 3 {
		s := serve(b, fmt.Sprint(i), nil)
		servers = append(servers, s)
		r.Put(s.instance)
	}
	for _, c := range []struct{ name, config string }{
		{"round_robin", roundRobin},
		{"regd_round_robin", regdgrpc.Config{Policy: "round_robin"}.ServiceConfig()},
		{"regd_least_requests", regdgrpc.Config{}.ServiceConfig()},
		{"regd_guarded", regdgrpc.Config{Breaker: &regdgrpc.Breaker{}, Ejection: &regdgrpc.Ejection{}}.ServiceConfig()},
	} {
		b.Run(c.name, func(b *testing.B) {
			conn := dial(b, r.Discovery(), "regd:///payment", c.config)
			connected(b, conn, servers...)
			web := healthpb.NewHealthClient(conn)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := web.Check(b.Context(), &healthpb.HealthCheckRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
