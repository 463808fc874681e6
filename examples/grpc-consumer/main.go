// Command grpc-consumer calls a gRPC service by its name. The target is regd:///greeter; package client/regdgrpc
// resolves it, pushes each change to the channel, and balances the calls by its policy regd_balance.
//
// With a cluster from "make run" and some instances of examples/grpc-service:
//
//	go run ./examples/grpc-consumer
//
// Each line tells who answered. Start and stop instances meanwhile: nothing is polled, and no call fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdgrpc"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(log); err != nil {
		log.Error("consumer failed", "error", err)
		os.Exit(1) //nolint:forbidigo // This is a command.
	}
}

func run(log *slog.Logger) (err error) {
	endpoints := flag.String("endpoint", "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420", "`addresses` of regd nodes, by commas")
	service := flag.String("service", "greeter", "`name` of the service")
	every := flag.Duration("every", 500*time.Millisecond, "time between two calls")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	c, err := client.New(strings.Split(*endpoints, ","), client.WithLogger(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	d, err := discovery.New(c, discovery.WithLogger(log))
	if err != nil {
		return err
	}
	defer d.Close()
	conn, err := grpc.NewClient("regd:///"+*service,
		grpc.WithResolvers(regdgrpc.NewBuilder(d)),
		grpc.WithDefaultServiceConfig(regdgrpc.Config{Policy: "round_robin", Ejection: &regdgrpc.Ejection{}}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()

	greeter := testpb.NewTestServiceClient(conn)
	var calls, failed int
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			log.Info("stopped", "calls", calls, "failed", failed)
			return nil
		case <-tick.C:
		}
		calls++
		id, err := hello(ctx, greeter)
		if err != nil {
			failed++
			log.Warn("call failed", "error", err)
			continue
		}
		fmt.Fprintf(os.Stdout, "hello from %s\n", id)
	}
}

// hello returns who answers. A signal does not cut it off.
func hello(ctx context.Context, greeter testpb.TestServiceClient) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	resp, err := greeter.UnaryCall(ctx, &testpb.SimpleRequest{FillServerId: true})
	return resp.GetServerId(), err
}
