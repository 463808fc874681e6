// Package sim runs whole clusters in virtual time: nodes with their health monitor and API, on real data folders and a
// network in memory, clients from package workload, and faults. One seed decides everything but what Raft and the
// scheduler draw by themselves, so the same seed makes the same attempt, not the same run. It has tests only. Start at
// simulate.
package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cluster/peer/peertest"
	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/health"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	"github.com/regd-io/regd/rpc"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// world is a cluster and what is around it. The goroutine of the test owns it.
type world struct {
	*clustertest.Cluster
	t        *testing.T
	o        options
	rng      *rand.Rand // of the schedule
	recorder *history.Recorder
	log      *oracle.Log
	operator *client.Client
	serving  map[string]*server
	lives    []*life        // in the order of time
	saved    []*fsm.State   // snapshots that were saved
	struck   map[string]int // faults by kind
	broken   []string       // promises, as "rule: detail"

	mu      sync.Mutex // guards the fields below
	hosts   map[string]bool
	leaders []string // of each term that had one
	trace   strings.Builder
}

// server is what runs on a node besides it.
type server struct {
	made    chan struct{} // closed once monitor is there
	monitor *health.Monitor
	api     *rpc.Server
	served  chan error
}

// newWorld starts a cluster and waits until it is ready.
func newWorld(t *testing.T, o options) *world {
	t.Helper()
	w := &world{
		t: t, o: o, rng: rand.New(rand.NewPCG(o.seed, 2)), recorder: history.NewRecorder(), log: oracle.NewLog(),
		serving: map[string]*server{}, struck: map[string]int{}, hosts: map[string]bool{},
	}
	var starting []*server
	w.Cluster = clustertest.New(t, o.nodes, func(cfg *cluster.Config) { starting = append(starting, w.wire(cfg)) })
	for i, name := range w.Names() {
		w.place(name)
		w.serve(name, starting[i])
	}
	t.Cleanup(func() {
		for _, name := range w.Names() {
			w.crash(name)
		}
	})
	w.operator = w.newOperator()
	w.Ready()
	return w
}

// wire configures a node that is about to start, and connects it with what runs beside it as regd does.
func (w *world) wire(cfg *cluster.Config) *server {
	w.o.configure(cfg)
	s, name := &server{made: make(chan struct{}), served: make(chan error, 1)}, cfg.Name
	cfg.Lead = func(ctx context.Context, term uint64) {
		<-s.made
		w.leads(name, term)
		s.monitor.Lead(ctx, term)
	}
	cfg.Renew = func(term uint64, taken time.Time, renewals []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
		<-s.made
		return s.monitor.Renew(term, taken, renewals)
	}
	l := &life{node: name, since: w.recorder.Now()}
	w.lives = append(w.lives, l)
	cfg.Applied = func(index, term uint64, data []byte) {
		l.indexes = append(l.indexes, index)
		w.log.Add(name, index, term, data)
	}
	return s
}

// serve starts what runs beside a node.
func (w *world) serve(name string, s *server) {
	w.t.Helper()
	node := w.Node(name)
	cfg := health.DefaultConfig()
	cfg.Logger, cfg.Grace = slog.New(slog.DiscardHandler), w.o.grace
	cfg.Unapplied = func(err error) bool { return !errors.Is(err, cluster.ErrUnknownOutcome) }
	var err error
	if s.monitor, err = health.New(cfg, node.Feed(), node); err != nil {
		w.t.Fatal(err)
	}
	close(s.made)
	if s.api, err = rpc.NewServer(rpc.Config{}, node); err != nil {
		w.t.Fatal(err)
	}
	lis, err := w.Net.Host(name).Listen(address(name))
	if err != nil {
		w.t.Fatal(err)
	}
	go func() { s.served <- s.api.Serve(lis) }() // crash waits for it.
	w.serving[name] = s
}

// address is where a node serves clients.
func address(node string) string { return node + ":7400" }

// crash ends a node as a kill does: nothing that it says while it goes down gets out.
func (w *world) crash(name string) {
	w.t.Helper()
	release := w.Net.HoldFrom(name)
	defer release()
	w.Net.Reset(name)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	w.stop(gone, name)
}

// leave ends a node as a signal does: it hands over and finishes what is under way.
func (w *world) leave(name string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	w.Node(name).Drain(ctx)
	w.stop(ctx, name)
}

func (w *world) stop(ctx context.Context, name string) {
	w.t.Helper()
	s := w.serving[name]
	delete(w.serving, name)
	_ = s.api.Shutdown(ctx) // What is left is cut off.
	if err := <-s.served; err != nil {
		w.t.Errorf("serve at %s: %v", name, err)
	}
	w.Stop(name)
}

// restart starts a node that was stopped.
func (w *world) restart(name string) {
	w.t.Helper()
	var s *server
	w.Reconfigure(name, func(cfg *cluster.Config) { s = w.wire(cfg) })
	w.Start(name)
	w.serve(name, s)
}

// add starts a further node, which asks the others for membership.
func (w *world) add(name string) {
	w.t.Helper()
	var s *server
	w.Add(name, func(cfg *cluster.Config) {
		for _, member := range w.o.founders() {
			cfg.Join = append(cfg.Join, member+":7401")
		}
		s = w.wire(cfg)
	})
	w.place(name)
	w.serve(name, s)
}

// leads notes that a node leads.
func (w *world) leads(name string, term uint64) {
	w.note("%s leads term %d", name, term)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaders = append(w.leaders, name)
}

// led is who has led so far.
func (w *world) led() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.leaders)
}

// leader is who leads now, of those that believe to the one that began last; empty: nobody.
func (w *world) leader() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Backward(w.leaders) {
		if n := w.Node(name); n != nil && n.Info().Leading {
			return name
		}
	}
	return ""
}

// note writes a line into the trace.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.trace, "%9.3fs %s\n", w.recorder.Now().Seconds(), fmt.Sprintf(format, args...))
}

// place gives the links of a new host to the nodes their latency.
func (w *world) place(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts[host] {
		return
	}
	w.hosts[host] = true
	w.Net.Host(host)
	for _, node := range w.o.names() {
		if node != host {
			w.Net.Delay(host, node, w.latency(host, node))
			w.Net.Delay(node, host, w.latency(node, host))
		}
	}
}

// latency is that of one link while nothing is wrong.
func (w *world) latency(from, to string) time.Duration {
	h := fnv.New64a()
	_, _ = h.Write([]byte(from + ">" + to))
	return time.Duration(rand.New(rand.NewPCG(w.o.seed, h.Sum64())).Int64N(int64(w.o.latency)))
}

// clientHosts are the hosts of clients that have dialled so far, sorted.
func (w *world) clientHosts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var hosts []string
	for host := range w.hosts {
		if !slices.Contains(w.o.names(), host) {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// dial connects a client to a node. Each client has a host of its own; its later names live there too.
func (w *world) dial(name, node string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	host, _, _ := strings.Cut(name, ".")
	w.place(host)
	return grpc.NewClient("passthrough:///"+address(node), append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithReadBufferSize(4 << 10), grpc.WithWriteBufferSize(4 << 10), // There are many connections, and they say little.
		w.from(host),
	}, opts...)...)
}

func (w *world) from(host string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		return w.Net.Host(host).Dial(ctx, addr)
	})
}

// newOperator makes the client that changes the membership. No fault touches its host.
func (w *world) newOperator() *client.Client {
	w.t.Helper()
	var endpoints []string
	for _, name := range w.o.names() {
		endpoints = append(endpoints, address(name))
	}
	c, err := client.New(endpoints, client.WithDialOptions(w.from(peertest.Client)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}
