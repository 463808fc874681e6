package consul

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// nobody takes an answer and counts.
type nobody struct {
	header http.Header
	bytes  int
}

func (n *nobody) Header() http.Header { return n.header }
func (n *nobody) WriteHeader(int)     {}

func (n *nobody) Write(b []byte) (int, error) {
	n.bytes += len(b)
	return len(b), nil
}

// BenchmarkWaiters has 10,000 queries wait, a hundred for each of a hundred services, and changes one service at a time: it tells
// what a query holds while it waits, its goroutine included, and how many are woken by a change.
func BenchmarkWaiters(b *testing.B) {
	const waiters, services = 10_000, 100
	w := bareWorld(b)
	for n := range services {
		w.ok("PUT", "agent/service/register", fmt.Sprintf(`{"Name":"s%d","Check":{"TTL":"10s"}}`, n))
	}
	before := memory()
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for n := range waiters {
		name := fmt.Sprintf("s%d", n%services)
		wg.Go(func() {
			last := w.state().Service("default", name).Revision()
			for ctx.Err() == nil {
				r, _ := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("/v1/health/service/%s?index=%d", name, last), nil)
				r.RemoteAddr = "127.0.0.1:1"
				rec := &nobody{header: http.Header{}}
				w.server.ServeHTTP(rec, r)
				_, _ = fmt.Sscan(rec.header.Get("X-Consul-Index"), &last)
			}
		})
	}
	settled := func() { until(func() bool { return len(w.server.waiters) == waiters }) }
	settled()
	held := memory() - before
	woken := counter(b, w.server.metrics.wakes)
	b.ResetTimer()
	for n := 0; b.Loop(); n++ {
		verdict := []string{"pass", "fail"}[n/services%2]
		w.ok("PUT", fmt.Sprintf("agent/check/%s/service:s%d", verdict, n%services), "")
		want := woken + float64((n+1)*waiters/services)
		until(func() bool { return counter(b, w.server.metrics.wakes) >= want })
		settled()
	}
	b.StopTimer()
	b.ReportMetric(float64(held)/waiters, "B/waiter")
	b.ReportMetric((counter(b, w.server.metrics.wakes)-woken)/float64(b.N), "wakes/change")
	cancel()
	wg.Wait()
}

// memory is what is allocated, stacks included.
func memory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse) //nolint:gosec // It is less than half of what fits.
}

func counter(tb testing.TB, c prometheus.Counter) float64 {
	tb.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		tb.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// until waits for a condition.
func until(fn func() bool) {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for !fn() {
		<-tick.C
	}
}
