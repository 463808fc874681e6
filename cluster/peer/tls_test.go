package peer_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/regd-io/regd/cluster/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	cert := a.sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.cert, a.key = cert.Leaf, cert.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a certificate; the authority's first is its own.
func (a *authority) sign(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: "regd test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// network returns a Network with mutual TLS for a node at 127.0.0.1.
func (a *authority) network(t *testing.T) peer.Network {
	t.Helper()
	cert := a.sign(t, &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	certs := []tls.Certificate{cert}
	return peer.TCP(peer.WithTLS(
		&tls.Config{Certificates: certs, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool},
		&tls.Config{Certificates: certs, RootCAs: a.pool},
	))
}

// onTCP opens a peer port on a real socket.
func onTCP(tb testing.TB, network peer.Network, node string) *peer.Mux {
	tb.Helper()
	m, err := peer.Listen(peer.Config{
		Network: network, Listen: "127.0.0.1:0", NodeID: node, ClusterID: func() string { return "c1" },
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

func raftAddress(m *peer.Mux) raft.ServerAddress { return raft.ServerAddress(m.Addr().String()) }

func TestBothKindsWorkOverSockets(t *testing.T) {
	ca := newAuthority(t)
	for name, network := range map[string]func() peer.Network{
		"plain": func() peer.Network { return peer.TCP() },
		"tls":   func() peer.Network { return ca.network(t) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := onTCP(t, network(), "a"), onTCP(t, network(), "b")
			w := serve(t, a)
			cc, err := b.DialGRPC(a.Addr().String())
			if err = check(t, client(t, cc, err), 5*time.Second); err != nil {
				t.Fatal(err)
			}
			if got := w.caller.Load().NodeID; got != "b" {
				t.Errorf("caller %q", got)
			}
			acceptAll(t, a.StreamLayer())
			c, err := b.StreamLayer().Dial("a@"+raftAddress(a), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}

func TestForeignAuthorityAndPlainConnectionsAreRefused(t *testing.T) {
	a := onTCP(t, newAuthority(t).network(t), "a")
	acceptAll(t, a.StreamLayer())
	foreign := onTCP(t, newAuthority(t).network(t), "b")
	var unknown *tls.CertificateVerificationError
	if _, err := foreign.Probe(t.Context(), a.Addr().String()); !errors.As(err, &unknown) {
		t.Errorf("foreign authority: %v", err)
	}
	plain := onTCP(t, peer.TCP(), "c")
	if _, err := plain.Probe(t.Context(), a.Addr().String()); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("plain: %v", err)
	}
}

func TestClientWithoutCertificateIsRefused(t *testing.T) {
	ca := newAuthority(t)
	a := onTCP(t, ca.network(t), "a")
	acceptAll(t, a.StreamLayer())
	bare := onTCP(t, peer.TCP(peer.WithTLS(nil, &tls.Config{RootCAs: ca.pool})), "b")
	if c, err := bare.StreamLayer().Dial(raftAddress(a), 5*time.Second); err == nil {
		c.Close()
		t.Error("accepted")
	}
}
