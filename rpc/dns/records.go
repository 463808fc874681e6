package dns

import (
	"encoding/hex"
	"net"
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
	target   int    // number of the target among those of the answer
	hash     uint64 // of what the record is about, for rendezvous
	priority uint16
	zone     string
}

// Where in an SRV record, without its owner, the priority and the target are.
const (
	srvPriorityAt = 10
	srvTargetAt   = 16
)

// priorityKey is the metadata with an instance's SRV priority, 0 to 65535; less is preferred.
const priorityKey = "dns-priority"

// defaultPriority is what SRV records have else.
const defaultPriority = 1

// endpoint is what DNS tells of an instance.
type endpoint struct {
	host string     // Empty: addr is set.
	addr netip.Addr // invalid: host is a name
	port uint16     // 0: none
	rec  *fsm.Record
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
	e := endpoint{rec: r}
	eachField(r.Spec(), func(number protowire.Number, value []byte) {
		switch {
		case number == fieldAddress:
			e.host = string(value)
		case number == fieldPorts && e.port == 0:
			if name, n := decodePort(value); port == "" || strings.EqualFold(name, port) {
				e.port = n
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

func (e endpoint) priority() uint16 {
	if text, ok := e.rec.Metadata(priorityKey); ok {
		if p, err := strconv.ParseUint(text, 10, 16); err == nil {
			return uint16(p)
		}
	}
	return defaultPriority
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
	targets map[string]int // by name
	seen    map[string]bool
}

func newPacker(d *domain, ttl uint32) *packer { return &packer{domain: d, ttl: ttl} }

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
	b := p.wire(rr, rtype)
	if b == nil || p.seen[string(b)] {
		return
	}
	if p.seen == nil {
		p.seen = make(map[string]bool)
	}
	p.seen[string(b)] = true
	r := record{rr: b, hash: xxh3.Hash(b)}
	if about.rec != nil {
		r.zone, r.priority = about.rec.Zone(), about.priority()
	}
	if rtype == miekg.TypeSRV {
		r.target, r.glue = p.target(b, about)
		// Weight and priority may change, and the instance be the same.
		r.hash = xxh3.Hash(b[srvPriorityAt+4:])
	}
	p.records = append(p.records, r)
}

// target numbers the target of an SRV record, and makes its glue.
func (p *packer) target(srv []byte, about endpoint) (number int, glue []byte) {
	name := string(srv[srvTargetAt:])
	number, known := p.targets[name]
	if !known {
		if p.targets == nil {
			p.targets = make(map[string]int)
		}
		number = len(p.targets)
		p.targets[name] = number
	}
	if about.addr.IsValid() {
		glue = p.wire(addressRR(about.addr))
	}
	return number, glue
}

func addressRR(addr netip.Addr) (miekg.RR, uint16) {
	ip := net.IP(addr.AsSlice())
	if addr.Is4() {
		return &miekg.A{A: ip}, miekg.TypeA
	}
	return &miekg.AAAA{AAAA: ip}, miekg.TypeAAAA
}

// addresses adds A or AAAA records.
func (p *packer) addresses(endpoints []endpoint, rtype uint16) {
	for _, e := range endpoints {
		if e.is(rtype) {
			rr, _ := addressRR(e.addr)
			p.add(rr, rtype, e)
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

// services adds SRV records.
func (p *packer) services(endpoints []endpoint) {
	for _, e := range endpoints {
		if e.port == 0 || e.addr.Zone() != "" {
			continue
		}
		target := miekg.Fqdn(e.host)
		if e.host == "" {
			target = hex.EncodeToString(e.addr.AsSlice()) + "." + wordAddr + "." + p.domain.name
		}
		p.add(&miekg.SRV{Priority: e.priority(), Weight: uint16(e.rec.Weight()), Port: e.port, Target: target}, miekg.TypeSRV, e)
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
			var kv [2]string
			eachField(pair, func(n protowire.Number, v []byte) {
				if n == 1 || n == 2 {
					kv[n-1] = string(v)
				}
			})
			if strings.HasPrefix(kv[0], rawPrefix) {
				p.text(e, kv[1])
			} else {
				p.text(e, kv[0]+"="+kv[1])
			}
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
