package regdgrpc_test

import (
	"context"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdgrpc"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inst is an instance of service payment.
func inst(id, host string, port uint32) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default", Service: "payment", Id: id, Address: host, Health: registryv1.Health_HEALTH_PASSING,
		Ports: []*registryv1.Port{{Name: "main", Number: port}},
	}
}

// server is an instance that serves, on loopback. What it serves is gRPC's health service.
type server struct {
	healthpb.UnimplementedHealthServer
	*grpc.Server
	instance *registryv1.Instance
	handle   func(context.Context) error // what a Check does; nil: nothing

	mu     sync.Mutex // guards the fields below
	status healthpb.HealthCheckResponse_ServingStatus
	calls  int
	news   chan struct{}
}

// serve starts a server that ends with the test.
func serve(tb testing.TB, id string, handle func(context.Context) error) *server {
	tb.Helper()
	var listen net.ListenConfig
	l, err := listen.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		tb.Fatal(err)
	}
	s := &server{
		Server: grpc.NewServer(grpc.WaitForHandlers(true)), instance: inst(id, "127.0.0.1", uint32(number)), handle: handle,
		status: healthpb.HealthCheckResponse_SERVING, news: make(chan struct{}),
	}
	healthpb.RegisterHealthServer(s.Server, s)
	var work sync.WaitGroup
	work.Go(func() { _ = s.Serve(l) })
	tb.Cleanup(func() {
		s.Stop()
		work.Wait()
	})
	return s
}

// Check tells in a header which instance has answered.
func (s *server) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	s.mu.Lock()
	s.calls++
	s.mu.Unlock()
	if err := grpc.SetHeader(ctx, metadata.Pairs("instance", s.instance.GetId())); err != nil {
		return nil, err
	}
	if s.handle != nil {
		if err := s.handle(ctx); err != nil {
			return nil, err
		}
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// Watch streams the server's status.
func (s *server) Watch(_ *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	for {
		s.mu.Lock()
		status, news := s.status, s.news
		s.mu.Unlock()
		if err := stream.Send(&healthpb.HealthCheckResponse{Status: status}); err != nil {
			return err
		}
		select {
		case <-news:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// set changes the status.
func (s *server) set(status healthpb.HealthCheckResponse_ServingStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
	close(s.news)
	s.news = make(chan struct{})
}

// served is how many calls the server has got.
func (s *server) served() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// dial makes a channel that is closed with the test.
func dial(tb testing.TB, d *discovery.Discovery, target, config string) *grpc.ClientConn {
	tb.Helper()
	conn, err := grpc.NewClient(target, grpc.WithResolvers(regdgrpc.NewBuilder(d)), grpc.WithDefaultServiceConfig(config),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := conn.Close(); err != nil {
			tb.Error(err)
		}
	})
	return conn
}

// check calls, and returns which instance has answered.
func check(ctx context.Context, conn *grpc.ClientConn, opts ...grpc.CallOption) (string, error) {
	var header metadata.MD
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, append(opts, grpc.Header(&header))...)
	if id := header.Get("instance"); len(id) > 0 {
		return id[0], err
	}
	return "", err
}

// eventually waits until something holds.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); !holds(); {
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("never: %s", what)
		}
	}
}

const roundRobin = `{"loadBalancingConfig": [{"round_robin": {}}]}`

// configs are service configs by the name of their policy.
func configs() map[string]string {
	return map[string]string{
		"round_robin":  roundRobin,
		"regd_balance": regdgrpc.Config{}.ServiceConfig(),
		"regd_balance round_robin": regdgrpc.Config{
			Policy: "round_robin", Breaker: &regdgrpc.Breaker{}, Ejection: &regdgrpc.Ejection{},
		}.ServiceConfig(),
	}
}
