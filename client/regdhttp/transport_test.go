package regdhttp_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestNames checks what is called for a URL, and how it is named to who is called.
func TestNames(t *testing.T) {
	t.Parallel()
	r, d := registry(t, "a")
	other := inst("b")
	other.Namespace, other.Service = "prod", "pay.ment"
	two := inst("c")
	two.Service = "two"
	two.Ports = []*registryv1.Port{{Name: "admin", Number: 1}, {Name: "http", Number: 2}, {Name: "https", Number: 3}}
	odd := inst("d")
	odd.Service, odd.Ports = "odd", []*registryv1.Port{{Name: "x", Number: 1}, {Name: "y", Number: 2}}
	r.Put(other, two, odd)
	inner := &script{answers: []answer{{status: 200}}}
	plain := transport(t, d, regdhttp.WithTransport(inner))
	admin := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithPort("admin"))
	direct := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithInstanceHost())
	consul := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithSuffix(".svc.local"))
	for _, c := range []struct {
		tr         *regdhttp.Transport
		url        string
		want, host string // called, and its header Host
		err        error
	}{
		{plain, "http://payment.service/x?y=z", "http://a.test:80/x?y=z", "payment.service", nil},
		{plain, "http://payment.default.service", "http://a.test:80", "payment.default.service", nil},
		{plain, "http://payment.SERVICE./", "http://a.test:80/", "payment.SERVICE.", nil},
		{plain, "http://pay.ment.prod.service", "http://b.test:80", "pay.ment.prod.service", nil},
		{plain, "https://payment.service", "https://a.test:80", "payment.service", nil},
		{plain, "http://two.service", "http://c.test:2", "two.service", nil},
		{plain, "https://two.service", "https://c.test:3", "two.service", nil},
		{admin, "https://two.service", "https://c.test:1", "two.service", nil},
		{direct, "http://payment.service", "http://a.test:80", "a.test:80", nil},
		{consul, "http://payment.svc.local", "http://a.test:80", "payment.svc.local", nil},
		{consul, "http://payment.service", "http://payment.service", "", nil},
		{plain, "http://example.org:8080/", "http://example.org:8080/", "", nil},
		{plain, "ftp://payment.service", "", "", regdhttp.ErrBadURL},
		{plain, "http://.service", "", "", regdhttp.ErrBadURL},
		{plain, "http://payment..service", "", "", regdhttp.ErrBadURL},
		{plain, "http://payment.service:8080", "", "", regdhttp.ErrBadURL},
		{plain, "http://odd.service", "", "", balance.ErrNoPort},
		{admin, "http://payment.service", "", "", balance.ErrNoPort},
		{plain, "http://nobody.service", "", "", discovery.ErrNoSuchService},
	} {
		before := len(inner.hosts())
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "" // as http.NewRequest may not have made it
		resp, err := c.tr.RoundTrip(req)
		if c.err != nil {
			if !errors.Is(err, c.err) || len(inner.hosts()) != before {
				t.Errorf("%s: got %v, want %v", c.url, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		_ = resp.Body.Close()
		if got := inner.seen[before]; got.URL.String() != c.want || got.Host != c.host {
			t.Errorf("%s: called %s, host %s", c.url, got.URL, got.Host)
		}
		if req.URL.String() != c.url || resp.Request.URL.String() != c.url {
			t.Errorf("%s: the request was changed to %s, that of the response is of %s", c.url, req.URL, resp.Request.URL)
		}
	}
}

// TestTLSName checks that the certificate has to be for the service, wherever the instance is.
func TestTLSName(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.ServerName+" "+r.Host+" "+r.Proto)
	}))
	defer server.Close()
	r, d := registry(t)
	r.Put(at(t, "a", server.Listener.Addr()))
	trusting, ok := server.Client().Transport.(*http.Transport)
	if !ok {
		t.Fatalf("%T", server.Client().Transport)
	}
	trusting = trusting.Clone()
	trusting.ForceAttemptHTTP2 = true
	tr := transport(t, d, regdhttp.WithTransport(trusting))
	if got, err := get(t, tr, "https://payment.service"); err == nil || !strings.Contains(err.Error(), "payment.service") {
		t.Errorf("got %q, %v; the certificate is for example.com", got, err)
	}
	tr = transport(t, d, regdhttp.WithTransport(trusting),
		regdhttp.WithServerName(func(string, string) string { return "example.com" }))
	got, err := get(t, tr, "https://payment.service")
	if want := "example.com payment.service HTTP/1.1"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	tr.CloseIdleConnections()
}

// TestInFlight checks that a call is in flight until its body ends, and what its end says of the instance.
func TestInFlight(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		end             func(*http.Response, context.CancelFunc)
		body            io.ReadCloser
		status          int
		calls, failures uint64
	}{
		{"closed", func(r *http.Response, _ context.CancelFunc) { _ = r.Body.Close() }, open("x"), 200, 1, 0},
		{"read", func(r *http.Response, _ context.CancelFunc) { _, _ = io.ReadAll(r.Body) }, open("x"), 200, 1, 0},
		{"read and closed", func(r *http.Response, _ context.CancelFunc) {
			_, _ = io.ReadAll(r.Body)
			_ = r.Body.Close()
			_ = r.Body.Close()
		}, open("x"), 200, 1, 0},
		{"failed", func(r *http.Response, _ context.CancelFunc) { _ = r.Body.Close() }, open("x"), 500, 1, 1},
		{"not implemented", func(r *http.Response, _ context.CancelFunc) { _ = r.Body.Close() }, open("x"), 501, 1, 0},
		{"broken off", func(r *http.Response, _ context.CancelFunc) { _, _ = io.ReadAll(r.Body) }, cut{}, 200, 1, 1},
		{"forgotten", func(_ *http.Response, cancel context.CancelFunc) { cancel() }, open("x"), 200, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, d := registry(t, "a")
			tr := transport(t, d, regdhttp.WithTransport(&script{answers: []answer{{status: c.status, body: c.body}}}))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://payment.service/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req) //nolint:bodyclose // the case says what becomes of it
			if err != nil {
				t.Fatal(err)
			}
			if got := status(t, tr, "a"); got.InFlight != 1 || got.Calls != 0 {
				t.Errorf("before: %d in flight, %d calls", got.InFlight, got.Calls)
			}
			c.end(resp, cancel)
			eventually(t, "nothing in flight", func() bool { return status(t, tr, "a").InFlight == 0 })
			if got := status(t, tr, "a"); got.Calls != c.calls || got.Failures != c.failures {
				t.Errorf("after: %d calls, %d failures", got.Calls, got.Failures)
			}
		})
	}
}

func open(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }

// cut is a body that breaks off.
type cut struct{}

func (cut) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
func (cut) Close() error             { return nil }

// TestUpgrade checks that a connection that changed its protocol can be written to.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	_, d := registry(t, "a")
	inner := &script{answers: []answer{{status: 101, body: struct {
		io.ReadCloser
		io.Writer
	}{open("x"), io.Discard}}}}
	tr := transport(t, d, regdhttp.WithTransport(inner))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://payment.service/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, ok := resp.Body.(io.ReadWriteCloser); !ok {
		t.Errorf("body is a %T", resp.Body)
	}
}

// TestBound checks that services make room for others, unless they are in use, and that Close ends it all.
func TestBound(t *testing.T) {
	t.Parallel()
	r, d := registry(t, "a")
	other := inst("b")
	other.Service = "other"
	r.Put(other)
	entered, leave := make(chan struct{}), make(chan struct{})
	inner := roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.URL.Path == "/hold" {
			close(entered)
			<-leave
		}
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: req}, nil
	})
	tr := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithMaxServices(1))
	for _, url := range []string{"http://payment.service/", "http://other.service/"} {
		if _, err := get(t, tr, url); err != nil {
			t.Error(err)
		}
	}
	if got := tr.Stats(); len(got) != 1 || got[0].Service != "other" {
		t.Errorf("kept: %+v", got)
	}
	held := make(chan error, 1)
	go func() {
		_, err := get(t, tr, "http://other.service/hold")
		held <- err
	}()
	<-entered
	if _, err := get(t, tr, "http://payment.service/"); !errors.Is(err, regdhttp.ErrTooManyServices) {
		t.Errorf("got %v", err)
	}
	tr.Close()
	for _, s := range d.Stats() {
		if s.Users != 0 {
			t.Errorf("%s is still watched for %d users", s.Service, s.Users)
		}
	}
	if _, err := get(t, tr, "http://other.service/"); !errors.Is(err, client.ErrClosed) {
		t.Errorf("got %v", err)
	}
	close(leave)
	if err := <-held; err != nil {
		t.Errorf("under way at Close: %v", err)
	}
}

// TestBodyIsClosed checks that also a request that isn't sent has its body closed, as http.RoundTripper demands.
func TestBodyIsClosed(t *testing.T) {
	t.Parallel()
	_, d := registry(t)
	tr := transport(t, d)
	for _, url := range []string{"http://payment.service:1/", "http://payment.service/"} {
		b := &closing{Reader: strings.NewReader("x")}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.RoundTrip(req); err == nil || !b.closed { //nolint:bodyclose // there is none
			t.Errorf("%s: %v, body closed: %t", url, err, b.closed)
		}
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error {
	c.closed = true
	return nil
}

// TestOutage checks that calls go on while the registry is away, and what the first one says if it never answered.
func TestOutage(t *testing.T) {
	t.Parallel()
	r, d := registry(t)
	_, i := serve(t, "a", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	r.Put(i)
	tr := transport(t, d)
	for range 2 {
		if got, err := get(t, tr, "http://payment.service/"); got != "hello" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		r.Stop()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://other.service/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tr.RoundTrip(req) //nolint:bodyclose // there is none
	if failed := (*regdhttp.Error)(nil); !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &failed) || !failed.Timeout() {
		t.Errorf("got %v", err)
	}
}

// TestMixedPorts checks that an instance that lacks the port is passed by, that this is said once, and that it speaks against
// nobody.
func TestMixedPorts(t *testing.T) {
	t.Parallel()
	r, d := registry(t, "b")
	odd := inst("a")
	odd.Ports[0].Name = "other"
	r.Put(odd)
	inner := &script{answers: []answer{{err: refused()}}}
	tr := transport(t, d, regdhttp.WithTransport(inner), regdhttp.WithPort("main"), regdhttp.WithBalancing(balance.RoundRobin()))
	for range 2 {
		_, err := get(t, tr, "http://payment.service/")
		failed := (*regdhttp.Error)(nil)
		if !errors.As(err, &failed) || len(failed.Attempts) != 2 || !errors.Is(err, balance.ErrNoPort) {
			t.Errorf("got %v", err)
		}
	}
	if got := status(t, tr, "a"); got.Calls != 0 || got.InFlight != 0 {
		t.Errorf("the instance without the port: %d calls, %d in flight", got.Calls, got.InFlight)
	}
}

// TestOptions checks that New names every bad option.
func TestOptions(t *testing.T) {
	t.Parallel()
	_, err := regdhttp.New(nil, regdhttp.WithTransport(nil), regdhttp.WithSuffix("service"), regdhttp.WithPort(""),
		regdhttp.WithServerName(nil), regdhttp.WithBalancing(nil), regdhttp.WithPick(nil), regdhttp.WithFailure(nil),
		regdhttp.WithIdempotent(nil), regdhttp.WithAttempts(6), regdhttp.WithRetryBudget(2, 0), regdhttp.WithMaxPause(-1),
		regdhttp.WithMaxServices(0))
	for _, want := range []string{
		"transport", "suffix", "port", "server name", "policy", "pick", "failure", "idempotent", "attempts 6", "budget", "max pause",
		"max services 0",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q isn't named in %v", want, err)
		}
	}
}
