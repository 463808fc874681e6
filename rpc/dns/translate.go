package dns

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// answer is what a State has to say to a question, but for what depends on who asks.
type answer struct {
	rcode   int
	records []record
	size    int  // of the records, with a pointer as owner each
	glued   bool // Some have glue.
	one     bool // Of the records one is answered: a name has one alias.
	varied  bool // They differ in priority.
	zoned   bool // Some are in a zone.
	denied  bool // There is more, which anonymous may not see.
}

// translator answers questions from a State. It is immutable, but for what it remembers of the last State.
type translator struct {
	minHealth  registryv1.Health
	unhealthy  Unhealthy
	ttl        time.Duration
	ttls       []ServiceTTL
	datacenter string
	main       *domain // names in PTR records are in it
	index      *index
}

// source says what an answer was made from, so that it need not be made again.
type source struct {
	service         string // empty: it is not to be kept
	epoch, revision uint64
}

// translate answers what a name before a domain, in lower case, and a type ask for. known says what the last answer to the
// same was made from: if that is still so, the answer is nil.
func (t *translator) translate(st *fsm.State, d *domain, rest string, qtype uint16, known source) (*answer, source) {
	if d.reverse {
		return t.reverse(st, rest, d, qtype), source{}
	}
	a := parseName(rest, t.datacenter)
	switch a.kind {
	case kindBranch:
		return nothing(), source{}
	case kindApex:
		return t.apex(st, d, qtype), source{}
	case kindNameserver:
		return t.nameserver(st, d, qtype), source{}
	case kindNode:
		return t.node(st, d, strings.Join(a.head, "."), qtype), source{}
	case kindAddress:
		return t.address(d, a.head, qtype), source{}
	case kindService, kindPortsOf, kindInstance:
		return t.inService(st, d, a, qtype, known)
	default:
		return absent(), source{}
	}
}

func nothing() *answer { return &answer{} }

func absent() *answer { return &answer{rcode: miekg.RcodeNameError} }

// unless makes an answer that something is hidden.
func (a *answer) unless(denied bool) *answer {
	a.denied = denied
	return a
}

// done makes an answer of records.
func (p *packer) done() *answer {
	a := &answer{records: p.records}
	for i := range p.records {
		r := &p.records[i]
		a.size += 2 + len(r.rr)
		a.glued = a.glued || r.glue != nil
		a.varied = a.varied || r.priority != p.records[0].priority
		a.zoned = a.zoned || r.zone != ""
	}
	return a
}

// inService answers about a service and its instances.
func (t *translator) inService(st *fsm.State, d *domain, a asked, qtype uint16, known source) (*answer, source) {
	svc, before, denied := t.find(st, a)
	if svc == nil {
		if !denied && t.index.branch(st, a.namespace, strings.Join(a.head, ".")) {
			return nothing(), source{}
		}
		return absent().unless(denied), source{}
	}
	from := source{svc.Name(), st.Epoch(), svc.Revision()}
	if from == known {
		return nil, from
	}
	if a.kind == kindPortsOf || a.kind == kindInstance && before == "" {
		return nothing(), source{}
	}
	var ans *answer
	switch {
	case before != "" && a.ids:
		ans = t.instance(svc, d, before, qtype)
	case before != "":
		a.tag = before
		fallthrough
	default:
		ans = t.service(svc, d, a, qtype)
	}
	if ans.rcode != 0 { // Anybody can make up tags and ids.
		from = source{}
	}
	return ans, from
}

// find finds the service that a name asks for, and the labels before it. If several services could be meant, it is the one
// with the longest name.
func (t *translator) find(st *fsm.State, a asked) (svc *fsm.Service, before string, denied bool) {
	head := a.head
	if a.service != "" {
		head = []string{a.service}
	}
	for i := range head {
		svc = t.index.service(st, a.namespace, strings.Join(head[i:], "."))
		if svc == nil {
			continue
		}
		if visible(st, svc.Namespace(), svc.Name()) {
			return svc, strings.Join(head[:i], "."), false
		}
		denied = true
	}
	return nil, "", denied
}

func visible(st *fsm.State, namespace, service string) bool {
	return st.Allowed(fsm.Anonymous, registryv1.Action_ACTION_DISCOVER, namespace, service)
}

// ttlOf returns the TTL of a service's records, in seconds.
func (t *translator) ttlOf(service string) uint32 {
	ttl := t.ttl
	for _, s := range t.ttls {
		prefix, wild := strings.CutSuffix(s.Service, "*")
		if s.Service == service || wild && strings.HasPrefix(service, prefix) {
			ttl = s.TTL
			break
		}
	}
	return uint32(ttl / time.Second)
}

// service answers about those instances of a service that a name asks for.
func (t *translator) service(svc *fsm.Service, d *domain, a asked, qtype uint16) *answer {
	endpoints, exists := t.endpoints(svc, a)
	if !exists {
		return absent()
	}
	p := newPacker(d, t.ttlOf(svc.Name()))
	switch qtype {
	case miekg.TypeA, miekg.TypeAAAA, miekg.TypeCNAME:
		p.addresses(endpoints, qtype)
		if !a.srv { // There SRV records are: no CNAME may be beside them.
			p.aliases(endpoints)
		}
		ans := p.done()
		ans.one = len(p.records) > 0 && isType(p.records[0].rr, miekg.TypeCNAME)
		return ans
	case miekg.TypeSRV:
		p.services(endpoints)
	case miekg.TypeTXT:
		p.metadata(endpoints)
	case miekg.TypeANY:
		p.refuseAny()
	}
	return p.done()
}

func isType(rr []byte, rtype uint16) bool { return binary.BigEndian.Uint16(rr) == rtype }

// refuseAny adds what is answered to ANY: RFC 8482, section 4.2.
func (p *packer) refuseAny() { p.add(&miekg.HINFO{Cpu: "RFC8482"}, miekg.TypeHINFO, endpoint{}) }

// endpoints returns the instances that are to be answered, and whether the name exists: whether an instance, healthy or not, has the
// tag and the port.
func (t *translator) endpoints(svc *fsm.Service, a asked) (list []endpoint, exists bool) {
	var rest []endpoint // Healthy instances are more, most of the time.
	svc.Ascend("", func(r *fsm.Record) bool {
		has, branch := hasTag(r, a.tag)
		exists = exists || branch
		if !has {
			return true
		}
		e := newEndpoint(r, a.port)
		if a.port != "" && e.port == 0 {
			return true
		}
		exists = true
		switch {
		case r.Draining() || r.Maintenance():
		case r.Health() >= t.minHealth:
			list = append(list, e)
		case t.unhealthy == UnhealthyAll:
			rest = append(rest, e)
		}
		return true
	})
	if len(list) == 0 {
		list = rest
	}
	return list, exists
}

// hasTag tells whether an instance has a tag, in whatever case, and whether one that ends in it, so that names below it exist.
func hasTag(r *fsm.Record, tag string) (has, branch bool) {
	if tag == "" {
		return true, false
	}
	for _, have := range r.Tags() {
		has = has || strings.EqualFold(have, tag)
		branch = branch || endsInLabels(have, tag)
	}
	return has, branch
}

// endsInLabels tells whether a dotted name ends in another, in whatever case.
func endsInLabels(name, end string) bool {
	at := len(name) - len(end)
	return at > 0 && name[at-1] == '.' && strings.EqualFold(name[at:], end)
}

// instance answers about one instance, whatever its health: the name says which.
func (t *translator) instance(svc *fsm.Service, d *domain, id string, qtype uint16) *answer {
	found, branch := svc.Instance(id), false
	if found == nil {
		svc.Ascend("", func(r *fsm.Record) bool {
			if strings.EqualFold(r.ID(), id) {
				found = r
			}
			branch = branch || endsInLabels(r.ID(), id)
			return found == nil
		})
	}
	switch {
	case found != nil:
		p := newPacker(d, t.ttlOf(svc.Name()))
		p.single(newEndpoint(found, ""), qtype)
		return p.done()
	case branch:
		return nothing()
	default:
		return absent()
	}
}

// single adds the records of one endpoint.
func (p *packer) single(e endpoint, qtype uint16) {
	list := []endpoint{e}
	switch qtype {
	case miekg.TypeA, miekg.TypeAAAA, miekg.TypeCNAME:
		p.addresses(list, qtype)
		p.aliases(list)
	case miekg.TypeANY:
		p.refuseAny()
	case miekg.TypeSRV:
		p.services(list)
	case miekg.TypeTXT:
		p.metadata(list)
	}
}

// address answers about an address that is written in the name, in hexadecimal digits; a port may be before it.
func (t *translator) address(d *domain, head []string, qtype uint16) *answer {
	if len(head) == 2 {
		if _, err := strconv.ParseUint(head[0], 10, 16); err != nil {
			return absent()
		}
		head = head[1:]
	}
	raw, err := hex.DecodeString(strings.Join(head, "."))
	addr, ok := netip.AddrFromSlice(raw)
	if err != nil || !ok {
		return absent()
	}
	p := newPacker(d, uint32(t.ttl/time.Second))
	if e := (endpoint{addr: addr}); e.is(qtype) {
		p.addresses([]endpoint{e}, qtype)
	} else if qtype == miekg.TypeANY {
		p.refuseAny()
	}
	return p.done()
}

// mayObserve tells whether anonymous may see the nodes of the cluster.
func mayObserve(st *fsm.State) bool {
	return st.Allowed(fsm.Anonymous, registryv1.Action_ACTION_OBSERVE, "", "")
}

// node answers about a node of the cluster.
func (t *translator) node(st *fsm.State, d *domain, name string, qtype uint16) *answer {
	members := st.Members()
	i := slices.IndexFunc(members, func(m *registryv1.Member) bool { return strings.EqualFold(m.GetName(), name) })
	switch {
	case i < 0 && slices.ContainsFunc(members, func(m *registryv1.Member) bool { return endsInLabels(m.GetName(), name) }):
		return nothing()
	case i < 0:
		return absent()
	case !mayObserve(st):
		return absent().unless(true)
	}
	p := newPacker(d, uint32(t.ttl/time.Second))
	e := memberEndpoint(members[i])
	switch qtype {
	case miekg.TypeTXT:
		p.text(endpoint{}, "id="+members[i].GetId())
		p.text(endpoint{}, "version="+members[i].GetVersion())
	case miekg.TypeSRV: // Nodes have no port of their own.
	case miekg.TypeA, miekg.TypeAAAA, miekg.TypeCNAME:
		p.addresses([]endpoint{e}, qtype)
		if e.host != "" {
			p.add(&miekg.CNAME{Target: miekg.Fqdn(e.host)}, miekg.TypeCNAME, endpoint{})
		}
	case miekg.TypeANY:
		p.refuseAny()
	}
	return p.done()
}

// memberEndpoint is where clients reach a node.
func memberEndpoint(m *registryv1.Member) endpoint {
	for _, address := range []string{m.GetGrpcAddress(), m.GetPeerAddress()} {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		if addr, err := netip.ParseAddr(host); err == nil {
			return endpoint{addr: addr.Unmap()}
		}
		return endpoint{host: host}
	}
	return endpoint{}
}

// apex answers about the domain itself.
func (t *translator) apex(st *fsm.State, d *domain, qtype uint16) *answer {
	p := newPacker(d, uint32(t.ttl/time.Second))
	switch qtype {
	case miekg.TypeSOA:
		p.records = []record{{rr: d.appendSOA(nil, uint32(st.Revision()))}}
	case miekg.TypeNS:
		p.add(&miekg.NS{Ns: wordNS + "." + d.name}, miekg.TypeNS, endpoint{})
	case miekg.TypeANY:
		p.refuseAny()
	}
	return p.done()
}

// nameserver answers about the name that NS records give: it has the addresses of all nodes.
func (t *translator) nameserver(st *fsm.State, d *domain, qtype uint16) *answer {
	if !mayObserve(st) {
		return nothing()
	}
	p := newPacker(d, uint32(t.ttl/time.Second))
	for _, m := range st.Members() {
		p.addresses([]endpoint{memberEndpoint(m)}, qtype)
	}
	return p.done()
}

// reverse answers which instances and nodes have an address.
func (t *translator) reverse(st *fsm.State, rest string, d *domain, qtype uint16) *answer {
	addr, whole, ok := parseReverse(rest, d)
	switch {
	case !ok:
		return absent()
	case !whole:
		return nothing()
	}
	p := newPacker(d, uint32(t.ttl/time.Second))
	names, denied := t.index.names(st, addr, t.main)
	if len(names) == 0 {
		return absent().unless(denied)
	}
	switch qtype {
	case miekg.TypePTR:
		for _, name := range names {
			p.add(&miekg.PTR{Ptr: name}, miekg.TypePTR, endpoint{})
		}
	case miekg.TypeANY:
		p.refuseAny()
	}
	return p.done()
}

// parseReverse reads an address backwards. whole is false if it is the beginning of some.
func parseReverse(rest string, d *domain) (addr netip.Addr, whole, ok bool) {
	var labels []string
	if rest != "" {
		labels = strings.Split(rest, ".")
	}
	slices.Reverse(labels)
	if d.name == reverse4 {
		missing := 4 - len(labels)
		if missing < 0 {
			return addr, false, false
		}
		for range missing {
			labels = append(labels, "0")
		}
		v4, err := netip.ParseAddr(strings.Join(labels, "."))
		return v4, missing == 0, err == nil
	}
	const digits = 32
	missing := digits - len(labels)
	if missing < 0 || slices.ContainsFunc(labels, func(l string) bool { return len(l) != 1 }) {
		return addr, false, false
	}
	raw, err := hex.DecodeString(strings.Join(labels, "") + strings.Repeat("0", missing))
	addr, _ = netip.AddrFromSlice(raw)
	return addr.Unmap(), missing == 0, err == nil
}
