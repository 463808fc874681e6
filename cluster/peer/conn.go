package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// conn is an established connection: the handshake is behind it.
type conn struct {
	net.Conn
	remote Identity
	// anonymous is true when this side said that it had no cluster.
	anonymous bool

	once    sync.Once
	onClose func() // called at the owner's first Close
}

// Close closes the connection and signs it off.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.onClose)
	return err
}

// cut breaks the connection under its owner, who finds out at the next read or write and closes it. A TLS connection
// is cut below its goodbye, which could block on a peer that does not read.
func (c *conn) cut() {
	if t, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		t.NetConn().Close()
		return
	}
	c.Conn.Close()
}

// door is the listener for one kind of connection. It knows the established connections of that kind, accepted and
// dialled.
type door struct {
	addr  net.Addr
	ready chan *conn
	done  chan struct{}

	mu     sync.Mutex // guards conns and closed
	conns  map[*conn]struct{}
	closed bool

	accepted sync.WaitGroup // accepted connections that their owner has not closed
}

func newDoor(addr net.Addr) *door {
	return &door{addr: addr, ready: make(chan *conn), done: make(chan struct{}), conns: make(map[*conn]struct{})}
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.ready:
		return c, nil
	case <-d.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener: the advertised address.
func (d *door) Addr() net.Addr { return d.addr }

// Close implements net.Listener. Connections stay with their owners.
func (d *door) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.closed = true
		close(d.done)
	}
	return nil
}

// enter signs a dialled connection on. It reports false when the door is closed.
func (d *door) enter(c *conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.conns[c] = struct{}{}
	c.onClose = func() { d.leave(c) }
	return true
}

// deliver signs an accepted connection on and hands it to Accept. When it reports false the caller still owns the
// connection. released is called when the connection's owner closes it.
func (d *door) deliver(ctx context.Context, c *conn, released func()) bool {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return false
	}
	// Add happens under mu and never after closed was set, hence never beside a Wait.
	d.accepted.Add(1)
	d.conns[c] = struct{}{}
	d.mu.Unlock()
	leave := func() {
		d.leave(c)
		d.accepted.Done()
	}
	c.onClose = func() {
		leave()
		released()
	}
	select {
	case d.ready <- c:
		return true
	case <-ctx.Done():
	case <-d.done:
	}
	leave()
	return false
}

func (d *door) leave(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
}

// cut breaks all connections for which the condition holds.
func (d *door) cut(which func(*conn) bool) {
	d.mu.Lock()
	var victims []*conn
	for c := range d.conns {
		if which(c) {
			victims = append(victims, c)
		}
	}
	d.mu.Unlock()
	for _, c := range victims {
		c.cut()
	}
}

func all(*conn) bool { return true }

// hungUp reports whether the error is that of a connection that the other side closed.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isTLS reports whether the connection is encrypted.
func isTLS(c net.Conn) bool {
	_, ok := c.(*secureConn)
	return ok
}

// advertised is an address as others know it; names stay names.
type advertised string

// Network implements net.Addr.
func (advertised) Network() string { return "tcp" }

// String implements net.Addr.
func (a advertised) String() string { return string(a) }
