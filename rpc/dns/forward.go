package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// forwarder asks other resolvers for names outside of the domains. It passes packets on as they are, but for their ids, and
// from a socket of their own each, so that an answer is hard to forge. A nil forwarder serves nobody.
type forwarder struct {
	resolvers []netip.AddrPort
	next      atomic.Uint32
	places    chan struct{} // one for each query under way
}

func newForwarder(resolvers []netip.AddrPort, places int) *forwarder {
	if len(resolvers) == 0 {
		return nil
	}
	return &forwarder{resolvers: resolvers, places: make(chan struct{}, places)}
}

// forwardTimeout is how long a resolver may take; then the next is asked, once.
const forwardTimeout = 2 * time.Second

// serves tells whether queries of a client are forwarded. Those from the internet are not: an open resolver is a weapon.
func (f *forwarder) serves(client netip.Addr) bool {
	return f != nil && (client.IsLoopback() || client.IsPrivate() || client.IsLinkLocalUnicast())
}

func (f *forwarder) begin() bool {
	select {
	case f.places <- struct{}{}:
		return true
	default:
		return false
	}
}

func (f *forwarder) end() { <-f.places }

var errForged = errors.New("the answer is not to the question")

// ask returns the answer of a resolver. network is "udp" or "tcp".
func (f *forwarder) ask(ctx context.Context, network string, query []byte) (reply []byte, err error) {
	for range min(2, len(f.resolvers)) {
		at := f.resolvers[f.next.Add(1)%uint32(len(f.resolvers))]
		if reply, err = askOne(ctx, network, at, query); err == nil {
			return reply, nil
		}
	}
	return nil, err
}

func askOne(ctx context.Context, network string, at netip.AddrPort, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	id := uint16(rand.Uint32())
	sent := binary.BigEndian.AppendUint16(nil, uint16(len(query)))
	sent = append(sent, query...)
	binary.BigEndian.PutUint16(sent[2:], id)
	if network == "udp" {
		sent = sent[2:]
	}
	if _, err = conn.Write(sent); err != nil {
		return nil, err
	}
	for {
		reply, err := read(conn, network)
		if err != nil {
			return nil, err
		}
		if !answers(reply, query, id) {
			if network == "tcp" {
				return nil, errForged
			}
			continue // Whoever guesses must not keep the right one out.
		}
		copy(reply, query[:2])
		return reply, nil
	}
}

// read reads one message.
func read(conn net.Conn, network string) ([]byte, error) {
	if network == "udp" {
		b := make([]byte, maxUDPSize)
		n, err := conn.Read(b)
		return b[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(conn, b)
	return b, err
}

// answers tells whether a message answers the question of a query that was sent under an id.
func answers(reply, query []byte, id uint16) bool {
	var asked, answered question
	if len(reply) < headerSize || binary.BigEndian.Uint16(reply) != id || reply[2]&(flagResponse>>8) == 0 {
		return false
	}
	asked.packet, answered.packet = query, reply
	end, same := asked.name(nil), answered.name(nil)
	const fixed = 4
	if end < 0 || same != end || end+fixed > len(query) || same+fixed > len(reply) {
		return false
	}
	return string(asked.lower[:end-headerSize]) == string(answered.lower[:end-headerSize]) &&
		string(query[end:end+fixed]) == string(reply[end:end+fixed])
}

// forwardPacket forwards a query that came by UDP. It does not wait.
func (s *Server) forwardPacket(packet, control []byte, from netip.AddrPort) {
	if !s.forward.begin() {
		s.metrics.drop(reasonForwards)
		return
	}
	query := append([]byte(nil), packet...)
	s.serving.Go(func() {
		defer s.forward.end()
		if reply := s.forwarded("udp", query); reply != nil {
			s.send(reply, control, from)
		}
	})
}

// forwardStream forwards a query that came by TCP, and waits.
func (s *Server) forwardStream(query []byte) []byte {
	if !s.forward.begin() {
		s.metrics.drop(reasonForwards)
		return nil
	}
	defer s.forward.end()
	return s.forwarded("tcp", query)
}

// forwarded returns what the client gets: an answer, or SERVFAIL.
func (s *Server) forwarded(network string, query []byte) []byte {
	s.metrics.forwarded.Inc()
	reply, err := s.forward.ask(s.ctx, network, query)
	if err == nil {
		return reply
	}
	s.log.Debug("a DNS query could not be forwarded", "err", err)
	var q question
	if q.parse(query, nil) == verdictDrop {
		return nil
	}
	const servfail = 2
	return (&composer{recursion: true, udpSize: s.cfg.UDPSize}).refuse(nil, &q, servfail, false)
}
