package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

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

// HTTP serves on the listener, with TLS if the server has a TLSConfig. The name is that of the port at the registry. The server's
// ConnState is wrapped.
func HTTP(name string, server *http.Server, listener net.Listener) Server {
	idle := &unused{conns: make(map[net.Conn]struct{})}
	told := server.ConnState
	server.ConnState = func(c net.Conn, state http.ConnState) {
		idle.note(c, state)
		if told != nil {
			told(c, state)
		}
	}
	server.RegisterOnShutdown(idle.close)
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

// unused are the connections of an HTTP server on which no request has begun. Clients open some in advance, for requests that
// are then sent on others. http.Server.Shutdown waits 5 s for them, though it would not answer a request that came on one.
// Safe for concurrent use.
type unused struct {
	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

func (u *unused) note(c net.Conn, state http.ConnState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if state == http.StateNew {
		u.conns[c] = struct{}{}
	} else {
		delete(u.conns, c)
	}
}

// close closes them.
func (u *unused) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.conns {
		c.Close() // It was of no use.
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
