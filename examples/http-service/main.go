// Command http-service is one instance of an HTTP service: it serves, registers itself, and leaves without losing a
// request. All of that is package client/lifecycle.
//
// With a cluster from "make run", start two instances, and a consumer in a third terminal (see examples/http-consumer):
//
//	go run ./examples/http-service -id a
//	go run ./examples/http-service -id b
//
// Then stop one of them with Ctrl-C. It is marked as draining, everyone who watches the service is told, it is
// deregistered, and only then does it finish what is under way and stop.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

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

func run(log *slog.Logger) (err error) {
	endpoints := flag.String("endpoint", "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420", "`addresses` of regd nodes, by commas")
	service := flag.String("service", "hello", "`name` of the service")
	id := flag.String("id", "a", "`id` of this instance, unique within the service")
	version := flag.String("version", "1", "what the instance says of its version in its metadata")
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

	ready := new(lifecycle.Readiness)
	mux := http.NewServeMux()
	mux.Handle("GET /readyz", ready)
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done(): // Nobody waits for the answer.
			return
		case <-time.After(*takes):
		}
		w.Header().Set("Version", *version)
		fmt.Fprintf(w, "hello from %s\n", *id)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}

	log = log.With("service", *service, "id", *id, "address", listener.Addr())
	err = lifecycle.Run(ctx, lifecycle.Config{ // Until SIGTERM or Ctrl-C.
		Servers: []lifecycle.Server{lifecycle.HTTP("http", server, listener)},
		Register: lifecycle.Register(c, &registryv1.Instance{
			Service: *service, Id: *id, Address: host, Metadata: map[string]string{"version": *version},
		}),
		Readiness: ready,
		Logger:    log,
	})
	if err == nil {
		log.Info("stopped")
	}
	return err
}
