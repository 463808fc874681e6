package regdotel

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdgrpc"
	"github.com/regd-io/regd/client/regdhttp"
)

// scope is the name of the instrumentation.
const scope = "github.com/regd-io/regd/client/regdotel"

// Telemetry makes metrics and spans. One per process is enough; it is safe for concurrent use. It is a client.Tracer, a
// regdhttp.Tracer and a regdgrpc.Tracer.
type Telemetry struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	durations  metric.Float64Histogram
	registered metric.Registration

	mu      sync.Mutex // guards the field below
	sources []source
}

var (
	_ client.Tracer   = (*Telemetry)(nil)
	_ regdhttp.Tracer = (*Telemetry)(nil)
	_ regdgrpc.Tracer = (*Telemetry)(nil)
)

// source adds what it knows to samples.
type source func(samples)

// config is what the options made.
type config struct {
	meters     metric.MeterProvider
	tracers    trace.TracerProvider
	propagator propagation.TextMapPropagator
	instances  bool
}

// Option configures a Telemetry. Each option checks its argument; New reports all faults at once.
type Option func(*config) error

// WithMeterProvider sets where metrics go. Default: otel.GetMeterProvider.
func WithMeterProvider(meters metric.MeterProvider) Option {
	return func(c *config) error {
		if meters == nil {
			return errors.New("meter provider: nil")
		}
		c.meters = meters
		return nil
	}
}

// WithTracerProvider sets where spans go. Default: otel.GetTracerProvider.
func WithTracerProvider(tracers trace.TracerProvider) Option {
	return func(c *config) error {
		if tracers == nil {
			return errors.New("tracer provider: nil")
		}
		c.tracers = tracers
		return nil
	}
}

// WithPropagator sets how the context of spans is sent along with requests. Default: otel.GetTextMapPropagator.
func WithPropagator(propagator propagation.TextMapPropagator) Option {
	return func(c *config) error {
		if propagator == nil {
			return errors.New("propagator: nil")
		}
		c.propagator = propagator
		return nil
	}
}

// WithInstances makes metrics of each instance that is called, beside those of services. A service with many instances, or
// with ones that change often, makes many series. Default: none.
func WithInstances() Option {
	return func(c *config) error {
		c.instances = true
		return nil
	}
}

// New makes the instruments. What they tell of is named by the Observe methods, later. The error joins all that is wrong
// with the options, or is that of the meter provider.
func New(opts ...Option) (*Telemetry, error) {
	cfg := config{
		meters: otel.GetMeterProvider(), tracers: otel.GetTracerProvider(), propagator: otel.GetTextMapPropagator(),
	}
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(&cfg))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("new telemetry: %w", err)
	}
	t := &Telemetry{
		tracer: cfg.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)), propagator: cfg.propagator,
	}
	meter := cfg.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	if t.durations, err = newDurations(meter); err != nil {
		return nil, fmt.Errorf("new telemetry: %w", err)
	}
	instruments, err := newInstruments(meter, cfg.instances)
	if err != nil {
		return nil, fmt.Errorf("new telemetry: %w", err)
	}
	t.registered, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		instruments.observe(o, t.sample())
		return nil
	}, instruments.observables()...)
	if err != nil {
		return nil, fmt.Errorf("new telemetry: %w", err)
	}
	return t, nil
}

// Close ends the metrics. Spans that have begun end as they would.
func (t *Telemetry) Close() error {
	if err := t.registered.Unregister(); err != nil {
		return fmt.Errorf("close telemetry: %w", err)
	}
	return nil
}

// ObserveClient makes metrics of a client's session, registrations and calls. Attributes tell it from another client of the
// process; without them their counts are added up, and of gauges the greater is told.
func (t *Telemetry) ObserveClient(c *client.Client, attributes ...attribute.KeyValue) {
	t.observe(func(s samples) { sampleClient(s.with(attributes), c.Stats()) })
}

// ObserveDiscovery makes metrics of views. Attributes are as of ObserveClient.
func (t *Telemetry) ObserveDiscovery(d *discovery.Discovery, attributes ...attribute.KeyValue) {
	t.observe(func(s samples) { sampleViews(s.with(attributes), d.Stats()) })
}

// ObserveHTTP makes metrics of a transport's requests and balancers. Attributes are as of ObserveClient.
func (t *Telemetry) ObserveHTTP(transport *regdhttp.Transport, attributes ...attribute.KeyValue) {
	t.observe(func(s samples) { sampleHTTP(s.with(attributes), transport.Stats()) })
}

// ObserveGRPC makes metrics of the balancers of channels. Attributes are as of ObserveClient.
func (t *Telemetry) ObserveGRPC(builder *regdgrpc.Builder, attributes ...attribute.KeyValue) {
	t.observe(func(s samples) { sampleGRPC(s.with(attributes), builder.Stats()) })
}

// observe adds a source.
func (t *Telemetry) observe(s source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sources = append(t.sources, s)
}

// sample asks all sources.
func (t *Telemetry) sample() samples {
	t.mu.Lock()
	sources := t.sources // It is only appended to.
	t.mu.Unlock()
	s := newSamples()
	for _, ask := range sources {
		ask(s)
	}
	return s
}
