package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/stats"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cmd/regd/internal/telemetry"
)

// traceSettings say where a node sends its traces. The zero value is nowhere: then calls aren't traced.
type traceSettings struct {
	OTLP   string
	Sample float64
}

// defaultTraceSample is few: a client that wants its call traced says so itself.
const defaultTraceSample = 0.01

func (c *traceSettings) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.OTLP, "trace-otlp", "", "`URL` of the OpenTelemetry collector that gets traces by OTLP/gRPC: http://host:4317, or https")
	fs.Float64Var(&c.Sample, "trace-sample", defaultTraceSample, "part of the calls that are traced, 0 to 1, where the client does not say")
}

// validate reports what can't be.
func (c *traceSettings) validate(bad func(string, ...any)) {
	if c.OTLP != "" {
		if err := telemetry.CheckEndpoint(c.OTLP); err != nil {
			bad("--trace-otlp %q: %w", c.OTLP, err)
		}
	}
	if !(c.Sample >= 0 && c.Sample <= 1) { // NaN is neither.
		bad("--trace-sample %v: must be 0 to 1", c.Sample)
	}
}

// tracing is a node's tracing while it runs. Its zero value is none.
type tracing struct{ on *telemetry.Telemetry }

// openTracing begins to trace, if the node shall.
func openTracing(ctx context.Context, cfg serveConfig) (tracing, error) {
	if cfg.Trace.OTLP == "" {
		return tracing{}, nil
	}
	t, err := telemetry.Open(ctx, telemetry.Config{
		Endpoint: cfg.Trace.OTLP, Sample: cfg.Trace.Sample, Node: cfg.Name, Version: cfg.Build.Version, Logger: cfg.Logger,
	})
	return tracing{t}, err
}

// stats is what is told of calls; nil: nobody.
func (t tracing) stats() stats.Handler {
	if t.on == nil {
		return nil
	}
	return t.on.Stats()
}

// tracer is what is told of writes and reads; nil: nobody.
func (t tracing) tracer() cluster.Tracer {
	if t.on == nil {
		return nil
	}
	return t.on
}

func (t tracing) collectors() []prometheus.Collector {
	if t.on == nil {
		return nil
	}
	return t.on.Collectors()
}

// close sends what is left, within a bound.
func (t tracing) close(ctx context.Context) {
	if t.on != nil {
		t.on.Close(ctx)
	}
}
