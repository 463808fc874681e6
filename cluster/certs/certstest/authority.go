// Package certstest makes authorities and certificates for tests, good ones and all kinds of bad ones.
package certstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/regd-io/regd/cluster/certs"
)

// Domain is the trust domain of the certificates.
const Domain = "test.example"

// Authority signs certificates.
type Authority struct {
	tb      testing.TB
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	private string
}

// NewAuthority returns an authority that nobody trusts yet.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	a := &Authority{tb: tb}
	p := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.cert, a.key, a.private = p.leaf, p.key, p.Key
	return a
}

// PEM is the authority's certificate.
func (a *Authority) PEM() string { return string(encode("CERTIFICATE", a.cert.Raw)) }

// Key is the authority's key in PEM form.
func (a *Authority) Key() string { return a.private }

// Pool trusts the authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Pair is a certificate with its key.
type Pair struct {
	// Cert and Key in PEM form.
	Cert, Key string
	leaf      *x509.Certificate
	key       *ecdsa.PrivateKey
}

// TLS returns the pair as crypto/tls takes it.
func (p Pair) TLS(tb testing.TB) tls.Certificate {
	tb.Helper()
	c, err := tls.X509KeyPair([]byte(p.Cert), []byte(p.Key))
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Peer makes the certificate of a node at 127.0.0.1, for an hour around now. change makes it another one.
func (a *Authority) Peer(name string, change ...func(*x509.Certificate)) Pair {
	return a.issue(certs.RolePeer, name, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, change)
}

// Client makes the certificate of a client.
func (a *Authority) Client(name string, change ...func(*x509.Certificate)) Pair {
	return a.issue(certs.RoleClient, name, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, change)
}

func (a *Authority) issue(role certs.Role, name string, use []x509.ExtKeyUsage, change []func(*x509.Certificate)) Pair {
	a.tb.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{certs.ID{Domain: Domain, Role: role, Name: name}.URL()},
		ExtKeyUsage: use, KeyUsage: x509.KeyUsageDigitalSignature, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	for _, f := range change {
		f(template)
	}
	return a.sign(template)
}

// sign makes a certificate; the authority's first is its own.
func (a *Authority) sign(template *x509.Certificate) Pair {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.tb.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return Pair{Cert: string(encode("CERTIFICATE", der)), Key: string(encode("PRIVATE KEY", private)), leaf: leaf, key: key}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Between changes the time for which a certificate is valid.
func Between(from, to time.Time) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, to }
}

// URIs changes what a certificate says of its holder.
func URIs(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.URIs = nil
		for _, text := range uris {
			u, err := url.Parse(text)
			if err != nil {
				panic(err) // Only a misspelt test.
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

// For makes a certificate one for certain uses only.
func For(use ...x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = use }
}

// Write writes the files of a port into a folder, anew if they are there, and returns their names.
func Write(tb testing.TB, dir string, p Pair, ca string) certs.Files {
	tb.Helper()
	f := certs.Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.crt")}
	for _, file := range [...]struct{ path, text string }{{f.Cert, p.Cert}, {f.Key, p.Key}, {f.CA, ca}} {
		if err := os.WriteFile(file.path, []byte(file.text), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return f
}
