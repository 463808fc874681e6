package regdhttp_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// echo answers with what it was sent, after a moment.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	<-time.After(100 * time.Microsecond)
	_, _ = w.Write(body)
}

// load calls until the function that it returns is called, and fails the test for each call that fails.
func load(t *testing.T, tr http.RoundTripper, callers int, methods ...string) (stop func() (calls int64)) {
	t.Helper()
	web := &http.Client{Transport: tr}
	done := make(chan struct{})
	var work sync.WaitGroup
	var calls atomic.Int64
	for i := range callers {
		method := methods[i%len(methods)]
		work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				want := fmt.Sprintf("%d-%d", i, n)
				req, err := http.NewRequestWithContext(t.Context(), method, "http://payment.service/", strings.NewReader(want))
				if err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
				resp, err := web.Do(req)
				if err != nil {
					t.Errorf("%s %s: %v", method, want, err)
					continue
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if string(body) != want || resp.StatusCode != http.StatusOK || err != nil {
					t.Errorf("%s %s: %s, %q, %v", method, want, resp.Status, body, err)
				}
			}
		})
	}
	return func() int64 {
		close(done)
		work.Wait()
		return calls.Load()
	}
}

// TestRolling replaces every instance, one after the other, under load: a new one is registered, an old one drains, falls
// silent, is deregistered and stopped. No call fails, also those that may not be repeated.
func TestRolling(t *testing.T) {
	t.Parallel()
	r, d := registry(t)
	type running struct {
		server   *httptest.Server
		instance *registryv1.Instance
	}
	var old []running
	start := func(id string) {
		s, i := serve(t, id, http.HandlerFunc(echo))
		old = append(old, running{s, i})
		r.Put(i)
	}
	for i := range 3 {
		start(fmt.Sprintf("first-%d", i))
	}
	tr := transport(t, d)
	stop := load(t, tr, 8, http.MethodGet, http.MethodPost)
	for i := range 6 {
		start(fmt.Sprintf("next-%d", i))
		leaving := old[0]
		old = old[1:]
		id := leaving.instance.GetId()
		eventually(t, id+" is called", func() bool { return known(tr, id) && status(t, tr, id).Calls > 0 })
		leaving.instance.Draining = true
		r.Put(leaving.instance)
		eventually(t, id+" is silent", func() bool {
			s := status(t, tr, id)
			return s.Reason == balance.ReasonDraining && s.InFlight == 0
		})
		r.Remove(leaving.instance)
		leaving.server.Close()
	}
	calls := stop()
	t.Logf("%d calls", calls)
	for _, i := range tr.Stats()[0].Instances {
		if i.Failures != 0 || i.InFlight != 0 {
			t.Errorf("%s: %d failures, %d in flight", i.Instance.GetId(), i.Failures, i.InFlight)
		}
	}
}

// known tells whether the instance is in the balancer.
func known(tr *regdhttp.Transport, id string) bool {
	for _, s := range tr.Stats() {
		for _, i := range s.Instances {
			if i.Instance.GetId() == id {
				return true
			}
		}
	}
	return false
}

// TestCrash kills instances under load, connections and all, without a word to the registry. Calls that may be repeated are,
// elsewhere, and none fails.
func TestCrash(t *testing.T) {
	t.Parallel()
	r, d := registry(t)
	var servers []*httptest.Server
	for i := range 4 {
		s, i := serve(t, fmt.Sprint(i), http.HandlerFunc(echo))
		servers = append(servers, s)
		r.Put(i)
	}
	tr := transport(t, d)
	stop := load(t, tr, 8, http.MethodGet)
	for i, s := range servers[:2] {
		eventually(t, "it is called", func() bool { return known(tr, fmt.Sprint(i)) && status(t, tr, fmt.Sprint(i)).Calls > 10 })
		_ = s.Listener.Close()
		s.CloseClientConnections()
		eventually(t, "it is ejected", func() bool { return status(t, tr, fmt.Sprint(i)).Reason == balance.ReasonEjected })
	}
	calls := stop()
	t.Logf("%d calls, %d retries", calls, tr.Stats()[0].Retries)
	for i := range 4 {
		if got := status(t, tr, fmt.Sprint(i)).InFlight; got != 0 {
			t.Errorf("%d calls in flight to %d", got, i)
		}
	}
}

// TestConnections checks that connections are used again, and that none is left at the end.
func TestConnections(t *testing.T) {
	t.Parallel()
	var opened, open atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
			open.Add(1)
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		case http.StateActive, http.StateIdle:
		}
	}
	s.Start()
	defer s.Close()
	r, d := registry(t)
	r.Put(at(t, "a", s.Listener.Addr()))
	tr := transport(t, d)
	for range 100 {
		if _, err := get(t, tr, "http://payment.service/"); err != nil {
			t.Fatal(err)
		}
	}
	if got := opened.Load(); got != 1 {
		t.Errorf("%d connections were opened for 100 calls in turn", got)
	}
	tr.Close()
	eventually(t, "all connections are closed", func() bool { return open.Load() == 0 })
}

// BenchmarkRoundTrip compares calls by name with those by address, through the same kind of transport to the same server.
func BenchmarkRoundTrip(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	r, d := registry(b)
	r.Put(at(b, "a", s.Listener.Addr()))
	bare := &http.Transport{MaxIdleConnsPerHost: 64}
	defer bare.CloseIdleConnections()
	b.Run("bare", func(b *testing.B) { benchmark(b, bare, s.URL) })
	b.Run("regd", func(b *testing.B) { benchmark(b, transport(b, d), "http://payment.service/") })
}

// BenchmarkOverhead is what this package adds: the inner transport does nothing.
func BenchmarkOverhead(b *testing.B) {
	_, d := registry(b, "a", "b", "c")
	answer := &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}
	inner := roundTripper(func(*http.Request) (*http.Response, error) {
		resp := *answer
		return &resp, nil
	})
	b.Run("bare", func(b *testing.B) { benchmark(b, inner, "http://a.test/") })
	b.Run("regd", func(b *testing.B) {
		benchmark(b, transport(b, d, regdhttp.WithTransport(inner)), "http://payment.service/")
	})
}

func benchmark(b *testing.B, rt http.RoundTripper, url string) {
	b.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}
