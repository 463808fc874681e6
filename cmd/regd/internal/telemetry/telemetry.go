// Package telemetry makes OpenTelemetry spans of the calls that a node serves, and sends them to a collector by OTLP over
// gRPC. The packages below know nothing of OpenTelemetry: gRPC tells of calls (Telemetry.Stats), and package cluster of how
// writes and linearizable reads went (Telemetry implements cluster.Tracer).
//
// A write that a client sends to a follower makes these spans, each within the one before:
//
//	regd.api.v1.RegistryService/Register   the call, at the follower
//	regd forward                           until the leader has answered, at the follower
//	regd propose                           from when it waits at the leader until it is applied there
//
// "regd propose" has an event for each turn: taken into an entry of the log, written to the leader's disk, committed. The
// entry serves many writes, so it is in none of their traces: it begins one of its own, "regd entry", with "regd store" and
// "regd apply" in it, and links join it with each "regd propose". A linearizable read makes "regd read", with an event when
// its index was confirmed. Attributes named regd.node tell which node did it.
//
// The client decides whether its call is traced, in the sampled flag of the header traceparent; for calls without one the
// ratio decides. Streams and calls of others than regd's own services are not traced: a span that ends with a connection
// says nothing.
package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
)

// Config says where spans go, and of which calls they are made.
type Config struct {
	// Endpoint is the collector: http://host:port for plaintext, https://host:port for TLS; see CheckEndpoint. Headers,
	// authorities and whatever else the exporter can be told come from the environment: OTEL_EXPORTER_OTLP_HEADERS,
	// OTEL_EXPORTER_OTLP_CERTIFICATE and so on, as the OpenTelemetry specification has them.
	Endpoint string
	// Sample is the part of the calls without a traceparent that are traced, 0 to 1.
	Sample float64
	// Node is the name of the node, Version that of the binary.
	Node, Version string
	// Logger is told when the collector fails, and when it works again.
	Logger *slog.Logger
	// Exporter takes the spans instead of Endpoint, for tests.
	Exporter sdktrace.SpanExporter
}

// CheckEndpoint tells what is wrong with the address of a collector.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && strings.Trim(u.Path, "/") == "" &&
		u.RawQuery == "" && u.User == nil {
		return nil
	}
	return errors.New("must be http://host:port, or https://host:port for TLS")
}

// Telemetry makes spans for one node. Its methods are safe for concurrent use.
type Telemetry struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	stats    stats.Handler
	sender   *sender
	node     attribute.KeyValue
}

// Open begins to trace. It does not wait for the collector, and works without it. The Telemetry must be closed.
//
// It fails when the endpoint or the standard environment variables of OpenTelemetry can't be understood.
func Open(ctx context.Context, cfg Config) (*Telemetry, error) {
	exporter := cfg.Exporter
	if exporter == nil {
		var err error
		if exporter, err = otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(cfg.Endpoint)); err != nil {
			return nil, fmt.Errorf("trace to %s: %w", cfg.Endpoint, err)
		}
	}
	// The last one wins: an operator may say in OTEL_RESOURCE_ATTRIBUTES what is told of the node.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		semconv.ServiceName("regd"), semconv.ServiceInstanceID(cfg.Node), semconv.ServiceVersion(cfg.Version),
	), resource.WithFromEnv())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("describe this node to the collector: %w", err), exporter.Shutdown(ctx))
	}
	t := &Telemetry{sender: newSender(exporter, cmp.Or(cfg.Endpoint, "exporter"), cfg.Logger), node: nodeKey.String(cfg.Node)}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithResource(about),
		sdktrace.WithSampler(linked{sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.Sample))}),
		sdktrace.WithSpanProcessor(t.sender.made),
		sdktrace.WithBatcher(t.sender),
	)
	t.tracer = t.provider.Tracer("github.com/regd-io/regd", trace.WithInstrumentationVersion(cfg.Version))
	t.stats = calls{otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithMeterProvider(metricnoop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}), otelgrpc.WithFilter(worthASpan()), otelgrpc.WithSpanAttributes(t.node),
	)}
	return t, nil
}

// Stats is to be told of the calls that the node serves.
func (t *Telemetry) Stats() stats.Handler { return t.stats }

// Collectors are its metrics, to be registered once.
func (t *Telemetry) Collectors() []prometheus.Collector { return t.sender.collectors() }

// closeTimeout bounds how long Close waits for a collector.
const closeTimeout = 3 * time.Second

// Close sends what is left, for at most 3 seconds, and ends the tracing.
func (t *Telemetry) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // The sender has said what it could not send.
	t.sender.end()
}

// linked is a sampler that also takes what is linked to a span that is recorded: an entry of the log of which a write is
// traced.
type linked struct{ sdktrace.Sampler }

// ShouldSample implements sdktrace.Sampler.
func (s linked) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	for _, l := range p.Links {
		if l.SpanContext.IsSampled() {
			return sdktrace.AlwaysSample().ShouldSample(p)
		}
	}
	return s.Sampler.ShouldSample(p)
}
