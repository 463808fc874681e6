package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/pflag"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
	"github.com/regd-io/regd/rpc/dns"
)

// dnsDoor is the door for DNS, with its settings as flags have them.
type dnsDoor struct {
	cfg                        dns.Config
	health                     string
	unhealthy, stale, order    string
	serviceTTL, zones, forward []string
}

// The values of --dns-health.
const (
	dnsPassing = "passing"
	dnsWarning = "warning"
)

func (d *dnsDoor) name() string  { return "dns" }
func (d *dnsDoor) title() string { return "DNS" }

func (d *dnsDoor) addFlags(fs *pflag.FlagSet) {
	c := &d.cfg
	fs.StringVar(&c.Listen, "dns-listen", "", "`address` on which DNS is answered, by UDP and TCP, port "+dns.DefaultPort+" unless it has one; default: nowhere")
	fs.StringSliceVar(&c.Domains, "dns-domain", []string{"regd."}, "`domains` under which names are answered, such as regd.,consul.")
	fs.StringVar(&c.Datacenter, "dns-datacenter", "", "`name` that may stand behind a name, for clients that give one: web.service.NAME.consul")
	enumVar(fs, &d.health, "dns-health", "least health of what is answered", dnsPassing, dnsWarning)
	enumVar(fs, &d.unhealthy, "dns-unhealthy", "what is answered when nothing is healthy", string(dns.UnhealthyEmpty), string(dns.UnhealthyAll))
	fs.DurationVar(&c.TTL, "dns-ttl", time.Second, "how long an answer may be kept; 0s: not at all")
	fs.StringSliceVar(&d.serviceTTL, "dns-service-ttl", nil, "other TTLs, as `service=duration`; a service may end in *, the first that matches counts")
	fs.DurationVar(&c.NegativeTTL, "dns-negative-ttl", time.Second, "how long it may be kept that there is nothing")
	fs.DurationVar(&c.MaxStale, "dns-max-stale", 10*time.Second, "age of the node's knowledge up to which it counts as fresh")
	enumVar(fs, &d.stale, "dns-stale", "what is answered beyond that age", string(dns.StaleServe), string(dns.StaleFail))
	enumVar(fs, &d.order, "dns-order", "order of the answers: random, or the same for the same client", string(dns.OrderShuffle), string(dns.OrderRendezvous))
	fs.StringSliceVar(&d.zones, "dns-zone", nil, "zones of clients, as `network=zone`: instances in the zone come first")
	fs.IntVar(&c.UDPSize, "dns-udp-size", 1232, "largest answer by UDP in bytes, where the client takes as much")
	fs.IntVar(&c.RateLimit, "dns-rate-limit", 2000, "queries a second by UDP from one address of another machine, beyond which half are asked to come by TCP; 0: any number")
	fs.StringSliceVar(&d.forward, "dns-forward", nil, "`resolvers` that are asked for all other names, for clients with private addresses; default: none")
	setDefault(fs, "dns-health", dnsWarning)
	setDefault(fs, "dns-unhealthy", string(dns.UnhealthyEmpty))
	setDefault(fs, "dns-stale", string(dns.StaleServe))
	setDefault(fs, "dns-order", string(dns.OrderShuffle))
}

// config returns the configuration of the door, and reports what can't be read.
func (d *dnsDoor) config(bad func(string, ...any)) dns.Config {
	c := d.cfg
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			c.Listen = net.JoinHostPort(strings.Trim(c.Listen, "[]"), dns.DefaultPort)
		}
	}
	c.MinHealth = registryv1.Health_HEALTH_WARNING
	if d.health == dnsPassing {
		c.MinHealth = registryv1.Health_HEALTH_PASSING
	}
	c.Unhealthy, c.Stale, c.Order = dns.Unhealthy(d.unhealthy), dns.Stale(d.stale), dns.Order(d.order)
	for _, text := range d.serviceTTL {
		service, value, _ := strings.Cut(text, "=")
		ttl, err := time.ParseDuration(value)
		if err != nil || service == "" {
			bad("--dns-service-ttl %q: must be service=duration, such as web=5s or api-*=1m", text)
		}
		c.ServiceTTLs = append(c.ServiceTTLs, dns.ServiceTTL{Service: service, TTL: ttl})
	}
	for _, text := range d.zones {
		network, zone, _ := strings.Cut(text, "=")
		prefix, err := netip.ParsePrefix(network)
		if err != nil || zone == "" {
			bad("--dns-zone %q: must be network=zone, such as 10.1.0.0/16=eu-1a", text)
		}
		c.Zones = append(c.Zones, dns.Zone{Network: prefix.Masked(), Name: zone})
	}
	for _, text := range d.forward {
		resolver, err := netip.ParseAddrPort(text)
		if addr, bare := netip.ParseAddr(text); err != nil && bare == nil {
			resolver, err = netip.AddrPortFrom(addr, 53), nil
		}
		if err != nil {
			bad("--dns-forward %q: must be an IP address, with a port unless that is 53", text)
		}
		c.Forward = append(c.Forward, resolver)
	}
	return c
}

func (d *dnsDoor) validate(_ bool, bad func(string, ...any)) {
	if c := d.config(bad); c.Listen != "" {
		for _, fault := range c.Faults() {
			bad("--dns-%s", fault)
		}
	}
}

func (d *dnsDoor) open(ctx context.Context, node servedNode, _ *rpc.Server, log *slog.Logger) (doorServer, error) {
	cfg := d.config(func(string, ...any) {}) // Validated before.
	if cfg.Listen == "" {
		return nil, nil //nolint:nilnil // A door that stays closed.
	}
	cfg.Logger = log
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil && !isLoopback(host) {
		log.Warn("DNS has no access control of its own: whoever reaches the port sees what the identity anonymous may discover, "+
			"and everything while access control is off", "dns_listen", cfg.Listen)
	}
	s, err := dns.Listen(ctx, cfg, node)
	if err != nil {
		return nil, fmt.Errorf("open the door for DNS: %w", err)
	}
	return s, nil
}
