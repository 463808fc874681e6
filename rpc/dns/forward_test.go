package dns

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

// upstream is a resolver that does as fn says, by UDP and TCP.
func upstream(t *testing.T, fn miekg.HandlerFunc) netip.AddrPort {
	t.Helper()
	packets, streams := listenBoth(t)
	for _, s := range []*miekg.Server{{PacketConn: packets, Handler: fn}, {Listener: streams, Handler: fn}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() {
			_ = s.Shutdown()
			serving.Wait()
		})
	}
	return netip.MustParseAddrPort(packets.LocalAddr().String())
}

// listenBoth listens by UDP and TCP on the same port. Another process may have by TCP the one that is free by UDP.
func listenBoth(t *testing.T) (packets net.PacketConn, streams net.Listener) {
	t.Helper()
	for {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		streams, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, streams
		}
		packets.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// echo answers with one address.
func echo(w miekg.ResponseWriter, q *miekg.Msg) {
	m := new(miekg.Msg)
	m.SetReply(q)
	m.Answer = []miekg.RR{&miekg.A{
		Hdr: miekg.RR_Header{Name: q.Question[0].Name, Rrtype: miekg.TypeA, Class: miekg.ClassINET, Ttl: 9}, A: net.IPv4(192, 0, 2, 99),
	}}
	_ = w.WriteMsg(m)
}

func exchange(t *testing.T, s *Server, network, name string) *miekg.Msg {
	t.Helper()
	c := &miekg.Client{Net: network, Timeout: 10 * time.Second}
	m, _, err := c.Exchange(newRequest(name, miekg.TypeA).msg, s.Addr().String())
	if err != nil {
		t.Fatalf("%s by %s: %v", name, network, err)
	}
	return m
}

func TestOtherNamesAreForwarded(t *testing.T) {
	t.Parallel()
	at := upstream(t, echo)
	s := start(t, newWorld(t), func(c *Config) { c.Forward = []netip.AddrPort{at} })
	for _, network := range []string{"udp", "tcp"} {
		for name, want := range map[string]string{
			"example.com.": "192.0.2.99", "v1.web.service.regd.": "10.0.0.1", "9.9.9.9.in-addr.arpa.": "192.0.2.99",
		} {
			m := exchange(t, s, network, name)
			if m.Id != 7 || len(m.Answer) != 1 || texts(m)[0] != want {
				t.Errorf("%s by %s: %v", name, network, m)
			}
		}
		if m := exchange(t, s, network, "nope.service.regd."); m.Rcode != miekg.RcodeNameError || !m.RecursionAvailable {
			t.Errorf("an absent name of ours by %s: %v", network, m)
		}
	}
	if got := value(t, s.metrics.forwarded); got != 4 {
		t.Errorf("%v are counted as forwarded, want 4", got)
	}
}

func TestOnlyPrivateClientsAreForwarded(t *testing.T) {
	t.Parallel()
	f := newForwarder([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, 1)
	for client, want := range map[string]bool{
		"127.0.0.1": true, "10.1.2.3": true, "192.168.0.1": true, "fd00::1": true, "fe80::1": true, "8.8.8.8": false, "2001:db8::1": false,
	} {
		if f.serves(netip.MustParseAddr(client)) != want {
			t.Errorf("%s is served: %v", client, !want)
		}
	}
	if (*forwarder)(nil).serves(netip.MustParseAddr("127.0.0.1")) {
		t.Error("somebody is served although nothing is forwarded")
	}
}

// TestForgedAnswersAreNotBelieved: what has another id or question is passed over.
func TestForgedAnswersAreNotBelieved(t *testing.T) {
	t.Parallel()
	at := upstream(t, func(w miekg.ResponseWriter, q *miekg.Msg) {
		for _, forge := range []func(*miekg.Msg){
			func(m *miekg.Msg) { m.Id++ },
			func(m *miekg.Msg) { m.Question[0].Name = "example.org." },
			func(m *miekg.Msg) { m.Question[0].Qtype = miekg.TypeAAAA },
			func(m *miekg.Msg) { m.Response = false },
		} {
			m := new(miekg.Msg)
			m.SetReply(q)
			m.Rcode = miekg.RcodeNameError
			forge(m)
			_ = w.WriteMsg(m)
		}
		echo(w, q)
	})
	s := start(t, newWorld(t), func(c *Config) { c.Forward = []netip.AddrPort{at} })
	if m := exchange(t, s, "udp", "example.com."); m.Rcode != miekg.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("a forged answer was believed: %v", m)
	}
	if m := exchange(t, s, "tcp", "example.com."); m.Rcode != miekg.RcodeServerFailure {
		t.Errorf("a forged answer by TCP was believed: %v", m)
	}
}

func TestAnotherResolverIsAsked(t *testing.T) {
	t.Parallel()
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := netip.MustParseAddrPort(closed.LocalAddr().String())
	closed.Close()
	at := upstream(t, echo)
	s := start(t, newWorld(t), func(c *Config) { c.Forward = []netip.AddrPort{gone, at} })
	for range 4 {
		if m := exchange(t, s, "udp", "example.com."); len(m.Answer) != 1 {
			t.Errorf("with one resolver gone: %v", m)
		}
	}
	s = start(t, newWorld(t), func(c *Config) { c.Forward = []netip.AddrPort{gone} })
	if m := exchange(t, s, "udp", "example.com."); m.Rcode != miekg.RcodeServerFailure || m.Id != 7 || len(m.Question) != 1 {
		t.Errorf("with no resolver: %v", m)
	}
}

func TestForwardsAreBounded(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	at := upstream(t, func(w miekg.ResponseWriter, q *miekg.Msg) {
		arrived <- struct{}{}
		<-release
		echo(w, q)
	})
	s := start(t, newWorld(t), func(c *Config) { c.Forward, c.MaxForwards = []netip.AddrPort{at}, 1 })
	first := make(chan *miekg.Msg, 1)
	go func() {
		c := &miekg.Client{Timeout: 10 * time.Second}
		m, _, _ := c.Exchange(newRequest("example.com.", miekg.TypeA).msg, s.Addr().String())
		first <- m
	}()
	<-arrived
	c := &miekg.Client{Net: "tcp", Timeout: 10 * time.Second}
	if m, _, err := c.Exchange(newRequest("example.com.", miekg.TypeA).msg, s.Addr().String()); err == nil {
		t.Errorf("a second one is answered: %v", m)
	}
	if m := exchange(t, s, "udp", "v1.web.service.regd."); len(m.Answer) != 1 {
		t.Errorf("names of ours have to wait: %v", m)
	}
	if got := value(t, s.metrics.reasons[reasonForwards]); got != 1 {
		t.Errorf("%v are counted as dropped, want 1", got)
	}
	close(release)
	if m := <-first; m == nil || len(m.Answer) != 1 {
		t.Errorf("the first one got %v", m)
	}
}
