package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Server is one server of a process. Make it with HTTP, GRPC or Custom. It runs once.
type Server struct {
	name     string
	listener net.Listener // nil: it has no port to be registered
	serve    func() error
	shutdown func(ctx context.Context) error
	ready    func(ready bool)
}

// HTTP serves on the listener, with TLS if the server has a TLSConfig. The name is that of the port at the registry.
func HTTP(name string, server *http.Server, listener net.Listener) Server {
	return Server{
		name: name, listener: listener, ready: func(bool) {},
		serve: func() error {
			serve := server.Serve
			if server.TLSConfig != nil {
				serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
			}
			if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		shutdown: func(ctx context.Context) error {
			if server.Shutdown(ctx) == nil {
				return nil
			}
			return errors.Join(fmt.Errorf("requests were cut off: %w", context.Cause(ctx)), server.Close())
		},
	}
}

// GRPC serves on the listener. The name is that of the port at the registry. status, unless nil, is the server's health
// service, which is told when the process serves and when no longer.
func GRPC(name string, server *grpc.Server, listener net.Listener, status *health.Server) Server {
	return Server{
		name: name, listener: listener,
		serve: func() error {
			if err := server.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) {
				return err
			}
			return nil
		},
		shutdown: func(ctx context.Context) error {
			stop := context.AfterFunc(ctx, server.Stop)
			server.GracefulStop()
			if !stop() {
				server.Stop() // Waits for the one that is under way.
				return fmt.Errorf("calls were cut off: %w", context.Cause(ctx))
			}
			return nil
		},
		ready: func(ready bool) {
			switch {
			case status == nil:
			case ready:
				status.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			default:
				status.Shutdown() // Of all services, for good.
			}
		},
	}
}

// Custom is a server of any other kind. serve returns when shutdown was called, which finishes what is under way until its
// context ends, and cuts off the rest then. listener is where it serves: its port is registered under the name. It may be
// nil.
func Custom(name string, listener net.Listener, serve func() error, shutdown func(ctx context.Context) error) Server {
	return Server{name: name, listener: listener, serve: serve, shutdown: shutdown, ready: func(bool) {}}
}
