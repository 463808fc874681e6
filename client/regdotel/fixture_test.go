package regdotel

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdgrpc"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a Telemetry, and what it has told.
type fixture struct {
	*Telemetry
	tb     testing.TB
	reader *sdkmetric.ManualReader
	spans  *tracetest.InMemoryExporter
	tracer *trace.TracerProvider
}

func newFixture(tb testing.TB, opts ...Option) *fixture {
	tb.Helper()
	f := &fixture{tb: tb, reader: sdkmetric.NewManualReader(), spans: tracetest.NewInMemoryExporter()}
	f.tracer = trace.NewTracerProvider(trace.WithSyncer(f.spans))
	var err error
	f.Telemetry, err = New(append([]Option{
		WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(f.reader))),
		WithTracerProvider(f.tracer), WithPropagator(propagation.TraceContext{}),
	}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.Close(); err != nil {
			tb.Error(err)
		}
	})
	return f
}

// metrics collects. It returns the kind and unit of each metric by name, and the values of its series, in lines such as
// name{key=value}.
func (f *fixture) metrics() (kinds map[string]string, values map[string]float64) {
	f.tb.Helper()
	var data metricdata.ResourceMetrics
	if err := f.reader.Collect(context.Background(), &data); err != nil {
		f.tb.Fatal(err)
	}
	kinds, values = make(map[string]string), make(map[string]float64)
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			var kind string
			note := func(k string, set attribute.Set, value float64) {
				kind = k
				values[m.Name+seriesOf(set)] = value
			}
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					note(map[bool]string{true: "counter", false: "updowncounter"}[d.IsMonotonic], p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[int64]:
				for _, p := range d.DataPoints {
					note("gauge", p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[float64]:
				for _, p := range d.DataPoints {
					note("gauge", p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					note("histogram", p.Attributes, float64(p.Count))
				}
			default:
				f.tb.Fatalf("metric %s is a %T", m.Name, m.Data)
			}
			kinds[m.Name] = kind + ", " + m.Unit
		}
	}
	return kinds, values
}

// seriesOf are attributes in braces, without those of regd's namespace and with shorter keys.
func seriesOf(set attribute.Set) string {
	var parts []string
	for _, a := range set.ToSlice() {
		if a.Key != namespaceKey {
			parts = append(parts, strings.TrimPrefix(string(a.Key), "regd.")+"="+a.Value.String())
		}
	}
	slices.Sort(parts)
	return "{" + strings.Join(parts, ",") + "}"
}

// want fails unless series have values.
func (f *fixture) want(want map[string]float64) {
	f.tb.Helper()
	_, values := f.metrics()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got, ok := values[name]; !ok || got != want[name] {
			f.tb.Errorf("%s is %v (%t), want %v", name, got, ok, want[name])
		}
	}
	if f.tb.Failed() {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			f.tb.Logf("%s %v", name, values[name])
		}
	}
}

// tree returns the ended spans: each a line with its kind, status and attributes, indented below its parent.
func (f *fixture) tree() string {
	all := f.spans.GetSpans()
	var b strings.Builder
	var write func(parent string, depth int)
	write = func(parent string, depth int) {
		for _, s := range all {
			id := ""
			if s.Parent.IsValid() {
				id = s.Parent.SpanID().String()
			}
			if id != parent {
				continue
			}
			fmt.Fprintf(&b, "%s%s %s %s %s", strings.Repeat("  ", depth), s.Name, s.SpanKind, s.Status.Code,
				seriesOf(attribute.NewSet(s.Attributes...)))
			for _, e := range s.Events {
				fmt.Fprintf(&b, " [%s %s]", e.Name, seriesOf(attribute.NewSet(e.Attributes...)))
			}
			b.WriteString("\n")
			write(s.SpanContext.SpanID().String(), depth+1)
		}
	}
	write("", 0)
	return b.String()
}

// inst is a passing instance at <id>.test:80.
func inst(service, id string) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default", Service: service, Id: id, Address: id + ".test", Zone: "zone-" + id,
		Health: registryv1.Health_HEALTH_PASSING, Ports: []*registryv1.Port{{Name: "main", Number: 80}},
	}
}

// roundTrip is an inner transport.
type roundTrip func(*http.Request) (int, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) {
	code, err := f(req)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader("hello")), Request: req, ContentLength: 5}, nil
}

// transport makes a transport that is observed, traced, and closed with the test.
func (f *fixture) transport(d *discovery.Discovery, inner roundTrip, opts ...regdhttp.Option) *regdhttp.Transport {
	f.tb.Helper()
	t, err := regdhttp.New(d, append([]regdhttp.Option{regdhttp.WithTransport(inner), regdhttp.WithTracer(f)}, opts...)...)
	if err != nil {
		f.tb.Fatal(err)
	}
	f.tb.Cleanup(t.Close)
	f.ObserveHTTP(t)
	return t
}

// get does a GET, reads what comes, and returns the status.
func get(tb testing.TB, rt http.RoundTripper, url string) (int, error) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	return resp.StatusCode, err
}

// channel makes a gRPC channel to a service whose instances are all one server, observed, traced, and closed with the test.
func (f *fixture) channel(d *discovery.Discovery, service string, opts ...grpc.DialOption) healthpb.HealthClient {
	f.tb.Helper()
	listener, server := bufconn.Listen(1<<16), grpc.NewServer(grpc.WaitForHandlers(true))
	healthpb.RegisterHealthServer(server, healthpb.UnimplementedHealthServer{})
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) })
	builder := regdgrpc.NewBuilder(d, regdgrpc.WithTracer(f))
	f.ObserveGRPC(builder)
	conn, err := grpc.NewClient("regd:///"+service, append([]grpc.DialOption{
		grpc.WithResolvers(builder), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(regdgrpc.Config{Breaker: &regdgrpc.Breaker{}}.ServiceConfig()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
	}, opts...)...)
	if err != nil {
		f.tb.Fatal(err)
	}
	f.tb.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		work.Wait()
	})
	return healthpb.NewHealthClient(conn)
}
