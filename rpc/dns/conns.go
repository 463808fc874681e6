package dns

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// conns are the open connections: at most total, and at most perClient from one address. Its methods may be called from any
// goroutine.
type conns struct {
	total, perClient int

	mu       sync.Mutex
	open     map[net.Conn]struct{}
	byClient map[netip.Addr]int
}

func newConns(total, perClient int) *conns {
	return &conns{total: total, perClient: perClient, open: map[net.Conn]struct{}{}, byClient: map[netip.Addr]int{}}
}

// take counts a connection, and tells whether it may stay.
func (c *conns) take(conn net.Conn, client netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.total || c.byClient[client] >= c.perClient {
		return false
	}
	c.open[conn] = struct{}{}
	c.byClient[client]++
	return true
}

func (c *conns) give(conn net.Conn, client netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
	if c.byClient[client]--; c.byClient[client] == 0 {
		delete(c.byClient, client)
	}
}

// hurry ends all waiting for queries; what is being answered goes on.
func (c *conns) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// cut closes all connections.
func (c *conns) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		conn.Close()
	}
}
