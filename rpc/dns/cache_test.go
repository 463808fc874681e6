package dns

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"
	"pgregory.net/rapid"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestCachedAnswersAreThoseOfTheState compares, after each of some random changes, what a server with a memory answers with
// what one without does.
func TestCachedAnswersAreThoseOfTheState(t *testing.T) {
	t.Parallel()
	names := []string{
		"web.service.regd.", "v1.web.service.regd.", "web.default.svc.regd.", "i1.web.instance.regd.", "_web._tcp.service.regd.",
		"_main._tcp.web.service.regd.", "wEB.service.regd.",
	}
	// What a new server answers is what one does that remembers nothing.
	forgetful, other := newTestServer(t, newFakeNode(t))
	rapid.Check(t, func(rt *rapid.T) {
		n := newFakeNode(t)
		s, w := newTestServer(t, n)
		s.translator.index.odd.period = 0
		hidden := false
		for range rapid.IntRange(1, 12).Draw(rt, "changes") {
			service := rapid.SampledFrom([]string{"web", "v1.web", "Web"}).Draw(rt, "service")
			id := fmt.Sprintf("i%d", rapid.IntRange(1, 3).Draw(rt, "id"))
			st := n.state.Load()
			switch rapid.IntRange(0, 4).Draw(rt, "change") {
			case 0, 1:
				health := rapid.SampledFrom([]func(*registryv1.Instance){critical, warning, weight(7)}).Draw(rt, "health")
				n.register(instance(fmt.Sprintf("%s/%s 10.0.0.%d 80 v1", service, id, rapid.IntRange(1, 9).Draw(rt, "address")), health))
			case 2:
				if st.Instance("default", service, id) != nil {
					n.deregister("default", service, id)
				}
			case 3:
				if st.Instance("default", service, id) != nil {
					n.drain("default", service, id)
				}
			case 4:
				if !hidden {
					hidden = true
					n.enforce(&registryv1.Rule{Actions: []registryv1.Action{registryv1.Action_ACTION_DISCOVER}, Namespace: "*", Name: "web"})
				}
			}
			forgetful.node, forgetful.cache, forgetful.translator.index = n, newCache(), newIndex()
			for _, name := range names {
				for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
					want, got := describe(query(t, forgetful, other, name, qtype)), describe(query(t, s, w, name, qtype))
					if diff := cmp.Diff(want, got); diff != "" {
						rt.Fatalf("%s is remembered wrongly (-new +remembered):\n%s", name, diff)
					}
				}
			}
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	n := many(t, 500)
	c := newCache()
	s, _ := newTestServer(t, n)
	big, from := s.translator.translate(n.state.Load(), s.domains[0], "big.service", miekg.TypeA, source{})
	for _, a := range []*answer{big, {}} {
		most := 0
		for i := range 2 * maxCached {
			c.put(cacheKey{s.domains[0], fmt.Sprint(i), miekg.TypeA}, &cached{from: from, answer: a})
			most = max(most, len(c.entries))
			if c.size > maxCachedBytes {
				t.Fatalf("%d bytes are remembered", c.size)
			}
		}
		if most < 100 || most > maxCached {
			t.Errorf("%d answers were remembered at most", most)
		}
	}
	sum := 0
	for _, e := range c.entries {
		sum += e.bytes()
	}
	if sum != c.size {
		t.Errorf("%d bytes are remembered, %d are counted", sum, c.size)
	}
}

// TestOnlyNamesOfServicesAreRemembered: else whoever makes up names would push out the others.
func TestOnlyNamesOfServicesAreRemembered(t *testing.T) {
	t.Parallel()
	s, w := newTestServer(t, newWorld(t))
	for i := range 100 {
		query(t, s, w, fmt.Sprintf("x%d.service.regd.", i), miekg.TypeA)
		query(t, s, w, fmt.Sprintf("x%d.web.service.regd.", i), miekg.TypeA)
		query(t, s, w, fmt.Sprintf("x%d.web.instance.regd.", i), miekg.TypeA)
		query(t, s, w, fmt.Sprintf("%08x.addr.regd.", i), miekg.TypeA)
		query(t, s, w, "web.service.regd.", uint16(1000+i))
	}
	if len(s.cache.entries) != 0 {
		t.Errorf("%d answers are remembered", len(s.cache.entries))
	}
	query(t, s, w, "web.service.regd.", miekg.TypeA)
	query(t, s, w, "WEB.service.regd.", miekg.TypeA)
	if len(s.cache.entries) != 1 {
		t.Errorf("%d answers are remembered, want 1", len(s.cache.entries))
	}
}

func TestQueriesAllocateNothing(t *testing.T) {
	n := many(t, 1000)
	s, w := newTestServer(t, n)
	w.c.pick = random
	for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
		r := newRequest("big.service.regd.", qtype)
		r.msg.SetEdns0(1232, false)
		packet, err := r.msg.Pack()
		if err != nil {
			t.Fatal(err)
		}
		respond(t, s, w, packet, r)
		if allocs := testing.AllocsPerRun(100, func() { respond(t, s, w, packet, r) }); allocs > 0 {
			t.Errorf("%s: %v allocations", miekg.TypeToString[qtype], allocs)
		}
	}
}
