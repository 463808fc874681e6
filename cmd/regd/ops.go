package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/regd-io/regd/rpc"
)

// maxProfile is how long the port for operations may take to answer: longer than the profile of a minute.
const maxProfile = 70 * time.Second

// opsServer is the HTTP port for operations. It answers before there is a node: then the node is starting.
type opsServer struct {
	lis      net.Listener
	http     *http.Server
	wg       sync.WaitGroup
	registry *prometheus.Registry
	ops      *rpc.Ops
}

func startOps(ctx context.Context, listen string, log *slog.Logger) (*opsServer, error) {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for operations: %w", err)
	}
	s := &opsServer{lis: lis, registry: prometheus.NewRegistry()}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.ops = rpc.NewOps(s.registry, log)
	s.http = &http.Server{
		Handler: s.ops, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: maxProfile,
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
func (s *opsServer) serveNode(node rpc.Node, metrics []prometheus.Collector) error {
	for _, c := range metrics {
		if err := s.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	s.ops.Attach(node)
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
