package lifecycle_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/lifecycle"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func ExampleRun() {
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	ctx := context.Background()
	var lc net.ListenConfig
	web, err := lc.Listen(ctx, "tcp", ":8080")
	if err != nil {
		fmt.Println(err)
		return
	}
	rpc, err := lc.Listen(ctx, "tcp", ":9090")
	if err != nil {
		fmt.Println(err)
		return
	}
	ready, status := new(lifecycle.Readiness), health.NewServer()
	mux := http.NewServeMux()
	mux.Handle("/readyz", ready)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, status)

	err = lifecycle.Run(ctx, lifecycle.Config{
		Servers: []lifecycle.Server{
			lifecycle.HTTP("http", &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, web),
			lifecycle.GRPC("grpc", server, rpc, status),
		},
		Register:  lifecycle.Register(c, &registryv1.Instance{Service: "payment", Id: "payment-1", Address: "10.0.0.7"}),
		Readiness: ready,
	})
	if err != nil {
		fmt.Println(err)
	}
}
