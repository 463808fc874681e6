package peer_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/certs/certstest"
	"github.com/regd-io/regd/cluster/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// secured returns a Network over TCP for a node, with files of its own.
func secured(tb testing.TB, ca *certstest.Authority, name string) peer.Network {
	tb.Helper()
	s, err := certs.Open(certs.Config{Files: certstest.Write(tb, tb.TempDir(), ca.Peer(name), ca.PEM()), Port: "peer", Node: name})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return peer.Secure(peer.TCP(), s)
}

// careless is a Network with whatever certificate, that trusts everybody: for what comes from outside.
type careless struct {
	peer.Network
	cfg *tls.Config
}

func stranger(t *testing.T, p *certstest.Pair) peer.Network {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert, NextProtos: []string{certs.PeerProtocol}}
	if p != nil {
		c := p.TLS(t)
		cfg.Certificates = []tls.Certificate{c}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
	}
	return careless{peer.TCP(), cfg}
}

func (c careless) Listen(addr string) (net.Listener, error) {
	l, err := c.Network.Listen(addr)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, c.cfg), nil
}

func (c careless) Dial(ctx context.Context, addr string) (net.Conn, error) {
	raw, err := c.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return tls.Client(raw, c.cfg), nil
}

// journal is a log that tests can read.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// onTCP opens a peer port on a real socket.
func onTCP(tb testing.TB, network peer.Network, node string, change ...func(*peer.Config)) *peer.Mux {
	tb.Helper()
	cfg := peer.Config{Network: network, Listen: "127.0.0.1:0", NodeID: node, ClusterID: func() string { return "c1" }}
	for _, f := range change {
		f(&cfg)
	}
	m, err := peer.Listen(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

func raftAddress(m *peer.Mux) raft.ServerAddress { return raft.ServerAddress(m.Addr().String()) }

func TestBothKindsWorkOverSockets(t *testing.T) {
	ca := certstest.NewAuthority(t)
	for name, network := range map[string]func(name string) peer.Network{
		"plain": func(string) peer.Network { return peer.TCP() },
		"tls":   func(name string) peer.Network { return secured(t, ca, name) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := onTCP(t, network("a"), "id-a"), onTCP(t, network("b"), "id-b")
			w := serve(t, a)
			cc, err := b.DialGRPC(a.Addr().String())
			if err = check(t, client(t, cc, err), 5*time.Second); err != nil {
				t.Fatal(err)
			}
			want := peer.Identity{NodeID: "id-b", ClusterID: "c1"}
			if name == "tls" {
				want.Name = "b"
			}
			if got := w.caller.Load(); *got != want {
				t.Errorf("caller %+v, want %+v", *got, want)
			}
			acceptAll(t, a.StreamLayer())
			c, err := b.StreamLayer().Dial("id-a@"+raftAddress(a), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}

// strangers are all who must not get in, with what the node's log says of them.
func strangers(t *testing.T, ca *certstest.Authority) map[string]struct {
	network peer.Network
	says    string
} {
	t.Helper()
	type row = struct {
		network peer.Network
		says    string
	}
	now := time.Now()
	with := func(p certstest.Pair, says string) row { return row{stranger(t, &p), says} }
	alone := certstest.NewAuthority(t)
	own := certstest.Pair{Cert: alone.PEM(), Key: alone.Key()}
	return map[string]row{
		"a client": with(ca.Client("b", certstest.For(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)),
			"certificate of another role: spiffe://test.example/regd/client/b, wanted a peer"),
		"another trust domain": with(ca.Peer("b", certstest.URIs("spiffe://elsewhere/regd/peer/b")), "certificate of another trust domain"),
		"another authority":    with(certstest.NewAuthority(t).Peer("b"), "signed by unknown authority"),
		"expired":              with(ca.Peer("b", certstest.Between(now.Add(-2*time.Hour), now.Add(-time.Hour))), "has expired or is not yet valid"),
		"not yet valid":        with(ca.Peer("b", certstest.Between(now.Add(time.Hour), now.Add(2*time.Hour))), "has expired or is not yet valid"),
		"self-signed":          with(own, "x509: "),
		"no SAN":               with(ca.Peer("b", certstest.URIs()), "it has no URI SAN"),
		"two SANs":             with(ca.Peer("b", certstest.URIs("spiffe://test.example/regd/client/b", "spiffe://test.example/regd/peer/b")), "it has 2 URI SANs"),
		"a SAN of others":      with(ca.Peer("b", certstest.URIs("spiffe://test.example/ns/default/sa/regd")), "is not spiffe://"),
		"wrong use": with(ca.Peer("b", certstest.For(x509.ExtKeyUsageCodeSigning)),
			"incompatible key usage"),
		"no certificate": {stranger(t, nil), "certificate"},
		"plaintext":      {peer.TCP(), "does not speak TLS"},
	}
}

func TestOnlyPeersOfTheTrustDomainGetIn(t *testing.T) {
	ca := certstest.NewAuthority(t)
	for name, tt := range strangers(t, ca) {
		t.Run(name, func(t *testing.T) {
			var log journal
			a := onTCP(t, secured(t, ca, "a"), "id-a", func(c *peer.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			acceptAll(t, a.StreamLayer())
			acceptAll(t, a.GRPCListener())
			b := onTCP(t, tt.network, "id-b")
			if c, err := b.StreamLayer().Dial(raftAddress(a), 5*time.Second); err == nil {
				c.Close()
				t.Error("Raft was let in")
			}
			_, err := b.Probe(t.Context(), a.Addr().String())
			if err == nil {
				t.Fatal("let in")
			}
			// Who is refused learns that, by TLS's own word, and no more.
			if name != "plaintext" && !errors.Is(err, peer.ErrUntrusted) {
				t.Errorf("the other side gets %v", err)
			}
			if strings.Contains(err.Error(), "wanted") || strings.Contains(err.Error(), certstest.Domain) {
				t.Errorf("the other side is told too much: %v", err)
			}
			waitFor(t, func() bool { return a.Stats().Untrusted == 2 })
			if s := a.Stats(); s.Refused+s.Malformed+s.Broken+s.TimedOut != 0 {
				t.Errorf("counted as something else: %+v", s)
			}
			if !strings.Contains(log.String(), tt.says) || !strings.Contains(log.String(), "peer refused") {
				t.Errorf("the log lacks %q:\n%s", tt.says, log.String())
			}
		})
	}
}

func TestOnlyPeersOfTheTrustDomainAreTalkedTo(t *testing.T) {
	ca := certstest.NewAuthority(t)
	for name, tt := range strangers(t, ca) {
		if name == "no certificate" {
			continue // TLS servers have one.
		}
		t.Run(name, func(t *testing.T) {
			var log journal
			b := onTCP(t, tt.network, "id-b")
			acceptAll(t, b.StreamLayer())
			acceptAll(t, b.GRPCListener())
			a := onTCP(t, secured(t, ca, "a"), "id-a", func(c *peer.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			_, err := a.Probe(t.Context(), b.Addr().String())
			if name == "plaintext" {
				if err == nil || !strings.Contains(err.Error(), "it may not use TLS") {
					t.Errorf("%v", err)
				}
				return
			}
			if !errors.Is(err, peer.ErrUntrusted) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
			if !strings.Contains(log.String(), "no trust between this node and a peer") {
				t.Errorf("the log does not tell:\n%s", log.String())
			}
		})
	}
}

// waitFor waits for what happens at the other side.
func waitFor(t *testing.T, fact func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !fact() {
		select {
		case <-ticker.C:
		case <-t.Context().Done():
			t.Fatal("it does not happen")
		}
	}
}

// A node with a good certificate of its own is still not another node.
func TestACertificateIsGoodForItsNodeOnly(t *testing.T) {
	ca := certstest.NewAuthority(t)
	names := map[string]string{"id-a": "a", "id-b": "b", "id-c": "c"}
	known := func(c *peer.Config) { c.NameOf = func(id string) string { return names[id] } }
	a := onTCP(t, secured(t, ca, "a"), "id-a", known)
	acceptAll(t, a.StreamLayer())
	acceptAll(t, a.GRPCListener())
	if _, err := onTCP(t, secured(t, ca, "b"), "id-b", known).Probe(t.Context(), a.Addr().String()); err != nil {
		t.Errorf("the right one: %v", err)
	}
	if _, err := onTCP(t, secured(t, ca, "d"), "id-d", known).Probe(t.Context(), a.Addr().String()); err != nil {
		t.Errorf("one that is no member yet: %v", err)
	}
	liar := onTCP(t, secured(t, ca, "b"), "id-c")
	acceptAll(t, liar.StreamLayer())
	acceptAll(t, liar.GRPCListener())
	var refused *peer.HandshakeError
	if _, err := liar.Probe(t.Context(), a.Addr().String()); !errors.As(err, &refused) || !errors.Is(err, peer.ErrWrongName) {
		t.Errorf("b as c: %v", err)
	}
	if _, err := a.StreamLayer().Dial("id-c@"+raftAddress(liar), 5*time.Second); !errors.Is(err, peer.ErrWrongName) ||
		!strings.Contains(err.Error(), `says that it is node "id-c", and shows the certificate of "b"`) {
		t.Errorf("to c, where b answers: %v", err)
	}
}

func TestConnectionsEndWhenTheAuthorityIsReplaced(t *testing.T) {
	before, after := certstest.NewAuthority(t), certstest.NewAuthority(t)
	dir := t.TempDir()
	s, err := certs.Open(certs.Config{
		Files: certstest.Write(t, dir, before.Peer("a"), before.PEM()), Port: "peer", Node: "a", Every: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	a, b := onTCP(t, peer.Secure(peer.TCP(), s), "id-a"), onTCP(t, secured(t, before, "b"), "id-b")
	acceptAll(t, a.StreamLayer())
	acceptAll(t, b.StreamLayer())
	in, err := b.StreamLayer().Dial(raftAddress(a), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := a.StreamLayer().Dial(raftAddress(b), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	certstest.Write(t, dir, after.Peer("a"), after.PEM())
	for name, c := range map[string]net.Conn{"accepted": in, "dialled": out} {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second)) // Unless it has ended already.
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("the %s connection goes on: %v", name, err)
		}
	}
	if _, err := b.Probe(t.Context(), a.Addr().String()); !errors.Is(err, peer.ErrUntrusted) {
		t.Errorf("who has the old authority's certificate gets %v", err)
	}
	fresh := onTCP(t, secured(t, after, "b"), "id-b")
	if _, err := fresh.Probe(t.Context(), a.Addr().String()); err != nil {
		t.Errorf("who has the new authority's gets %v", err)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestAStrangerThatSaysNothingIsNoRefusal(t *testing.T) {
	a := onTCP(t, secured(t, certstest.NewAuthority(t), "a"), "id-a")
	c, err := net.Dial("tcp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close() // As the health check of a load balancer does.
	waitFor(t, func() bool { return a.Stats().Broken == 1 })
	if s := a.Stats(); s.Untrusted != 0 {
		t.Errorf("%+v", s)
	}
}
