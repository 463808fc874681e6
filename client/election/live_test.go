package election_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
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

// registry is a real cluster of three nodes in one process, on in-memory networks.
type registry struct {
	*clustertest.Cluster
	t *testing.T

	mu   sync.Mutex // guards the field below
	apis map[string]*api
}

// api is the gRPC port of one node.
type api struct {
	lis    *bufconn.Listener
	server *rpc.Server
	served chan error
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{t: t, apis: make(map[string]*api)}
	made := make(chan struct{})
	monitors := make([]*health.Monitor, 0, 3)
	r.Cluster = clustertest.New(t, 3, func(cfg *cluster.Config) {
		i := len(monitors)
		monitors = append(monitors, nil)
		cfg.Lead = func(ctx context.Context, term uint64) {
			<-made
			monitors[i].Lead(ctx, term)
		}
		cfg.Renew = func(term uint64, taken time.Time, renewals []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
			<-made
			return monitors[i].Renew(term, taken, renewals)
		}
	})
	for i, name := range r.Names() {
		node := r.Node(name)
		cfg := health.DefaultConfig()
		cfg.Logger = slog.New(slog.DiscardHandler)
		cfg.Unapplied = func(err error) bool { return !errors.Is(err, cluster.ErrUnknownOutcome) }
		a := &api{lis: bufconn.Listen(1 << 20), served: make(chan error, 1)}
		var err, failed error
		monitors[i], err = health.New(cfg, node.Feed(), node)
		a.server, failed = rpc.NewServer(rpc.Config{}, node)
		if err = errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		r.apis[name] = a
		go func() { a.served <- a.server.Serve(a.lis) }()
	}
	close(made)
	t.Cleanup(func() {
		for _, name := range r.Names() {
			r.unserve(name)
		}
	})
	r.Ready()
	return r
}

// unserve ends the API of a node, after what is under way.
func (r *registry) unserve(name string) {
	r.mu.Lock()
	a := r.apis[name]
	delete(r.apis, name)
	r.mu.Unlock()
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = a.server.Shutdown(ctx) // cuts off what is left
	if err := <-a.served; err != nil {
		r.t.Errorf("serve at %s: %v", name, err)
	}
}

// kill stops a node.
func (r *registry) kill(name string) {
	r.unserve(name)
	r.Stop(name)
}

// process is a client whose network can be cut.
type process struct {
	*client.Client
	r *registry

	mu    sync.Mutex // guards the fields below
	down  bool
	conns []net.Conn
}

func (r *registry) process() *process {
	r.t.Helper()
	p := &process{r: r}
	var err error
	p.Client, err = client.New([]string{"n1:7400", "n2:7400", "n3:7400"},
		client.WithDialOptions(grpc.WithContextDialer(p.dial)), client.WithSessionTTL(4*time.Second))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = p.Close() })
	return p
}

func (p *process) dial(ctx context.Context, address string) (net.Conn, error) {
	name, _, _ := net.SplitHostPort(address)
	p.r.mu.Lock()
	a := p.r.apis[name]
	p.r.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down || a == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := a.lis.DialContext(ctx)
	if err == nil {
		p.conns = append(p.conns, conn)
	}
	return conn, err
}

// cut breaks the process's network, or mends it.
func (p *process) cut(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
	for _, conn := range p.conns {
		_ = conn.Close()
	}
	p.conns = nil
}
