package regdhttp_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/regdhttp"
)

// TestRetryRules checks which outcomes call for another instance.
func TestRetryRules(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset by peer")
	keyed := http.Header{"Idempotency-Key": {"17"}}
	replay := func() io.Reader { return strings.NewReader("body") } // has a GetBody
	once := func() io.Reader { return io.NopCloser(strings.NewReader("body")) }
	for _, c := range []struct {
		name    string
		method  string
		header  http.Header
		body    func() io.Reader
		answers []answer
		want    int // attempts
		status  int // 0: an error
	}{
		{"success", "GET", nil, nil, []answer{{status: 200}}, 1, 200},
		{"refused, then success", "GET", nil, nil, []answer{{err: refused()}, {status: 200}}, 2, 200},
		{"refused everywhere", "GET", nil, nil, []answer{{err: refused()}}, 3, 0},
		{"refused POST without a body", "POST", nil, nil, []answer{{err: refused()}, {status: 200}}, 2, 200},
		{"refused POST with a body to repeat", "POST", nil, replay, []answer{{err: refused()}, {status: 200}}, 2, 200},
		{"refused POST with a body that is gone", "POST", nil, once, []answer{{err: refused()}, {status: 200}}, 1, 0},
		{"broken GET", "GET", nil, nil, []answer{{err: broken}, {status: 200}}, 2, 200},
		{"broken HEAD", "HEAD", nil, nil, []answer{{err: broken}, {status: 200}}, 2, 200},
		{"broken POST", "POST", nil, replay, []answer{{err: broken}, {status: 200}}, 1, 0},
		{"broken DELETE", "DELETE", nil, nil, []answer{{err: broken}, {status: 200}}, 1, 0},
		{"broken POST with a key", "POST", keyed, replay, []answer{{err: broken}, {status: 200}}, 2, 200},
		{"broken POST with a key, body gone", "POST", keyed, once, []answer{{err: broken}, {status: 200}}, 1, 0},
		{"502", "GET", nil, nil, []answer{{status: 502}, {status: 200}}, 2, 200},
		{"503", "GET", nil, nil, []answer{{status: 503}, {status: 200}}, 2, 200},
		{"504", "GET", nil, nil, []answer{{status: 504}, {status: 200}}, 2, 200},
		{"500 is an answer", "GET", nil, nil, []answer{{status: 500}, {status: 200}}, 1, 500},
		{"429 is an answer", "GET", nil, nil, []answer{{status: 429}, {status: 200}}, 1, 429},
		{"503 everywhere", "GET", nil, nil, []answer{{status: 503}}, 3, 503},
		{"503 to a POST", "POST", nil, replay, []answer{{status: 503}, {status: 200}}, 1, 503},
		{"503 to a POST with a key", "POST", keyed, replay, []answer{{status: 503}, {status: 200}}, 2, 200},
		{"503 after a refusal", "GET", nil, nil, []answer{{err: refused()}, {status: 503}, {status: 200}}, 3, 200},
		{"error after 503s", "GET", nil, nil, []answer{{status: 503}, {status: 503}, {err: broken}}, 3, 0},
		{
			"Retry-After too long", "GET", nil, nil,
			[]answer{{status: 503, header: http.Header{"Retry-After": {"30"}}}, {status: 200}},
			1, 503,
		},
		{
			"Retry-After now", "GET", nil, nil,
			[]answer{{status: 503, header: http.Header{"Retry-After": {"0"}}}, {status: 200}},
			2, 200,
		},
		{
			"Retry-After a date long past", "GET", nil, nil,
			[]answer{{status: 503, header: http.Header{"Retry-After": {"Mon, 02 Jan 2006 15:04:05 GMT"}}}, {status: 200}},
			2, 200,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, d := registry(t, "a", "b", "c", "d")
			inner := &script{answers: c.answers}
			// All requests are of one key: without more ado they would go to one instance.
			tr := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithBalancing(balance.Rendezvous()),
				regdhttp.WithPick(func(*http.Request) balance.Request { return balance.Request{Hash: 17} }))
			var body io.Reader
			if c.body != nil {
				body = c.body()
			}
			req, err := http.NewRequestWithContext(t.Context(), c.method, "http://payment.service/x", body)
			if err != nil {
				t.Fatal(err)
			}
			if c.header != nil {
				req.Header = c.header
			}
			status := 0
			resp, err := tr.RoundTrip(req)
			if err == nil {
				status = resp.StatusCode
				_ = resp.Body.Close()
			}
			hosts := inner.hosts()
			if len(hosts) != c.want || status != c.status {
				t.Errorf("%d attempts %v, status %d (%v); want %d, %d", len(hosts), hosts, status, err, c.want, c.status)
			}
			seen := map[string]bool{}
			for i, host := range hosts {
				if seen[host] {
					t.Errorf("%s was tried twice: %v", host, hosts)
				}
				seen[host] = true
				if c.body != nil && inner.sent[i] != "body" {
					t.Errorf("attempt %d was sent %q", i+1, inner.sent[i])
				}
			}
			for _, i := range tr.Stats()[0].Instances {
				if i.InFlight != 0 {
					t.Errorf("%s has %d calls in flight", i.Instance.GetId(), i.InFlight)
				}
			}
			if failed := (*regdhttp.Error)(nil); err != nil && (!errors.As(err, &failed) || len(failed.Attempts) != c.want) {
				t.Errorf("error %v: want one that names %d attempts", err, c.want)
			}
		})
	}
}

// TestRetryOnlyElsewhere checks that an instance isn't tried again.
func TestRetryOnlyElsewhere(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a")
	inner := &script{answers: []answer{{err: refused()}}}
	tr := transport(t, d, regdhttp.WithTransport(inner))
	_, err := get(t, tr, "http://payment.service/")
	if got := inner.hosts(); len(got) != 1 {
		t.Errorf("tried %v", got)
	}
	want := "call service payment: attempt 1 on a (a.test:80): dial tcp: connection refused: no other instance is left to try"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestRetryBudget checks that a service that is down isn't called much more often than it is asked for.
func TestRetryBudget(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a", "b", "c")
	inner := &script{answers: []answer{{err: refused()}}}
	tr := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithBalancing(balance.RoundRobin()),
		regdhttp.WithRetryBudget(0.2, 1))
	const requests = 1000
	var spent int
	for range requests {
		if _, err := get(t, tr, "http://payment.service/"); err != nil && strings.Contains(err.Error(), "budget is spent") {
			spent++
		}
	}
	if got, most := len(inner.hosts()), requests+requests/5+10; got > most || got < requests+requests/5-10 || spent == 0 {
		t.Errorf("%d attempts for %d requests, want %d; the budget was named %d times", got, requests, most, spent)
	}
	if s := tr.Stats()[0]; s.Requests > requests || s.Retries > requests/5+10 {
		t.Errorf("stats say %d requests and %d retries", s.Requests, s.Retries)
	}
}

// TestRetryRespectsContext checks that nothing is tried for a caller who has left, and that this speaks against nobody.
func TestRetryRespectsContext(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a", "b")
	ctx, cancel := context.WithCancel(t.Context())
	inner := roundTripper(func(req *http.Request) (*http.Response, error) {
		cancel()
		return nil, req.Context().Err()
	})
	tr := transport(t, d, regdhttp.WithTransport(inner))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://payment.service/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = tr.RoundTrip(req); !errors.Is(err, context.Canceled) { //nolint:bodyclose // there is none
		t.Errorf("got %v", err)
	}
	for _, i := range tr.Stats()[0].Instances {
		if i.Calls != 0 || i.InFlight != 0 {
			t.Errorf("%s: %d calls, %d in flight", i.Instance.GetId(), i.Calls, i.InFlight)
		}
	}
}

// TestRetryAfterWithinDeadline checks that a pause that outlasts the context isn't begun.
func TestRetryAfterWithinDeadline(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a", "b")
	inner := &script{answers: []answer{{status: 503, header: http.Header{"Retry-After": {"3000"}}}, {status: 200}}}
	tr := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithMaxPause(time.Hour))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://payment.service/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if diff := cmp.Diff(503, resp.StatusCode); diff != "" {
		t.Error(diff)
	}
}

// roundTripper is a function that is one.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
