package health

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	statusPassing  = registryv1.CheckStatus_CHECK_STATUS_PASSING
	statusWarning  = registryv1.CheckStatus_CHECK_STATUS_WARNING
	statusCritical = registryv1.CheckStatus_CHECK_STATUS_CRITICAL
	statusStarting = registryv1.CheckStatus_CHECK_STATUS_STARTING
)

// quick is a timeout for probes that are to run into it.
const quick = 60 * time.Millisecond

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	return cfg
}

// httpCheck is a check of url with a generous timeout.
func httpCheck(url string, change func(*registryv1.HTTPCheck)) *registryv1.Check {
	h := &registryv1.HTTPCheck{Url: url}
	if change != nil {
		change(h)
	}
	return &registryv1.Check{Name: "http", Kind: &registryv1.Check_Http{Http: h}}
}

func within(timeout time.Duration, c *registryv1.Check) *registryv1.Check {
	c.Timeout = durationpb.New(timeout)
	return c
}

// probeOnce carries out check against an instance that listens at address.
func probeOnce(t *testing.T, cfg Config, address string, check *registryv1.Check) result {
	t.Helper()
	in := &registryv1.Instance{Address: "127.0.0.1"}
	if address != "" {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		in.Address = host
		in.Ports = []*registryv1.Port{{Name: "main", Number: uint32(number)}}
	}
	return newProbes(cfg).run(t.Context(), newPlan(in, check))
}

func wantResult(t *testing.T, got result, status registryv1.CheckStatus, output string) {
	t.Helper()
	if got.status != status || !strings.Contains(got.output, output) {
		t.Errorf("got %v %q, want %v with %q", got.status, got.output, status, output)
	}
}

func TestHTTPIsJudgedByStatus(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Location", "http://192.0.2.1/latest/meta-data/")
		w.WriteHeader(code)
	}))
	t.Cleanup(server.Close)
	between := func(low, high uint32) func(*registryv1.HTTPCheck) {
		return func(h *registryv1.HTTPCheck) { h.StatusMin, h.StatusMax = low, high }
	}
	for _, tt := range []struct {
		name   string
		code   int
		change func(*registryv1.HTTPCheck)
		want   registryv1.CheckStatus
	}{
		{"ok passes", 200, nil, statusPassing},
		{"the last of the default range passes", 299, nil, statusPassing},
		{"a redirect is not followed and fails", 302, nil, statusCritical},
		{"a redirect passes where it is expected", 302, between(200, 399), statusPassing},
		{"too many requests warns", 429, nil, statusWarning},
		{"too many requests passes where it is expected", 429, between(400, 499), statusPassing},
		{"a server error fails", 503, nil, statusCritical},
		{"below the range fails", 200, between(204, 204), statusCritical},
		{"only a lowest status is a range of its own", 404, between(404, 0), statusPassing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := probeOnce(t, testConfig(), "", httpCheck(server.URL+"/?code="+strconv.Itoa(tt.code), tt.change))
			wantResult(t, got, tt.want, "HTTP "+strconv.Itoa(tt.code))
		})
	}
}

func TestHTTPSendsWhatTheCheckSays(t *testing.T) {
	t.Parallel()
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	t.Cleanup(server.Close)
	check := httpCheck("", func(h *registryv1.HTTPCheck) {
		h.Method, h.Path = http.MethodPut, "ready?deep=1"
		h.Headers = map[string]string{"host": "shop.example", "X-Token": "t", "User-Agent": "me"}
	})
	wantResult(t, probeOnce(t, testConfig(), server.Listener.Addr().String(), check), statusPassing, "HTTP 200 OK")
	if got.Method != http.MethodPut || got.URL.String() != "/ready?deep=1" || got.Host != "shop.example" ||
		got.Header.Get("X-Token") != "t" || got.UserAgent() != "me" || !got.Close {
		t.Errorf("got %s %s host %s, header %v, close %v", got.Method, got.URL, got.Host, got.Header, got.Close)
	}
}

func TestHTTPKnowsNoProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:9")
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	client := newProbes(testConfig()).client
	if proxy := client.Transport.(*http.Transport).Proxy; proxy != nil {
		t.Error("the transport asks for a proxy")
	}
	wantResult(t, probeOnce(t, testConfig(), "", httpCheck(server.URL, nil)), statusCritical, "HTTP 404")
}

func TestHTTPBody(t *testing.T) {
	t.Parallel()
	filler := strings.Repeat("x", maxBody-3)
	served := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		say := func(text string) {
			if _, err := io.WriteString(w, text); err != nil {
				t.Error(err)
			}
		}
		switch r.URL.Path {
		case "/short":
			say("status: green")
		case "/late":
			say(filler + "green")
		case "/edge":
			say(filler[2:] + "green")
		case "/stream": // Says what is expected, and does not end.
			say("green")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case "/trickle":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case "/endless":
			for {
				if _, err := io.WriteString(w, filler); err != nil { // As it should be.
					served <- err
					return
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	for _, tt := range []struct {
		path, text string
		timeout    time.Duration
		want       registryv1.CheckStatus
		output     string
	}{
		{"/short", "green", time.Second, statusPassing, "HTTP 200 OK"},
		{"/short", "red", time.Second, statusCritical, "lacks the expected text"},
		{"/late", "green", time.Second, statusCritical, "lacks the expected text"},
		{"/edge", "xgree", time.Second, statusPassing, "HTTP 200 OK"},
		{"/stream", "green", time.Second, statusPassing, "HTTP 200 OK"},
		{"/trickle", "green", quick, statusCritical, "no answer within 60ms"},
		{"/endless", "green", time.Second, statusCritical, "lacks the expected text"},
	} {
		check := httpCheck(server.URL+tt.path, func(h *registryv1.HTTPCheck) { h.BodyContains = tt.text })
		got := probeOnce(t, testConfig(), "", within(tt.timeout, check))
		wantResult(t, got, tt.want, tt.output)
		if strings.Contains(got.output, "green") || strings.Contains(got.output, "xxx") {
			t.Errorf("%s: the output %q shows the body", tt.path, got.output)
		}
	}
	if err := <-served; err == nil {
		t.Error("the endless body was not cut")
	}
}

func TestHTTPThatHangsFailsInTime(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(server.Close)
	wantResult(t, probeOnce(t, testConfig(), "", within(quick, httpCheck(server.URL, nil))), statusCritical,
		"no answer within 60ms")
}

func TestHTTPS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	trusting := testConfig()
	trusting.RootCAs = x509.NewCertPool()
	trusting.RootCAs.AddCert(server.Certificate())
	for _, tt := range []struct {
		name   string
		cfg    Config
		tls    *registryv1.CheckTLS
		want   registryv1.CheckStatus
		output string
	}{
		{"an unknown certificate fails", testConfig(), nil, statusCritical, "certificate"},
		{"an unknown certificate passes unverified", testConfig(), &registryv1.CheckTLS{SkipVerify: true}, statusPassing, "200"},
		{"a known certificate passes", trusting, nil, statusPassing, "200"},
		{"a name in the certificate passes", trusting, &registryv1.CheckTLS{ServerName: "example.com"}, statusPassing, "200"},
		{"another name fails", trusting, &registryv1.CheckTLS{ServerName: "other.test"}, statusCritical, "other.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			check := httpCheck(server.URL, func(h *registryv1.HTTPCheck) { h.Tls = tt.tls })
			wantResult(t, probeOnce(t, tt.cfg, "", check), tt.want, tt.output)
		})
	}
	t.Run("a built URL is https when TLS options are set", func(t *testing.T) {
		t.Parallel()
		check := httpCheck("", func(h *registryv1.HTTPCheck) { h.Tls = &registryv1.CheckTLS{} })
		wantResult(t, probeOnce(t, trusting, server.Listener.Addr().String(), check), statusPassing, "200")
	})
}

func TestTCP(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	check := &registryv1.Check{Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{}}}
	wantResult(t, probeOnce(t, testConfig(), address, check), statusPassing, "connected to "+address)
	listener.Close()
	wantResult(t, probeOnce(t, testConfig(), address, check), statusCritical, "connection refused")
}

func TestGRPC(t *testing.T) {
	t.Parallel()
	service := grpchealth.NewServer()
	service.SetServingStatus("orders", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	plain := serveGRPC(t, service)
	check := func(name string, tls *registryv1.CheckTLS) *registryv1.Check {
		return &registryv1.Check{Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Service: name, Tls: tls}}}
	}
	wantResult(t, probeOnce(t, testConfig(), plain, check("", nil)), statusPassing, "SERVING")
	wantResult(t, probeOnce(t, testConfig(), plain, check("orders", nil)), statusCritical, "NOT_SERVING")
	wantResult(t, probeOnce(t, testConfig(), plain, check("nobody", nil)), statusCritical, "not known")
	wantResult(t, probeOnce(t, testConfig(), serveGRPC(t, nil), check("", nil)), statusCritical, "not implemented")

	server := httptest.NewUnstartedServer(nil)
	server.StartTLS() // For its certificate.
	t.Cleanup(server.Close)
	encrypted := serveGRPC(t, service, grpc.Creds(credentials.NewServerTLSFromCert(&server.TLS.Certificates[0])))
	wantResult(t, probeOnce(t, testConfig(), encrypted, check("", &registryv1.CheckTLS{SkipVerify: true})), statusPassing, "SERVING")
	wantResult(t, probeOnce(t, testConfig(), encrypted, check("", &registryv1.CheckTLS{})), statusCritical, "certificate")

	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "secret", http.StatusForbidden)
	}))
	web.EnableHTTP2 = true
	web.StartTLS()
	t.Cleanup(web.Close)
	got := probeOnce(t, testConfig(), web.Listener.Addr().String(), check("", &registryv1.CheckTLS{SkipVerify: true}))
	if wantResult(t, got, statusCritical, "gRPC health: PermissionDenied"); strings.Contains(got.output, "secret") {
		t.Errorf("the output %q shows the body", got.output)
	}

	hanging := serveGRPC(t, hangingHealth{})
	wantResult(t, probeOnce(t, testConfig(), hanging, within(quick, check("", nil))), statusCritical, "no answer within 60ms")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	wantResult(t, probeOnce(t, testConfig(), listener.Addr().String(), check("", nil)), statusCritical, "connection refused")
}

// A check can be pointed at what whoever may read the registry may not read: errors must not quote it either.
func TestOutputQuotesNoAnswer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"another protocol":       "SSH-2.0 secret\r\n",
		"a malformed header":     "HTTP/1.1 200 OK\r\nsecret\r\n\r\n",
		"a malformed length":     "HTTP/1.1 200 OK\r\nContent-Length: secret\r\n\r\n",
		"a malformed trailer":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nsecret\r\n\r\n",
		"an unknown encoding":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: secret\r\n\r\n",
		"a malformed status":     "HTTP/1.1 secret\r\n\r\n",
		"a reason of its own":    "HTTP/1.1 503 secret\r\n\r\n",
		"a body that breaks off": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsecret",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, answer) // The probe may have read enough.
			c.Close()
		}))
		check := httpCheck(server.URL, func(h *registryv1.HTTPCheck) { h.BodyContains = "no such text" })
		got := probeOnce(t, testConfig(), "", check)
		if wantResult(t, got, statusCritical, ""); strings.Contains(got.output, "secret") {
			t.Errorf("%s: output %q", name, got.output)
		}
		server.Close()
	}
	refusing := serveGRPC(t, refusingHealth{})
	check := &registryv1.Check{Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{}}}
	got := probeOnce(t, testConfig(), refusing, check)
	if wantResult(t, got, statusCritical, "gRPC health: Unavailable"); strings.Contains(got.output, "secret") {
		t.Errorf("gRPC: output %q", got.output)
	}
}

type refusingHealth struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (refusingHealth) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return nil, status.Error(codes.Unavailable, "secret")
}

type hangingHealth struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (hangingHealth) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// serveGRPC serves service, if any, and returns its address.
func serveGRPC(t *testing.T, service grpc_health_v1.HealthServer, options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	if service != nil {
		grpc_health_v1.RegisterHealthServer(server, service)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func TestLinkLocalIsRefusedUnlessAllowed(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"169.254.169.254:80", "[fe80::1%lo]:80"} {
		check := &registryv1.Check{Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: address}}}
		wantResult(t, probeOnce(t, testConfig(), "", within(quick, check)), statusCritical, errLinkLocal.Error())
	}
	allowed := testConfig()
	allowed.AllowLinkLocal = true
	if newProbes(allowed).dialer.Control != nil {
		t.Error("addresses are judged although all are allowed")
	}
}

func TestPlanThatCannotBeCarriedOutFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		check  *registryv1.Check
		output string
	}{
		{"no port", httpCheck("", nil), "the instance has no port"},
		{"no such port", httpCheck("", func(h *registryv1.HTTPCheck) { h.Port = "admin" }), `no port "admin"`},
		{"another scheme", httpCheck("file:///etc/passwd", nil), "not an absolute http"},
		{"no URL", httpCheck("http://[::1", nil), "cannot be parsed"},
		{"no kind", &registryv1.Check{}, "no kind"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wantResult(t, probeOnce(t, testConfig(), "", tt.check), statusCritical, tt.output)
		})
	}
}

func TestPlanResolvesTargets(t *testing.T) {
	t.Parallel()
	in := &registryv1.Instance{Address: "2001:db8::1", Ports: []*registryv1.Port{{Name: "main", Number: 80}, {Name: "admin", Number: 81}}}
	for _, tt := range []struct {
		check        *registryv1.Check
		target, host string
	}{
		{httpCheck("", nil), "http://[2001:db8::1]:80/", "2001:db8::1"},
		{httpCheck("", func(h *registryv1.HTTPCheck) { h.Port, h.Path = "admin", "/up" }), "http://[2001:db8::1]:81/up", "2001:db8::1"},
		{httpCheck("https://example.com:8443/x", nil), "https://example.com:8443/x", "example.com"},
		{&registryv1.Check{Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: "db:5432"}}}, "db:5432", "db"},
		{&registryv1.Check{Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Port: "admin"}}}, "[2001:db8::1]:81", "2001:db8::1"},
	} {
		if p := newPlan(in, tt.check); p.target != tt.target || p.host != tt.host || p.fault != "" {
			t.Errorf("target %q host %q fault %q, want %q %q", p.target, p.host, p.fault, tt.target, tt.host)
		}
	}
}

func TestPlanKeepsTimesAndRunsWithinLimits(t *testing.T) {
	t.Parallel()
	check := func(interval, timeout time.Duration, rise, fall uint32) *registryv1.Check {
		return &registryv1.Check{Interval: durationpb.New(interval), Timeout: durationpb.New(timeout), Rise: rise, Fall: fall}
	}
	for _, tt := range []struct {
		check             *registryv1.Check
		interval, timeout time.Duration
		rise, fall        int
	}{
		{&registryv1.Check{}, 10 * time.Second, 5 * time.Second, 1, 3},
		{check(2*time.Second, 0, 2, 1), 2 * time.Second, 2 * time.Second, 2, 1},
		{check(time.Millisecond, time.Hour, 99, 99), time.Second, time.Second, 10, 10},
		{check(48*time.Hour, time.Nanosecond, 1, 1), time.Hour, 10 * time.Millisecond, 1, 1},
	} {
		p := newPlan(&registryv1.Instance{}, tt.check)
		if p.interval != tt.interval || p.timeout != tt.timeout || p.rise != tt.rise || p.fall != tt.fall {
			t.Errorf("got %v %v %d %d, want %v %v %d %d", p.interval, p.timeout, p.rise, p.fall,
				tt.interval, tt.timeout, tt.rise, tt.fall)
		}
	}
}

func TestSanitise(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, want string }{
		{"plain text stays", "connection refused", "connection refused"},
		{"control characters become spaces", "a\nb\x00c\x1b[31m", "a b c [31m"},
		{"bytes that are no UTF-8 are replaced", "a\xffb", "a?b"},
		{"nothing is cut within a character", strings.Repeat("é", 200), strings.Repeat("é", 128)},
		{"long text is cut", strings.Repeat("x", 5000), strings.Repeat("x", 256)},
		{"an odd length is cut before the character", "x" + strings.Repeat("é", 200), "x" + strings.Repeat("é", 127)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := sanitise(tt.in); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckIDIsReversible(t *testing.T) {
	t.Parallel()
	key := instanceKey{"default", "web", "host:80/a b%2F@x"}
	got, check, err := parseCheckID(CheckID(key.namespace, key.service, key.id, "ttl/1"))
	if err != nil || got != key || check != "ttl/1" {
		t.Errorf("got %v %q %v", got, check, err)
	}
	for _, id := range []string{"", "a/b/c", "a/b/c/d/e", "a/b/c/%zz"} {
		if _, _, err := parseCheckID(id); err == nil {
			t.Errorf("%q was parsed", id)
		}
	}
}
