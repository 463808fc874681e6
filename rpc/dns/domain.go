package dns

import (
	"encoding/binary"
	"fmt"
	"time"

	miekg "github.com/miekg/dns"
)

// domain is a zone that the door answers for.
type domain struct {
	name     string // lower case, ending in a dot
	wire     []byte // the same in wire form
	reverse  bool   // of names of addresses
	soa      []byte // its SOA record in wire form, without its owner
	serialAt int    // where in it the serial is
}

// Domains of addresses.
const (
	reverse4 = "in-addr.arpa."
	reverse6 = "ip6.arpa."
)

// newDomains returns the domains with these names, and those of addresses. That there is nothing may be cached for negative.
func newDomains(names []string, negative time.Duration) ([]*domain, error) {
	var all []*domain
	for _, name := range append(names[:len(names):len(names)], reverse4, reverse6) {
		d, err := newDomain(name, names[0], negative)
		if err != nil {
			return nil, fmt.Errorf("domain %q: %w", name, err)
		}
		all = append(all, d)
	}
	return all, nil
}

func newDomain(name, main string, negative time.Duration) (*domain, error) {
	d := &domain{name: miekg.CanonicalName(name)}
	d.reverse = d.name == reverse4 || d.name == reverse6
	buf := make([]byte, maxName)
	n, err := miekg.PackDomainName(d.name, buf, 0, nil, false)
	if err != nil {
		return nil, err
	}
	d.wire = buf[:n]
	main = miekg.CanonicalName(main)
	const fixed = 5 * 4 // the five numbers at the end of an SOA
	d.soa = newPacker(d, uint32(negative/time.Second)).wire(&miekg.SOA{
		Ns: wordNS + "." + main, Mbox: "hostmaster." + main,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: uint32(negative / time.Second),
	}, miekg.TypeSOA)
	d.serialAt = len(d.soa) - fixed
	return d, nil
}

// appendSOA appends the SOA record, without its owner.
func (d *domain) appendSOA(b []byte, serial uint32) []byte {
	at := len(b) + d.serialAt
	b = append(b, d.soa...)
	binary.BigEndian.PutUint32(b[at:], serial)
	return b
}
