package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"

	"github.com/regd-io/regd/cluster/certs"
)

// Secure returns a Network that speaks mutual TLS over another one. Both sides must show a certificate of a peer in the
// trust domain of the source's; the Mux compares its name with the node that is meant. Connections end when the source does
// not trust the other side any longer. The source must stay open for as long as the Network is used.
func Secure(network Network, source *certs.Source) Network { return &secure{network, source} }

type secure struct {
	under  Network
	source *certs.Source
}

// Listen implements Network. The handshake is made by the Mux, within its limits.
func (s *secure) Listen(addr string) (net.Listener, error) {
	l, err := s.under.Listen(addr)
	if err != nil {
		return nil, err
	}
	return &secureListener{Listener: l, source: s.source, cfg: s.source.PeerServer()}, nil
}

// Dial implements Network.
func (s *secure) Dial(ctx context.Context, addr string) (net.Conn, error) {
	raw, err := s.under.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := &secureConn{Conn: tls.Client(raw, s.source.PeerClient()), source: s.source}
	if err = c.HandshakeContext(ctx); err != nil {
		raw.Close()
		if hungUp(err) {
			return nil, fmt.Errorf("tls handshake with %s: hung up (it may not use TLS, be full, or be stopping): %w", addr, err)
		}
		return nil, fmt.Errorf("%w: tls handshake with %s: %w", ErrUntrusted, addr, err)
	}
	if err = c.settle(true); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

type secureListener struct {
	net.Listener
	source *certs.Source
	cfg    *tls.Config
}

// Accept implements net.Listener.
func (l *secureListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &secureConn{Conn: tls.Server(raw, l.cfg), source: l.source}, nil
}

// secureConn is a connection with TLS. Of an accepted one authenticate comes first.
type secureConn struct {
	*tls.Conn
	source *certs.Source
	name   string // of the other node, by its certificate

	once  sync.Once
	watch func() // ends it
}

// authenticate shakes hands on an accepted connection. Its error wraps ErrUntrusted unless the other side just went away.
func (c *secureConn) authenticate(ctx context.Context) error {
	err := certs.Accept(ctx, c.Conn)
	switch {
	case err == nil:
		return c.settle(false)
	case ctx.Err() != nil || hungUp(err):
		return err
	default:
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
}

// settle finds out who is on the other side, and has it watched.
func (c *secureConn) settle(dialled bool) error {
	state := c.ConnectionState()
	id, err := certs.IDOf(state.PeerCertificates[0]) // Both sides need one, and verified it.
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	raw := c.NetConn() // Below TLS's goodbye, which could block.
	c.name, c.watch = id.Name, c.source.Watch(state, dialled, func() { raw.Close() })
	return nil
}

// Close closes the connection.
func (c *secureConn) Close() error {
	c.once.Do(func() {
		if c.watch != nil {
			c.watch()
		}
	})
	return c.Conn.Close()
}

// certified returns the name of the other node by its certificate; empty without TLS.
func certified(c net.Conn) string {
	if s, ok := c.(*secureConn); ok {
		return s.name
	}
	return ""
}
