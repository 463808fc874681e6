package lifecycle_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/lifecycle"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// registration is one of which the test says when all were told.
type registration struct {
	ports   []*registryv1.Port
	begun   chan struct{}
	leaving chan struct{}
	told    chan struct{}
}

func (r *registration) register(_ context.Context, ports []*registryv1.Port) (lifecycle.Registration, error) {
	r.ports = ports
	close(r.begun)
	return r, nil
}

func (r *registration) Leave(ctx context.Context) (client.Departure, error) {
	close(r.leaving)
	select {
	case <-r.told:
	case <-ctx.Done():
	}
	return client.Departure{}, nil
}

func (r *registration) Deregister(context.Context) error { return errors.New("not asked for") }

func listen(t *testing.T) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// visit returns the status and the body of an answer.
func visit(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// TestServersOnLoopback follows two servers of one process through its end.
func TestServersOnLoopback(t *testing.T) {
	var ready lifecycle.Readiness
	entered, finish := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("/readyz", &ready)
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-finish
		_, _ = io.WriteString(w, "finished")
	})
	web, rpc := listen(t), listen(t)
	status := health.NewServer()
	status.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, status)
	reg := &registration{begun: make(chan struct{}), leaving: make(chan struct{}), told: make(chan struct{})}
	signals := make(chan os.Signal, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- lifecycle.Run(context.Background(), lifecycle.Config{
			Servers: []lifecycle.Server{
				lifecycle.HTTP("http", &http.Server{Handler: mux}, web), lifecycle.GRPC("grpc", server, rpc, status),
			},
			Register: reg.register, Readiness: &ready, Signals: signals,
		})
	}()
	conn, err := grpc.NewClient(rpc.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	until := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for {
			m, err := watch.Recv()
			if err != nil {
				t.Fatalf("health: %v, want %v", err, want)
			}
			if m.GetStatus() == want {
				return
			}
		}
	}
	until(healthpb.HealthCheckResponse_SERVING) // Which is said last.
	<-reg.begun
	if code, body := visit(t, "http://"+web.Addr().String()+"/readyz"); code != http.StatusOK || body != "ready\n" {
		t.Errorf("ready: %d %s", code, body)
	}
	port := uint32(rpc.Addr().(*net.TCPAddr).Port)
	if n := len(reg.ports); n != 2 || reg.ports[0].GetName() != "http" || reg.ports[1].GetNumber() != port {
		t.Errorf("registered with ports %v", reg.ports)
	}
	slow := make(chan string, 1)
	go func() {
		_, body := visit(t, "http://"+web.Addr().String()+"/slow")
		slow <- body
	}()
	<-entered
	signals <- syscall.SIGTERM
	<-reg.leaving
	until(healthpb.HealthCheckResponse_NOT_SERVING)
	if code, body := visit(t, "http://"+web.Addr().String()+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("while all are told: %d %s, want an answer, 503", code, body)
	}
	close(reg.told)
	for { // The listener is closed while the slow request is under way.
		if code, _ := visit(t, "http://"+web.Addr().String()+"/readyz"); code == 0 {
			break
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with %v while a request was under way", err)
	default:
	}
	if err := conn.Close(); err != nil { // Its watch is a call under way.
		t.Error(err)
	}
	close(finish)
	if got := <-slow; got != "finished" {
		t.Errorf("the request under way got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A port that somebody has makes no server: the process does not register.
func TestServerThatCannotServe(t *testing.T) {
	for name, server := range map[string]func(net.Listener) lifecycle.Server{
		"http": func(l net.Listener) lifecycle.Server { return lifecycle.HTTP("http", new(http.Server), l) },
		"grpc": func(l net.Listener) lifecycle.Server { return lifecycle.GRPC("grpc", grpc.NewServer(), l, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			err := lifecycle.Run(t.Context(), lifecycle.Config{
				Servers: []lifecycle.Server{server(l)}, Signals: make(chan os.Signal),
				Ready: func(ctx context.Context) error { <-ctx.Done(); return nil },
				Register: func(context.Context, []*registryv1.Port) (lifecycle.Registration, error) {
					t.Error("it was registered")
					return nil, errors.New("no")
				},
			})
			if !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "serve "+name) {
				t.Errorf("Run: %v", err)
			}
		})
	}
}
