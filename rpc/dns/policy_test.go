package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestHealthPolicies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		health    registryv1.Health
		unhealthy Unhealthy
		name      string
		want      []string
	}{
		{0, "", "web", []string{"10.0.0.1", "10.0.0.2", "10.0.0.7"}},
		{registryv1.Health_HEALTH_PASSING, "", "web", []string{"10.0.0.1", "10.0.0.2"}},
		{registryv1.Health_HEALTH_PASSING, UnhealthyAll, "web", []string{"10.0.0.1", "10.0.0.2"}},
		{registryv1.Health_HEALTH_PASSING, UnhealthyEmpty, "v3.web", nil},
		{registryv1.Health_HEALTH_PASSING, UnhealthyAll, "v3.web", []string{"10.0.0.7"}},
		{registryv1.Health_HEALTH_WARNING, UnhealthyEmpty, "v3.web", []string{"10.0.0.7"}},
		{registryv1.Health_HEALTH_WARNING, UnhealthyEmpty, "sick", nil},
		// Draining ones are left out also then.
		{registryv1.Health_HEALTH_WARNING, UnhealthyAll, "sick", []string{"10.0.2.1", "10.0.2.2"}},
	} {
		s, w := newTestServer(t, newWorld(t), func(c *Config) { c.MinHealth, c.Unhealthy = tt.health, tt.unhealthy })
		m := query(t, s, w, tt.name+".service.regd.", miekg.TypeA)
		if diff := cmp.Diff(tt.want, texts(m)); diff != "" || m.Rcode != miekg.RcodeSuccess {
			t.Errorf("%s, health %v, unhealthy %q: %s (-want +got)\n%s", tt.name, tt.health, tt.unhealthy, codeName(m.Rcode), diff)
		}
	}
}

func TestStalenessPolicies(t *testing.T) {
	t.Parallel()
	const fresh, old, unknown = time.Second, 6 * time.Second, -1
	for _, tt := range []struct {
		name   string
		policy Stale
		ages   []time.Duration
		fails  bool
		want   int // rcode of the last
		stale  float64
	}{
		{"fresh", StaleServe, []time.Duration{fresh}, false, miekg.RcodeSuccess, 0},
		{"old, served", StaleServe, []time.Duration{fresh, old}, false, miekg.RcodeSuccess, 1},
		{"of unknown age, served", StaleServe, []time.Duration{fresh, unknown}, false, miekg.RcodeSuccess, 1},
		{"never fresh", StaleServe, []time.Duration{unknown, old}, false, miekg.RcodeServerFailure, 0},
		{"old, refused", StaleFail, []time.Duration{fresh, old}, false, miekg.RcodeServerFailure, 0},
		{"fresh again", StaleFail, []time.Duration{old, fresh}, false, miekg.RcodeSuccess, 0},
		{"the node does not serve", StaleServe, []time.Duration{fresh, fresh}, true, miekg.RcodeServerFailure, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newWorld(t)
			s, w := newTestServer(t, n, func(c *Config) { c.Stale, c.MaxStale = tt.policy, 5*time.Second })
			var m *miekg.Msg
			for i, age := range tt.ages {
				n.age.Store(int64(age))
				if err := errors.New("removed"); tt.fails && i == len(tt.ages)-1 {
					n.fails.Store(&err)
				}
				m = query(t, s, w, "web.service.regd.", miekg.TypeA)
			}
			if m.Rcode != tt.want {
				t.Errorf("answered %s, want %s", codeName(m.Rcode), codeName(tt.want))
			}
			if got := value(t, s.metrics.stale); got != tt.stale {
				t.Errorf("%v stale answers are counted, want %v", got, tt.stale)
			}
		})
	}
}

func TestWhatAnonymousMayNotSeeIsAbsent(t *testing.T) {
	t.Parallel()
	n := newWorld(t)
	s, w := newTestServer(t, n)
	names := map[string]uint16{
		"web.service.regd.": miekg.TypeA, "v1.web.service.regd.": miekg.TypeA, "_web._tcp.service.regd.": miekg.TypeSRV,
		"w1.web.instance.regd.": miekg.TypeA, "web.default.svc.regd.": miekg.TypeA, "n1.node.regd.": miekg.TypeA,
		"1.0.0.10.in-addr.arpa.": miekg.TypePTR, "1.0.9.10.in-addr.arpa.": miekg.TypePTR, "beta.shop.service.regd.": miekg.TypeA,
	}
	for name, qtype := range names {
		if m := query(t, s, w, name, qtype); len(m.Answer) == 0 {
			t.Errorf("%s is not there while access control is off:\n%s", name, describe(m))
		}
	}
	n.enforce(&registryv1.Rule{Actions: []registryv1.Action{registryv1.Action_ACTION_DISCOVER}, Namespace: "default", Name: "shop"})
	for name, qtype := range names {
		denied := value(t, s.metrics.denied)
		m := query(t, s, w, name, qtype)
		if name == "beta.shop.service.regd." {
			// The service beta.shop is hidden, the tag beta of the service shop is not.
			if diff := cmp.Diff([]string{"10.0.5.2"}, texts(m)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			continue
		}
		if m.Rcode != miekg.RcodeNameError || len(m.Answer)+len(m.Extra) > 0 || value(t, s.metrics.denied) != denied+1 {
			t.Errorf("%s is seen, or not counted:\n%s", name, describe(m))
		}
	}
	for _, name := range []string{"nope.service.regd.", "gateway.service.regd.", "9.9.9.9.in-addr.arpa."} {
		denied := value(t, s.metrics.denied)
		if m := query(t, s, w, name, miekg.TypePTR); m.Rcode != miekg.RcodeNameError || value(t, s.metrics.denied) != denied {
			t.Errorf("%s is seen, or counted as denied:\n%s", name, describe(m))
		}
	}
}

// many returns a node with a service of so many instances.
func many(tb testing.TB, count int) *fakeNode {
	tb.Helper()
	n := newFakeNode(tb)
	var all []*registryv1.Instance
	for i := range count {
		all = append(all, instance(fmt.Sprintf("big/i%05d 10.1.%d.%d %d", i, i/250, i%250+1, 1000+i)))
	}
	n.register(all...)
	return n
}

func TestAnswersKeepToTheSizeThatTheClientTakes(t *testing.T) {
	t.Parallel()
	n := many(t, 200)
	for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
		for _, tt := range []struct {
			edns, config, limit int
		}{
			{0, 0, 512},
			{0, 4096, 512},
			{100, 0, 512},
			{512, 0, 512},
			{700, 0, 700},
			{1232, 0, 1232},
			{4096, 0, 1232},
			{4096, 4096, 4096},
			{65535, 4096, 4096},
			{65535, 512, 512},
		} {
			s, w := newTestServer(t, n, func(c *Config) { c.UDPSize = tt.config })
			r := newRequest("big.service.regd.", qtype)
			if tt.edns > 0 {
				r.msg.SetEdns0(uint16(tt.edns), false)
			}
			packet, _ := r.msg.Pack()
			reply := respond(t, s, w, packet, r)
			m := unpack(t, reply)
			complete := len(m.Answer) == 200
			if len(reply) > tt.limit || len(m.Answer) == 0 || m.Truncated == complete {
				t.Errorf("%s, EDNS %d, configured %d: %d bytes, %d records, truncated %v",
					miekg.TypeToString[qtype], tt.edns, tt.config, len(reply), len(m.Answer), m.Truncated)
			}
			record := 16
			if qtype == miekg.TypeSRV {
				record = 43
			}
			if room := tt.limit - len(reply); !complete && room >= record+11 {
				t.Errorf("%s, EDNS %d: %d bytes are left, enough for another record", miekg.TypeToString[qtype], tt.edns, room)
			}
		}
	}
}

// TestLargeAnswersByTCP: what does not fit is left out, the same for the same client, and it is counted.
func TestLargeAnswersByTCP(t *testing.T) {
	t.Parallel()
	n := many(t, 2000)
	s, w := newTestServer(t, n)
	w.c.pick = random
	get := func(client string) ([]string, *miekg.Msg) {
		r := newRequest("big.service.regd.", miekg.TypeSRV)
		r.stream, r.client = true, netip.MustParseAddr(client)
		m := ask(t, s, w, r)
		return texts(m), m
	}
	first, m := get("192.0.2.1")
	again, _ := get("192.0.2.1")
	other, _ := get("192.0.2.2")
	if len(first) < 1300 || len(first) == 2000 || m.Truncated {
		t.Errorf("%d records, truncated %v", len(first), m.Truncated)
	}
	if !slices.Equal(first, again) {
		t.Error("the same client got others")
	}
	slices.Sort(first)
	slices.Sort(other)
	if slices.Equal(first, other) {
		t.Error("all clients get the same part")
	}
	if got := value(t, s.metrics.cut[1]); got != 3 {
		t.Errorf("%v parts are counted, want 3", got)
	}
	// One instance less moves no other.
	n.deregister("default", "big", "i00000")
	fewer, _ := get("192.0.2.1")
	if missing := slices.DeleteFunc(slices.Clone(first), func(s string) bool { return slices.Contains(fewer, s) }); len(missing) > 1 {
		t.Errorf("with one instance less, %d others are missing", len(missing))
	}
}

func TestGlueIsForTheRecordsThatAreThereAndBehindThem(t *testing.T) {
	t.Parallel()
	n := many(t, 1000)
	s, w := newTestServer(t, n)
	for _, stream := range []bool{false, true} {
		r := newRequest("big.service.regd.", miekg.TypeSRV)
		r.stream = stream
		m := ask(t, s, w, r)
		targets := map[string]bool{}
		for _, rr := range m.Answer {
			srv, _ := rr.(*miekg.SRV)
			targets[srv.Target] = true
		}
		for _, rr := range m.Extra {
			if !targets[rr.Header().Name] {
				t.Errorf("glue for %s, which is no target, or comes twice", rr.Header().Name)
			}
			delete(targets, rr.Header().Name)
		}
		if stream && len(m.Answer) != 1000 || len(m.Extra) == 0 && stream {
			t.Errorf("%d records, %d with glue", len(m.Answer), len(m.Extra))
		}
	}
}

func TestShuffleFavoursNobody(t *testing.T) {
	t.Parallel()
	s, w := newTestServer(t, many(t, 10))
	w.c.pick = random
	const rounds = 1000
	first := map[string]int{}
	for range rounds {
		first[texts(query(t, s, w, "big.service.regd.", miekg.TypeA))[0]]++
	}
	// Binomial, mean 100, deviation 9.5: 6 of them are missed once in 10^7 runs of this test.
	for address, count := range first {
		if count < 43 || count > 157 {
			t.Errorf("%s came first %d times of %d", address, count, rounds)
		}
	}
	if len(first) != 10 {
		t.Errorf("%d instances came first", len(first))
	}
}

func TestRendezvousKeepsItsOrder(t *testing.T) {
	t.Parallel()
	n := many(t, 20)
	s, w := newTestServer(t, n, func(c *Config) { c.Order = OrderRendezvous })
	order := func(client string) []string {
		r := newRequest("big.service.regd.", miekg.TypeA)
		r.client = netip.MustParseAddr(client)
		return texts(ask(t, s, w, r))
	}
	before := order("192.0.2.1")
	if slices.Equal(before, order("192.0.2.2")) {
		t.Error("two clients see the same order")
	}
	n.deregister("default", "big", "i00007")
	want := slices.DeleteFunc(before, func(a string) bool { return a == "10.1.0.8" })
	if diff := cmp.Diff(want, order("192.0.2.1")); diff != "" {
		t.Errorf("the order changed with an instance gone (-want +got):\n%s", diff)
	}
}

func TestOneOfSeveralAliasesIsAnswered(t *testing.T) {
	t.Parallel()
	s, w := newTestServer(t, newWorld(t))
	w.c.pick = random
	seen := map[string]bool{}
	for range 200 { // One of the two is missed once in 10^60 runs.
		m := query(t, s, w, "hosts.service.regd.", miekg.TypeA)
		if len(m.Answer) != 1 {
			t.Fatalf("%d aliases", len(m.Answer))
		}
		seen[texts(m)[0]] = true
	}
	if len(seen) != 2 {
		t.Errorf("only %v was answered", seen)
	}
}

func TestFaultsOfAConfigurationAreTold(t *testing.T) {
	t.Parallel()
	err := Config{
		Listen: "nonsense", Domains: []string{`bad\domain`, "."}, Datacenter: "a.b", MinHealth: registryv1.Health_HEALTH_CRITICAL,
		Unhealthy: "x", Stale: "x", Order: "x", TTL: time.Millisecond, NegativeTTL: -time.Second, MaxStale: -1, UDPSize: 100, RateLimit: -1,
		ServiceTTLs: []ServiceTTL{{"web", 48 * time.Hour}},
	}.Validate()
	for _, want := range []string{
		`listen "nonsense"`, `domain "bad\\domain"`, `domain "."`, `datacenter "a.b"`, "health HEALTH_CRITICAL", `unhealthy "x"`, `stale "x"`, `order "x"`,
		"ttl 1ms: must be whole seconds", "negative-ttl -1s", "service-ttl web 48h0m0s", "max-stale -1ns", "udp-size 100: must be 512 to 4096", "rate-limit -1",
	} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q is missing:\n%v", want, err)
		}
	}
	for _, listen := range []string{"127.0.0.1:53", ":53", "[::]:53", "localhost:0"} {
		if err := (Config{Listen: listen}).Validate(); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
}
