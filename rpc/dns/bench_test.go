package dns

import (
	"fmt"
	"testing"

	miekg "github.com/miekg/dns"
)

// BenchmarkRespond is what a query costs between the sockets, when its answer is known.
func BenchmarkRespond(b *testing.B) {
	for _, instances := range []int{10, 1000} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
			b.Run(fmt.Sprintf("%s/%d", miekg.TypeToString[qtype], instances), func(b *testing.B) {
				s, w := newTestServer(b, many(b, instances))
				w.c.pick = random
				r := newRequest("big.service.regd.", qtype)
				r.msg.SetEdns0(1232, false)
				packet, err := r.msg.Pack()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					respond(b, s, w, packet, r)
				}
			})
		}
	}
}

// BenchmarkTranslate is what the first query after a change of the service costs more.
func BenchmarkTranslate(b *testing.B) {
	for _, instances := range []int{10, 1000} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
			b.Run(fmt.Sprintf("%s/%d", miekg.TypeToString[qtype], instances), func(b *testing.B) {
				n := many(b, instances)
				s, _ := newTestServer(b, n)
				st := n.state.Load()
				b.ReportAllocs()
				for b.Loop() {
					if a, _ := s.translator.translate(st, s.domains[0], "big.service", qtype, source{}); len(a.records) != instances {
						b.Fatalf("%d records", len(a.records))
					}
				}
			})
		}
	}
}

// BenchmarkAbsent is what a name costs that does not exist.
func BenchmarkAbsent(b *testing.B) {
	s, w := newTestServer(b, newWorld(b))
	r := newRequest("a.b.c.nope.service.regd.", miekg.TypeA)
	packet, err := r.msg.Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		respond(b, s, w, packet, r)
	}
}
