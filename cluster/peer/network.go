package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// Network makes connections. TCP is the real one; peertest has one in memory. Both methods are safe for concurrent
// use.
type Network interface {
	// Listen binds host:port.
	Listen(addr string) (net.Listener, error)
	// Dial connects to host:port. Names are resolved on each call, so that a node may come back under another IP.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// TCPOption changes the Network that TCP makes.
type TCPOption func(*tcp)

// WithTLS encrypts both directions: server is used for accepted and client for dialled connections. For mutual TLS,
// server asks for client certificates and client has one. A client configuration without ServerName verifies the
// host that is dialled. Nil leaves that direction plain.
func WithTLS(server, client *tls.Config) TCPOption {
	return func(t *tcp) { t.server, t.client = server, client }
}

// TCP returns the Network of the operating system. Keepalive probes find a host that vanished within 20 s, also on
// connections on which this side only waits.
func TCP(opts ...TCPOption) Network {
	t := &tcp{keepAlive: net.KeepAliveConfig{
		Enable:   true,
		Idle:     10 * time.Second,
		Interval: 3 * time.Second,
		Count:    3,
	}}
	for _, opt := range opts {
		opt(t)
	}
	return t
}

type tcp struct {
	keepAlive net.KeepAliveConfig
	server    *tls.Config
	client    *tls.Config
}

// Listen implements Network. With TLS the handshake happens at the first read, thus under the reader's deadline.
func (t *tcp) Listen(addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: t.keepAlive}
	// Binding a port does not wait for anything, so there is nothing for a caller to cancel.
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if t.server != nil {
		l = tls.NewListener(l, t.server)
	}
	return l, nil
}

// Dial implements Network.
func (t *tcp) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: t.keepAlive}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil || t.client == nil {
		return raw, err
	}
	cfg := t.client
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			raw.Close()
			return nil, fmt.Errorf("split address %q: %w", addr, err)
		}
		cfg = cfg.Clone()
		cfg.ServerName = host
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("tls handshake with %s: %w", addr, err)
	}
	return conn, nil
}
