package regdotel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdhttp"
)

// refused is the error of a dial.
func refused() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
}

// TestCallsAreTraced checks the spans of a request that is tried three times, and that each attempt sends its own along.
func TestCallsAreTraced(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	r.Put(inst("payment", "a"), inst("payment", "b"), inst("payment", "c"))
	f := newFixture(t)
	var tried []string
	var sent []trace.SpanID
	web := f.transport(r.Discovery(), func(req *http.Request) (int, error) {
		tried = append(tried, strings.TrimSuffix(req.URL.Host, ".test:80"))
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(req.Header))
		sent = append(sent, trace.SpanContextFromContext(ctx).SpanID())
		switch len(tried) {
		case 1:
			return 0, refused()
		case 2:
			return http.StatusServiceUnavailable, nil
		default:
			return http.StatusOK, nil
		}
	}, regdhttp.WithBalancing(balance.RoundRobin(), balance.WithBreaker(balance.Breaker{ConsecutiveFailures: 1})))
	ctx, parent := f.tracer.Tracer("test").Start(t.Context(), "application")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://user:secret@payment.service/charges?token=secret", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := web.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.spans.GetSpans(); len(got) != 2 {
		t.Errorf("before the body is closed, these have ended: %v", got.Snapshots())
	}
	_ = resp.Body.Close()
	parent.End()
	want := []string{
		"application internal Unset {}",
		"  call payment internal Unset {attempts=3,http.request.method=GET,service.peer.name=payment,service=payment," +
			"url.full=http://payment.service/charges}",
	}
	for n, x := range []struct{ status, errorType, resend, code, outcome, event string }{
		{"Error", "error.type=*net.OpError", "", "", "unreachable", " [breaker changed {breaker.state=open}]"},
		{
			"Error", "error.type=503", ",http.request.resend_count=1", ",http.response.status_code=503", "failure",
			" [breaker changed {breaker.state=open}]",
		},
		{"Unset", "", ",http.request.resend_count=2", ",http.response.status_code=200", "success", ""},
	} {
		attributes := strings.Join([]string{
			"breaker.state=closed", x.errorType, "http.request.method=GET" + x.resend + x.code,
			fmt.Sprintf("instance.id=%s,instance.zone=zone-%[1]s,outcome=%s", tried[n], x.outcome),
			fmt.Sprintf("server.address=%s.test,server.port=80,service.peer.name=payment,service=payment", tried[n]),
			fmt.Sprintf("url.full=http://%s.test:80/charges", tried[n]),
		}, ",")
		want = append(want, "    GET client "+x.status+" {"+strings.ReplaceAll(attributes, ",,", ",")+"}"+x.event)
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(f.tree()), "\n")); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	for n, span := range f.spans.GetSpans()[:3] {
		if span.SpanContext.SpanID() != sent[n] {
			t.Errorf("attempt %d sent span %s along, its own is %s", n+1, sent[n], span.SpanContext.SpanID())
		}
	}
}

// TestCallsInVainAreTraced checks that the span of a request that got no response says why.
func TestCallsInVainAreTraced(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	r.Put(inst("payment", "a"))
	f := newFixture(t)
	web := f.transport(r.Discovery(), func(*http.Request) (int, error) { return 0, refused() })
	for url, want := range map[string]error{
		"http://payment.service/": errors.New("connection refused"), "http://other.service/": discovery.ErrNoSuchService,
	} {
		if _, err := get(t, web, url); err == nil || !strings.Contains(err.Error(), want.Error()) {
			t.Fatal(err)
		}
	}
	for _, want := range []string{
		"call payment internal Error {attempts=1,error.type=*net.OpError,",
		"call other internal Error {attempts=0,error.type=no_such_service,",
	} {
		if got := f.tree(); !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

// spanner is a stats.Handler that makes spans of calls, as otelgrpc's does.
type spanner struct{ tracer trace.Tracer }

func (s spanner) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	ctx, _ = s.tracer.Start(ctx, info.FullMethodName, trace.WithSpanKind(trace.SpanKindClient))
	return ctx
}

func (s spanner) HandleRPC(ctx context.Context, of stats.RPCStats) {
	if _, ok := of.(*stats.End); ok {
		trace.SpanFromContext(ctx).End()
	}
}
func (spanner) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (spanner) HandleConn(context.Context, stats.ConnStats)                       {}

// TestPicksOfGRPCAreTraced checks that the span that a stats handler makes of a call says which instance was picked, and that
// channels are in the metrics.
func TestPicksOfGRPCAreTraced(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	r.Put(inst("payment", "a"))
	f := newFixture(t)
	conn := f.channel(r.Discovery(), "payment", grpc.WithStatsHandler(spanner{f.tracer.Tracer("otelgrpc")}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := conn.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	want := "/grpc.health.v1.Health/Check client Unset " +
		"{breaker.state=closed,instance.id=a,instance.zone=zone-a,service=payment}\n"
	if diff := cmp.Diff(want, f.tree()); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	f.want(map[string]float64{
		balancerCalls + "{service=payment,transport=grpc}":                         1,
		balancerFailures + "{service=payment,transport=grpc}":                      0,
		balancerBreakers + "{breaker.state=closed,service=payment,transport=grpc}": 1,
	})
}

// TestBreakersAndRetriesAreInTheMetrics checks the metrics of a transport with two instances of which one fails, also beside
// another transport to the same service.
func TestBreakersAndRetriesAreInTheMetrics(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	r.Put(inst("payment", "a"), inst("payment", "b"))
	f := newFixture(t, WithInstances())
	d := r.Discovery()
	f.ObserveDiscovery(d)
	fails := func(req *http.Request) (int, error) {
		if req.URL.Host == "a.test:80" {
			return http.StatusBadGateway, nil
		}
		return http.StatusOK, nil
	}
	balancing := regdhttp.WithBalancing(balance.RoundRobin(), balance.WithBreaker(balance.Breaker{ConsecutiveFailures: 2}))
	web, other := f.transport(d, fails, balancing), f.transport(d, ok)
	for range 10 {
		if code, err := get(t, web, "http://payment.service/"); err != nil || code != http.StatusOK {
			t.Fatal(code, err)
		}
	}
	if _, err := get(t, other, "http://payment.default.service/"); err != nil {
		t.Fatal(err)
	}
	const http, a = "{service=payment,transport=http}", "{instance.id=a,service=payment,transport=http}"
	f.want(map[string]float64{
		httpRequests + http: 11, httpRetries + http: 2, httpDeniedRetries + http: 0,
		balancerCalls + http: 13, balancerFailures + http: 2, balancerOpenings + http: 1, balancerInFlight + http: 0,
		balancerBreakers + "{breaker.state=open,service=payment,transport=http}":      1,
		balancerBreakers + "{breaker.state=closed,service=payment,transport=http}":    3,
		balancerBreakers + "{breaker.state=half_open,service=payment,transport=http}": 0,
		instanceFailures + a: 2,
		instanceBreaker + "{breaker.state=open,instance.id=a,service=payment,transport=http}":   1,
		instanceBreaker + "{breaker.state=closed,instance.id=b,service=payment,transport=http}": 2,
		viewLookups + "{service=payment}":                                                          13,
		viewInstances + "{service=payment}":                                                        2,
		viewHealthy + "{service=payment}":                                                          2,
		viewProtected + "{service=payment}":                                                        0,
		viewHandles + "{service=payment}":                                                          2,
		viewSource + "{service=payment,view.source=live}":                                          1,
		viewSource + "{service=payment,view.source=cached}":                                        0,
		viewStalls + "{service=payment}":                                                           0,
		viewStaleness + "{service=payment}":                                                        0.01,
		instanceBreaker + "{breaker.state=half_open,instance.id=a,service=payment,transport=http}": 0,
	})
}

// TestConcurrentUse collects while calls are made and sources are added; the race detector judges.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	r.Put(inst("payment", "a"))
	f := newFixture(t, WithInstances())
	d := r.Discovery(discovery.WithTracer(f))
	web := f.transport(d, ok)
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			for range 50 {
				if _, err := get(t, web, "http://payment.service/"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		f.metrics()
		f.ObserveDiscovery(d)
	}
	work.Wait()
	f.want(map[string]float64{httpRequests + "{service=payment,transport=http}": 150})
}

func TestMethodsAreBounded(t *testing.T) {
	t.Parallel()
	for method, want := range map[string]string{"": "GET", "GET": "GET", "PATCH": "PATCH", "get": "_OTHER", "BREW": "_OTHER"} {
		if got := methodOf(&http.Request{Method: method}).Value.AsString(); got != want {
			t.Errorf("method %q is told as %q, want %q", method, got, want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	_, err := New(WithMeterProvider(nil), WithTracerProvider(nil), WithPropagator(nil))
	for _, want := range []string{"meter provider: nil", "tracer provider: nil", "propagator: nil"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v: want %q in it", err, want)
		}
	}
}
