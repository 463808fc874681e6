// Package peertest is a network in memory for tests, that can be cut, delayed and held back. Start at Net. It works in real
// time, and in virtual time inside a testing/synctest bubble.
package peertest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/regd-io/regd/cluster/peer"
)

// Client is the host from which Net.Dial dials. Isolate spares it, so that a test can ask an isolated node.
const Client = "client"

const (
	// acceptBacklog is how many connections wait for Accept before dials wait.
	acceptBacklog = 128
	// firstFreePort is the first port given to listeners on port 0 and to dialled connections.
	firstFreePort = 32768
)

// Net is a network of named hosts in memory, with the faults of a real one. It has no goroutine, file or clock of its
// own and waits on channels and timers only, so it works inside a testing/synctest bubble when it was made in it.
//
// Streams behave as TCP does: what is written arrives whole and in order or the connection ends; what cannot arrive
// now (a cut, a hold) waits and arrives afterwards; a writer that is too far ahead blocks; the other side learns of a
// Close only when that arrives. A dial needs both directions. All methods are safe for concurrent use.
type Net struct {
	mu        sync.Mutex // guards all fields, and those of every listener, link and conn
	hosts     map[string]bool
	listeners map[string]*listener
	links     map[route]*link
	conns     map[*conn]struct{}
	isolated  map[string]bool
	port      int
	changed   chan struct{} // closed and replaced when a rule changes: dials look again
}

// route is one direction between two hosts.
type route struct{ from, to string }

// link is the state of a route.
type link struct {
	cut    bool
	refuse bool
	holds  int
	delay  time.Duration
}

// NewNet returns a network in which the named hosts exist, and Client.
func NewNet(hosts ...string) *Net {
	n := &Net{
		hosts:     map[string]bool{Client: true},
		listeners: make(map[string]*listener),
		links:     make(map[route]*link),
		conns:     make(map[*conn]struct{}),
		isolated:  make(map[string]bool),
		port:      firstFreePort,
		changed:   make(chan struct{}),
	}
	for _, h := range hosts {
		n.hosts[h] = true
	}
	return n
}

// Host returns the network as seen from the named host, which exists from then on. Its addresses are "name:port"; an
// empty host, "localhost" and "0.0.0.0" are the host itself; port 0 is a free one.
func (n *Net) Host(name string) peer.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[name] = true
	return host{net: n, name: name}
}

// Listen listens on the host that addr names.
func (n *Net) Listen(addr string) (net.Listener, error) {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	return n.Host(name).Listen(addr)
}

// Dial dials from the host Client.
func (n *Net) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return n.Host(Client).Dial(ctx, addr)
}

// Cut stops everything between two hosts, in both directions, until Heal.
func (n *Net) Cut(a, b string) {
	n.change(func() {
		n.link(route{a, b}).cut = true
		n.link(route{b, a}).cut = true
	})
}

// CutOneWay stops everything that from sends to to, until Heal.
func (n *Net) CutOneWay(from, to string) {
	n.change(func() { n.link(route{from, to}).cut = true })
}

// Isolate stops everything between a host and all others but Client, until Heal.
func (n *Net) Isolate(a string) {
	n.change(func() { n.isolated[a] = true })
}

// Refuse has the connections refused that from dials to to, until Heal, as by a firewall beside from: at once, also during a
// cut. Those that stand are left alone.
func (n *Net) Refuse(from, to string) {
	n.change(func() { n.link(route{from, to}).refuse = true })
}

// Heal ends all cuts, isolations and refusals. What was held back by them arrives now. Delays and holds stay.
func (n *Net) Heal() {
	n.change(func() {
		clear(n.isolated)
		for _, l := range n.links {
			l.cut, l.refuse = false, false
		}
	})
}

// Delay makes what from sends to to take d. What is on its way already is not affected.
func (n *Net) Delay(from, to string, d time.Duration) {
	n.change(func() { n.link(route{from, to}).delay = d })
}

// HoldFrom holds back all that a host sends to others until release is called; then it arrives at once. Unlike a cut
// it outlives Heal. Holds add up. Calling release again does nothing.
func (n *Net) HoldFrom(a string) (release func()) {
	var held []*link
	n.change(func() {
		for to := range n.hosts {
			if to != a {
				l := n.link(route{a, to})
				l.holds++
				held = append(held, l)
			}
		}
	})
	return sync.OnceFunc(func() {
		n.change(func() {
			for _, l := range held {
				l.holds--
			}
		})
	})
}

// Reset breaks all connections of a host, as when its power fails and it is back at once: both sides get an error, and
// what was under way is lost.
func (n *Net) Reset(a string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.local.host == a || c.remote.host == a {
			c.in.resetLocked()
			c.out.resetLocked()
		}
	}
}

// change applies a rule. What would have arrived under the old rules by now, has.
func (n *Net) change(rule func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for c := range n.conns {
		c.in.arriveLocked(now)
	}
	rule()
	for c := range n.conns {
		c.in.wakeLocked()
	}
	n.wakeLocked()
}

func (n *Net) wakeLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// link returns the state of a route. The caller holds mu.
func (n *Net) link(r route) *link {
	l := n.links[r]
	if l == nil {
		l = &link{}
		n.links[r] = l
	}
	return l
}

// blockedLocked reports whether nothing passes along the route now.
func (n *Net) blockedLocked(r route) bool {
	if r.from == r.to {
		return false
	}
	isolated := (n.isolated[r.from] || n.isolated[r.to]) && r.from != Client && r.to != Client
	l := n.link(r)
	return isolated || l.cut || l.holds > 0
}

// freePortLocked returns a port that nothing used before.
func (n *Net) freePortLocked() string {
	n.port++
	return strconv.Itoa(n.port)
}

// address is an end of a connection.
type address struct{ host, port string }

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

// String implements net.Addr.
func (a address) String() string { return net.JoinHostPort(a.host, a.port) }

// host is the network as seen from one host.
type host struct {
	net  *Net
	name string
}

func (h host) parse(addr string) (address, error) {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return address{}, err
	}
	switch name {
	case "", "localhost", "127.0.0.1", "0.0.0.0", "::":
		name = h.name
	}
	return address{name, port}, nil
}

// Listen implements peer.Network.
func (h host) Listen(addr string) (net.Listener, error) {
	a, err := h.parse(addr)
	if err != nil {
		return nil, err
	}
	fail := func(err error) error { return &net.OpError{Op: "listen", Net: "tcp", Addr: a, Err: err} }
	if a.host != h.name {
		return nil, fail(syscall.EADDRNOTAVAIL)
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.port == "0" {
		a.port = n.freePortLocked()
	}
	if n.listeners[a.String()] != nil {
		return nil, fail(syscall.EADDRINUSE)
	}
	l := &listener{net: n, addr: a, backlog: make(chan *conn, acceptBacklog), done: make(chan struct{})}
	n.listeners[a.String()] = l
	return l, nil
}

// Dial implements peer.Network.
func (h host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	a, err := h.parse(addr)
	if err != nil {
		return nil, err
	}
	c, err := h.net.dial(ctx, h.name, a)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: a, Err: err}
	}
	return c, nil
}

// dial waits until both directions are open, and stay so for as long as a packet takes there and back.
func (n *Net) dial(ctx context.Context, from string, to address) (*conn, error) {
	there, back := route{from, to.host}, route{to.host, from}
	var due time.Time // when the answer arrives; zero: the way is not open
	for {
		n.mu.Lock()
		if !n.hosts[to.host] {
			n.mu.Unlock()
			return nil, &net.DNSError{Err: "no such host", Name: to.host, IsNotFound: true}
		}
		if n.link(there).refuse {
			n.mu.Unlock()
			return nil, syscall.ECONNREFUSED
		}
		changed := n.changed
		switch {
		case n.blockedLocked(there) || n.blockedLocked(back):
			due = time.Time{}
		case due.IsZero():
			due = time.Now().Add(n.link(there).delay + n.link(back).delay)
		}
		full := false
		if expired(due, time.Now()) {
			c, err := n.connectLocked(from, to)
			if c != nil || err != nil {
				n.mu.Unlock()
				return c, err
			}
			full = true
		}
		n.mu.Unlock()
		var arrival <-chan time.Time
		if !due.IsZero() && !full {
			arrival = time.After(time.Until(due))
		}
		select {
		case <-arrival:
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("connect: %w", ctx.Err())
		}
	}
}

// connectLocked makes the connection; neither a connection nor an error means that the backlog is full.
func (n *Net) connectLocked(from string, to address) (*conn, error) {
	l := n.listeners[to.String()]
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	if len(l.backlog) == cap(l.backlog) {
		return nil, nil
	}
	local := address{from, n.freePortLocked()}
	there := newStream(n, route{from, to.host})
	back := newStream(n, route{to.host, from})
	dialled := &conn{net: n, local: local, remote: to, in: back, out: there}
	accepted := &conn{net: n, local: to, remote: local, in: there, out: back}
	n.conns[dialled] = struct{}{}
	n.conns[accepted] = struct{}{}
	l.backlog <- accepted // has room: only this function sends, under mu
	return dialled, nil
}

// listener is a net.Listener in memory.
type listener struct {
	net     *Net
	addr    address
	backlog chan *conn
	done    chan struct{}
	closed  bool
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	default:
		select {
		case c := <-l.backlog:
			l.net.mu.Lock()
			l.net.wakeLocked() // there is room in the backlog
			l.net.mu.Unlock()
			return c, nil
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// Close implements net.Listener. Connections that nobody accepted are closed.
func (l *listener) Close() error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.done)
	delete(l.net.listeners, l.addr.String())
	for {
		select {
		case c := <-l.backlog:
			c.closeLocked()
		default:
			l.net.wakeLocked()
			return nil
		}
	}
}

// Hosts returns the names of all hosts but Client, sorted.
func (n *Net) Hosts() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := slices.Sorted(maps.Keys(n.hosts))
	return slices.DeleteFunc(names, func(h string) bool { return h == Client })
}
