package netsim

import "encoding/binary"

// TCP's protocol number and flags.
const (
	protocolTCP = 6

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// segment is what a reset needs to know of a TCP segment.
type segment struct {
	seq, ack uint32
	next     uint32 // the sequence number after it
	flags    byte
}

func isTCP(frame []byte) bool {
	_, ok := parse(frame)
	return ok
}

// parse reads the TCP segment of an IPv4 frame.
func parse(frame []byte) (segment, bool) {
	ip := frame[ipHeader:]
	size := int(binary.BigEndian.Uint16(ip[2:]))
	head := int(ip[0]&0x0f) * 4
	if ip[9] != protocolTCP || size > len(ip) || size < head+20 {
		return segment{}, false
	}
	tcp := ip[head:size]
	s := segment{
		seq: binary.BigEndian.Uint32(tcp[4:]), ack: binary.BigEndian.Uint32(tcp[8:]), flags: tcp[13],
	}
	payload := len(tcp) - int(tcp[12]>>4)*4
	s.next = s.seq + uint32(payload) //nolint:gosec // At most an MTU.
	if s.flags&(flagSYN|flagFIN) != 0 {
		s.next++
	}
	return s, true
}

// reset resets the connection of a segment: the sender gets what the receiver would send if it knew no such connection,
// and the receiver a reset in the segment's place.
func (n *Network) reset(frame []byte) {
	s, ok := parse(frame)
	if !ok || s.flags&flagRST != 0 {
		return
	}
	back := segment{seq: s.ack, flags: flagRST}
	if s.flags&flagACK == 0 {
		back = segment{ack: s.next, flags: flagRST | flagACK}
	}
	n.inject(resetFrame(frame, back, true))
	if s.flags&flagSYN == 0 {
		n.inject(resetFrame(frame, segment{seq: s.seq, flags: flagRST}, false))
	}
}

// inject writes a frame of the switch's own: no rule holds for it.
func (n *Network) inject(frame []byte) {
	if to := n.at(frame[ipTarget:leastFrame]); to >= 0 {
		_, _ = n.ends[to].port.file.Write(frame) // A lost reset is as good as none: the next segment causes another.
	}
}

// resetFrame makes a bare segment for the connection of a frame, in the other direction if back.
func resetFrame(frame []byte, s segment, back bool) []byte {
	const size = 20 + 20
	head := int(frame[ipHeader]&0x0f) * 4
	out := make([]byte, ipHeader+size)
	copy(out, frame[:ipHeader])
	ip, tcp := out[ipHeader:ipHeader+20], out[ipHeader+20:]
	ip[0], ip[8], ip[9] = 0x45, 64, protocolTCP // version and header size, hops
	binary.BigEndian.PutUint16(ip[2:], size)
	copy(ip[12:20], frame[ipSource:leastFrame])
	copy(tcp[:4], frame[ipHeader+head:])
	if back {
		copy(out[:6], frame[6:12])
		copy(out[6:12], frame[:6])
		copy(ip[12:16], frame[ipTarget:leastFrame])
		copy(ip[16:20], frame[ipSource:ipTarget])
		copy(tcp[:2], frame[ipHeader+head+2:])
		copy(tcp[2:4], frame[ipHeader+head:])
	}
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[12], tcp[13] = 5<<4, s.flags // header size
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip))
	// The pseudo header: addresses, protocol, size.
	binary.BigEndian.PutUint16(tcp[16:], checksum(sum(protocolTCP+20, ip[12:20]), tcp))
	return out
}

func checksum(start uint32, b []byte) uint16 {
	s := sum(start, b)
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s) //nolint:gosec // Folded above.
}

func sum(start uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return start
}
