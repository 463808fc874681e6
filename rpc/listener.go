package rpc

import (
	"net"
	"net/netip"
	"sync"
)

// limitListener closes connections beyond a number in all and a number from one address, before a byte is read from
// them, so that one client can't take all places.
type limitListener struct {
	net.Listener
	total, perIP int

	mu   sync.Mutex // guards what is below
	open int
	byIP map[netip.Addr]int
}

func newLimitListener(lis net.Listener, total, perIP int) *limitListener {
	return &limitListener{Listener: lis, total: total, perIP: perIP, byIP: make(map[netip.Addr]int)}
}

// Accept returns the next connection that is within the limits.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ip := addrOf(conn)
		if l.take(ip) {
			return &limitedConn{Conn: conn, free: sync.OnceFunc(func() { l.give(ip) })}, nil
		}
		_ = conn.Close()
	}
}

// take counts a connection, and tells whether it may stay.
func (l *limitListener) take(ip netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.total || (ip.IsValid() && l.byIP[ip] >= l.perIP) {
		return false
	}
	l.open++
	l.byIP[ip]++
	return true
}

func (l *limitListener) give(ip netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.byIP[ip]--; l.byIP[ip] == 0 {
		delete(l.byIP, ip)
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

type limitedConn struct {
	net.Conn
	free func()
}

// Close closes the connection and frees its place.
func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
