package pods

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// names is the name server of the play: what a name stands for now, without a memory. Like that of a cluster it answers for
// full names only, and pods search.
type names struct {
	conn net.PacketConn

	mu      sync.Mutex
	known   map[string]netip.Addr // by lower-case name, without the last dot
	waiting sync.WaitGroup
}

// serveNames serves on the DNS port of an address until close.
func serveNames(at netip.Addr) (*names, error) {
	conn, err := net.ListenPacket("udp", netip.AddrPortFrom(at, 53).String())
	if err != nil {
		return nil, fmt.Errorf("serve names: %w", err)
	}
	n := &names{conn: conn, known: map[string]netip.Addr{}}
	n.waiting.Go(n.serve)
	return n, nil
}

func (n *names) close() {
	_ = n.conn.Close() // Ends serve.
	n.waiting.Wait()
}

// set says what a name stands for; the zero address: nothing.
func (n *names) set(name string, to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if to.IsValid() {
		n.known[name] = to
	} else {
		delete(n.known, name)
	}
}

func (n *names) serve() {
	buf := make([]byte, 1500)
	for {
		size, from, err := n.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := n.answer(buf[:size]); answer != nil {
			_, _ = n.conn.WriteTo(answer, from) // Who gets no answer asks again.
		}
	}
}

// answer answers a question; nil: it was none.
func (n *names) answer(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || m.Response || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	n.mu.Lock()
	addr, known := n.known[strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))]
	n.mu.Unlock()
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	switch {
	case !known:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}}
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}
