package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/lifecycle"
	"github.com/regd-io/regd/client/regdgrpc"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

const (
	// payment is the service that is called.
	payment = "payment"
	// fleetSize is how many instances it has, give or take the one that is being replaced.
	fleetSize = 5
	// thinking is how long an instance takes for an answer, so that there are always requests under way, also when it leaves.
	thinking = 20 * time.Millisecond
)

// fleet is the instances of payment. To the registry each is a process of its own: it has its own client.
type fleet struct {
	t         *testing.T
	c         *nodes.Cluster
	log       *slog.Logger
	started   int
	instances []*running // that run, oldest first
}

// running is an instance. It serves HTTP and gRPC, run by package lifecycle.
type running struct {
	id    string
	owner *client.Client
	stop  context.CancelFunc
	ended chan error

	http, grpc atomic.Int64 // requests that it was sent
}

// startFleet starts fleetSize instances. Those that still run leave with the test.
func startFleet(t *testing.T, c *nodes.Cluster) *fleet {
	t.Helper()
	f := &fleet{t: t, c: c, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	t.Cleanup(func() { // Before the nodes end.
		for len(f.instances) > 0 {
			f.stopOldest()
		}
	})
	for range fleetSize {
		f.start()
	}
	return f
}

// start starts one more instance and waits until it is registered.
func (f *fleet) start() *running {
	f.t.Helper()
	f.started++
	owner, err := client.New(f.c.Addresses())
	if err != nil {
		f.t.Fatal(err)
	}
	i := &running{id: fmt.Sprintf("i%d", f.started), owner: owner, ended: make(chan error, 1)}
	status := health.NewServer()
	rpc := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			i.grpc.Add(1)
			<-time.After(thinking)
			return handle(ctx, req)
		}))
	healthpb.RegisterHealthServer(rpc, status)
	web := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.http.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // The caller is told by the broken connection.
		}
		<-time.After(thinking)
		_, _ = w.Write(body)
	})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context())) // It leaves in a cleanup.
	i.stop = cancel
	var ready lifecycle.Readiness
	config := lifecycle.Config{
		Servers: []lifecycle.Server{
			lifecycle.HTTP("http", web, listen(f.t)), lifecycle.GRPC("grpc", rpc, listen(f.t), status),
		},
		Register:  lifecycle.Register(owner, &registryv1.Instance{Service: payment, Id: i.id, Address: "127.0.0.1"}),
		Readiness: &ready,
		Signals:   make(chan os.Signal), // The test's own are not for it.
		Logger:    f.log,
	}
	go func() { i.ended <- lifecycle.Run(ctx, config) }()
	f.instances = append(f.instances, i)
	f.c.Wait(i.id+" to be registered", 30*time.Second, func(context.Context) bool { return ready.Ready() })
	return i
}

// stopOldest has the oldest instance leave, and waits for its end, which must be a clean one.
func (f *fleet) stopOldest() {
	f.t.Helper()
	i := f.instances[0]
	f.instances = f.instances[1:]
	i.stop()
	if err := errors.Join(<-i.ended, i.owner.Close()); err != nil {
		f.t.Errorf("%s did not end as it should: %v", i.id, err)
	}
}

// roll replaces every instance, one after the other: a new one is started, and once that is called an old one leaves.
func (f *fleet) roll() {
	f.t.Helper()
	for range f.instances {
		i := f.start()
		f.c.Wait(i.id+" to be called", 30*time.Second, func(context.Context) bool { return i.http.Load() > 0 && i.grpc.Load() > 0 })
		f.stopOldest()
	}
}

// listen listens on a free port.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tally is what came of the requests of a flow in a phase.
type tally struct {
	requests, attempts atomic.Int64

	mu       sync.Mutex // guards the fields below
	failures int
	longest  time.Duration // after a request was due
}

// note notes how a request went. It tells whether it has failed.
func (t *tally) note(took time.Duration, err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.longest = max(t.longest, took)
	if err != nil {
		t.failures++
	}
	return err != nil
}

// tallyKey is the key of a request's tally in its context.
type tallyKey struct{}

// attempted counts an attempt of the request that has the context.
func attempted(ctx context.Context) {
	if t, ok := ctx.Value(tallyKey{}).(*tally); ok {
		t.attempts.Add(1)
	}
}

// flow is one way to call payment.
type flow struct {
	name string
	rate int // requests per second
	call func(ctx context.Context, n int) error
}

// phase is a stretch of time for which is counted apart.
type phase struct {
	name    string
	begun   time.Time
	tallies []tally // of the flows
}

// traffic is an open loop of requests: they are due at a steady rate, whatever becomes of those before. Only when
// maxInFlight of a flow are under way does it wait, and a wait counts as part of the requests that it delays.
type traffic struct {
	t      *testing.T
	c      *nodes.Cluster
	flows  []flow
	phases []*phase
	now    atomic.Pointer[phase]
	end    context.CancelFunc
	pacers sync.WaitGroup
	calls  sync.WaitGroup
	told   atomic.Int64 // failures that were printed
}

const (
	maxInFlight    = 256
	requestTimeout = 5 * time.Second
	maxTold        = 20
)

// rate is how many requests per second are sent by HTTP, and as many by gRPC.
func rate(t *testing.T) int {
	t.Helper()
	s := os.Getenv("CHAOS_RATE")
	if s == "" {
		return 100
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 2 {
		t.Fatalf("CHAOS_RATE=%q: must be a number of requests per second, 2 or more", s)
	}
	return n
}

// call starts traffic through a Discovery, which ends with the test at the latest. Its first phase begins when every flow has
// had an answer.
func call(t *testing.T, c *nodes.Cluster, d *discovery.Discovery) *traffic {
	t.Helper()
	n := rate(t)
	tr := &traffic{t: t, c: c, flows: []flow{
		{"http", n, overHTTP(t, d)},
		{"grpc regd_balance", (n + 1) / 2, overGRPC(t, d, regdgrpc.Config{}.ServiceConfig())},
		{"grpc round_robin", n / 2, overGRPC(t, d, `{"loadBalancingConfig": [{"round_robin": {}}]}`)},
	}}
	for _, f := range tr.flows {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err := f.call(ctx, 0)
		cancel()
		if err != nil {
			t.Fatalf("first call by %s: %v", f.name, err)
		}
	}
	tr.enter("nothing happens")
	ctx, cancel := context.WithCancel(t.Context())
	tr.end = cancel
	for i := range tr.flows {
		tr.pacers.Go(func() { tr.pace(ctx, i) })
	}
	t.Cleanup(tr.stop)
	return tr
}

// enter begins a phase. A request belongs to the phase in which it was sent.
func (tr *traffic) enter(name string) *phase {
	p := &phase{name: name, begun: time.Now(), tallies: make([]tally, len(tr.flows))}
	tr.phases = append(tr.phases, p)
	tr.now.Store(p)
	return p
}

// retries is how many attempts more than requests there were. Call it once the traffic has stopped.
func (p *phase) retries() int64 {
	n := int64(0)
	for i := range p.tallies {
		n += p.tallies[i].attempts.Load() - p.tallies[i].requests.Load()
	}
	return n
}

// pace sends the requests of a flow when they are due, until ctx ends.
func (tr *traffic) pace(ctx context.Context, flow int) {
	f := tr.flows[flow]
	slots := make(chan struct{}, maxInFlight)
	start := time.Now()
	for n := 0; ; n++ {
		due := start.Add(time.Duration(n) * time.Second / time.Duration(f.rate))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		tr.calls.Go(func() {
			tr.send(flow, n, due)
			<-slots
		})
	}
}

// send sends a request. It may outlive the traffic, but not its own timeout.
func (tr *traffic) send(flow, n int, due time.Time) {
	p := tr.now.Load()
	tally := &p.tallies[flow]
	tally.requests.Add(1)
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), tallyKey{}, tally), requestTimeout)
	defer cancel()
	err := tr.flows[flow].call(ctx, n)
	took := time.Since(due)
	if tally.note(took, err) && tr.told.Add(1) <= maxTold {
		tr.t.Errorf("%q, %v after it began: request %d by %s failed after %v: %v", p.name,
			time.Since(p.begun).Round(time.Millisecond), n, tr.flows[flow].name, took, err)
	}
}

// progress waits until a second's worth of requests has been sent in this phase by every flow.
func (tr *traffic) progress() {
	tr.t.Helper()
	p := tr.now.Load()
	tr.c.Wait("every flow to go on", 30*time.Second, func(context.Context) bool {
		for i := range tr.flows {
			if p.tallies[i].requests.Load() < int64(tr.flows[i].rate) {
				return false
			}
		}
		return true
	})
}

// stop ends the traffic. Requests under way are waited for.
func (tr *traffic) stop() {
	tr.end()
	tr.pacers.Wait()
	tr.calls.Wait()
}

// judge stops the traffic, tells what came of it, and fails the test when a request failed.
func (tr *traffic) judge() {
	tr.t.Helper()
	tr.stop()
	end := time.Now()
	failures := 0
	for k, p := range tr.phases {
		until := end
		if k+1 < len(tr.phases) {
			until = tr.phases[k+1].begun
		}
		for i, f := range tr.flows {
			t := &p.tallies[i]
			failures += t.failures
			tr.t.Logf("%-38s %6.1f s  %-18s %6d requests, %d failed, %d retries, longest %v", p.name, until.Sub(p.begun).Seconds(), f.name,
				t.requests.Load(), t.failures, t.attempts.Load()-t.requests.Load(), t.longest.Round(100*time.Microsecond))
		}
	}
	if failures > 0 {
		tr.t.Errorf("%d requests failed, want none", failures)
	}
}

// overHTTP calls by HTTP. Every other request may not be repeated once it was sent.
func overHTTP(t *testing.T, d *discovery.Discovery) func(context.Context, int) error {
	t.Helper()
	inner := &http.Transport{MaxIdleConnsPerHost: 64}
	tr, err := regdhttp.New(d, regdhttp.WithTransport(counting{inner}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tr.Close()
		inner.CloseIdleConnections()
	})
	web := &http.Client{Transport: tr}
	return func(ctx context.Context, n int) error {
		want := fmt.Sprint(n)
		method := []string{http.MethodPut, http.MethodPost}[n%2]
		req, err := http.NewRequestWithContext(ctx, method, "http://"+payment+".service/", strings.NewReader(want))
		if err != nil {
			return err
		}
		resp, err := web.Do(req)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK || string(body) != want {
			return fmt.Errorf("%s: %q, want %q", resp.Status, body, want)
		}
		return nil
	}
}

// counting counts the attempts of requests.
type counting struct{ http.RoundTripper }

func (c counting) RoundTrip(req *http.Request) (*http.Response, error) {
	attempted(req.Context())
	return c.RoundTripper.RoundTrip(req)
}

// overGRPC calls by gRPC, without retries but for those that gRPC makes by itself of what no server has seen.
func overGRPC(t *testing.T, d *discovery.Discovery, config string) func(context.Context, int) error {
	t.Helper()
	conn, err := grpc.NewClient("regd:///"+payment, grpc.WithResolvers(regdgrpc.NewBuilder(d)), grpc.WithStatsHandler(begins{}),
		grpc.WithDefaultServiceConfig(config), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	check := healthpb.NewHealthClient(conn)
	return func(ctx context.Context, _ int) error {
		_, err := check.Check(ctx, &healthpb.HealthCheckRequest{}) // Any status is an answer: one that leaves says so.
		return err
	}
}

// begins counts the attempts of calls. It is a stats.Handler.
type begins struct{}

func (begins) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (begins) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (begins) HandleConn(context.Context, stats.ConnStats)                       {}

func (begins) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.Begin); ok {
		attempted(ctx)
	}
}

// discover is a Discovery of a client of its own. Both are closed with the test.
func discover(t *testing.T, c *nodes.Cluster, opts ...client.Option) *discovery.Discovery {
	t.Helper()
	d, err := discovery.New(newClient(t, c.Addresses(), opts...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// lookUp is a handle on payment whose view has the whole fleet, closed with the test. The node that serves the first view
// may be behind those on which they were registered.
func lookUp(t *testing.T, d *discovery.Discovery) *discovery.Service {
	t.Helper()
	s, err := d.Service(payment)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for v, err := range s.All(ctx) {
		if err != nil {
			t.Fatalf("look %s up: %v", payment, err)
		}
		if len(v.Healthy) == fleetSize {
			break
		}
	}
	return s
}

// now is the view that there is at the moment.
func now(t *testing.T, s *discovery.Service) *discovery.View {
	t.Helper()
	v, err := s.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
