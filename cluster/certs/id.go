package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what the holder of a certificate may be.
type Role string

// The roles. A peer is a node that may say whatever Raft believes; a client is anybody else.
const (
	RolePeer   Role = "peer"
	RoleClient Role = "client"
)

// ID is what a certificate says of its holder, as its only URI SAN: spiffe://<trust domain>/regd/<role>/<name>.
// See https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md for the form.
type ID struct {
	// Domain is the trust domain: the name of the cluster, or of the company, in lower case.
	Domain string
	// Role of the holder.
	Role Role
	// Name of the node or client, unique in its role and trust domain.
	Name string
}

// Limits of an ID. SPIFFE allows 255 and 2,048 bytes.
const (
	maxDomain = 255
	maxName   = 128
)

// Why a certificate is not accepted although an authority vouches for it.
var (
	// ErrNoID means that it does not say who its holder is, or not in the right form.
	ErrNoID = errors.New("no identity of regd in the certificate")
	// ErrWrongDomain means that its holder belongs to another trust domain.
	ErrWrongDomain = errors.New("certificate of another trust domain")
	// ErrWrongRole means that its holder may do something, but not this.
	ErrWrongRole = errors.New("certificate of another role")
)

// String returns the URI.
func (id ID) String() string {
	return "spiffe://" + id.Domain + "/regd/" + string(id.Role) + "/" + id.Name
}

// URL returns the URI as x509.Certificate.URIs has it.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.Domain, Path: "/regd/" + string(id.Role) + "/" + id.Name}
}

// Validate tells whether all parts are allowed in a SPIFFE ID.
func (id ID) Validate() error {
	if err := CheckDomain(id.Domain); err != nil {
		return err
	}
	if id.Role != RolePeer && id.Role != RoleClient {
		return fmt.Errorf("role %q: must be %s or %s", id.Role, RolePeer, RoleClient)
	}
	return CheckName(id.Name)
}

// CheckDomain tells whether a text may be a trust domain.
func CheckDomain(domain string) error {
	if domain == "" || len(domain) > maxDomain || !madeOf(domain, isDomainChar) {
		return fmt.Errorf("trust domain %q: must be 1 to %d of a-z 0-9 . - _", domain, maxDomain)
	}
	return nil
}

// CheckName tells whether a text may be the name of a node or client in a certificate.
func CheckName(name string) error {
	if name == "" || len(name) > maxName || name == "." || name == ".." || !madeOf(name, isNameChar) {
		return fmt.Errorf("name %q: must be 1 to %d of A-Z a-z 0-9 . - _", name, maxName)
	}
	return nil
}

func madeOf(text string, allowed func(byte) bool) bool {
	for i := range len(text) {
		if !allowed(text[i]) {
			return false
		}
	}
	return true
}

func isDomainChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

func isNameChar(c byte) bool { return isDomainChar(c) || c >= 'A' && c <= 'Z' }

// ParseID reads an ID. There is one spelling of each: no escapes, port, query or empty parts.
func ParseID(uri string) (ID, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 4 || parts[1] != "regd" {
		return ID{}, fmt.Errorf("%w: %q is not spiffe://<trust domain>/regd/<role>/<name>", ErrNoID, uri)
	}
	id := ID{Domain: parts[0], Role: Role(parts[2]), Name: parts[3]}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("%w: %q: %w", ErrNoID, uri, err)
	}
	return id, nil
}

// IDOf returns what a certificate says of its holder, or ErrNoID. Whether that is to be believed is for its chain to show.
// More than one URI is refused, as by SPIFFE: it would be unclear who acts.
func IDOf(cert *x509.Certificate) (ID, error) {
	switch len(cert.URIs) {
	case 0:
		return ID{}, fmt.Errorf("%w: it has no URI SAN", ErrNoID)
	case 1:
		return ParseID(cert.URIs[0].String())
	default:
		return ID{}, fmt.Errorf("%w: it has %d URI SANs, not one", ErrNoID, len(cert.URIs))
	}
}

// check tells whether a certificate is of a role in a trust domain.
func check(cert *x509.Certificate, domain string, role Role) error {
	id, err := IDOf(cert)
	switch {
	case err != nil:
		return err
	case id.Domain != domain:
		return fmt.Errorf("%w: %s, wanted one of %s", ErrWrongDomain, id, domain)
	case id.Role != role:
		return fmt.Errorf("%w: %s, wanted a %s", ErrWrongRole, id, role)
	}
	return nil
}
