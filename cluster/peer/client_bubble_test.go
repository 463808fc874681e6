package peer_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/peer/peertest"
)

// whoami tells the caller who it is.
type whoami struct {
	health.Server
	caller atomic.Pointer[peer.Identity]
}

func (w *whoami) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	caller, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.PermissionDenied, "nobody")
	}
	w.caller.Store(&caller)
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// serve runs a grpc.Server on the peer port.
func serve(t *testing.T, m *peer.Mux) *whoami {
	t.Helper()
	s, w := grpc.NewServer(peer.ServerOptions()...), &whoami{}
	healthpb.RegisterHealthServer(s, w)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(m.GRPCListener())
	}()
	t.Cleanup(func() { s.Stop(); <-done })
	return w
}

// client returns a health client of a node.
func client(t *testing.T, cc *grpc.ClientConn, err error) healthpb.HealthClient {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return healthpb.NewHealthClient(cc)
}

// check asks once, and waits at most d for a connection.
func check(t *testing.T, c healthpb.HealthClient, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, err := c.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	return err
}

func TestHandlersKnowWhoCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a, b := listen(t, n, "a", "c1"), listen(t, n, "b", "")
		w := serve(t, a)
		cc, err := b.DialGRPC("a:7401")
		if err = check(t, client(t, cc, err), time.Second); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&peer.Identity{NodeID: "b"}, w.caller.Load()); diff != "" {
			t.Errorf("caller (-want +got):\n%s", diff)
		}
	})
}

func TestNodeBecomesAMemberOnNewConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		var cluster atomic.Value
		cluster.Store("")
		a := listen(t, n, "a", "c1")
		b := listen(t, n, "b", "", func(c *peer.Config) { c.ClusterID = func() string { return cluster.Load().(string) } })
		w := serve(t, a)
		cc, err := b.DialGRPC("a:7401")
		c := client(t, cc, err)
		for _, want := range []string{"", "c1", "c1"} {
			if err := check(t, c, 2*time.Second); err != nil {
				t.Fatal(err)
			}
			if got := w.caller.Load().ClusterID; got != want {
				t.Errorf("caller is of cluster %q, want %q", got, want)
			}
			cluster.Store("c1")
			b.DropAnonymous()
			synctest.Wait()
		}
		if got := a.Stats().Accepted; got != 2 {
			t.Errorf("%d connections, want one as a stranger and one as a member", got)
		}
	})
}

func TestClientComesBackWithinAboutASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a, b := listen(t, n, "a", "c1"), listen(t, n, "b", "c1")
		serve(t, a)
		cc, err := b.DialGRPC("a:7401")
		c := client(t, cc, err)
		if err := check(t, c, time.Second); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if err := check(t, c, time.Minute); err == nil {
			t.Fatal("answered while down")
		}
		serve(t, listen(t, n, "a", "c1"))
		if err := check(t, c, 1200*time.Millisecond); err != nil {
			t.Errorf("after it came back: %v", err)
		}
	})
}

func TestClientNoticesThatPacketsVanish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a, b := listen(t, n, "a", "c1"), listen(t, n, "b", "c1")
		serve(t, a)
		cc, err := b.DialGRPC("a:7401")
		c := client(t, cc, err)
		if err := check(t, c, time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute) // idle, pinging; the server must not mind
		if s := cc.GetState(); s != connectivity.Ready {
			t.Fatalf("idle connection is %v", s)
		}
		n.Cut("a", "b")
		time.Sleep(15 * time.Second)
		if s := cc.GetState(); s == connectivity.Ready {
			t.Errorf("the client has not noticed: %v", s)
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if s := a.Stats(); s.Open != 0 {
			t.Errorf("the server has not noticed: %+v", s)
		}
	})
}

func TestClientOfOneNodeUsesNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a, b := listen(t, n, "a", "c1"), listen(t, n, "b", "c1")
		w := serve(t, a)
		cc, err := b.DialNode("other", "a:7401")
		if err = check(t, client(t, cc, err), time.Minute); err == nil || w.caller.Load() != nil {
			t.Errorf("another node was asked: %v", err)
		}
		cc, err = b.DialNode("a", "a:7401")
		if err = check(t, client(t, cc, err), time.Second); err != nil {
			t.Errorf("the right node: %v", err)
		}
	})
}
