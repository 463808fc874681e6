package regdgrpc_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // client-side health checks
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdgrpc"
)

// timed is a context that ends a test that hangs.
func timed(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	tb.Cleanup(cancel)
	return ctx
}

// connected waits until all servers were called.
func connected(tb testing.TB, conn *grpc.ClientConn, servers ...*server) {
	tb.Helper()
	eventually(tb, "all servers are called", func() bool {
		if _, err := check(timed(tb), conn, grpc.WaitForReady(true)); err != nil {
			tb.Fatal(err)
		}
		for _, s := range servers {
			if s.served() == 0 {
				return false
			}
		}
		return true
	})
}

// TestSpread checks that every policy reaches all instances.
func TestSpread(t *testing.T) {
	t.Parallel()
	for name, config := range configs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.New(t)
			a, b := serve(t, "a", nil), serve(t, "b", nil)
			r.Put(a.instance, b.instance)
			conn := dial(t, r.Discovery(), "regd:///payment", config)
			connected(t, conn, a, b)
			before := a.served()
			for range 100 {
				if _, err := check(timed(t), conn); err != nil {
					t.Fatal(err)
				}
			}
			if got := a.served() - before; got < 20 || got > 80 {
				t.Errorf("a got %d of 100 calls", got)
			}
		})
	}
}

// TestBadConfig checks that a channel with a bad config isn't made, and that one says why.
func TestBadConfig(t *testing.T) {
	t.Parallel()
	conn, err := grpc.NewClient("regd:///payment", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(regdgrpc.NewBuilder(nil)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"regd_balance": {"polcy": "random"}}]}`))
	if err == nil || !strings.Contains(err.Error(), `bad regd_balance config: json: unknown field "polcy"`) {
		t.Errorf("got %v, %v", conn, err)
	}
}

// TestNobody checks that calls fail with the reason while nobody serves, and that those that wait for ready wait for the
// first who does.
func TestNobody(t *testing.T) {
	t.Parallel()
	for name, config := range configs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.New(t)
			conn := dial(t, r.Discovery(), "regd:///payment", config)
			if _, err := check(timed(t), conn); status.Code(err) != codes.Unavailable ||
				strings.HasPrefix(name, "regd") && !strings.Contains(err.Error(), "no such service") {
				t.Errorf("got %v", err)
			}
			waited := make(chan error, 1)
			go func() {
				_, err := check(timed(t), conn, grpc.WaitForReady(true))
				waited <- err
			}()
			a := serve(t, "a", nil)
			r.Put(a.instance)
			if err := <-waited; err != nil {
				t.Error(err)
			}
			r.Remove(a.instance)
			eventually(t, "calls fail again", func() bool {
				_, err := check(timed(t), conn)
				return status.Code(err) == codes.Unavailable
			})
		})
	}
}

// TestSameAddress checks that a successor at the address of its predecessor, which is still listed, is called.
func TestSameAddress(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	a := serve(t, "a", nil)
	old := inst("old", a.instance.GetAddress(), a.instance.GetPorts()[0].GetNumber())
	r.Put(old, a.instance)
	conn := dial(t, r.Discovery(), "regd:///payment", regdgrpc.Config{}.ServiceConfig())
	for i := range 20 {
		if i == 10 {
			r.Remove(old)
		}
		if _, err := check(timed(t), conn, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBreaker checks that an instance that fails is left alone, that calls fail at once when there is no other, and that those
// that wait for ready go through when the breaker lets them.
func TestBreaker(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	var bad atomic.Bool
	bad.Store(true)
	a := serve(t, "a", func(context.Context) error {
		if bad.Load() {
			return status.Error(codes.Internal, "broken")
		}
		return nil
	})
	r.Put(a.instance)
	conn := dial(t, r.Discovery(), "regd:///payment", regdgrpc.Config{
		Breaker: &regdgrpc.Breaker{ConsecutiveFailures: 3, OpenTime: regdgrpc.Duration(200 * time.Millisecond)},
	}.ServiceConfig())
	for range 3 {
		if _, err := check(timed(t), conn); status.Code(err) != codes.Internal {
			t.Errorf("got %v", err)
		}
	}
	if _, err := check(timed(t), conn); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "open breaker") {
		t.Errorf("got %v", err)
	}
	bad.Store(false)
	done := make(chan error)
	for range 10 {
		go func() {
			_, err := check(timed(t), conn, grpc.WaitForReady(true))
			done <- err
		}()
	}
	for range 10 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := a.served(); got != 13 {
		t.Errorf("the server got %d calls, want 3 and 10", got)
	}
}

// TestEjection checks that calls avoid an instance that fails, but for those that show that it does.
func TestEjection(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	a := serve(t, "a", func(context.Context) error { return status.Error(codes.Unavailable, "broken") })
	b := serve(t, "b", nil)
	r.Put(a.instance, b.instance)
	config := regdgrpc.Config{Policy: "round_robin", Ejection: &regdgrpc.Ejection{}}
	conn := dial(t, r.Discovery(), "regd:///payment", config.ServiceConfig())
	for b.served() == 0 { // While it alone is connected the failing one is the last, which is never put aside.
		_, _ = check(timed(t), conn, grpc.WaitForReady(true))
	}
	want := max(a.served()+1, 5)
	for range 200 {
		_, _ = check(timed(t), conn, grpc.WaitForReady(true))
	}
	if got := a.served(); got < 5 || got > want {
		t.Errorf("the failing instance got %d calls, want 5 to %d", got, want)
	}
}

// TestZone checks that calls stay in the client's zone, and leave it when nobody there is left.
func TestZone(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	a, b := serve(t, "a", nil), serve(t, "b", nil)
	a.instance.Zone, b.instance.Zone = "near", "far"
	r.Put(a.instance, b.instance)
	conn := dial(t, r.Discovery(), "regd:///payment", regdgrpc.Config{Zone: "near", Policy: "round_robin"}.ServiceConfig())
	eventually(t, "a is connected", func() bool {
		id, err := check(timed(t), conn, grpc.WaitForReady(true))
		return err == nil && id == "a"
	})
	a.instance.Draining = true
	r.Put(a.instance)
	eventually(t, "b has taken over", func() bool {
		id, err := check(timed(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		return id == "b"
	})
}

// TestHashHeader checks that calls with the same value go to the same instance.
func TestHashHeader(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	a, b, c := serve(t, "a", nil), serve(t, "b", nil), serve(t, "c", nil)
	r.Put(a.instance, b.instance, c.instance)
	conn := dial(t, r.Discovery(), "regd:///payment", regdgrpc.Config{Policy: "rendezvous", HashHeader: "user"}.ServiceConfig())
	connected(t, conn, a, b, c)
	for _, user := range []string{"1", "2", "3", "4"} {
		ids := map[string]bool{}
		for range 20 {
			id, err := check(metadata.AppendToOutgoingContext(timed(t), "user", user), conn)
			if err != nil {
				t.Fatal(err)
			}
			ids[id] = true
		}
		if len(ids) != 1 {
			t.Errorf("user %s was sent to %v", user, ids)
		}
	}
}

// TestHealthChecks checks that instances whose own health service says that they don't serve are not called.
func TestHealthChecks(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	a, b := serve(t, "a", nil), serve(t, "b", nil)
	r.Put(a.instance, b.instance)
	config := `{"loadBalancingConfig": [{"regd_balance": {"policy": "round_robin"}}], "healthCheckConfig": {"serviceName": ""}}`
	conn := dial(t, r.Discovery(), "regd:///payment", config)
	connected(t, conn, a, b)
	a.set(healthpb.HealthCheckResponse_NOT_SERVING)
	last := ""
	eventually(t, "a is left alone", func() bool {
		id, err := check(timed(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		before := last
		last = id
		return before == "b" && id == "b" // in turn, so a is out
	})
	a.set(healthpb.HealthCheckResponse_SERVING)
	eventually(t, "a is called again", func() bool {
		id, err := check(timed(t), conn)
		return err == nil && id == "a"
	})
}
