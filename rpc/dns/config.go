package dns

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	miekg "github.com/miekg/dns"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// DefaultPort is where the door listens when no port is given.
const DefaultPort = "8600"

// Unhealthy says what is answered about a service none of whose instances is healthy enough.
type Unhealthy string

// The policies of Config.Unhealthy.
const (
	// UnhealthyEmpty: no records.
	UnhealthyEmpty Unhealthy = "empty"
	// UnhealthyAll: all instances but those that drain or are in maintenance.
	UnhealthyAll Unhealthy = "all"
)

// Stale says what is answered while the node's State is older than Config.MaxStale.
type Stale string

// The policies of Config.Stale.
const (
	// StaleServe: what the node knows. Before it has once been up to date, nothing: SERVFAIL.
	StaleServe Stale = "serve"
	// StaleFail: SERVFAIL.
	StaleFail Stale = "servfail"
)

// Order says in which order records are answered.
type Order string

// The policies of Config.Order.
const (
	// OrderShuffle: at random, another one each time.
	OrderShuffle Order = "shuffle"
	// OrderRendezvous: by the hash of instance and client, so that a client always sees the same order, and an instance that
	// comes or goes moves no other.
	OrderRendezvous Order = "rendezvous"
)

// Zone maps the clients of a network to a zone: instances in it are answered first.
type Zone struct {
	Network netip.Prefix
	Name    string
}

// ServiceTTL gives services another TTL than Config.TTL.
type ServiceTTL struct {
	// Service is a name, or a prefix followed by "*".
	Service string
	TTL     time.Duration
}

// Config says how a Server answers. The zero value is usable but for Listen.
type Config struct {
	// Listen is the IP:port on which UDP and TCP are answered.
	Listen string
	// Domains under which names are answered. Default: "regd.". Records name the one that was asked by.
	Domains []string
	// Datacenter may stand behind a name, for clients that name one ("web.service.dc1.consul."). Empty: none may.
	Datacenter string
	// MinHealth is how healthy an instance must be: passing, or warning. Default: warning.
	MinHealth registryv1.Health
	// Unhealthy is the answer when none is. Default: UnhealthyEmpty.
	Unhealthy Unhealthy
	// TTL of records, in whole seconds, 0 to 1 d. 0: they must not be cached.
	TTL time.Duration
	// ServiceTTLs are exceptions. The first that matches counts.
	ServiceTTLs []ServiceTTL
	// NegativeTTL is how long it may be cached that there is nothing, in whole seconds, 0 to 1 d.
	NegativeTTL time.Duration
	// MaxStale is the largest age of the State that counts as up to date. Default: 10 s.
	MaxStale time.Duration
	// Stale is what is done beyond it. Default: StaleServe.
	Stale Stale
	// Order of records. Default: OrderShuffle.
	Order Order
	// Zones of clients. The longest prefix counts.
	Zones []Zone
	// UDPSize is the largest answer by UDP, in bytes, 512 to 4,096, where the client allows as much. Default: 1,232.
	UDPSize int
	// RateLimit is the number of queries a second, over UDP, from one address (IPv6: /64) that is not of this machine.
	// Default 0: any.
	RateLimit int
	// Forward are resolvers that are asked for all other names, in turn, on behalf of private addresses. Default: none, such
	// names are refused.
	Forward []netip.AddrPort
	// MaxForwards is the number of queries that wait for resolvers at once. Default: 256.
	MaxForwards int
	// MaxConns is the number of TCP connections in all, MaxConnsPerIP from one address. Default: 1,000 and 100.
	MaxConns, MaxConnsPerIP int
	// Workers is the number of UDP queries that are worked on at once. Default: 2 for each processor.
	Workers int
	// Logger gets what the server has to say. Default: nothing is logged.
	Logger *slog.Logger
}

// Limits of a Config.
const (
	maxTTL      = 24 * time.Hour
	maxDomains  = 8
	maxDomain   = 200 // There is more before it: 44 bytes of an address and its port.
	minUDPSize  = miekg.MinMsgSize
	maxUDPSize  = 4096
	safeUDPSize = 1232 // No path cuts it in fragments: dnsflagday.net/2020.
)

// Validate reports all faults of a configuration.
func (c Config) Validate() error { return errors.Join(c.Faults()...) }

// Faults are the faults of a configuration, each beginning with the name of the setting, as in "udp-size 1: must be ...".
func (c Config) Faults() []error {
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !isListen(c.Listen) {
		bad("listen %q: must be IP:port", c.Listen)
	}
	if len(c.Domains) > maxDomains {
		bad("domain: %d are given, the limit is %d", len(c.Domains), maxDomains)
	}
	for _, d := range c.Domains {
		if _, ok := miekg.IsDomainName(d); !ok || miekg.Fqdn(d) == "." || strings.ContainsAny(d, `\ `) {
			bad("domain %q: must be a domain name", d)
		} else if len(d) > maxDomain {
			bad("domain %q: has %d characters, the limit is %d", d, len(d), maxDomain)
		}
	}
	if c.Datacenter != "" && !isLabel(c.Datacenter) {
		bad("datacenter %q: must be a label of a domain name", c.Datacenter)
	}
	c.validatePolicies(bad)
	c.validateTTLs(bad)
	c.validateLimits(bad)
	return faults
}

func (c Config) validateTTLs(bad func(string, ...any)) {
	check := func(name string, ttl time.Duration) {
		if ttl < 0 || ttl > maxTTL || ttl%time.Second != 0 {
			bad("%s %v: must be whole seconds from 0 to %v", name, ttl, maxTTL)
		}
	}
	check("ttl", c.TTL)
	check("negative-ttl", c.NegativeTTL)
	for _, t := range c.ServiceTTLs {
		check("service-ttl "+t.Service, t.TTL)
	}
}

func (c Config) validateLimits(bad func(string, ...any)) {
	if c.MaxStale < 0 {
		bad("max-stale %v: must not be negative", c.MaxStale)
	}
	if c.UDPSize != 0 && (c.UDPSize < minUDPSize || c.UDPSize > maxUDPSize) {
		bad("udp-size %d: must be %d to %d", c.UDPSize, minUDPSize, maxUDPSize)
	}
	for _, limit := range []struct {
		name  string
		value int
	}{
		{"rate-limit", c.RateLimit},
		{"max-forwards", c.MaxForwards},
		{"max-conns", c.MaxConns},
		{"max-conns-per-ip", c.MaxConnsPerIP},
		{"workers", c.Workers},
	} {
		if limit.value < 0 {
			bad("%s %d: must not be negative", limit.name, limit.value)
		}
	}
}

func (c Config) validatePolicies(bad func(string, ...any)) {
	switch c.MinHealth {
	case 0, registryv1.Health_HEALTH_PASSING, registryv1.Health_HEALTH_WARNING:
	default:
		bad("health %v: must be passing or warning", c.MinHealth)
	}
	if !slices.Contains([]Unhealthy{"", UnhealthyEmpty, UnhealthyAll}, c.Unhealthy) {
		bad("unhealthy %q: must be %s or %s", c.Unhealthy, UnhealthyEmpty, UnhealthyAll)
	}
	if !slices.Contains([]Stale{"", StaleServe, StaleFail}, c.Stale) {
		bad("stale %q: must be %s or %s", c.Stale, StaleServe, StaleFail)
	}
	if !slices.Contains([]Order{"", OrderShuffle, OrderRendezvous}, c.Order) {
		bad("order %q: must be %s or %s", c.Order, OrderShuffle, OrderRendezvous)
	}
}

// isListen accepts what can be listened on. Without an IP address that is all of them.
func isListen(address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	_, noIP := netip.ParseAddr(host)
	return err == nil && (noIP == nil || host == "" || host == "localhost")
}

func isLabel(s string) bool {
	labels, ok := miekg.IsDomainName(s)
	return ok && labels == 1 && !strings.ContainsAny(s, `.\ `)
}
