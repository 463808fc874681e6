package dns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

func TestRateIsLimitedByClient(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	l := newLimiter(10, now)
	count := func(client string, tries int) (allowed int) {
		for range tries {
			if l.allow(netip.MustParseAddr(client), now) {
				allowed++
			}
		}
		return allowed
	}
	for _, tt := range []struct {
		name, client string
		after        time.Duration
		want         int
	}{
		{"a burst", "192.0.2.1", 0, 10},
		{"and no more", "192.0.2.1", 0, 0},
		{"as time goes by", "192.0.2.1", 300 * time.Millisecond, 3},
		{"another client", "192.0.2.2", 0, 10},
		{"of IPv6", "2001:db8::1", 0, 10},
		{"in the same network", "2001:db8::2", 0, 0},
		{"in another network", "2001:db8:0:1::1", 0, 10},
		{"this machine", "127.0.0.1", 0, 100},
		{"never more than a burst", "192.0.2.1", time.Hour, 10},
	} {
		now = now.Add(tt.after)
		if got := count(tt.client, 100); got != tt.want {
			t.Errorf("%s: %d of 100 are allowed, want %d", tt.name, got, tt.want)
		}
	}
	if l := newLimiter(0, now); !l.allow(netip.MustParseAddr("192.0.2.1"), now) {
		t.Error("no limit limits")
	}
}

// TestBeyondTheRateHalfIsAskedToComeByTCP: whoever is really there then can.
func TestBeyondTheRateHalfIsAskedToComeByTCP(t *testing.T) {
	t.Parallel()
	s, w := newTestServer(t, newWorld(t), func(c *Config) { c.RateLimit = 1 })
	outcomes := map[string]int{}
	for range 11 {
		r := newRequest("web.service.regd.", miekg.TypeA)
		packet, _ := r.msg.Pack()
		reply, outcome := s.respond(w, packet, r.client, false)
		if outcome == outcomeDropped {
			outcomes["dropped"]++
			continue
		}
		m := unpack(t, reply)
		outcomes[fmt.Sprintf("truncated %v, %d records", m.Truncated, len(m.Answer))]++
		if len(reply) > len(packet) && m.Truncated {
			t.Errorf("%d bytes answer %d", len(reply), len(packet))
		}
	}
	for outcome, want := range map[string]int{"truncated false, 3 records": 1, "truncated true, 0 records": 5, "dropped": 5} {
		if outcomes[outcome] != want {
			t.Errorf("%s: %d, want %d (%v)", outcome, outcomes[outcome], want, outcomes)
		}
	}
	if got := value(t, s.metrics.reasons[reasonRate]); got != 5 {
		t.Errorf("%v are counted as dropped, want 5", got)
	}
	r := newRequest("web.service.regd.", miekg.TypeA)
	r.stream = true
	if m := ask(t, s, w, r); len(m.Answer) != 3 {
		t.Errorf("by TCP: %v", m)
	}
}
