package dns

import (
	"bytes"
	"encoding/binary"

	miekg "github.com/miekg/dns"
)

const (
	headerSize = 12
	maxName    = 255
	maxLabel   = 63
	// maxExtras is how many records a query may have. One, for EDNS, is all that resolvers send; two with a signature.
	maxExtras = 8
	// optSize is the size of an OPT record without options.
	optSize = 11
)

// question is a query, taken apart. Its slices are of the packet, or its own. It is reused.
type question struct {
	packet []byte // as it came
	end    int    // where the question ends; 0: there is none to repeat
	qtype  uint16
	class  uint16

	domain   *domain // nil: none of ours
	domainAt int     // where in the message the name of the domain begins
	rest     []byte  // the name before the domain, lower case, with dots

	edns    bool
	dnssec  bool // the DO bit, which is given back
	version uint8
	size    int // that the client takes by UDP

	lower [maxName]byte // the name in lower case, in wire form
}

// verdict is what is to be done with a packet.
type verdict int

const (
	verdictAnswer  verdict = iota
	verdictDrop            // It is no query, or too short to have an id.
	verdictFormat          // FORMERR
	verdictOpcode          // NOTIMP
	verdictVersion         // BADVERS
)

func (q *question) id() uint16    { return binary.BigEndian.Uint16(q.packet) }
func (q *question) flags() uint16 { return binary.BigEndian.Uint16(q.packet[2:]) }

// Bits of the flags of a header.
const (
	flagResponse  = 1 << 15
	maskOpcode    = 15 << 11
	flagAuthority = 1 << 10
	flagTruncated = 1 << 9
	flagDesired   = 1 << 8
	flagAvailable = 1 << 7
	flagUnchecked = 1 << 4
)

// parse takes a packet apart, which must not change while q is used. Any bytes have a verdict.
func (q *question) parse(packet []byte, domains []*domain) verdict {
	q.packet, q.end, q.domain, q.rest = packet, 0, nil, nil
	q.edns, q.dnssec, q.version, q.size = false, false, 0, minUDPSize
	if len(packet) < headerSize || q.flags()&flagResponse != 0 {
		return verdictDrop
	}
	if q.flags()&maskOpcode != 0 {
		return verdictOpcode
	}
	count := func(at int) int { return int(binary.BigEndian.Uint16(packet[at:])) }
	if count(4) != 1 {
		return verdictFormat
	}
	at := q.name(domains)
	if at < 0 || at+4 > len(packet) {
		q.domain = nil
		return verdictFormat
	}
	q.qtype, q.class = binary.BigEndian.Uint16(packet[at:]), binary.BigEndian.Uint16(packet[at+2:])
	q.end = at + 4
	others, extras := count(6)+count(8), count(10)
	if others+extras > maxExtras {
		return verdictFormat
	}
	at = q.end
	for i := range others + extras {
		if at = q.record(at, i >= others); at < 0 {
			return verdictFormat
		}
	}
	if q.version != 0 {
		return verdictVersion
	}
	return verdictAnswer
}

// name reads the name of the question and finds the domain that it lies in. It returns where it ends, or -1.
func (q *question) name(domains []*domain) int {
	packet, lower := q.packet[headerSize:], q.lower[:0]
	var starts [maxName / 2]uint8 // of the labels; the last is that of the root
	labels := 0
	for {
		at := len(lower)
		if at >= len(packet) {
			return -1
		}
		n := int(packet[at])
		if n > maxLabel || at+1+n >= maxName || at+1+n > len(packet) {
			return -1 // A pointer, here, could only point at itself.
		}
		if n == 0 {
			lower = append(lower, 0)
			break
		}
		starts[labels] = uint8(at)
		labels++
		lower = append(lower, packet[at])
		for _, c := range packet[at+1 : at+1+n] {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			lower = append(lower, c)
		}
	}
	for i := range labels {
		if d := domainOf(lower[starts[i]:], domains); d != nil {
			q.domain, q.domainAt = d, headerSize+int(starts[i])
			q.rest = text(lower, starts[:i])
			break
		}
	}
	return headerSize + len(lower)
}

func domainOf(wire []byte, domains []*domain) *domain {
	for _, d := range domains {
		if bytes.Equal(d.wire, wire) {
			return d
		}
	}
	return nil
}

// text puts dots between the labels that begin at starts, in place.
func text(wire []byte, starts []uint8) []byte {
	if len(starts) == 0 {
		return nil
	}
	last := int(starts[len(starts)-1])
	end := last + 1 + int(wire[last])
	for _, at := range starts[1:] {
		wire[at] = '.'
	}
	return wire[1:end]
}

// record reads a record that came with the question, and returns where it ends, or -1. Only that of EDNS matters.
func (q *question) record(at int, additional bool) int {
	packet, root := q.packet, at < len(q.packet) && q.packet[at] == 0
	for {
		if at >= len(packet) {
			return -1
		}
		n := int(packet[at])
		at++
		if n == 0 {
			break
		}
		if n > maxLabel { // A pointer ends a name. What it points at does not matter.
			at++
			break
		}
		at += n
	}
	const fixed = 10 // type, class, TTL, length
	if at+fixed > len(packet) {
		return -1
	}
	rtype, class := binary.BigEndian.Uint16(packet[at:]), binary.BigEndian.Uint16(packet[at+2:])
	ttl := binary.BigEndian.Uint32(packet[at+4:])
	end := at + fixed + int(binary.BigEndian.Uint16(packet[at+8:]))
	if end > len(packet) {
		return -1
	}
	if rtype == miekg.TypeOPT {
		if q.edns || !root || !additional {
			return -1
		}
		q.edns, q.size = true, max(int(class), minUDPSize)
		q.version, q.dnssec = uint8(ttl>>16), ttl&(1<<15) != 0
	}
	return end
}
