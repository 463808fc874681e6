// Package livetest is a real cluster in one process, for tests of what builds on the client: raft, state machine, health
// and API, on in-memory networks. It is meant for synctest bubbles.
package livetest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/health"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	"github.com/regd-io/regd/rpc"
)

// Cluster is one. Its nodes are named n1, n2 and so on, and answer clients at port 7400.
type Cluster struct {
	*clustertest.Cluster
	tb testing.TB

	mu   sync.Mutex // guards the fields below
	apis map[string]*api
}

// api is the API of one node.
type api struct {
	lis    *bufconn.Listener
	server *rpc.Server
	served chan error
}

// New starts n nodes, which end with the test, and waits until they are ready.
func New(tb testing.TB, n int) *Cluster {
	tb.Helper()
	l := &Cluster{tb: tb, apis: make(map[string]*api)}
	monitors := make([]*hooks, 0, n)
	l.Cluster = clustertest.New(tb, n, func(cfg *cluster.Config) {
		h := &hooks{made: make(chan struct{})}
		monitors = append(monitors, h)
		h.in(cfg)
	})
	names := l.Names()
	slices.Sort(names)
	for i, name := range names {
		l.serve(name, monitors[i])
	}
	tb.Cleanup(func() {
		for _, name := range names {
			l.unserve(name)
		}
	})
	l.Ready()
	return l
}

// hooks connects a node with its monitor, which can only be made after the node.
type hooks struct {
	made    chan struct{}
	monitor *health.Monitor
}

func (h *hooks) in(cfg *cluster.Config) {
	cfg.Lead = func(ctx context.Context, term uint64) {
		<-h.made
		h.monitor.Lead(ctx, term)
	}
	cfg.Renew = func(term uint64, taken time.Time, renewals []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
		<-h.made
		return h.monitor.Renew(term, taken, renewals)
	}
}

// serve starts the monitor and the API of a node that runs.
func (l *Cluster) serve(name string, h *hooks) {
	l.tb.Helper()
	node := l.Node(name)
	cfg := health.DefaultConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Unapplied = func(err error) bool { return !errors.Is(err, cluster.ErrUnknownOutcome) }
	var err error
	if h.monitor, err = health.New(cfg, node.Feed(), node); err != nil {
		l.tb.Fatal(err)
	}
	close(h.made)
	a := &api{lis: bufconn.Listen(1 << 20), served: make(chan error, 1)}
	if a.server, err = rpc.NewServer(rpc.Config{}, node); err != nil {
		l.tb.Fatal(err)
	}
	go func() { a.served <- a.server.Serve(a.lis) }()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apis[name] = a
}

// unserve ends the API of a node, after what is under way.
func (l *Cluster) unserve(name string) {
	l.mu.Lock()
	a := l.apis[name]
	delete(l.apis, name)
	l.mu.Unlock()
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = a.server.Shutdown(ctx) // cuts off what is left
	if err := <-a.served; err != nil {
		l.tb.Errorf("serve at %s: %v", name, err)
	}
}

// Kill stops a node.
func (l *Cluster) Kill(name string) {
	l.unserve(name)
	l.Stop(name)
}

// Revive starts a node again.
func (l *Cluster) Revive(name string) {
	h := &hooks{made: make(chan struct{})}
	l.Reconfigure(name, h.in)
	l.Start(name)
	l.serve(name, h)
}

// Client makes a client whose network can be cut. It is closed with the test.
func (l *Cluster) Client(opts ...client.Option) (*client.Client, *Link) {
	l.tb.Helper()
	link := l.Link()
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"}, append([]client.Option{
		// A second of a live cluster costs more than one of a scripted one: short sessions.
		client.WithDialOptions(grpc.WithContextDialer(link.Dial)), client.WithSessionTTL(4 * time.Second),
	}, opts...)...)
	if err != nil {
		l.tb.Fatal(err)
	}
	l.tb.Cleanup(func() { _ = c.Close() })
	return c, link
}

// Link makes a network to the cluster.
func (l *Cluster) Link() *Link { return &Link{l: l} }

// Link is the network of one client.
type Link struct {
	l *Cluster

	mu    sync.Mutex // guards the fields below
	down  bool
	conns []net.Conn
}

// Dial connects to a node.
func (k *Link) Dial(ctx context.Context, address string) (net.Conn, error) {
	name, _, _ := net.SplitHostPort(address)
	k.l.mu.Lock()
	a := k.l.apis[name]
	k.l.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.down || a == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := a.lis.DialContext(ctx)
	if err == nil {
		k.conns = append(k.conns, conn)
	}
	return conn, err
}

// Cut breaks all connections and refuses new ones until Mend.
func (k *Link) Cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = true
	for _, conn := range k.conns {
		_ = conn.Close()
	}
	k.conns = nil
}

// Mend ends a Cut.
func (k *Link) Mend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = false
}
