package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/regd-io/regd/cluster/peer"
)

// The signals with which `regd dev` partitions a node. Only a node that runs with --dev-child listens to them.
const (
	signalCut  = syscall.SIGUSR1
	signalHeal = syscall.SIGUSR2
)

var errCut = errors.New("cut off by regd dev partition")

// peerCut is a peer.Network that can be cut: then open connections are closed and none is made, in either direction.
// Clients still reach the node, as in a partition between machines that leaves the clients on one side.
type peerCut struct {
	peer.Network

	mu    sync.Mutex
	cut   bool
	conns map[*cutConn]struct{}
}

func newPeerCut(n peer.Network) *peerCut {
	return &peerCut{Network: n, conns: map[*cutConn]struct{}{}}
}

// obey cuts and heals as the signals say, until ctx ends.
func (p *peerCut) obey(ctx context.Context) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, signalCut, signalHeal)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			p.set(s == signalCut)
		}
	}
}

func (p *peerCut) set(cut bool) {
	p.mu.Lock()
	p.cut = cut
	open := p.conns
	if cut {
		p.conns = map[*cutConn]struct{}{}
	}
	p.mu.Unlock()
	if cut {
		for c := range open {
			c.Conn.Close()
		}
	}
}

// take keeps a connection so that it can be cut, or closes it.
func (p *peerCut) take(conn net.Conn) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		conn.Close()
		return nil, errCut
	}
	c := &cutConn{Conn: conn, of: p}
	p.conns[c] = struct{}{}
	return c, nil
}

// Dial implements peer.Network.
func (p *peerCut) Dial(ctx context.Context, addr string) (net.Conn, error) {
	p.mu.Lock()
	cut := p.cut
	p.mu.Unlock()
	if cut {
		return nil, fmt.Errorf("dial %s: %w", addr, errCut)
	}
	conn, err := p.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return p.take(conn)
}

// Listen implements peer.Network.
func (p *peerCut) Listen(addr string) (net.Listener, error) {
	l, err := p.Network.Listen(addr)
	if err != nil {
		return nil, err
	}
	return &cutListener{l, p}, nil
}

type cutListener struct {
	net.Listener
	of *peerCut
}

// Accept implements net.Listener.
func (l *cutListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, err := l.of.take(conn); err == nil {
			return c, nil
		}
	}
}

type cutConn struct {
	net.Conn
	of *peerCut
}

// Close implements net.Conn.
func (c *cutConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
