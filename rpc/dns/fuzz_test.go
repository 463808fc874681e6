package dns

import (
	"encoding/binary"
	"testing"

	miekg "github.com/miekg/dns"
)

// FuzzPacket: whatever comes in gets an answer within its limit that others can read, or none.
func FuzzPacket(f *testing.F) {
	for _, name := range []string{"web.service.regd.", "_web._tcp.service.regd.", "w1.web.instance.regd.", "1.0.0.10.in-addr.arpa.", "regd.", "."} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV, miekg.TypeTXT, miekg.TypePTR, miekg.TypeSOA, miekg.TypeANY, miekg.TypeAXFR} {
			r := newRequest(name, qtype)
			plain, err := r.msg.Pack()
			if err != nil {
				f.Fatal(err)
			}
			r.msg.SetEdns0(1232, true)
			extended, err := r.msg.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(plain, false)
			f.Add(extended, true)
		}
	}
	f.Add([]byte{}, false)
	f.Add([]byte("0000\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), false)              // a name that points at itself
	f.Add([]byte("00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00\x01\xc0\xff\x00"), true) // a record that is cut off
	n := newWorld(f)
	s, w := newTestServer(f, n, func(c *Config) { c.Domains = []string{"regd.", "consul."} })
	f.Fuzz(func(t *testing.T, packet []byte, stream bool) {
		if len(packet) > maxQuery {
			return
		}
		r := &request{msg: new(miekg.Msg), client: newRequest(".", 1).client, stream: stream}
		reply, outcome := s.respond(w, packet, r.client, stream)
		if value(t, s.metrics.reasons[reasonFault]) > 0 {
			t.Fatal("a panic")
		}
		isQuery := len(packet) >= headerSize && packet[2]&0x80 == 0
		if (outcome == outcomeAnswered) != isQuery {
			t.Fatalf("outcome %d, it is a query: %v", outcome, isQuery)
		}
		if outcome != outcomeAnswered {
			return
		}
		m := new(miekg.Msg)
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("the answer can't be read: %v\n% x", err, reply)
		}
		if m.Id != binary.BigEndian.Uint16(packet) || !m.Response {
			t.Errorf("the answer is to another query:\n%v", m)
		}
		if limit := w.c.limit(&w.q, stream); len(reply) > limit {
			t.Errorf("%d bytes, the limit is %d", len(reply), limit)
		}
		if len(m.Question) == 1 && string(reply[headerSize:w.q.end]) != string(packet[headerSize:w.q.end]) {
			t.Error("the question is not as it was")
		}
		compare(t, packet, m)
	})
}

// compare holds what was understood of a packet against what the library understands.
func compare(t *testing.T, packet []byte, answer *miekg.Msg) {
	t.Helper()
	q := new(miekg.Msg)
	if err := q.Unpack(packet); err != nil || q.Opcode != miekg.OpcodeQuery || len(q.Question) != 1 ||
		len(q.Answer)+len(q.Ns)+len(q.Extra) > maxExtras || !counted(packet, len(q.Answer), len(q.Ns), len(q.Extra)) {
		return
	}
	if answer.Rcode == miekg.RcodeFormatError {
		options := 0
		for _, rr := range append(append(q.Answer, q.Ns...), q.Extra...) {
			if rr.Header().Rrtype == miekg.TypeOPT {
				options++
			}
		}
		if options > 1 || options == 1 && (q.IsEdns0() == nil || q.IsEdns0().Hdr.Name != ".") || oddQuestion(packet) {
			return
		}
		t.Errorf("FORMERR to\n%v", q)
		return
	}
	if (q.IsEdns0() != nil) != (answer.IsEdns0() != nil) {
		t.Errorf("EDNS in the question: %v, in the answer: %v", q.IsEdns0(), answer.IsEdns0())
	}
}

// counted tells whether the header says the truth about what follows: the library accepts less.
func counted(packet []byte, counts ...int) bool {
	for i, n := range counts {
		if int(binary.BigEndian.Uint16(packet[6+2*i:])) != n {
			return false
		}
	}
	return true
}

// oddQuestion tells whether the name of the question has a pointer, or what follows it is missing: the library accepts both.
func oddQuestion(packet []byte) bool {
	at := headerSize
	for at < len(packet) && packet[at] != 0 {
		if packet[at] > maxLabel {
			return true
		}
		at += 1 + int(packet[at])
	}
	const rest = 1 + 2 + 2
	return at+rest > len(packet)
}

// FuzzName: any name in any of the forms is answered, and as the same name in capital letters is.
func FuzzName(f *testing.F) {
	for _, name := range []string{
		"web.service", "v1.web.service", "_web._tcp", "_http._tcp.web.service", "web.staging.svc", "w1.web.instance", "n1.node", "0a000001.addr",
		"web.service.staging.ns", "a..b.service", "", "service", "_._.service", "._tcp.service", "1.web.service.dc1.dc", "dc", "_tcp", "_tcp.web.service",
	} {
		f.Add(name, miekg.TypeA)
		f.Add(name, miekg.TypeSRV)
	}
	s, w := newTestServer(f, newWorld(f), func(c *Config) { c.Datacenter = "dc1" })
	f.Fuzz(func(t *testing.T, name string, qtype uint16) {
		name += ".regd."
		if _, ok := miekg.IsDomainName(name); !ok {
			return
		}
		r := newRequest(name, qtype)
		packet, err := r.msg.Pack()
		if err != nil {
			return
		}
		first := unpack(t, respond(t, s, w, packet, r))
		upper := append([]byte(nil), packet...)
		for i, c := range upper[headerSize:w.q.end] {
			if 'a' <= c && c <= 'z' {
				upper[headerSize+i] = c - 'a' + 'A'
			}
		}
		second := unpack(t, respond(t, s, w, upper, r))
		if first.Rcode != second.Rcode || len(first.Answer) != len(second.Answer) {
			t.Errorf("%q: in capital letters it is another\n%v\n%v", name, first, second)
		}
		if len(first.Answer) == 0 && first.Rcode != miekg.RcodeRefused && len(first.Ns) != 1 {
			t.Errorf("%q: nothing, and no SOA\n%v", name, first)
		}
		if first.Rcode == miekg.RcodeNameError && len(first.Answer) > 0 {
			t.Errorf("%q: absent, with records\n%v", name, first)
		}
	})
}
