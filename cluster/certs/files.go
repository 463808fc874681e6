package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// Files are the PEM files of one port.
type Files struct {
	// Cert has the certificate, and after it those between it and the authority, if there are any.
	Cert string
	// Key is the private key of the certificate. See CheckKey for who may be able to read it.
	Key string
	// CA has the certificates of all authorities whose certificates the other side may show. Empty: it shows none.
	CA string
}

// ErrKeyMode means that others can read a private key.
var ErrKeyMode = errors.New("others can read this private key")

// maxFile bounds what is read of one file.
const maxFile = 1 << 20

// contents are the bytes of Files.
type contents struct{ cert, key, ca string }

// read reads all files.
func (f Files) read() (contents, error) {
	var c contents
	var errs []error
	for _, part := range []struct {
		path  string
		into  *string
		check func(*os.File) error
	}{{f.Cert, &c.cert, nil}, {f.Key, &c.key, checkKey}, {f.CA, &c.ca, nil}} {
		if part.path == "" {
			continue
		}
		var err error
		if *part.into, err = readFile(part.path, part.check); err != nil {
			errs = append(errs, err)
		}
	}
	return c, errors.Join(errs...)
}

func readFile(path string, check func(*os.File) error) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // Only read.
	if check != nil {
		if err = check(f); err != nil {
			return "", err
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: has more than %d bytes", path, maxFile)
	}
	return string(data), err
}

// CheckKey tells whether only the right people can read the file of a private key, else ErrKeyMode. Of a file of root the
// group may read it, as that is how Kubernetes (fsGroup) and Debian (group ssl-cert) give a key to a program that is not
// root; of any other nobody but its owner, who must be the user that runs this program. The rule is PostgreSQL's.
func CheckKey(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // Only read.
	return checkKey(f)
}

// checkKey looks at the file that is open: the one at its path may be another one by now.
func checkKey(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	owner := os.Geteuid()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(st.Uid)
	}
	return judgeKey(f.Name(), info.Mode(), owner, os.Geteuid())
}

func judgeKey(path string, mode fs.FileMode, owner, self int) error {
	allowed := fs.FileMode(0o600)
	if owner == 0 {
		allowed = 0o640
	}
	switch {
	case !mode.IsRegular():
		return fmt.Errorf("private key %s: is not a file", path)
	case owner != 0 && owner != self:
		return fmt.Errorf("%w: %s belongs to user %d, this program runs as %d: chown it", ErrKeyMode, path, owner, self)
	case mode.Perm()&^allowed&^0o100 != 0: // That its owner may execute it does no harm.
		return fmt.Errorf("%w: %s has mode %04o: chmod %04o %s", ErrKeyMode, path, mode.Perm(), allowed, path)
	}
	return nil
}

// material is what Files hold.
type material struct {
	cert  tls.Certificate
	id    ID
	noID  error // why there is none
	cas   []*x509.Certificate
	roots *x509.CertPool
}

// parse makes material of contents, and finds out whether it is of use now.
func (f Files) parse(c contents, now time.Time) (*material, error) {
	m := &material{roots: x509.NewCertPool()}
	var err error
	if m.cert, err = tls.X509KeyPair([]byte(c.cert), []byte(c.key)); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	if err = current(m.cert.Leaf, now); err != nil {
		return nil, fmt.Errorf("certificate %s: %w", f.Cert, err)
	}
	m.id, m.noID = IDOf(m.cert.Leaf)
	if f.CA == "" {
		return m, nil
	}
	if m.cas, err = parseCAs(c.ca); err != nil {
		return nil, fmt.Errorf("authorities %s: %w", f.CA, err)
	}
	for _, ca := range m.cas {
		m.roots.AddCert(ca)
	}
	return m, nil
}

// current tells whether a certificate is valid at this time.
func current(cert *x509.Certificate, now time.Time) error {
	if now.After(cert.NotAfter) {
		return fmt.Errorf("it expired at %s, now it is %s", cert.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if now.Before(cert.NotBefore) {
		return fmt.Errorf("it is not valid before %s, now it is %s: is this machine's clock right?",
			cert.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// parseCAs reads certificates of authorities. Anything else among them is an error: it would be trusted less than was meant.
func parseCAs(text string) ([]*x509.Certificate, error) {
	var cas []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a block %q among the certificates", block.Type)
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !ca.IsCA {
			return nil, fmt.Errorf("the certificate of %s is not one of an authority", ca.Subject)
		}
		cas = append(cas, ca)
	}
	if len(cas) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	return cas, nil
}

// verify tells whether an authority vouches for the certificate at the head of a list, for that use at that time. The
// other certificates of the list are those between.
func (m *material) verify(list []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) error {
	between := x509.NewCertPool()
	for _, c := range list[1:] {
		between.AddCert(c)
	}
	_, err := list[0].Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use},
	})
	return err
}

// chain is the own certificate with those between it and the authority.
func (m *material) chain() ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for _, der := range m.cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// isPeer tells whether others will take the holder of these files for a node of that name.
func (m *material) isPeer(f Files, name string, now time.Time) error {
	if f.CA == "" {
		return errors.New("nodes trust each other by an authority: its file is missing")
	}
	if m.noID != nil {
		return fmt.Errorf("certificate %s: %w: a node needs spiffe://<trust domain>/regd/%s/%s", f.Cert, m.noID, RolePeer, name)
	}
	if m.id.Role != RolePeer || m.id.Name != name {
		return fmt.Errorf("certificate %s: %w: it is of %s, this is the node %s: it needs spiffe://%s/regd/%s/%s",
			f.Cert, ErrWrongRole, m.id, name, m.id.Domain, RolePeer, name)
	}
	list, err := m.chain()
	if err != nil {
		return fmt.Errorf("certificate %s: %w", f.Cert, err)
	}
	for use, title := range map[x509.ExtKeyUsage]string{
		x509.ExtKeyUsageServerAuth: "server auth", x509.ExtKeyUsageClientAuth: "client auth",
	} {
		if err := m.verify(list, use, now); err != nil {
			return fmt.Errorf("certificate %s, by %s, as %s: %w", f.Cert, f.CA, title, err)
		}
	}
	return nil
}
