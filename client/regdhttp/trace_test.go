package regdhttp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
)

// ctxKey is the key of what the tracer puts into contexts.
type ctxKey struct{}

// recorder is a Tracer that writes down what it is told.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *recorder) noted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

func (r *recorder) Call(req *http.Request, namespace, service string) (context.Context, regdhttp.CallTracer) {
	r.note("call %s %s/%s", req.Method, namespace, service)
	return context.WithValue(req.Context(), ctxKey{}, "call"), r
}

func (r *recorder) Attempt(s regdhttp.Sent) (context.Context, func(regdhttp.Ended)) {
	ctx := s.Request.Context()
	r.note("attempt %d on %s at %s for %s, breaker %s, in %s", s.Number, s.Instance.GetId(), s.Request.URL.Host, s.Request.Host,
		s.Breaker, ctx.Value(ctxKey{}))
	s.Request.Header.Set("Traceparent", fmt.Sprint(s.Number))
	return context.WithValue(ctx, ctxKey{}, "attempt"), func(e regdhttp.Ended) {
		code := 0
		if e.Response != nil {
			code = e.Response.StatusCode
		}
		r.note("ended with %d, %v: outcome %d, breaker %s", code, e.Err, e.Outcome, e.Breaker)
	}
}

func (r *recorder) Done(err error) { r.note("done: %v", err) }

// TestTracer checks that a Tracer is told of a request and all its attempts, that what it adds to headers and contexts is
// sent, and that the caller's request stays as it was.
func TestTracer(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a", "b")
	trace := &recorder{}
	inner := &script{answers: []answer{{err: refused()}, {status: http.StatusOK, body: io.NopCloser(strings.NewReader("hello"))}}}
	tr := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithTracer(trace),
		regdhttp.WithBalancing(balance.Rendezvous(), balance.WithBreaker(balance.Breaker{ConsecutiveFailures: 1})))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://payment.service/x", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	before := trace.noted()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	first, second, _ := strings.Cut(strings.Join(inner.hosts(), " "), " ")
	want := []string{
		"call GET default/payment",
		fmt.Sprintf("attempt 1 on %s at %s for payment.service, breaker closed, in call", strings.TrimSuffix(first, ".test:80"), first),
		fmt.Sprintf("ended with 0, %v: outcome 3, breaker open", refused()),
		fmt.Sprintf("attempt 2 on %s at %s for payment.service, breaker closed, in call", strings.TrimSuffix(second, ".test:80"), second),
		"ended with 200, <nil>: outcome 0, breaker closed", "done: <nil>",
	}
	if diff := cmp.Diff(want, trace.noted()); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	if diff := cmp.Diff(want[:4], before); diff != "" {
		t.Error("before the body was read, -want +got:\n" + diff)
	}
	for i, sent := range inner.seen {
		if got := sent.Header.Get("Traceparent"); got != fmt.Sprint(i+1) || sent.Context().Value(ctxKey{}) != "attempt" {
			t.Errorf("request %d was sent with header %q in %v", i+1, got, sent.Context().Value(ctxKey{}))
		}
	}
	if len(req.Header) > 0 {
		t.Errorf("the caller's header has become %v", req.Header)
	}
	if s := tr.Stats()[0]; s.TotalRequests != 1 || s.TotalRetries != 1 || s.DeniedRetries != 0 || s.Namespace != "default" ||
		s.Counts != (balance.Counts{Calls: 2, Failures: 1, Openings: 1}) {
		t.Errorf("stats %+v", s)
	}
}

// TestTracerOfRequestsInVain checks that a Tracer is told why there was no response.
func TestTracerOfRequestsInVain(t *testing.T) {
	t.Parallel()
	_, d := registry(t)
	trace := &recorder{}
	tr := transport(t, d, regdhttp.WithTracer(trace))
	_, err := get(t, tr, "http://payment.service/")
	if !errors.Is(err, discovery.ErrNoSuchService) {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"call GET default/payment", "done: " + err.Error()}, trace.noted()); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

// TestDeniedRetriesAreCounted checks that retries which the budget forbids are told apart.
func TestDeniedRetriesAreCounted(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a", "b")
	tr := transport(t, d, regdhttp.WithTransport(&script{answers: []answer{{status: http.StatusServiceUnavailable}}}),
		regdhttp.WithRetryBudget(0, 0.1), regdhttp.WithBalancing(balance.RoundRobin()))
	for range 3 {
		if _, err := get(t, tr, "http://payment.service/"); err != nil {
			t.Fatal(err)
		}
	}
	if s := tr.Stats()[0]; s.TotalRequests != 3 || s.TotalRetries != 1 || s.DeniedRetries != 2 {
		t.Errorf("stats %+v", s)
	}
}

// TestLog checks that breakers are logged.
func TestLog(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a")
	var log bytes.Buffer
	tr := transport(t, d, regdhttp.WithTransport(&script{answers: []answer{{err: refused()}}}),
		regdhttp.WithBalancing(balance.RoundRobin(), balance.WithBreaker(balance.Breaker{ConsecutiveFailures: 1})),
		regdhttp.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	if _, err := get(t, tr, "http://payment.service/"); err == nil {
		t.Fatal("no error")
	}
	if !strings.Contains(log.String(), `msg="breaker opened" instance=default/payment/a`) {
		t.Errorf("logged %q", log.String())
	}
}
