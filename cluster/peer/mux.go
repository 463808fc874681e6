package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// DefaultHandshakeTimeout bounds a handshake when Config does not.
	DefaultHandshakeTimeout = 5 * time.Second
	// DefaultMaxConns bounds accepted connections when Config does not. Five nodes need fewer than a hundred.
	DefaultMaxConns = 512

	// Waits between attempts to accept after an error such as too many open files.
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
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

	// life ends when Close is called. It is the lifetime of the port, not the context of a request.
	life   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the accept loop, handshakes and dials

	mu      sync.Mutex // guards the fields below
	closed  bool
	open    int          // accepted connections, those in pending included
	pending []*handshake // oldest first
}

// handshake is an accepted connection that has not said yet who it is.
type handshake struct {
	cancel context.CancelFunc
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
			d.Close()
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
	wait := acceptBackoffMin
	for {
		raw, err := m.listener.Accept()
		if err == nil {
			wait = acceptBackoffMin
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
		wait = min(2*wait, acceptBackoffMax)
	}
}

// admit starts the handshake of an accepted connection. At the limit the oldest unfinished handshake makes room: it
// is the likeliest never to finish, so strangers that connect and keep silent cannot keep members out.
func (m *Mux) admit(raw net.Conn) {
	m.stats.accepted.Add(1)
	ctx, cancel := context.WithTimeout(m.life, m.cfg.HandshakeTimeout)
	h := &handshake{cancel: cancel}
	m.mu.Lock()
	admitted := !m.closed && (m.open < m.cfg.MaxConns || m.evictLocked())
	if admitted {
		m.open++
		m.pending = append(m.pending, h)
		m.wg.Add(1)
	}
	m.mu.Unlock()
	if !admitted {
		cancel()
		raw.Close()
		m.stats.overLimit.Add(1)
		return
	}
	go func() {
		defer m.wg.Done()
		defer cancel()
		m.receive(ctx, h, raw)
	}()
}

// evictLocked drops the oldest unfinished handshake.
func (m *Mux) evictLocked() bool {
	if len(m.pending) == 0 {
		return false
	}
	m.pending[0].cancel()
	m.pending = slices.Delete(m.pending, 0, 1)
	m.open--
	m.stats.overLimit.Add(1)
	return true
}

// settle ends the pending state of a handshake. It reports false when the handshake was evicted, and so is no longer
// counted.
func (m *Mux) settle(h *handshake) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.pending, h)
	if i < 0 {
		return false
	}
	m.pending = slices.Delete(m.pending, i, i+1)
	return true
}

func (m *Mux) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open--
}

// receive shakes hands as the acceptor and delivers the connection.
func (m *Mux) receive(ctx context.Context, h *handshake, raw net.Conn) {
	c, d, err := m.answer(ctx, raw)
	counted := m.settle(h)
	if err == nil && counted && d.deliver(ctx, c, m.release) {
		return
	}
	raw.Close()
	if counted {
		m.release()
	}
	m.stats.count(err, ctx.Err())
	var refused *HandshakeError
	if errors.As(err, &refused) {
		m.cfg.Logger.Warn("peer refused", "address", refused.Addr, "node", refused.Remote.NodeID,
			"cluster", refused.Remote.ClusterID, "error", refused.Err)
	}
}

// answer reads the hello and replies to it.
func (m *Mux) answer(ctx context.Context, raw net.Conn) (*conn, *door, error) {
	local := m.identity()
	var hello frame
	err := interruptible(ctx, raw, func() (err error) {
		if hello, err = readFrame(raw, helloMagic); err != nil {
			return err
		}
		v := judgeHello(hello, local)
		reply := frame{version: protocolVersion, code: uint8(v), from: local}
		if _, err = raw.Write(appendFrame(nil, replyMagic, reply)); err != nil {
			return err
		}
		if v != verdictAccepted {
			return &HandshakeError{Addr: raw.RemoteAddr().String(), Local: local, Remote: hello.from, Err: v.err()}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	d := m.raft
	if kind(hello.code) == kindGRPC {
		d = m.grpc
	}
	return &conn{Conn: raw, remote: hello.from}, d, nil
}

func judgeHello(hello frame, local Identity) verdict {
	if hello.version != protocolVersion {
		return verdictVersion
	}
	return judge(kind(hello.code), hello.from.ClusterID, local.ClusterID)
}

func (m *Mux) identity() Identity {
	return Identity{NodeID: m.cfg.NodeID, ClusterID: m.cfg.ClusterID()}
}

// dial connects to addr and shakes hands as the dialler. A wanted node id other than "" must be the one that answers:
// behind a name may be another node for a while, and its vote must not be counted for the one that was meant.
func (m *Mux) dial(ctx context.Context, k kind, wanted, addr string) (*conn, error) {
	if !m.begin() {
		return nil, fmt.Errorf("dial peer %s: %w", addr, ErrClosed)
	}
	defer m.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	defer context.AfterFunc(m.life, cancel)()
	c, err := m.connect(ctx, k, wanted, addr)
	if err != nil {
		m.stats.dialErrors.Add(1)
		if m.life.Err() != nil {
			err = ErrClosed
		}
		return nil, fmt.Errorf("dial peer %s: %w", addr, err)
	}
	m.stats.dialled.Add(1)
	return c, nil
}

func (m *Mux) connect(ctx context.Context, k kind, wanted, addr string) (*conn, error) {
	raw, err := m.cfg.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c, err := m.introduce(ctx, raw, k, wanted, addr)
	if err != nil {
		raw.Close()
		return nil, err
	}
	d := m.raft
	if k == kindGRPC {
		d = m.grpc
	}
	if !d.enter(c) {
		raw.Close()
		return nil, ErrClosed
	}
	return c, nil
}

// introduce sends the hello and judges the reply.
func (m *Mux) introduce(ctx context.Context, raw net.Conn, k kind, wanted, addr string) (*conn, error) {
	local := m.identity()
	var reply frame
	err := interruptible(ctx, raw, func() (err error) {
		hello := frame{version: protocolVersion, code: uint8(k), from: local}
		_, sent := raw.Write(appendFrame(nil, helloMagic, hello))
		// Who hung up before the hello came may have said something before that.
		if reply, err = readFrame(raw, replyMagic); err != nil && sent != nil && !malformed(err) {
			return fmt.Errorf("send hello: %w", sent)
		}
		return err
	})
	fail := func(err error) error {
		return &HandshakeError{Addr: addr, Local: local, Remote: reply.from, Wanted: wanted, Err: err}
	}
	switch {
	case malformed(err):
		return nil, fail(fmt.Errorf("%w: %w", ErrNotPeer, err))
	case hungUp(err):
		return nil, fail(fmt.Errorf("hung up without an answer (it may want TLS, be full, or be stopping): %w", err))
	case err != nil:
		return nil, fail(err)
	case reply.version != protocolVersion:
		return nil, fail(fmt.Errorf("%w: peer speaks %d, this node %d", ErrVersion, reply.version, protocolVersion))
	}
	err = verdict(reply.code).err()
	if err == nil {
		// The acceptor's word is not enough where the rule can be checked.
		err = judge(k, local.ClusterID, reply.from.ClusterID).err()
	}
	if err == nil && wanted != "" && wanted != reply.from.NodeID {
		err = ErrWrongNode
	}
	if err != nil {
		return nil, fail(err)
	}
	return &conn{Conn: raw, remote: reply.from, anonymous: local.ClusterID == ""}, nil
}

// Probe shakes hands with the node at addr and hangs up: who is it, and may it be talked to? The error is a
// *HandshakeError when something answered, which gRPC's dialling would hide.
func (m *Mux) Probe(ctx context.Context, addr string) (Identity, error) {
	c, err := m.dial(ctx, kindGRPC, "", addr)
	if err != nil {
		return Identity{}, err
	}
	defer c.Close()
	return c.remote, nil
}

// interruptible runs a conversation that ends when ctx does. On success the connection has no deadline left.
func interruptible(ctx context.Context, c net.Conn, talk func() error) error {
	stop := context.AfterFunc(ctx, func() {
		// A moment in the past ends reads and writes that wait. The error is that of the next read or write.
		_ = c.SetDeadline(time.Unix(1, 0))
	})
	err := talk()
	if !stop() {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
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
