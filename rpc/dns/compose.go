package dns

import (
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	miekg "github.com/miekg/dns"
	"github.com/zeebo/xxh3"
)

// asker is who asks, as far as an answer depends on it.
type asker struct {
	client netip.Addr
	zone   string // empty: none
	stream bool   // by TCP
}

// composer makes messages. It is used by one goroutine at a time and keeps memory for the next message.
type composer struct {
	rendezvous bool
	recursion  bool // other names are forwarded
	udpSize    int
	// pick returns a number below n, at random.
	pick func(n int) int

	order  []int32
	scores []uint64 // by record
	ranked bool
	ranks  []uint32 // by record, if ranked
	place  []int32  // of the SRV targets, by record as they are in the message
}

// maxPointer is where a name must begin at the latest for others to point at it.
const maxPointer = 1<<14 - 1

// maxMessage is the largest message by TCP.
const maxMessage = 1<<16 - 1

// limit is the size of the largest answer to a question.
func (c *composer) limit(q *question, stream bool) int {
	if stream {
		return maxMessage
	}
	return min(q.size, max(c.udpSize, minUDPSize))
}

// compose appends the message that answers a question, from its domain. cut says whether records were left out.
func (c *composer) compose(b []byte, q *question, a *answer, who asker, serial uint32) (message []byte, cut bool) {
	limit := c.limit(q, who.stream)
	if q.edns {
		limit -= optSize
	}
	b = c.begin(b, q, a.rcode, flagAuthority)
	if len(a.records) == 0 {
		before := len(b)
		b = binary.BigEndian.AppendUint16(b, 0xC000|uint16(q.domainAt))
		b = q.domain.appendSOA(b, serial)
		if len(b) > limit {
			b = b[:before]
		} else {
			binary.BigEndian.PutUint16(b[8:], 1)
		}
		return c.end(b, q, a.rcode), false
	}
	total := a.size + len(b)
	c.sort(a, who, total > limit, min(len(a.records), (limit-len(b))/minRecord+1))
	wanted := len(a.records)
	if a.one {
		wanted = 1
	}
	b, n := c.records(b, a, wanted, limit)
	if cut = n < wanted; cut && !who.stream {
		binary.BigEndian.PutUint16(b[2:], binary.BigEndian.Uint16(b[2:])|flagTruncated)
	}
	binary.BigEndian.PutUint16(b[6:], uint16(n))
	if a.glued {
		b = c.glue(b, a, n, limit)
	}
	return c.end(b, q, a.rcode), cut
}

// minRecord is the size of the smallest record, that of an address.
const minRecord = 16

// begin appends header and question.
func (c *composer) begin(b []byte, q *question, rcode int, flags uint16) []byte {
	flags |= flagResponse | q.flags()&(maskOpcode|flagDesired|flagUnchecked) | uint16(rcode&15)
	if c.recursion {
		flags |= flagAvailable
	}
	b = binary.BigEndian.AppendUint16(b, q.id())
	b = binary.BigEndian.AppendUint16(b, flags)
	if q.end == 0 {
		return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	return append(b, q.packet[headerSize:q.end]...)
}

// end appends what EDNS has in each answer.
func (c *composer) end(b []byte, q *question, rcode int) []byte {
	if !q.edns {
		return b
	}
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, miekg.TypeOPT)
	b = binary.BigEndian.AppendUint16(b, uint16(max(c.udpSize, minUDPSize)))
	b = append(b, uint8(rcode>>4), 0)
	var flags uint16
	if q.dnssec {
		flags = 1 << 15
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, 0, 0)
	binary.BigEndian.PutUint16(b[10:], binary.BigEndian.Uint16(b[10:])+1)
	return b
}

// refuse appends an answer without records, to whatever could be read of a question. cut asks the client to come by TCP.
func (c *composer) refuse(b []byte, q *question, rcode int, cut bool) []byte {
	var flags uint16
	if cut {
		flags = flagTruncated
	}
	return c.end(c.begin(b, q, rcode, flags), q, rcode)
}

// records appends those records that fit, in order, and says how many.
func (c *composer) records(b []byte, a *answer, wanted, limit int) ([]byte, int) {
	c.place = c.place[:0]
	for n, i := range c.order[:wanted] {
		r := &a.records[i]
		if len(b)+2+len(r.rr) > limit {
			return b, n
		}
		b = append(b, 0xC0, headerSize) // The question's name, as it was written.
		at := len(b)
		b = append(b, r.rr...)
		if c.ranked && isType(r.rr, miekg.TypeSRV) {
			binary.BigEndian.PutUint16(b[at+srvPriorityAt:], uint16(min(c.ranks[i], 1<<16-1)))
		}
		c.place = append(c.place, int32(at+srvTargetAt))
	}
	return b, wanted
}

// glue appends the addresses of the targets of the first n records, as many as fit.
func (c *composer) glue(b []byte, a *answer, n, limit int) []byte {
	added := uint16(0)
	for k, i := range c.order[:n] {
		r := &a.records[i]
		if r.glue == nil {
			continue
		}
		target := r.rr[srvTargetAt:]
		if at := int(c.place[k]); at <= maxPointer {
			target = []byte{0xC0 | byte(at>>8), byte(at)}
		}
		if len(b)+len(target)+len(r.glue) > limit {
			break
		}
		b = append(append(b, target...), r.glue...)
		added++
	}
	binary.BigEndian.PutUint16(b[10:], added)
	return b
}

// sort puts into order the records as who asks is to see them; at least the first few of them, as no more fit. What is left out
// of an answer by TCP, where a client can't ask for more, is by rendezvous: the same each time, and other records for other clients.
func (c *composer) sort(a *answer, who asker, overfull bool, few int) {
	c.order = c.order[:0]
	for i := range a.records {
		c.order = append(c.order, int32(i))
	}
	c.rank(a, who.zone)
	switch {
	case c.rendezvous || overfull && who.stream:
		c.score(a, who.client)
		slices.SortFunc(c.order, func(x, y int32) int {
			return cmp.Or(cmp.Compare(c.scores[y], c.scores[x]), cmp.Compare(x, y))
		})
	case c.ranked:
		c.shuffle(len(c.order))
	default:
		c.shuffle(few)
	}
	if c.ranked {
		slices.SortStableFunc(c.order, func(x, y int32) int { return int(c.ranks[x]) - int(c.ranks[y]) })
	}
}

// shuffle puts records chosen at random in the first places.
func (c *composer) shuffle(first int) {
	order := c.order
	for i := range min(first, len(order)-1) {
		j := i + c.pick(len(order)-i)
		order[i], order[j] = order[j], order[i]
	}
}

// rank numbers the records where some come before others: by their priority, then those in the zone of who asks.
func (c *composer) rank(a *answer, zone string) {
	byZone := zone != "" && a.zoned
	c.ranks, c.ranked = c.ranks[:0], byZone || a.varied
	if !c.ranked {
		return
	}
	for i := range a.records {
		r := &a.records[i]
		rank := uint32(r.priority)
		if byZone {
			rank *= 2
			if r.zone != zone {
				rank++
			}
		}
		c.ranks = append(c.ranks, rank)
	}
}

// score gives each record a number that depends on it and on the client only.
func (c *composer) score(a *answer, client netip.Addr) {
	raw := client.As16()
	seed := xxh3.Hash(raw[:])
	c.scores = c.scores[:0]
	for i := range a.records {
		c.scores = append(c.scores, mix(a.records[i].hash^seed))
	}
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// random is composer.pick outside of tests.
func random(n int) int { return rand.IntN(n) }
