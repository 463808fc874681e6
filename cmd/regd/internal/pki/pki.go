// Package pki makes an authority for one regd cluster, and the certificates of its nodes and clients, for people who have
// none yet. What it makes is plain X.509: another authority can take over at any time, as long as it says who is who in the
// same way (see certs.ID).
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/regd-io/regd/cluster/certs"
)

// Lifetimes. 398 days are what browsers allow a certificate at most: long enough for a yearly renewal, with a month to
// spare.
const (
	AuthorityLife = 10 * 365 * 24 * time.Hour
	DefaultLife   = 398 * 24 * time.Hour
)

// clockSkew is by how much the clock of a machine that checks a new certificate may be behind.
const clockSkew = time.Hour

// Pair is a certificate and its key.
type Pair struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

// Authority signs certificates of its trust domain.
type Authority struct {
	Pair
	// Domain is its trust domain.
	Domain string
}

// NewAuthority makes an authority that is valid for AuthorityLife.
func NewAuthority(domain string, now time.Time) (*Authority, error) {
	if err := certs.CheckDomain(domain); err != nil {
		return nil, err
	}
	a := &Authority{Domain: domain}
	// With the trust domain as SPIFFE has it for an authority. Nothing may stand between it and what it signs.
	p, err := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "regd authority of " + domain}, URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}, now, AuthorityLife)
	if err != nil {
		return nil, err
	}
	a.Pair = p
	return a, nil
}

// LoadAuthority reads what Write of an authority has written.
func LoadAuthority(certFile, keyFile string) (*Authority, error) {
	if err := certs.CheckKey(keyFile); err != nil {
		return nil, err
	}
	loaded, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("authority %s with key %s: %w", certFile, keyFile, err)
	}
	cert := loaded.Leaf
	key, ok := loaded.PrivateKey.(crypto.Signer)
	if !ok || !cert.IsCA {
		return nil, fmt.Errorf("%s: is not the certificate of an authority", certFile)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || certs.CheckDomain(cert.URIs[0].Host) != nil {
		return nil, fmt.Errorf("%s: names no trust domain: it was not made by regd tls init", certFile)
	}
	return &Authority{Pair: Pair{cert, key}, Domain: cert.URIs[0].Host}, nil
}

// Node makes the certificate of a node that is reached at hosts, names and IP addresses, and on its own machine. It is good
// for serving clients, and for both sides of a connection between nodes.
func (a *Authority) Node(name string, hosts []string, now time.Time, life time.Duration) (Pair, error) {
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, host := range append([]string{"localhost", "127.0.0.1", "::1"}, hosts...) {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if isHostName(host) {
			template.DNSNames = append(template.DNSNames, host)
		} else {
			return Pair{}, fmt.Errorf("host %q: is neither a name nor an IP address; no port belongs to it", host)
		}
	}
	return a.issue(certs.RolePeer, name, template, now, life)
}

// Client makes the certificate of a client.
func (a *Authority) Client(name string, now time.Time, life time.Duration) (Pair, error) {
	return a.issue(certs.RoleClient, name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, now, life)
}

// isHostName tells whether a text may be a DNS name, with * for its first label.
func isHostName(host string) bool {
	if len(host) == 0 || len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(host, "*."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "-") != label || strings.IndexFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) >= 0 {
			return false
		}
	}
	return true
}

func (a *Authority) issue(role certs.Role, name string, template *x509.Certificate, now time.Time, life time.Duration) (Pair, error) {
	id := certs.ID{Domain: a.Domain, Role: role, Name: name}
	if err := id.Validate(); err != nil {
		return Pair{}, err
	}
	if end := now.Add(life); life <= 0 || end.After(a.Cert.NotAfter) {
		return Pair{}, fmt.Errorf("a certificate until %s: the authority itself is valid until %s; choose a time between",
			end.UTC().Format(time.RFC3339), a.Cert.NotAfter.Format(time.RFC3339))
	}
	template.Subject, template.URIs = pkix.Name{CommonName: name}, []*url.URL{id.URL()}
	template.KeyUsage, template.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	return a.sign(template, now, life)
}

// sign makes a key and its certificate; the authority's first is its own. The serial number is random.
func (a *Authority) sign(template *x509.Certificate, now time.Time, life time.Duration) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make key: %w", err)
	}
	template.NotBefore, template.NotAfter = now.Add(-clockSkew), now.Add(life)
	parent, signer := a.Cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Pair{}, fmt.Errorf("read own certificate: %w", err)
	}
	return Pair{cert, key}, nil
}

// ErrExists means that a file is there that would be overwritten.
var ErrExists = errors.New("is there already")

// Write writes the pair into two files that nobody else can read, and their folder if it is missing. Files that are there
// are overwritten only by force, else neither is touched: ErrExists. Each file is replaced in one step.
func (p Pair) Write(certFile, keyFile string, force bool) error {
	key, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	for _, path := range []string{keyFile, certFile} {
		if _, err := os.Lstat(path); err == nil && !force {
			return fmt.Errorf("%s %w", path, ErrExists)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
	}
	return errors.Join(writeFile(keyFile, "PRIVATE KEY", key), writeFile(certFile, "CERTIFICATE", p.Cert.Raw))
}

func writeFile(path, kind string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // With mode 0600.
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
