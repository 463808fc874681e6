package peer

import (
	"context"
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

// TCP returns the Network of the operating system. Keepalive probes find a host that vanished within 20 s, also on
// connections on which this side only waits. It is plaintext; see Secure.
func TCP() Network {
	return &tcp{keepAlive: net.KeepAliveConfig{
		Enable:   true,
		Idle:     10 * time.Second,
		Interval: 3 * time.Second,
		Count:    3,
	}}
}

type tcp struct {
	keepAlive net.KeepAliveConfig
}

// Listen implements Network.
func (t *tcp) Listen(addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: t.keepAlive}
	// Binding a port does not wait for anything, so there is nothing for a caller to cancel.
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Dial implements Network.
func (t *tcp) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: t.keepAlive}
	return d.DialContext(ctx, "tcp", addr)
}
