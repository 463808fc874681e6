package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves on a free port until the test ends.
func start(tb testing.TB, n Node, change ...func(*Config)) *Server {
	tb.Helper()
	cfg := Config{Listen: "127.0.0.1:0", TTL: time.Second, NegativeTTL: time.Second}
	for _, c := range change {
		c(&cfg)
	}
	s, err := Listen(tb.Context(), cfg, n)
	if err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-served); err != nil {
			tb.Errorf("the server ends with %v", err)
		}
	})
	return s
}

// resolver is Go's own.
func resolver(s *Server, network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.Addr().String())
	}}
}

func TestGoResolver(t *testing.T) {
	t.Parallel()
	s := start(t, newWorld(t))
	for _, network := range []string{"udp", "tcp"} {
		r := resolver(s, network)
		hosts, err := r.LookupHost(t.Context(), "web.service.regd.")
		slices.Sort(hosts)
		if diff := cmp.Diff([]string{"10.0.0.1", "10.0.0.2", "10.0.0.7", "fd00::3"}, hosts); diff != "" || err != nil {
			t.Errorf("%s: hosts (-want +got): %v\n%s", network, err, diff)
		}
		_, targets, err := r.LookupSRV(t.Context(), "web", "tcp", "service.regd.")
		if err != nil || len(targets) != 4 {
			t.Errorf("%s: services: %v, %v", network, targets, err)
		}
		for _, target := range targets {
			if hosts, err = r.LookupHost(t.Context(), target.Target); err != nil || len(hosts) != 1 {
				t.Errorf("%s: target %s: %v, %v", network, target.Target, hosts, err)
			}
		}
		txt, err := r.LookupTXT(t.Context(), "w1.web.instance.regd.")
		slices.Sort(txt)
		if diff := cmp.Diff([]string{`as is \ "so"`, "version=1.2"}, txt); diff != "" || err != nil {
			t.Errorf("%s: texts (-want +got): %v\n%s", network, err, diff)
		}
		names, err := r.LookupAddr(t.Context(), "10.0.0.1")
		if diff := cmp.Diff([]string{"w1.web.instance.regd."}, names); diff != "" || err != nil {
			t.Errorf("%s: names (-want +got): %v\n%s", network, err, diff)
		}
		var dnsErr *net.DNSError
		if _, err = r.LookupHost(t.Context(), "nope.service.regd."); !errors.As(err, &dnsErr) || !dnsErr.IsNotFound {
			t.Errorf("%s: absent: %v", network, err)
		}
	}
}

// TestGoResolverComesByTCP: an answer that does not fit into a packet arrives whole.
func TestGoResolverComesByTCP(t *testing.T) {
	t.Parallel()
	s := start(t, many(t, 300))
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.Addr().String())
	}}
	hosts, err := r.LookupHost(t.Context(), "big.service.regd.")
	if err != nil || len(hosts) != 300 {
		t.Errorf("%d hosts, want 300: %v", len(hosts), err)
	}
}

func TestDig(t *testing.T) {
	t.Parallel()
	dig, err := exec.LookPath("dig")
	if err != nil {
		if os.Getenv("CHAOS_STRICT") != "" {
			t.Fatal("there is no dig: install bind9-dnsutils")
		}
		t.Skip("there is no dig: install bind9-dnsutils to run this test")
	}
	s := start(t, many(t, 300))
	host, port, _ := net.SplitHostPort(s.Addr().String())
	for _, tt := range []struct {
		name string
		args []string
		want int // records
		says string
	}{
		{"retries by TCP", nil, 300, "status: NOERROR"},
		{"takes what fits", []string{"+ignore", "+bufsize=1232"}, -1, "flags: qr aa tc rd;"},
		{"without EDNS", []string{"+noedns", "+ignore"}, -1, "flags: qr aa tc rd;"},
		{"with another EDNS", []string{"+edns=7", "+noednsneg"}, 0, "status: BADVERS"},
		{"with a cookie and an unknown option", []string{"+cookie", "+ednsopt=65001:00ff", "+tcp"}, 300, "status: NOERROR"},
		{"several on one connection", []string{"+tcp", "+keepopen", "big.service.regd.", "A"}, 600, "status: NOERROR"},
	} {
		args := append([]string{"@" + host, "-p", port, "+tries=1", "+time=5", "+nostats", "big.service.regd.", "A"}, tt.args...)
		out, err := exec.CommandContext(t.Context(), dig, args...).CombinedOutput()
		records := strings.Count(string(out), "IN\tA\t")
		if err != nil || tt.want >= 0 && records != tt.want || tt.want < 0 && (records == 0 || records == 300) || !strings.Contains(string(out), tt.says) {
			t.Errorf("dig that %s: %d records: %v\n%s", tt.name, records, err, out[:min(len(out), 1500)])
		}
	}
}

// TestAnswersComeFromWhereTheQuestionWent: a socket that listens on all addresses would answer from any of them.
func TestAnswersComeFromWhereTheQuestionWent(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ listen, to string }{
		{"0.0.0.0:0", "127.0.0.9"}, {"[::]:0", "127.0.0.9"}, {"[::]:0", "::1"},
	} {
		probe, err := net.Listen("tcp", net.JoinHostPort(tt.to, "0"))
		if err != nil {
			t.Logf("%s is not there: %v", tt.to, err)
			continue
		}
		probe.Close()
		s := start(t, newWorld(t), func(c *Config) { c.Listen = tt.listen })
		_, port, _ := net.SplitHostPort(s.Addr().String())
		c := &miekg.Client{Timeout: 5 * time.Second} // Its socket is connected: it hears only from there.
		m, _, err := c.Exchange(newRequest("web.service.regd.", miekg.TypeA).msg, net.JoinHostPort(tt.to, port))
		if err != nil || len(m.Answer) != 3 {
			t.Errorf("listening on %s, asked at %s: %v, %v", tt.listen, tt.to, m, err)
		}
	}
}

// TestQueriesInOneStream: several at once, and in pieces.
func TestQueriesInOneStream(t *testing.T) {
	t.Parallel()
	s := start(t, newWorld(t))
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var stream []byte
	for id := range uint16(3) {
		r := newRequest("web.service.regd.", miekg.TypeA)
		r.msg.Id = id
		packet, _ := r.msg.Pack()
		stream = append(binary.BigEndian.AppendUint16(stream, uint16(len(packet))), packet...)
	}
	go func() {
		for chunk := range slices.Chunk(stream, 7) {
			if _, err := conn.Write(chunk); err != nil {
				return // The reader will tell.
			}
		}
	}()
	c := &miekg.Conn{Conn: conn}
	for id := range uint16(3) {
		m, err := c.ReadMsg()
		if err != nil || m.Id != id || len(m.Answer) != 3 {
			t.Fatalf("answer %d: %v, %v", id, m, err)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	s := start(t, newWorld(t), func(c *Config) { c.MaxConns, c.MaxConnsPerIP = 3, 2 })
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	works := func(conn net.Conn) bool {
		c := &miekg.Conn{Conn: conn}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err := c.WriteMsg(newRequest("web.service.regd.", miekg.TypeA).msg); err != nil {
			return false
		}
		_, err := c.ReadMsg()
		return err == nil
	}
	var kept []net.Conn
	for _, tt := range []struct {
		from string
		want bool
	}{
		{"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", false}, // of one address
		{"127.0.0.2", true}, {"127.0.0.3", false}, // in all
	} {
		conn := dial(tt.from)
		if got := works(conn); got != tt.want {
			t.Errorf("a connection from %s is answered: %v", tt.from, got)
		}
		kept = append(kept, conn)
	}
	if got := value(t, s.metrics.reasons[reasonConnections]); got != 2 {
		t.Errorf("%v are counted as dropped, want 2", got)
	}
	if got := value(t, s.metrics.conns); got != 3 {
		t.Errorf("%v are counted as open, want 3", got)
	}
	kept[0].Close()
	for deadline := time.Now().Add(10 * time.Second); !works(dial("127.0.0.3")); { // The server has to notice.
		if time.Now().After(deadline) {
			t.Fatal("a place that was given back is not given again")
		}
	}
}

// TestShutdownFinishesWhatIsUnderWay: by UDP and by TCP; and when that takes too long, not even then longer.
func TestShutdownFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	n := newWorld(t)
	s, err := Listen(t.Context(), Config{Listen: "127.0.0.1:0"}, n)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	const queries = 2
	var arrived sync.WaitGroup
	arrived.Add(queries)
	release := make(chan struct{})
	onView := func() {
		arrived.Done()
		<-release
	}
	n.onView.Store(&onView)
	answers := make(chan error, queries)
	for _, network := range []string{"udp", "tcp"} {
		go func() {
			c := &miekg.Client{Net: network, Timeout: 20 * time.Second}
			_, _, failed := c.Exchange(newRequest("web.service.regd.", miekg.TypeA).msg, s.Addr().String())
			answers <- failed
		}()
	}
	arrived.Wait()
	idle, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	_ = idle.SetReadDeadline(time.Now().Add(idleTimeout / 2)) // By itself it would end later.
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("an idle connection ends with %v", err)
	}
	select {
	case err := <-down:
		t.Errorf("it has shut down (%v) with queries under way", err)
	default:
	}
	close(release)
	for range queries {
		if err := <-answers; err != nil {
			t.Errorf("a query that was under way: %v", err)
		}
	}
	if err := errors.Join(<-down, <-served); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	t.Parallel()
	hole, err := net.ListenPacket("udp", "127.0.0.1:0") // A resolver that does not answer.
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	s, err := Listen(t.Context(), Config{Listen: "127.0.0.1:0", Forward: []netip.AddrPort{netip.MustParseAddrPort(hole.LocalAddr().String())}}, newWorld(t))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	conn, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	packet, _ := newRequest("example.com.", miekg.TypeA).msg.Pack()
	if _, err = conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	if _, _, err = hole.ReadFrom(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	hurry := errors.New("hurry")
	cancel(hurry)
	if err := s.Shutdown(ctx); !errors.Is(err, hurry) {
		t.Errorf("shut down with %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestTakenPortIsAnError(t *testing.T) {
	t.Parallel()
	s := start(t, newWorld(t))
	_, err := Listen(t.Context(), Config{Listen: s.Addr().String()}, newWorld(t))
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("two listen on one port: %v", err)
	}
	if !bytes.Contains([]byte(err.Error()), []byte("listen for DNS")) {
		t.Errorf("%v does not say what for", err)
	}
}
