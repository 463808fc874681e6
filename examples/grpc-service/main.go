// Command grpc-service is one instance of a gRPC service: it serves, registers itself, and leaves without losing a call.
// All of that is package client/lifecycle, which also keeps gRPC's own health service in step.
//
// So that the example needs no proto of its own, the service is grpc.testing.TestService, by which implementations of
// gRPC try one another: its UnaryCall tells who answers.
//
// With a cluster from "make run", start two instances, and a consumer in a third terminal (see examples/grpc-consumer):
//
//	go run ./examples/grpc-service -id a
//	go run ./examples/grpc-service -id b
//
// Then stop one of them with Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/lifecycle"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(log); err != nil {
		log.Error("service failed", "error", err)
		os.Exit(1) //nolint:forbidigo // This is a command.
	}
}

// greeter is the service.
type greeter struct {
	testpb.UnimplementedTestServiceServer
	id    string
	takes time.Duration
}

// UnaryCall tells who answers.
func (g greeter) UnaryCall(ctx context.Context, _ *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	select {
	case <-ctx.Done(): // Nobody waits for the answer.
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-time.After(g.takes):
		return &testpb.SimpleResponse{ServerId: g.id}, nil
	}
}

func run(log *slog.Logger) (err error) {
	endpoints := flag.String("endpoint", "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420", "`addresses` of regd nodes, by commas")
	service := flag.String("service", "greeter", "`name` of the service")
	id := flag.String("id", "a", "`id` of this instance, unique within the service")
	listen := flag.String("listen", "127.0.0.1:0", "`address` to serve on; port 0 takes a free one")
	takes := flag.Duration("takes", 0, "how long an answer takes")
	flag.Parse()

	c, err := client.New(strings.Split(*endpoints, ","), client.WithLogger(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx := context.Background()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return err
	}

	server, serving := grpc.NewServer(), health.NewServer()
	testpb.RegisterTestServiceServer(server, greeter{id: *id, takes: *takes})
	healthpb.RegisterHealthServer(server, serving)

	log = log.With("service", *service, "id", *id, "address", listener.Addr())
	err = lifecycle.Run(ctx, lifecycle.Config{ // Until SIGTERM or Ctrl-C.
		Servers:  []lifecycle.Server{lifecycle.GRPC("grpc", server, listener, serving)},
		Register: lifecycle.Register(c, &registryv1.Instance{Service: *service, Id: *id, Address: host}),
		Logger:   log,
	})
	if err == nil {
		log.Info("stopped")
	}
	return err
}
