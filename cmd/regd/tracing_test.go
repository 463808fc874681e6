package main

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// collector is a collector of traces that keeps what it gets, as text.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer

	mu  sync.Mutex
	got strings.Builder
}

func (c *collector) Export(_ context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got.WriteString(req.String())
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func TestNodeSendsItsSpansByOTLPBeforeItEnds(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, server := &collector{}, grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Run("node", func(t *testing.T) {
		s, http := startNodeWith(t, tlsSettings{}, func(cfg *serveConfig) {
			cfg.Trace = traceSettings{OTLP: "http://" + lis.Addr().String(), Sample: 1}
		})
		s.ok("register", "web", "--id", "web-1", "--detach", "--port", "80")
		if code, body := get(t, "http://"+http+"/metrics"); code != 200 || !strings.Contains(body, "\nregd_trace_spans_total ") {
			t.Errorf("metrics: %d, without regd_trace_spans_total", code)
		}
	})
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	for _, part := range []string{`"service.instance.id"`, `"n1"`, `"regd.api.v1.RegistryService/Register"`, `"regd propose"`, `"web-1"`} {
		if !strings.Contains(strings.ReplaceAll(c.got.String(), ":  ", ": "), part) {
			t.Errorf("the collector lacks %s", part)
		}
	}
}
