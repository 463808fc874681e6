package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/regd-io/regd/rpc"
	"github.com/regd-io/regd/rpc/consul"
)

// consulDoor is the door for Consul's clients, with its settings as flags have them.
type consulDoor struct {
	listen, datacenter string
	insecure           bool
}

func (d *consulDoor) name() string  { return "consul" }
func (d *consulDoor) title() string { return "Consul API" }

func (d *consulDoor) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&d.listen, "consul-listen", "",
		"`address` on which Consul's HTTP API is answered, port "+consul.DefaultPort+" unless it has one; with --tls-cert by HTTPS; default: nowhere")
	fs.StringVar(&d.datacenter, "consul-datacenter", "dc1", "`name` of the datacenter that Consul's clients are told")
	fs.BoolVar(&d.insecure, "consul-insecure", false, "let --consul-listen be beyond this machine without TLS")
}

// address is where the door listens, empty for nowhere.
func (d *consulDoor) address() string {
	if d.listen == "" {
		return ""
	}
	if _, _, err := net.SplitHostPort(d.listen); err == nil {
		return d.listen
	}
	return net.JoinHostPort(strings.Trim(d.listen, "[]"), consul.DefaultPort)
}

func (d *consulDoor) config(node servedNode, log *slog.Logger) consul.Config {
	cfg := consul.Config{Listen: d.address(), Datacenter: d.datacenter, Host: "localhost", Logger: log}
	if node.Node == nil {
		return cfg
	}
	hostname, _ := os.Hostname() // Without one the node's name will do.
	hostname, _, _ = strings.Cut(hostname, ".")
	cfg.Host = cmp.Or(hostname, node.Info().Name)
	return cfg
}

func (d *consulDoor) validate(secure bool, bad func(string, ...any)) {
	if d.listen == "" {
		return
	}
	host, _, err := net.SplitHostPort(d.address())
	if err != nil {
		bad("--consul-listen %q: must be host:port", d.listen)
		return
	}
	if !isLoopback(host) && !secure && !d.insecure {
		bad("--consul-listen %s: reaches beyond this machine without TLS: whoever gets there can read and change the registry, "+
			"as far as its token or the identity anonymous may; give --tls-cert and --tls-key, or say --consul-insecure if the network is trusted", d.listen)
	}
	if err := d.config(servedNode{}, nil).Validate(); err != nil {
		bad("--consul-datacenter: %w", err)
	}
}

func (d *consulDoor) open(ctx context.Context, node servedNode, api *rpc.Server, log *slog.Logger) (doorServer, error) {
	if d.listen == "" {
		return nil, nil //nolint:nilnil // A door that stays closed.
	}
	cfg := d.config(node, log)
	cfg.Door = api.Door("consul", "h2", "http/1.1")
	s, err := consul.Listen(ctx, cfg, node)
	if err != nil {
		return nil, fmt.Errorf("open the door for Consul's clients: %w", err)
	}
	return s, nil
}
