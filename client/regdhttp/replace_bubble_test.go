package regdhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// plant is instances of service payment on a network in memory.
type plant struct {
	t *testing.T
	r *registrytest.Registry

	work sync.WaitGroup // has what serves

	mu        sync.Mutex         // guards the fields below
	running   map[string]*worker // by address
	conns     map[*conn]string   // that are open, with the address that was dialled
	dialled   int
	refused   int // dials to instances that are gone
	brokenOff int // calls that must not be repeated, by a crash
}

// worker is an instance.
type worker struct {
	instance *registryv1.Instance
	server   *http.Server
	lis      registrytest.Listener
	active   atomic.Int64
}

// conn is the client's end of a connection.
type conn struct {
	net.Conn
	p *plant
}

func (c *conn) Close() error {
	c.p.mu.Lock()
	delete(c.p.conns, c)
	c.p.mu.Unlock()
	return c.Conn.Close()
}

func newPlant(t *testing.T) *plant {
	t.Helper()
	return &plant{t: t, r: registrytest.New(t), running: make(map[string]*worker), conns: make(map[*conn]string)}
}

func (p *plant) dial(ctx context.Context, _, address string) (net.Conn, error) {
	p.mu.Lock()
	w := p.running[address]
	if w == nil {
		p.refused++
	}
	p.mu.Unlock()
	if w == nil {
		return nil, refused()
	}
	inner, err := w.lis.DialContext(ctx)
	if err != nil {
		return nil, refused()
	}
	c := &conn{Conn: inner, p: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialled++
	p.conns[c] = address
	return c, nil
}

// start starts an instance and registers it.
func (p *plant) start(id string) *worker {
	w := &worker{instance: inst(id), lis: registrytest.Listen(16 << 10)}
	w.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.active.Add(1)
		defer w.active.Add(-1)
		time.Sleep(20 * time.Millisecond)
		_, _ = io.Copy(out, r.Body)
	})}
	p.mu.Lock()
	p.running[id+".test:80"] = w
	p.mu.Unlock()
	p.work.Go(func() { _ = w.server.Serve(w.lis) })
	p.r.Put(w.instance)
	return w
}

// leave ends an instance in order: it drains, is deregistered and stops.
func (p *plant) leave(w *worker) {
	w.instance.Draining = true
	p.r.Put(w.instance)
	time.Sleep(time.Second)
	p.r.Remove(w.instance)
	p.gone(w)
	if err := w.server.Shutdown(p.t.Context()); err != nil {
		p.t.Error(err)
	}
}

// crash ends an instance at once. The registry hears of it after some seconds.
func (p *plant) crash(w *worker) {
	p.gone(w)
	_ = w.server.Close()
	time.Sleep(5 * time.Second)
	p.r.Remove(w.instance)
}

func (p *plant) gone(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, w.instance.GetId()+".test:80")
}

// connected returns how many connections are open, how many of them to instances that are gone, and how many were made.
func (p *plant) connected() (open, gone, dialled int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, address := range p.conns {
		if p.running[address] == nil {
			gone++
		}
	}
	return len(p.conns), gone, p.dialled
}

// calls sends 200 requests a second, each second one of which must not be repeated, until it is stopped.
func (p *plant) calls(rt http.RoundTripper) (stop func() int) {
	done := make(chan struct{})
	sent := 0
	var calling sync.WaitGroup
	calling.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n, method := sent, []string{http.MethodGet, http.MethodPost}[sent%2]
				sent++
				calling.Go(func() { p.call(rt, method, fmt.Sprint(n)) })
			case <-done:
				return
			}
		}
	})
	return func() int {
		close(done)
		calling.Wait()
		return sent
	}
}

func (p *plant) call(rt http.RoundTripper, method, text string) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://payment.service/", strings.NewReader(text))
	if err != nil {
		p.t.Error(err)
		return
	}
	resp, err := rt.RoundTrip(req)
	if method == http.MethodPost && errors.Is(err, io.EOF) {
		// The connection ended after the request was sent on it, as its instance crashed. Whether it was done nobody can tell, so
		// no other instance may do it.
		p.mu.Lock()
		defer p.mu.Unlock()
		p.brokenOff++
		return
	}
	if err != nil {
		p.t.Errorf("%s %s: %v", method, text, err)
		return
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(body) != text || resp.StatusCode != http.StatusOK || err != nil {
		p.t.Errorf("%s %s: %s, %q, %v", method, text, resp.Status, body, err)
	}
}

// used returns the goroutines and the bytes of heap that there are once all is quiet.
func used() (goroutines int, heap uint64) {
	synctest.Wait()
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // What the first one found in pools.
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), m.HeapAlloc
}

// TestAThousandInstancesAreReplacedInAMinute: two hundred, each of them five times; one every 60 ms, each fiftieth by a crash. They
// are called 200 times a second, and half of the calls must not be repeated. No call fails, as at any time nearly all instances
// are healthy. When all is over there is nothing more than before.
func TestAThousandInstancesAreReplacedInAMinute(t *testing.T) {
	const size, replaced, within = 200, 1000, time.Minute
	synctest.Test(t, func(t *testing.T) {
		p := newPlant(t)
		var running []*worker // oldest first
		for i := range size {
			running = append(running, p.start(fmt.Sprintf("first-%d", i)))
		}
		inner, ok := http.DefaultTransport.(*http.Transport)
		if !ok {
			t.Fatal("the default transport is another one")
		}
		inner = inner.Clone() // As regdhttp has it.
		inner.Proxy, inner.MaxIdleConns, inner.DialContext = nil, 0, p.dial
		tr := transport(t, p.r.Discovery(), regdhttp.WithTransport(inner))
		settle := func() { // Longer than idle connections are kept.
			time.Sleep(2 * time.Minute)
			inner.CloseIdleConnections()
		}
		p.call(tr, http.MethodGet, "first")
		settle()
		goroutines, heap := used()

		stop := p.calls(tr)
		time.Sleep(5 * time.Second)
		var leaving sync.WaitGroup
		crashes := 0
		for i := range replaced {
			running = append(running, p.start(fmt.Sprintf("next-%d", i)))
			w := running[0]
			running = running[1:]
			if i%50 == 0 && w.active.Load() == 0 { // What can't be repeated is lost with its instance.
				crashes++
				leaving.Go(func() { p.crash(w) })
			} else {
				leaving.Go(func() { p.leave(w) })
			}
			time.Sleep(within / replaced)
		}
		leaving.Wait()
		time.Sleep(5 * time.Second)
		sent := stop()
		stats := tr.Stats()[0]
		t.Logf("%d calls, %d dials to an instance that had crashed, %d crashes", sent, p.refused, crashes)
		if p.brokenOff > crashes {
			t.Errorf("%d calls were broken off by %d crashes", p.brokenOff, crashes)
		}
		if sent < 200*60 || crashes < replaced/100 || p.refused == 0 {
			t.Error("too few to prove anything")
		}
		if len(stats.Instances) != size {
			t.Errorf("%d instances are known, want %d", len(stats.Instances), size)
		}
		for _, i := range stats.Instances {
			if i.InFlight != 0 {
				t.Errorf("%d calls in flight to %s", i.InFlight, i.Instance.GetId())
			}
		}
		synctest.Wait()
		open, gone, dialled := p.connected()
		t.Logf("%d connections were made, %d are open, %d of them to instances that are gone", dialled, open, gone)
		if gone > 0 {
			t.Errorf("%d connections to instances that are gone are open", gone)
		}
		time.Sleep(2 * time.Minute)
		if open, _, _ = p.connected(); open > 0 {
			t.Errorf("%d connections are open two minutes after the last call", open)
		}
		settle()
		nowGoroutines, nowHeap := used()
		t.Logf("goroutines %d, then %d; heap %d kB, then %d kB", goroutines, nowGoroutines, heap>>10, nowHeap>>10)
		if nowGoroutines > goroutines {
			t.Errorf("%d goroutines, and %d before", nowGoroutines, goroutines)
		}
		const remembered = 4 << 20 // The registry of tests forgets no event, and there were three for each instance.
		if nowHeap > heap*3/2+remembered {
			t.Errorf("%d bytes of heap, and %d before: more than half as much again", nowHeap, heap)
		}
		for _, w := range running {
			_ = w.server.Close()
		}
		p.work.Wait()
	})
}
