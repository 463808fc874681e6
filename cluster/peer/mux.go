package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// DefaultHandshakeTimeout bounds a handshake when Config does not.
	DefaultHandshakeTimeout = 5 * time.Second
	// DefaultMaxConns bounds accepted connections when Config does not. Five nodes need fewer than a hundred.
	DefaultMaxConns = 512

	// Waits between attempts to accept after an error such as too many open files.
	firstAcceptWait   = 5 * time.Millisecond
	longestAcceptWait = time.Second

	// refusalLogInterval is the least time between two warnings of refused nodes.
	refusalLogInterval = 5 * time.Second
)

// Config is what a Mux needs.
type Config struct {
	// Network makes the connections. Required.
	Network Network
	// Listen is the host:port to bind. Required.
	Listen string
	// Advertise is the host:port by which others reach this node. Empty: the bound address.
	Advertise string
	// NodeID is the id of this node, 1 to MaxIDLen bytes. Required.
	NodeID string
	// ClusterID returns the UUID of this node's cluster, at most MaxIDLen bytes; "" as long as it has none. It is
	// called once per handshake, by many goroutines at once. Required.
	ClusterID func() string
	// NameOf returns the name that the node with an id has in the cluster; "" if it is not known. With TLS it must be that in
	// the node's certificate, so that nobody's word counts as somebody else's. It is called by many goroutines at once, and
	// must not block. Nil: none is known.
	NameOf func(nodeID string) string
	// Logger is for what the operator must know. Nil: silent.
	Logger *slog.Logger
	// HandshakeTimeout bounds a handshake, the connecting included. 0: DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration
	// MaxConns bounds accepted connections, unfinished handshakes included. 0: DefaultMaxConns.
	MaxConns int
}

// Validate reports all faults of the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.Network == nil {
		errs = append(errs, errors.New("peer: no network"))
	}
	if c.Listen == "" {
		errs = append(errs, errors.New("peer: no listen address"))
	}
	if n := len(c.NodeID); n == 0 || n > MaxIDLen {
		errs = append(errs, fmt.Errorf("peer: node id has %d bytes, want 1 to %d", n, MaxIDLen))
	}
	if c.ClusterID == nil {
		errs = append(errs, errors.New("peer: no cluster id function"))
	}
	if c.HandshakeTimeout < 0 {
		errs = append(errs, fmt.Errorf("peer: handshake timeout %v is negative", c.HandshakeTimeout))
	}
	if c.MaxConns < 0 {
		errs = append(errs, fmt.Errorf("peer: connection limit %d is negative", c.MaxConns))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.NameOf == nil {
		c.NameOf = func(string) string { return "" }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if c.MaxConns == 0 {
		c.MaxConns = DefaultMaxConns
	}
	return c
}

// Mux owns the peer port. All methods are safe for concurrent use.
type Mux struct {
	cfg      Config
	listener net.Listener
	raft     *door
	grpc     *door
	stats    counters
	warned   atomic.Int64 // when the last warning was logged, Unix ns

	// life ends when Close is called. It is the lifetime of the port, not the context of a request.
	life   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the accept loop, handshakes and dials

	mu      sync.Mutex // guards the fields below
	closed  bool
	open    int          // accepted connections, those in pending included
	pending []*handshake // oldest first
}

// Listen binds the port and starts to shake hands. Connections wait, up to the handshake timeout, for the Accept of
// StreamLayer and GRPCListener.
func Listen(cfg Config) (*Mux, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	l, err := cfg.Network.Listen(cfg.Listen)
	if err != nil {
		return nil, err
	}
	addr := l.Addr()
	if cfg.Advertise != "" {
		addr = advertised(cfg.Advertise)
	}
	m := &Mux{cfg: cfg, listener: l, raft: newDoor(addr), grpc: newDoor(addr)}
	m.life, m.cancel = context.WithCancel(context.Background())
	m.wg.Go(m.acceptLoop)
	return m, nil
}

// Addr returns the bound address. The advertised one is StreamLayer().Addr().
func (m *Mux) Addr() net.Addr { return m.listener.Addr() }

// GRPCListener returns the listener for the peer grpc.Server, which must be made with ServerOptions. Closing it
// refuses further gRPC connections and leaves Raft alone.
func (m *Mux) GRPCListener() net.Listener { return m.grpc }

// StreamLayer returns what raft.NetworkTransport connects through; NewTransport uses it. Its Close also cuts all
// Raft connections.
func (m *Mux) StreamLayer() raft.StreamLayer { return streamLayer{door: m.raft, mux: m} }

// DropAnonymous cuts the gRPC connections that were dialled while this node had no cluster id. Clients of DialGRPC
// redial by themselves and are members from then on. To be called once the node has got its cluster id.
func (m *Mux) DropAnonymous() { m.grpc.cut(func(c *conn) bool { return c.anonymous }) }

// Close stops listening, cuts all connections in both directions and waits for everything the Mux started. It is
// idempotent. Transport and grpc.Server are better closed before.
func (m *Mux) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.mu.Unlock()
	var err error
	if first {
		m.cancel()
		err = m.listener.Close()
		for _, d := range []*door{m.raft, m.grpc} {
			_ = d.Close() // never fails
			d.cut(all)
		}
	}
	m.wg.Wait()
	return err
}

// begin accounts for a goroutine that Close must wait for.
func (m *Mux) begin() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Add(1)
	return true
}

func (m *Mux) acceptLoop() {
	wait := firstAcceptWait
	for {
		raw, err := m.listener.Accept()
		if err == nil {
			wait = firstAcceptWait
			m.admit(raw)
			continue
		}
		if m.life.Err() != nil {
			return
		}
		m.cfg.Logger.Error("accept peer connection", "error", err, "retry_in", wait)
		select {
		case <-m.life.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, longestAcceptWait)
	}
}

// streamLayer is the Raft side of the port.
type streamLayer struct {
	*door
	mux *Mux
}

// Dial implements raft.StreamLayer. The address may be pinned to a node.
func (s streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx := s.mux.life
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	node, addr := unpin(address)
	c, err := s.mux.dial(ctx, kindRaft, node, addr)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close implements net.Listener. raft.NetworkTransport leaves connections open when it closes its stream layer, and
// with them the goroutines that read from them.
func (s streamLayer) Close() error {
	err := s.door.Close()
	s.door.cut(all)
	return err
}
