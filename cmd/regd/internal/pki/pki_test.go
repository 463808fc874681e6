package pki_test

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cmd/regd/internal/pki"
)

func authority(t *testing.T) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority("prod.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func verify(a *pki.Authority, cert *x509.Certificate, host string, use x509.ExtKeyUsage, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(a.Cert)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{use}, CurrentTime: at})
	return err
}

func TestANodeServesAndDialsUnderItsNames(t *testing.T) {
	t.Parallel()
	a, now := authority(t), time.Now()
	p, err := a.Node("n1", []string{"n1.example", "10.0.0.1", "*.regd.svc"}, now, pki.DefaultLife)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"n1.example", "10.0.0.1", "x.regd.svc", "localhost", "127.0.0.1", "::1", ""} {
		for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if err := verify(a, p.Cert, host, use, now); err != nil {
				t.Errorf("at %q for %d: %v", host, use, err)
			}
		}
	}
	for what, err := range map[string]error{
		"another host":      verify(a, p.Cert, "n2.example", x509.ExtKeyUsageServerAuth, now),
		"another use":       verify(a, p.Cert, "", x509.ExtKeyUsageCodeSigning, now),
		"another authority": verify(authority(t), p.Cert, "", x509.ExtKeyUsageServerAuth, now),
		"after 399 days":    verify(a, p.Cert, "", x509.ExtKeyUsageServerAuth, now.Add(399*24*time.Hour)),
		"a day ago":         verify(a, p.Cert, "", x509.ExtKeyUsageServerAuth, now.Add(-24*time.Hour)),
	} {
		if err == nil {
			t.Errorf("%s is let through", what)
		}
	}
	for what, at := range map[string]time.Time{"a slow clock": now.Add(-59 * time.Minute), "a year on": now.Add(365 * 24 * time.Hour)} {
		if err := verify(a, p.Cert, "", x509.ExtKeyUsageServerAuth, at); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	want := certs.ID{Domain: "prod.example", Role: certs.RolePeer, Name: "n1"}
	if id, err := certs.IDOf(p.Cert); err != nil || id != want {
		t.Errorf("it says that it is %v, %v", id, err)
	}
}

func TestAClientIsNoServerAndNoAuthority(t *testing.T) {
	t.Parallel()
	a, now := authority(t), time.Now()
	p, err := a.Client("shop", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(a, p.Cert, "", x509.ExtKeyUsageClientAuth, now); err != nil {
		t.Error(err)
	}
	if verify(a, p.Cert, "", x509.ExtKeyUsageServerAuth, now) == nil {
		t.Error("it may serve")
	}
	if p.Cert.IsCA || len(p.Cert.DNSNames)+len(p.Cert.IPAddresses) != 0 {
		t.Errorf("it is more than a client: %+v", p.Cert)
	}
	if id, err := certs.IDOf(p.Cert); err != nil || id.Role != certs.RoleClient || id.Name != "shop" {
		t.Errorf("it says that it is %v, %v", id, err)
	}
}

func TestFilesAreNobodyElsesAndNotOverwritten(t *testing.T) {
	t.Parallel()
	a := authority(t)
	dir := filepath.Join(t.TempDir(), "new")
	cert, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if err := a.Write(cert, key, false); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, cert: 0o600, key: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
	}
	loaded, err := pki.LoadAuthority(cert, key)
	if err != nil || loaded.Domain != "prod.example" || !loaded.Cert.Equal(a.Cert) {
		t.Fatalf("loaded %+v, %v", loaded, err)
	}
	p, err := loaded.Client("shop", time.Now(), time.Hour)
	if err != nil || verify(a, p.Cert, "", x509.ExtKeyUsageClientAuth, time.Now()) != nil {
		t.Errorf("what the loaded authority signs is not the first one's: %v", err)
	}

	before, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err = authority(t).Write(cert, key, false); !errors.Is(err, pki.ErrExists) {
		t.Errorf("overwriting: %v", err)
	}
	if _, err = os.Stat(key); err == nil {
		t.Error("the key was written although the certificate is there")
	}
	after, err := os.ReadFile(cert)
	if err != nil || string(after) != string(before) {
		t.Errorf("the certificate was changed: %v", err)
	}
	if err = authority(t).Write(cert, key, true); err != nil {
		t.Errorf("by force: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("in the folder are %v, %v", left, err)
	}
}

func TestNonsenseIsNotSigned(t *testing.T) {
	t.Parallel()
	a, now := authority(t), time.Now()
	for what, tt := range map[string]struct {
		make func() (pki.Pair, error)
		says string
	}{
		"a name":            {func() (pki.Pair, error) { return a.Client("a/b", now, time.Hour) }, `name "a/b"`},
		"no name":           {func() (pki.Pair, error) { return a.Node("", nil, now, time.Hour) }, `name ""`},
		"a port":            {func() (pki.Pair, error) { return a.Node("n1", []string{"a:1"}, now, time.Hour) }, `host "a:1"`},
		"no host":           {func() (pki.Pair, error) { return a.Node("n1", []string{""}, now, time.Hour) }, `host ""`},
		"a URL":             {func() (pki.Pair, error) { return a.Node("n1", []string{"https://a"}, now, time.Hour) }, `host "https://a"`},
		"past the CA's end": {func() (pki.Pair, error) { return a.Client("a", now, 11*365*24*time.Hour) }, "choose a time between"},
		"no time":           {func() (pki.Pair, error) { return a.Client("a", now, 0) }, "choose a time between"},
		"a trust domain": {func() (pki.Pair, error) {
			_, err := pki.NewAuthority("Prod", now)
			return pki.Pair{}, err
		}, `trust domain "Prod"`},
	} {
		if _, err := tt.make(); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", what, err, tt.says)
		}
	}
}

func TestOnlyAnAuthorityOfOursIsLoaded(t *testing.T) {
	t.Parallel()
	a := authority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	p, err := a.Node("n1", nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err = p.Write(cert, key, false); err != nil {
		t.Fatal(err)
	}
	if _, err = pki.LoadAuthority(cert, key); err == nil || !strings.Contains(err.Error(), "is not the certificate of an authority") {
		t.Errorf("a node's certificate: %v", err)
	}
	if err = os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err = pki.LoadAuthority(cert, key); !errors.Is(err, certs.ErrKeyMode) {
		t.Errorf("a key that all can read: %v", err)
	}
}
