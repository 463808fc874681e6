package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cmd/regd/internal/telemetry"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// tracedCluster is a cluster whose spans all come to one place, as those of an application do that calls it.
type tracedCluster struct {
	*clustertest.Cluster
	t      *testing.T
	traces map[string]*telemetry.Telemetry
	spans  *tracetest.InMemoryExporter
	app    *sdktrace.TracerProvider
}

func newTracedCluster(t *testing.T, sample float64) *tracedCluster {
	t.Helper()
	c := &tracedCluster{t: t, traces: map[string]*telemetry.Telemetry{}, spans: tracetest.NewInMemoryExporter()}
	c.app = sdktrace.NewTracerProvider(sdktrace.WithSyncer(c.spans))
	c.Cluster = clustertest.New(t, 3, func(cfg *cluster.Config) {
		made, err := telemetry.Open(t.Context(), telemetry.Config{Sample: sample, Node: cfg.Name, Exporter: c.spans, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c.traces[cfg.Name], cfg.Tracer = made, made
		t.Cleanup(func() { made.Close(context.Background()) })
	})
	c.Ready()
	return c
}

// client serves the API of a node, and returns a client of it that sends the context of its trace along.
func (c *tracedCluster) client(node *cluster.Node) apiv1.RegistryServiceClient {
	c.t.Helper()
	server, err := rpc.NewServer(rpc.Config{Stats: c.traces[node.Info().Name].Stats()}, node)
	if err != nil {
		c.t.Fatal(err)
	}
	lis := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:node", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(c.app), otelgrpc.WithPropagators(propagation.TraceContext{}))))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = conn.Close()
		if err := errors.Join(server.Shutdown(context.Background()), <-served); err != nil {
			c.t.Error(err)
		}
	})
	return apiv1.NewRegistryServiceClient(conn)
}

// exported is what the collector has once every node has sent its spans.
func (c *tracedCluster) exported() tracetest.SpanStubs {
	time.Sleep(10 * time.Second)
	return c.spans.GetSpans()
}

// tree shows the spans of a trace, each as "name (node)", by depth, and those of a parent in the order of their beginning.
func tree(all tracetest.SpanStubs, id trace.TraceID) []string {
	var lines []string
	var add func(parent trace.SpanID, depth string)
	add = func(parent trace.SpanID, depth string) {
		for _, s := range all {
			if s.SpanContext.TraceID() == id && s.Parent.SpanID() == parent {
				lines = append(lines, depth+s.Name+" ("+nodeOf(s)+")")
				add(s.SpanContext.SpanID(), depth+"  ")
			}
		}
	}
	add(trace.SpanID{}, "")
	return lines
}

func nodeOf(s tracetest.SpanStub) string {
	for _, a := range s.Attributes {
		if a.Key == "regd.node" {
			return a.Value.AsString()
		}
	}
	return "app"
}

// named returns the only span of a name.
func named(t *testing.T, all tracetest.SpanStubs, name string) tracetest.SpanStub {
	t.Helper()
	var found []tracetest.SpanStub
	for _, s := range all {
		if s.Name == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans named %q, want one", len(found), name)
	}
	return found[0]
}

func registerRequest(service string) *apiv1.RegisterRequest {
	return &apiv1.RegisterRequest{Instance: &registryv1.Instance{Namespace: "default", Service: service, Id: "1", Address: "192.0.2.1"}}
}

func TestForwardedWriteIsOneTraceOverTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTracedCluster(t, 0)
		leader, follower := c.Leader(), c.Follower()
		at, first := leader.Info().Name, follower.Info().Name
		ctx, root := c.app.Tracer("app").Start(t.Context(), "checkout")
		if _, err := c.client(follower).Register(ctx, registerRequest("web")); err != nil {
			t.Fatal(err)
		}
		root.End()
		all := c.exported()
		const method = "regd.api.v1.RegistryService/Register"
		want := []string{
			"checkout (app)", "  " + method + " (app)", "    " + method + " (" + first + ")", "      regd forward (" + first + ")",
			"        regd propose (" + at + ")",
		}
		if diff := cmp.Diff(want, tree(all, root.SpanContext().TraceID())); diff != "" {
			t.Errorf("the trace differs (-want +got):\n%s", diff)
		}
		propose, entry := named(t, all, "regd propose"), named(t, all, "regd entry")
		want = []string{"regd entry (" + at + ")", "  regd store (" + at + ")", "  regd apply (" + at + ")"}
		if diff := cmp.Diff(want, tree(all, entry.SpanContext.TraceID())); diff != "" {
			t.Errorf("the trace of the entry differs (-want +got):\n%s", diff)
		}
		if len(entry.Links) != 1 || entry.Links[0].SpanContext.SpanID() != propose.SpanContext.SpanID() {
			t.Errorf("the entry is linked with %v, want the proposal", entry.Links)
		}
		if len(propose.Links) != 1 || propose.Links[0].SpanContext.SpanID() != entry.SpanContext.SpanID() {
			t.Errorf("the proposal is linked with %v, want the entry", propose.Links)
		}
		turns := ""
		for i, e := range propose.Events {
			turns += e.Name + " "
			if e.Time.Before(propose.StartTime) || e.Time.After(propose.EndTime) || (i > 0 && e.Time.Before(propose.Events[i-1].Time)) {
				t.Errorf("%s at %v: out of its turn in %v to %v", e.Name, e.Time, propose.StartTime, propose.EndTime)
			}
		}
		if turns != "taken stored committed " {
			t.Errorf("the proposal's events are %q", turns)
		}
		for _, s := range all {
			if s.EndTime.Before(s.StartTime) || s.Status.Description != "" {
				t.Errorf("%s: from %v to %v, %v", s.Name, s.StartTime, s.EndTime, s.Status)
			}
		}
	})
}

func TestReadThatWasConfirmedIsTraced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTracedCluster(t, 0)
		follower := c.Follower()
		c.Put(c.Leader(), "web", "1")
		ctx, root := c.app.Tracer("app").Start(t.Context(), "look")
		api := c.client(follower)
		key := &apiv1.InstanceKey{Namespace: "default", Service: "web", Id: "1"}
		if _, err := api.Get(ctx, &apiv1.GetRequest{Key: key}); err != nil {
			t.Fatal(err)
		}
		root.End()
		all := c.exported()
		read := named(t, all, "regd read")
		if lines := tree(all, root.SpanContext().TraceID()); len(lines) != 4 || nodeOf(read) != follower.Info().Name {
			t.Errorf("the trace is\n%s", strings.Join(lines, "\n"))
		}
		if len(read.Events) != 1 || read.Events[0].Name != "confirmed" {
			t.Errorf("events %v, want that it was confirmed", read.Events)
		}
	})
}

// Each write has its own trace, and shares the entry: the entry is nobody's child.
func TestEntryOfManyWritesIsLinkedWithEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTracedCluster(t, 0)
		leader := c.Leader()
		const writes = 8
		ended := make(chan error, writes)
		for range writes {
			go func() {
				ctx, span := c.app.Tracer("app").Start(t.Context(), "write")
				defer span.End()
				_, err := leader.Propose(ctx, clustertest.Register("web", span.SpanContext().SpanID().String()))
				ended <- err
			}()
		}
		for range writes {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		entries, linked, most := 0, 0, 0
		for _, s := range c.exported() {
			if s.Name == "regd entry" {
				entries, linked, most = entries+1, linked+len(s.Links), max(most, len(s.Links))
				if s.Parent.IsValid() {
					t.Errorf("an entry is the child of %v", s.Parent)
				}
			}
		}
		if linked != writes || most < 2 {
			t.Errorf("%d entries are linked with %d writes, at most %d at once; want %d, several at once", entries, linked, most, writes)
		}
	})
}

func TestTheClientDecidesWhetherItsCallIsTraced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTracedCluster(t, 1)
		api := c.client(c.Follower())
		notThis := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}}))
		if _, err := api.Register(notThis, registerRequest("web")); err != nil {
			t.Fatal(err)
		}
		if all := c.exported(); len(all) > 0 {
			t.Errorf("%d spans of a call that is not sampled, such as %q", len(all), all[0].Name)
		}
	})
}

// deaf is a collector that takes nothing, and says so only when it is left alone.
type deaf struct{ calls int }

func (d *deaf) ExportSpans(ctx context.Context, _ []sdktrace.ReadOnlySpan) error {
	d.calls++
	<-ctx.Done()
	return ctx.Err()
}

func (d *deaf) Shutdown(context.Context) error { return nil }

func TestDeadCollectorDelaysNobodyAndIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged syncBuffer
		dead := &deaf{}
		tel, err := telemetry.Open(t.Context(), telemetry.Config{Sample: 1, Node: "n1", Exporter: dead, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for range 10_000 { // More than are kept.
			tel.Entry(cluster.TracedEntry{Index: 1, Taken: began, Applied: began, Proposals: []*cluster.TracedProposal{{Caller: sampled(tel), Queued: began}}})
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it waited %v for the collector", took)
		}
		time.Sleep(10 * time.Minute)
		began = time.Now()
		tel.Entry(cluster.TracedEntry{Index: 2, Taken: began, Applied: began, Proposals: []*cluster.TracedProposal{{Caller: sampled(tel), Queued: began}}})
		tel.Close(t.Context())
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("closing took %v", took)
		}
		synctest.Wait()
		if n := strings.Count(logged.String(), "level=WARN"); n != 1 || dead.calls < 2 {
			t.Errorf("after %d batches it was said %d times that the collector fails, want once:\n%s", dead.calls, n, logged.String())
		}
		if made, failed := counted(t, tel, "regd_trace_spans_total"), counted(t, tel, "regd_trace_send_failures_total"); made != 20_002 || failed != float64(dead.calls) {
			t.Errorf("metrics: %v spans, %v failures; want 20002 and %d", made, failed, dead.calls)
		}
	})
}

// sampled is a place in a trace that is recorded.
func sampled(tel *telemetry.Telemetry) *peerv1.TraceContext {
	return tel.Context(trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled,
	})))
}

// counted is the value of a counter.
func counted(t *testing.T, tel *telemetry.Telemetry, name string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(tel.Collectors()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
