package regdhttp_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inst is an instance of service payment at <id>.test:80.
func inst(id string) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default", Service: "payment", Id: id, Address: id + ".test", Health: registryv1.Health_HEALTH_PASSING,
		Ports: []*registryv1.Port{{Name: "main", Number: 80}},
	}
}

// transport makes a transport that is closed with the test.
func transport(tb testing.TB, d *discovery.Discovery, opts ...regdhttp.Option) *regdhttp.Transport {
	tb.Helper()
	t, err := regdhttp.New(d, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(t.Close)
	return t
}

// registry has instances of service payment.
func registry(tb testing.TB, ids ...string) (*registrytest.Registry, *discovery.Discovery) {
	tb.Helper()
	r := registrytest.New(tb)
	for _, id := range ids {
		r.Put(inst(id))
	}
	return r, r.Discovery()
}

// answer is what an instance does with a request.
type answer struct {
	status int
	header http.Header
	err    error
	body   io.ReadCloser // nil: empty
}

// script is an inner transport: it gives answers in turn, the last one again and again.
type script struct {
	answers []answer

	mu   sync.Mutex
	seen []*http.Request
	sent []string // bodies
}

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	var sent []byte
	if req.Body != nil {
		sent, _ = io.ReadAll(req.Body)
		_ = req.Body.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.answers[min(len(s.seen), len(s.answers)-1)]
	s.seen, s.sent = append(s.seen, req), append(s.sent, string(sent))
	if a.err != nil {
		return nil, a.err
	}
	resp := &http.Response{StatusCode: a.status, Header: a.header, Body: a.body, Request: req, ContentLength: -1}
	if resp.Header == nil {
		resp.Header = http.Header{}
	}
	if resp.Body == nil {
		resp.Body = http.NoBody
	}
	return resp, nil
}

// hosts are the addresses that were called.
func (s *script) hosts() (hosts []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.seen {
		hosts = append(hosts, r.URL.Host)
	}
	return hosts
}

// refused is the error of a dial.
func refused() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: &net.AddrError{Err: "connection refused"}}
}

// status returns what is known of an instance of the only service.
func status(tb testing.TB, t *regdhttp.Transport, id string) balance.Status {
	tb.Helper()
	for _, s := range t.Stats() {
		for _, i := range s.Instances {
			if i.Instance.GetId() == id {
				return i
			}
		}
	}
	tb.Fatalf("no instance %s in %+v", id, t.Stats())
	return balance.Status{}
}

// eventually waits until something holds.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); !holds(); {
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("never: %s", what)
		}
	}
}

// serve starts a server on loopback, and returns it as an instance.
func serve(tb testing.TB, id string, h http.Handler) (*httptest.Server, *registryv1.Instance) {
	tb.Helper()
	s := httptest.NewServer(h)
	tb.Cleanup(s.Close)
	return s, at(tb, id, s.Listener.Addr())
}

// at is an instance at an address.
func at(tb testing.TB, id string, address net.Addr) *registryv1.Instance {
	tb.Helper()
	host, port, err := net.SplitHostPort(address.String())
	if err != nil {
		tb.Fatal(err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		tb.Fatal(err)
	}
	i := inst(id)
	i.Address, i.Ports[0].Number = host, uint32(number)
	return i
}

// get does a GET and reads what comes.
func get(tb testing.TB, rt http.RoundTripper, url string) (string, error) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
