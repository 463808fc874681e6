// Package sim runs whole clusters in virtual time: nodes with their health monitor and API, on real data folders and a
// network in memory, clients from package workload, and faults. One seed decides everything but what Raft and the
// scheduler draw themselves. It has tests only. Start at simulate.
package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/health"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	"github.com/regd-io/regd/rpc"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// world is a cluster with all that is around it. The test's goroutine owns it.
type world struct {
	*clustertest.Cluster
	t        *testing.T
	recorder *history.Recorder
	log      *oracle.Log
	serving  map[string]*server

	mu    sync.Mutex // guards trace
	trace strings.Builder
}

// server is what runs on a node besides it.
type server struct {
	made    chan struct{} // closed once monitor is there
	monitor *health.Monitor
	api     *rpc.Server
	served  chan error
}

// newWorld starts n nodes and waits until they are ready.
func newWorld(t *testing.T, n int) *world {
	t.Helper()
	w := &world{t: t, recorder: history.NewRecorder(), log: oracle.NewLog(), serving: map[string]*server{}}
	var starting []*server
	w.Cluster = clustertest.New(t, n, func(cfg *cluster.Config) { starting = append(starting, w.wire(cfg)) })
	for i, name := range w.Names() {
		w.serve(name, starting[i])
	}
	t.Cleanup(func() {
		for _, name := range w.Names() {
			w.crash(name)
		}
	})
	w.Ready()
	return w
}

// wire connects a node that is about to start with what runs beside it, as regd does.
func (w *world) wire(cfg *cluster.Config) *server {
	s, name := &server{made: make(chan struct{}), served: make(chan error, 1)}, cfg.Name
	cfg.Lead = func(ctx context.Context, term uint64) {
		<-s.made
		w.note("%s leads term %d", name, term)
		s.monitor.Lead(ctx, term)
	}
	cfg.Renew = func(term uint64, taken time.Time, renewals []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
		<-s.made
		return s.monitor.Renew(term, taken, renewals)
	}
	cfg.Applied = func(index, term uint64, data []byte) { w.log.Add(name, index, term, data) }
	return s
}

// serve starts what runs beside a node.
func (w *world) serve(name string, s *server) {
	w.t.Helper()
	node := w.Node(name)
	cfg := health.DefaultConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
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
	go func() { s.served <- s.api.Serve(lis) }()
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
	s := w.serving[name]
	delete(w.serving, name)
	_ = s.api.Shutdown(gone) // Cuts off what is under way.
	if err := <-s.served; err != nil {
		w.t.Errorf("serve at %s: %v", name, err)
	}
	w.Stop(name)
}

// restart starts a node that crashed.
func (w *world) restart(name string) {
	w.t.Helper()
	var s *server
	w.Reconfigure(name, func(cfg *cluster.Config) { s = w.wire(cfg) })
	w.Start(name)
	w.serve(name, s)
}

// note writes a line into the trace.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.trace, "%9.3fs %s\n", w.recorder.Now().Seconds(), fmt.Sprintf(format, args...))
}

// dial connects a client to a node. Each client has a host of its own; its later names live there too.
func (w *world) dial(client, node string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	client, _, _ = strings.Cut(client, ".")
	return grpc.NewClient("passthrough:///"+address(node), append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return w.Net.Host(client).Dial(ctx, addr)
		}),
	}, opts...)...)
}
