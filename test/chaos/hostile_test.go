package chaos_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

const (
	// peace is how long the neighbour is measured before an attack, assault how long an attack that has no end lasts.
	peace   = time.Second
	assault = 2 * time.Second
	// The 99th percentile of the neighbour's calls during an attack may be maxSlowdown times that before it, and maxLatency
	// at most. The attackers take their share of the same processors: up to leastLatency proves nothing.
	maxSlowdown  = 10
	maxLatency   = time.Second
	leastLatency = 500 * time.Millisecond
	// maxGrowth bounds the memory that an attack may cost a node at its peak, in bytes.
	maxGrowth = 200 << 20
	// recovery is how long a node may take to let go of what an attack has taken.
	recovery = 10 * time.Second
)

// TestHostileClientsHurtOnlyThemselves: clients do to the leader what no client should. Meanwhile a neighbour on the same
// node writes, and reads what he wrote. No call of his fails or takes long, nobody else is elected, and the nodes need
// little more memory, and in the end no more connections and goroutines, than before (G8). It runs when CHAOS=1: it judges
// how long calls take, which is worth nothing while other tests share the processors.
func TestHostileClientsHurtOnlyThemselves(t *testing.T) {
	nodes.Alone(t)
	c := nodes.Start(t, 3, "--heartbeat-timeout", "1s") // The attackers share the processors with the nodes.
	s := &siege{c: c, target: c.Leader()}
	s.neighbour = dwell(t, s.target)
	for _, attack := range []struct {
		name string
		run  func(*testing.T, *siege)
	}{
		{"watchers that never read", watchersThatNeverRead},
		{"connections that say little or nothing", idleConnections},
		{"calls that are reset", resetCalls},
		{"messages and headers without end", endlessMessages},
		{"pings and settings", pingFlood},
		{"targets of health checks", hostileTargets},
	} {
		t.Run(attack.name, func(t *testing.T) { s.endure(t, attack.run) })
	}
}

// siege is a cluster under attack.
type siege struct {
	c         *nodes.Cluster
	target    *nodes.Node
	neighbour *neighbour
	base      map[*nodes.Node]figures
}

// figures are what a node costs and who it is.
type figures struct {
	memory            int64 // resident, in bytes
	files, goroutines float64
	term, leading     float64
}

func (s *siege) measure(t *testing.T) map[*nodes.Node]figures {
	t.Helper()
	all := map[*nodes.Node]figures{}
	for _, n := range s.c.Nodes() {
		m := scrape(t, n)
		all[n] = figures{
			memory: memory(t, n, "VmRSS"), files: m.sum(t, "process_open_fds"), goroutines: m.sum(t, "go_goroutines"),
			term: m.sum(t, "regd_term"), leading: m.sum(t, "regd_is_leader"),
		}
	}
	return all
}

// endure runs an attack, which proves that it took place, and judges what it did to everybody else.
func (s *siege) endure(t *testing.T, attack func(*testing.T, *siege)) {
	began := time.Now()
	time.Sleep(peace)
	s.base = s.measure(t)
	for _, n := range s.c.Nodes() {
		// The peak counts from here on.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", n.PID()), []byte("5"), 0); err != nil {
			t.Fatal(err)
		}
	}
	from := time.Now()
	attack(t, s)
	to := time.Now()

	before, during := s.neighbour.between(began, from), s.neighbour.between(from, to)
	limit := min(maxLatency, max(leastLatency, maxSlowdown*before.p99))
	t.Logf("the neighbour's calls: %v before, %v during %v", before, during, to.Sub(from).Round(time.Millisecond))
	if during.p99 > limit {
		t.Errorf("99 %% of the neighbour's calls took up to %v, want %v at most", during.p99, limit)
	}
	if before.calls < 20 || during.calls < 20 {
		t.Error("too few calls to prove anything")
	}
	for _, err := range during.failed {
		t.Errorf("a call of the neighbour's failed: %v", err)
	}
	for _, n := range s.c.Nodes() {
		growth := memory(t, n, "VmHWM") - s.base[n].memory
		t.Logf("%s: %d MiB more at the peak", n.Name, growth>>20)
		if growth > maxGrowth {
			t.Errorf("%s needed %d MiB more, want %d at most", n.Name, growth>>20, maxGrowth>>20)
		}
	}
	s.wait(t, "the nodes to let go of connections and goroutines", recovery, func() bool {
		for n, f := range s.measure(t) {
			if f.files > s.base[n].files+20 || f.goroutines > s.base[n].goroutines+50 {
				return false
			}
		}
		return true
	})
	for n, f := range s.measure(t) {
		if f.term != s.base[n].term || f.leading != s.base[n].leading {
			t.Errorf("%s was in term %v, leading %v; now it is in term %v, leading %v",
				n.Name, s.base[n].term, s.base[n].leading, f.term, f.leading)
		}
	}
}

// wait waits until the condition holds; it ends the attack after the time.
func (s *siege) wait(t *testing.T, what string, d time.Duration, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for: %s", d, what)
		}
	}
}

// memory is a figure of /proc/PID/status, in bytes.
func memory(t *testing.T, n *nodes.Node, name string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name+":" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s of %s", name, n.Name)
	return 0
}

// metrics is what a node tells of itself at one time.
type metrics string

func scrape(t *testing.T, n *nodes.Node) metrics {
	t.Helper()
	resp, err := http.Get("http://" + n.HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return metrics(text)
}

// sum is the sum of the metrics of the name that have all the labels, each as name="value".
func (m metrics) sum(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	sum, found := 0.0, false
	for line := range strings.Lines(string(m)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' ||
			slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err != nil {
			t.Fatalf("metric %q: %v", line, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		t.Fatalf("there is no metric %s %v", name, labels)
	}
	return sum
}

// metric is a figure of the target.
func (s *siege) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	return scrape(t, s.target).sum(t, name, labels...)
}

// ground is a network of addresses of this machine from which attackers come, so that the limit of connections from one
// address is that of each of them.
func ground(i int) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 7, byte(i+1))}, Timeout: 10 * time.Second}
}

// dialFrom is a gRPC connection to a node from the i-th of these addresses.
func dialFrom(t *testing.T, i int, n *nodes.Node) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+n.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return ground(i).DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// neighbour is a client with manners: one call after the other.
type neighbour struct {
	registry apiv1.RegistryServiceClient

	mu      sync.Mutex // guards what is below
	samples []sample
}

// sample is one call.
type sample struct {
	began time.Time
	took  time.Duration
	err   error
}

// calm is how the calls of a stretch of time went.
type calm struct {
	calls       int
	median, p99 time.Duration
	failed      []error
}

// String shows the figures.
func (c calm) String() string {
	return fmt.Sprintf("%d calls, median %v, p99 %v", c.calls, c.median.Round(time.Millisecond/10), c.p99.Round(time.Millisecond/10))
}

// dwell lets a neighbour live on a node until the test ends.
func dwell(t *testing.T, n *nodes.Node) *neighbour {
	t.Helper()
	nb := &neighbour{registry: apiv1.NewRegistryServiceClient(dialFrom(t, 200, n))}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			nb.live(ctx, strconv.Itoa(i))
			time.Sleep(2 * time.Millisecond)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return nb
}

// live writes a number and reads it again.
func (nb *neighbour) live(ctx context.Context, number string) {
	nb.time(ctx, func(ctx context.Context) error {
		_, err := nb.registry.Register(ctx, &apiv1.RegisterRequest{Instance: &registryv1.Instance{
			Service: "neighbour", Id: "1", Address: "127.0.0.1", Metadata: map[string]string{"number": number},
		}})
		return err
	})
	nb.time(ctx, func(ctx context.Context) error {
		reply, err := nb.registry.Get(ctx, &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "neighbour", Id: "1"}})
		if got := reply.GetInstance().GetMetadata()["number"]; err == nil && got != number {
			err = fmt.Errorf("read %q after %q was written", got, number)
		}
		return err
	})
}

func (nb *neighbour) time(ctx context.Context, call func(context.Context) error) {
	callCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s := sample{began: time.Now()}
	s.err = call(callCtx)
	s.took = time.Since(s.began)
	if ctx.Err() != nil {
		return
	}
	nb.mu.Lock()
	defer nb.mu.Unlock()
	nb.samples = append(nb.samples, s)
}

// between judges the calls that began or ended in a stretch of time.
func (nb *neighbour) between(from, to time.Time) calm {
	nb.mu.Lock()
	defer nb.mu.Unlock()
	var c calm
	var took []time.Duration
	for _, s := range nb.samples {
		if s.began.After(to) || s.began.Add(s.took).Before(from) {
			continue
		}
		took = append(took, s.took)
		if s.err != nil {
			c.failed = append(c.failed, s.err)
		}
	}
	slices.Sort(took)
	if c.calls = len(took); c.calls > 0 {
		c.median, c.p99 = took[c.calls/2], took[c.calls*99/100]
	}
	return c
}

// hostileTargets has the leader probe targets that answer without end, not at all, or with a way to somewhere else, and
// one that no check may reach.
func hostileTargets(t *testing.T, s *siege) {
	const each, body = 40, 4 << 10
	var endless, hung, redirected, led, served atomic.Int64
	canary := http.NewServeMux()
	canary.HandleFunc("/led", func(http.ResponseWriter, *http.Request) { led.Add(1) })
	canary.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		endless.Add(1)
		for chunk := make([]byte, body); ; served.Add(int64(len(chunk))) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	canary.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) {
		hung.Add(1)
		<-r.Context().Done()
	})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	canary.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		redirected.Add(1)
		http.Redirect(w, r, "http://"+lis.Addr().String()+"/led", http.StatusFound)
	})
	server := &http.Server{Handler: canary}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(lis) }) // Until it is closed.
	defer serving.Wait()
	defer server.Close()
	base := "http://" + lis.Addr().String()
	cases := []struct{ name, url, text, want string }{
		{"endless", base + "/endless", "what never comes", "HTTP 200 OK, but the body lacks the expected text"},
		{"hang", base + "/hang", "", "no answer within 1s"},
		{"away", base + "/away", "", "HTTP 302 Found"},
		// Not 169.254.169.254: should this fail somewhere, nobody is asked for the credentials of a machine.
		{"link-local", "http://169.254.7.7/", "", "link-local addresses are not probed"},
	}
	var come, leave apiv1.RegisterBatchRequest
	for _, tt := range cases {
		for i := range each {
			come.Register = append(come.Register, &registryv1.Instance{
				Service: tt.name, Id: strconv.Itoa(i), Address: "127.0.0.1",
				Checks: []*registryv1.Check{{
					Name: "c", Interval: durationpb.New(time.Second), Timeout: durationpb.New(time.Second), Fall: 1,
					Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{Url: tt.url, BodyContains: tt.text}},
				}},
			})
			leave.Deregister = append(leave.Deregister, &apiv1.InstanceKey{Service: tt.name, Id: strconv.Itoa(i)})
		}
	}
	registry := s.target.Registry()
	end := time.After(assault)
	if _, err := registry.RegisterBatch(t.Context(), &come); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := registry.RegisterBatch(context.WithoutCancel(t.Context()), &leave); err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range cases {
		said := ""
		s.wait(t, "a verdict on "+tt.name, 20*time.Second, func() bool {
			reply, err := registry.Get(t.Context(), &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: tt.name, Id: "0"}})
			if err != nil || len(reply.GetInstance().GetCheckStates()) == 0 {
				return false
			}
			state := reply.GetInstance().GetCheckStates()[0]
			said = state.GetOutput()
			return state.GetStatus() == registryv1.CheckStatus_CHECK_STATUS_CRITICAL
		})
		if !strings.HasSuffix(said, tt.want) {
			t.Errorf("%s: the check says %q, want %q", tt.name, said, tt.want)
		}
	}
	<-end
	taken := served.Load() / max(1, endless.Load()) // Most of it into buffers of the kernel.
	t.Logf("%d probes of an endless body took %d KiB each; %d hung, %d were sent away, %d went there",
		endless.Load(), taken>>10, hung.Load(), redirected.Load(), led.Load())
	if taken > 16<<20 {
		t.Error("endless bodies are read on and on")
	}
	if endless.Load() < each || hung.Load() < each || redirected.Load() < each {
		t.Error("the targets were not probed: nothing is proved")
	}
	if led.Load() > 0 {
		t.Errorf("%d probes followed a redirect", led.Load())
	}
}
