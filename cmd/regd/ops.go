package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// opsServer is the HTTP port for operations. It answers before there is a node: then the node is starting.
type opsServer struct {
	lis      net.Listener
	http     *http.Server
	wg       sync.WaitGroup
	registry *prometheus.Registry

	stopping atomic.Bool
	started  atomic.Bool // has been ready once
	node     atomic.Pointer[opsNode]
}

// opsNode is what the port tells about a node.
type opsNode interface {
	Ready() error
	Live() error
}

func startOps(ctx context.Context, listen string, log *slog.Logger) (*opsServer, error) {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for operations: %w", err)
	}
	s := &opsServer{lis: lis, registry: prometheus.NewRegistry()}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", s.probe(s.live))
	mux.HandleFunc("GET /readyz", s.probe(s.ready))
	mux.HandleFunc("GET /startupz", s.probe(s.startup))
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "regd: /livez /readyz?verbose /startupz /metrics")
	})
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	s.wg.Go(func() {
		if err := s.http.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the port for operations has failed", "err", err)
		}
	})
	return s, nil
}

func (s *opsServer) addr() net.Addr { return s.lis.Addr() }

// serveNode lets the port tell about a node.
func (s *opsServer) serveNode(node opsNode, metrics []prometheus.Collector) error {
	for _, c := range metrics {
		if err := s.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	s.node.Store(&node)
	return nil
}

// close stops the port and waits for what is under way, also when ctx has ended.
func (s *opsServer) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.wg.Wait()
	return err
}

// opsCheck is one fact that a probe rests on.
type opsCheck struct {
	name string
	err  error
}

// live never depends on a leader, a quorum or load: restarting a node heals none of them.
func (s *opsServer) live() []opsCheck {
	node := s.node.Load()
	if node == nil {
		return []opsCheck{{"process", nil}}
	}
	return []opsCheck{{"process", nil}, {"node", (*node).Live()}}
}

func (s *opsServer) ready() []opsCheck {
	checks := []opsCheck{{name: "not-stopping"}, {name: "store"}}
	if s.stopping.Load() {
		checks[0].err = errStopping
	}
	node := s.node.Load()
	if node == nil {
		checks[1].err = errOpening
		return checks
	}
	err := (*node).Ready()
	if err == nil {
		s.started.Store(true)
	} else if errors.Is(err, errStopping) {
		err = nil // Told already.
	}
	return append(checks, opsCheck{"cluster", err})
}

// startup turns good once, at the first time that the node is ready.
func (s *opsServer) startup() []opsCheck {
	if s.started.Load() {
		return []opsCheck{{"started", nil}}
	}
	return s.ready()
}

// probe answers 200 when all checks hold, 503 with the reasons else. ?verbose lists all, ?exclude=name leaves one out.
func (s *opsServer) probe(checks func() []opsCheck) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		excluded := r.URL.Query()["exclude"]
		status := http.StatusOK
		var all, bad strings.Builder
		for _, c := range checks() {
			switch {
			case slices.Contains(excluded, c.name):
				fmt.Fprintf(&all, "[ ]%s excluded\n", c.name)
			case c.err != nil:
				status = http.StatusServiceUnavailable
				fmt.Fprintf(&all, "[-]%s %v\n", c.name, c.err)
				fmt.Fprintf(&bad, "%v\n", c.err)
			default:
				fmt.Fprintf(&all, "[+]%s ok\n", c.name)
			}
		}
		body := "ok\n"
		switch {
		case r.URL.Query().Has("verbose"):
			body = all.String()
		case bad.Len() > 0:
			body = bad.String()
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}
