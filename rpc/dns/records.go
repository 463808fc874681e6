package dns

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	miekg "github.com/miekg/dns"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/regd-io/regd/fsm"
)

// record is one record of an answer, in wire form but for its owner: that is the name that was asked for.
type record struct {
	rr []byte
	// glue is the address of an SRV's target, in wire form but for its owner, the target. Nil: there is none.
	glue     []byte
	hash     uint64 // of what the record is about, for rendezvous
	priority uint16
	zone     string
}

// Where in an SRV record, without its owner, the priority and the target are.
const (
	srvPriorityAt = 10
	srvPortAt     = 14
	srvTargetAt   = 16
)

// priorityKey is the metadata with an instance's SRV priority, 0 to 65535; less is preferred.
const priorityKey = "dns-priority"

// defaultPriority is what SRV records have else.
const defaultPriority = 1

// endpoint is what DNS tells of an instance.
type endpoint struct {
	host     string     // Empty: addr is set.
	addr     netip.Addr // invalid: host is a name
	port     uint16     // 0: none
	priority uint16
	rec      *fsm.Record
}

// Fields of registryv1.Instance and Port.
const (
	fieldAddress    = 4
	fieldPorts      = 5
	fieldPortName   = 1
	fieldPortNumber = 2
	fieldMetadata   = 7
)

// newEndpoint reads address and port out of the encoded instance: decoding all of it takes ten times as long. port is the
// name of one; empty: the first.
func newEndpoint(r *fsm.Record, port string) endpoint {
	e := endpoint{rec: r, priority: defaultPriority}
	eachField(r.Spec(), func(number protowire.Number, value []byte) {
		switch {
		case number == fieldAddress:
			e.host = string(value)
		case number == fieldPorts && e.port == 0:
			if name, n := decodePort(value); port == "" || strings.EqualFold(name, port) {
				e.port = n
			}
		case number == fieldMetadata:
			if key, text := decodePair(value); string(key) == priorityKey {
				if p, err := strconv.ParseUint(string(text), 10, 16); err == nil {
					e.priority = uint16(p)
				}
			}
		}
	})
	if addr, err := netip.ParseAddr(e.host); err == nil {
		e.host, e.addr = "", addr.Unmap()
	}
	return e
}

// eachField calls fn for the fields of a message that hold bytes.
func eachField(b []byte, fn func(number protowire.Number, value []byte)) {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		if wire != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, wire, b); n < 0 {
				return
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return
		}
		fn(number, value)
		b = b[n:]
	}
}

func decodePort(b []byte) (name string, number uint16) {
	for len(b) > 0 {
		field, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if field == fieldPortNumber && wire == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(b)
			number = uint16(v)
		}
		if field == fieldPortName && wire == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			name = string(v)
		}
		if n = protowire.ConsumeFieldValue(field, wire, b); n < 0 {
			break
		}
		b = b[n:]
	}
	return name, number
}

// decodePair reads an entry of a map of strings.
func decodePair(b []byte) (key, value []byte) {
	eachField(b, func(number protowire.Number, field []byte) {
		switch number {
		case 1:
			key = field
		case 2:
			value = field
		}
	})
	return key, value
}

// is tells whether the endpoint has an address that records of a type can hold. An address with a zone ("%eth0") means
// nothing elsewhere.
func (e endpoint) is(rtype uint16) bool {
	return e.addr.Zone() == "" && (rtype == miekg.TypeA && e.addr.Is4() || rtype == miekg.TypeAAAA && e.addr.Is6())
}

// packer makes records of one answer.
type packer struct {
	domain  *domain
	ttl     uint32
	records []record
	seen    map[string]bool
}

func newPacker(d *domain, ttl uint32) *packer {
	return &packer{domain: d, ttl: ttl, seen: make(map[string]bool)}
}

// wire returns a record in wire form, without its owner; nil if it can't be.
func (p *packer) wire(rr miekg.RR, rtype uint16) []byte {
	*rr.Header() = miekg.RR_Header{Name: ".", Rrtype: rtype, Class: miekg.ClassINET, Ttl: p.ttl}
	b := make([]byte, miekg.Len(rr)+1)
	n, err := miekg.PackRR(rr, b, 0, nil, false)
	if err != nil {
		return nil
	}
	return b[1:n:n]
}

// add adds a record, unless it is there already.
func (p *packer) add(rr miekg.RR, rtype uint16, about endpoint) {
	if b := p.wire(rr, rtype); b != nil {
		p.keep(record{rr: b}, b, about)
	}
}

// keep keeps a record, unless one of that identity is there already.
func (p *packer) keep(r record, identity []byte, about endpoint) {
	if p.seen[string(identity)] {
		return
	}
	p.seen[string(identity)] = true
	r.hash = xxh3.Hash(identity)
	r.priority = about.priority
	if about.rec != nil {
		r.zone = about.rec.Zone()
	}
	p.records = append(p.records, r)
}

// address returns an A or AAAA record. It and service are written by hand: a service may have thousands.
func (p *packer) address(addr netip.Addr) []byte {
	rtype := miekg.TypeA
	if addr.Is6() {
		rtype = miekg.TypeAAAA
	}
	raw := addr.AsSlice()
	return append(p.header(rtype, len(raw)), raw...)
}

// header begins a record, without its owner, whose data are so many bytes.
func (p *packer) header(rtype uint16, size int) []byte {
	b := make([]byte, 0, srvPriorityAt+size)
	b = binary.BigEndian.AppendUint16(b, rtype)
	b = binary.BigEndian.AppendUint16(b, miekg.ClassINET)
	b = binary.BigEndian.AppendUint32(b, p.ttl)
	return binary.BigEndian.AppendUint16(b, uint16(size))
}

// service returns the SRV record of an endpoint with an address. That gets a name for each port, so that each record has glue of
// its own: where several share a target, HAProxy gives the glue to the first.
func (p *packer) service(e endpoint) []byte {
	var target [maxName]byte
	t := appendLabel(target[:0], strconv.AppendUint(nil, uint64(e.port), 10))
	t = appendLabel(t, hex.AppendEncode(nil, e.addr.AsSlice()))
	t = appendLabel(t, []byte(wordAddr))
	t = append(t, p.domain.wire...)
	b := p.header(miekg.TypeSRV, srvTargetAt-srvPriorityAt+len(t))
	for _, n := range []uint16{e.priority, uint16(e.rec.Weight()), e.port} {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return append(b, t...)
}

func appendLabel(b, label []byte) []byte {
	return append(append(b, byte(len(label))), label...)
}

// addresses adds A or AAAA records.
func (p *packer) addresses(endpoints []endpoint, rtype uint16) {
	for _, e := range endpoints {
		if e.is(rtype) {
			b := p.address(e.addr)
			p.keep(record{rr: b}, b, e)
		}
	}
}

// aliases adds CNAME records if all endpoints are host names: beside a CNAME a name may have nothing else.
func (p *packer) aliases(endpoints []endpoint) {
	if slices.ContainsFunc(endpoints, func(e endpoint) bool { return e.host == "" }) {
		return
	}
	for _, e := range endpoints {
		p.add(&miekg.CNAME{Target: miekg.Fqdn(e.host)}, miekg.TypeCNAME, e)
	}
}

// services adds SRV records. Instances at the same address and port are one, whatever their priority and weight.
func (p *packer) services(endpoints []endpoint) {
	for _, e := range endpoints {
		switch {
		case e.port == 0 || e.addr.Zone() != "":
		case e.host == "":
			b := p.service(e)
			p.keep(record{rr: b, glue: p.address(e.addr)}, b[srvPortAt:], e)
		default:
			srv := &miekg.SRV{Priority: e.priority, Weight: uint16(e.rec.Weight()), Port: e.port, Target: miekg.Fqdn(e.host)}
			if b := p.wire(srv, miekg.TypeSRV); b != nil {
				p.keep(record{rr: b}, b[srvPortAt:], e)
			}
		}
	}
}

// rawPrefix begins metadata keys whose value is a TXT record as it is, without "key=".
const rawPrefix = "rfc1035-"

// metadata adds TXT records "key=value", as RFC 1464 has them.
func (p *packer) metadata(endpoints []endpoint) {
	for _, e := range endpoints {
		eachField(e.rec.Spec(), func(number protowire.Number, pair []byte) {
			if number != fieldMetadata {
				return
			}
			key, value := decodePair(pair)
			text := string(value)
			if !strings.HasPrefix(string(key), rawPrefix) {
				text = string(key) + "=" + text
			}
			p.text(e, text)
		})
	}
}

// text adds a TXT record, in strings of at most 255 bytes.
func (p *packer) text(about endpoint, s string) {
	const most = 255
	rr := &miekg.TXT{}
	for len(s) > most {
		rr.Txt = append(rr.Txt, escape(s[:most]))
		s = s[most:]
	}
	rr.Txt = append(rr.Txt, escape(s))
	p.add(rr, miekg.TypeTXT, about)
}

// escape makes text of a master file, in which a backslash is special.
func escape(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }
