package rpc

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/peer"
)

const (
	// refusalHold is how much longer a connection is not read from for each of its calls that is refused: it gets no more
	// than 100 refusals a second. What a client sends beyond them waits on its side of the connection, where it costs
	// nothing. A client that is refused now and then does not feel it.
	refusalHold = 10 * time.Millisecond
	// maxHold is how long a connection is not read from at most. A session on it with the least time to live, renewed three
	// times in that, is not lost by it.
	maxHold = 500 * time.Millisecond
)

// connections counts the connections of all listeners of a server, and refuses what is beyond a number in all and a number
// from one address, so that one client can't take all places.
type connections struct {
	total, perIP int

	mu      sync.Mutex // guards what is below
	open    int
	byIP    map[netip.Addr]int
	refused struct{ total, perIP uint64 }

	held atomic.Uint64 // reads that were held back
}

func newConnections(total, perIP int) *connections {
	return &connections{total: total, perIP: perIP, byIP: make(map[netip.Addr]int)}
}

// take counts a connection, and tells whether it may stay.
func (c *connections) take(ip netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.open >= c.total:
		c.refused.total++
		return false
	case ip.IsValid() && c.byIP[ip] >= c.perIP:
		c.refused.perIP++
		return false
	}
	c.open++
	c.byIP[ip]++
	return true
}

func (c *connections) give(ip netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.byIP[ip]--; c.byIP[ip] == 0 {
		delete(c.byIP, ip)
	}
}

// used returns how many connections are open in all, and how many from the address that has most.
func (c *connections) used() (total, perIP int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ip, n := range c.byIP {
		if ip.IsValid() {
			perIP = max(perIP, n)
		}
	}
	return c.open, perIP
}

// refusals returns how many connections were refused, as there were too many in all and from their address.
func (c *connections) refusals() (total, perIP uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused.total, c.refused.perIP
}

// limitListener closes connections beyond the limits before a byte is read from them.
type limitListener struct {
	net.Listener

	conns *connections
}

// Accept returns the next connection that is within the limits.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ip := addrOf(conn)
		if l.conns.take(ip) {
			closed := make(chan struct{})
			return &limitedConn{Conn: conn, held: &l.conns.held, closed: closed, free: sync.OnceFunc(func() {
				close(closed)
				l.conns.give(ip)
			})}, nil
		}
		_ = conn.Close()
	}
}

// addrOf is the address of the other side; invalid for connections without one (in memory, Unix sockets).
func addrOf(conn net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// limitedConn is a connection that has a place, and is not read from for a while when its calls are refused. Kafka's brokers do
// the like to clients beyond their quota (KIP-219).
type limitedConn struct {
	net.Conn
	free   func()
	closed <-chan struct{}
	held   *atomic.Uint64

	mu     sync.Mutex // guards what is below
	resume time.Time  // when it is read from again
}

// limitedAddr is the address of the other side, by which holdBack finds the connection of a call.
type limitedAddr struct {
	net.Addr
	conn *limitedConn
}

// holdBack has the connection of a call that is refused wait before more is read from it. To refuse is most of what an
// overloaded node does, and a client whose calls end at once sends the next ones at once. All else on the connection goes on:
// what was read is answered, and streams are sent to.
func holdBack(ctx context.Context) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return
	}
	a, ok := p.Addr.(limitedAddr)
	if !ok {
		return
	}
	c := a.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.resume.Before(now) {
		c.resume = now
	}
	if c.resume = c.resume.Add(refusalHold); c.resume.After(now.Add(maxHold)) {
		c.resume = now.Add(maxHold)
	}
}

// RemoteAddr is the address of the other side.
func (c *limitedConn) RemoteAddr() net.Addr { return limitedAddr{c.Conn.RemoteAddr(), c} }

// Read reads, once the connection is not held back. Closing it ends the wait.
func (c *limitedConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	wait := time.Until(c.resume)
	c.mu.Unlock()
	if wait > 0 {
		c.held.Add(1)
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.closed:
		}
	}
	return c.Conn.Read(b)
}

// Close closes the connection and frees its place.
func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
