package dns

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// arrival remembers to which address of this machine a packet was sent: from there it must be answered. Only a socket that
// listens on all addresses has to be told.
type arrival struct {
	v4 ipv4.ControlMessage
	v6 ipv6.ControlMessage
}

// oobSize is enough for the control message of either family.
const oobSize = 64

// tellDestinations asks for control messages, and tells whether there will be any.
func tellDestinations(conn *net.UDPConn) bool {
	if addr, ok := conn.LocalAddr().(*net.UDPAddr); !ok || !addr.IP.IsUnspecified() {
		return false
	}
	err6 := ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst, true)
	err4 := ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst, true)
	return err4 == nil || err6 == nil
}

// control returns the control message with which an answer leaves from where the query arrived, as its own says.
func (s *arrival) control(oob []byte) []byte {
	s.v4.Dst, s.v6.Dst = s.v4.Dst[:0], s.v6.Dst[:0]
	dst := net.IP(nil)
	if err := s.v6.Parse(oob); err == nil && len(s.v6.Dst) > 0 {
		dst = s.v6.Dst
	}
	if err := s.v4.Parse(oob); err == nil && len(dst) == 0 {
		dst = s.v4.Dst
	}
	switch {
	case len(dst) == 0:
		return nil
	case dst.To4() != nil:
		return (&ipv4.ControlMessage{Src: dst}).Marshal()
	default:
		return (&ipv6.ControlMessage{Src: dst}).Marshal()
	}
}

// serveUDP answers packets, one at a time, until the socket is told to stop. Several do so beside each other: what they have no time
// for waits in the socket, and is dropped there when that is full.
func (s *Server) serveUDP() {
	w := s.newWorker()
	if s.destinations {
		w.oob = make([]byte, oobSize)
	}
	for {
		n, oobn, _, from, err := s.udp.ReadMsgUDPAddrPort(w.in, w.oob)
		switch {
		case s.leaving.Load(), errors.Is(err, net.ErrClosed):
			return
		case err != nil: // About one packet, or one client.
			continue
		}
		client := from.Addr().Unmap()
		reply, outcome := s.respond(w, w.in[:n], client, false)
		var control []byte
		if s.destinations && outcome != outcomeDropped {
			control = w.from.control(w.oob[:oobn])
		}
		switch outcome {
		case outcomeAnswered:
			s.send(reply, control, from)
		case outcomeForward:
			s.forwardPacket(w.in[:n], control, from)
		case outcomeDropped:
		}
	}
}

// send sends an answer. What can't be sent is lost, as any packet may be.
func (s *Server) send(reply, control []byte, to netip.AddrPort) {
	_, _, _ = s.udp.WriteMsgUDPAddrPort(reply, control, to)
}
