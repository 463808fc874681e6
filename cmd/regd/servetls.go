package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/rpc"
)

// tlsSettings are those of a node's TLS. The zero value is none.
type tlsSettings struct {
	// Cert, Key and CA are the files for clients, and for peers unless Peer has others.
	Cert, Key, CA string
	Peer          struct{ Cert, Key, CA string }
	// ClientAuth is one of certs.ClientAuth, MinVersion "1.2" or "1.3"; both are of the client port only.
	ClientAuth, MinVersion string
	// Every is for tests: how often the files are looked at.
	Every time.Duration
}

// The values of --tls-min-version. Nodes among themselves always speak 1.3.
const (
	tls12 = "1.2"
	tls13 = "1.3"
)

func (c *tlsSettings) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Cert, "tls-cert", "", "`file` with the certificate of this node; makes clients use TLS")
	fs.StringVar(&c.Key, "tls-key", "", "`file` with its private key, mode 0600")
	fs.StringVar(&c.CA, "tls-ca", "", "`file` with the authorities of the other side's certificates")
	fs.StringVar(&c.Peer.Cert, "peer-tls-cert", "", "`file` with the certificate for other nodes; default: --tls-cert")
	fs.StringVar(&c.Peer.Key, "peer-tls-key", "", "`file` with its private key; default: --tls-key")
	fs.StringVar(&c.Peer.CA, "peer-tls-ca", "", "`file` with the authorities of other nodes' certificates; default: --tls-ca")
	enumVar(fs, &c.ClientAuth, "tls-client-auth", "what clients must show: nothing, a certificate if they have one, one in any case",
		string(certs.ClientAuthNone), string(certs.ClientAuthRequest), string(certs.ClientAuthRequire))
	setDefault(fs, "tls-client-auth", string(certs.ClientAuthNone))
	enumVar(fs, &c.MinVersion, "tls-min-version", "oldest TLS that clients may use", tls12, tls13)
	setDefault(fs, "tls-min-version", tls13)
}

// client are the files for clients; false: they use plaintext.
func (c *tlsSettings) client() (certs.Files, bool) {
	return certs.Files{Cert: c.Cert, Key: c.Key, CA: c.CA}, c.Cert != ""
}

// peers are the files for other nodes; false: they use plaintext. Without an authority there is none: a certificate for clients
// alone may come from anybody.
func (c *tlsSettings) peers() (certs.Files, bool) {
	f := certs.Files{Cert: cmp.Or(c.Peer.Cert, c.Cert), Key: cmp.Or(c.Peer.Key, c.Key), CA: cmp.Or(c.Peer.CA, c.CA)}
	return f, f.Cert != "" && f.CA != ""
}

// validate reports what does not go together.
func (c *tlsSettings) validate(bad func(string, ...any)) {
	if (c.Cert == "") != (c.Key == "") {
		bad("--tls-cert and --tls-key: one of them is missing")
	}
	if (c.Peer.Cert == "") != (c.Peer.Key == "") {
		bad("--peer-tls-cert and --peer-tls-key: one of them is missing")
	}
	if _, on := c.peers(); c.Peer.Cert != "" && !on {
		bad("--peer-tls-cert: nodes trust each other by an authority: --peer-tls-ca or --tls-ca must be set")
	}
	if c.Cert == "" && c.Peer.Cert == "" && (c.CA != "" || c.Peer.CA != "") {
		bad("--tls-ca: without --tls-cert and --tls-key there is no TLS")
	}
	if c.wantsCertificates() && (c.Cert == "" || c.CA == "") {
		bad("--tls-client-auth %s: needs --tls-cert, --tls-key, and --tls-ca with the authority of the clients", c.ClientAuth)
	}
}

func (c *tlsSettings) wantsCertificates() bool {
	return c.ClientAuth != "" && c.ClientAuth != string(certs.ClientAuthNone)
}

// security is a node's TLS while it runs. Its zero value is none.
type security struct {
	client, peers *certs.Source // nil: plaintext
}

var errNoDomain = errors.New("--tls-client-auth: whose clients are they? " +
	"The certificate of this node names no trust domain (spiffe://<trust domain>/regd/peer/<name>); give one that does by --peer-tls-cert")

// openSecurity reads the files.
func openSecurity(cfg serveConfig) (security, error) {
	var s security
	var err error
	if files, on := cfg.TLS.peers(); on {
		if s.peers, err = certs.Open(certs.Config{Files: files, Port: "peer", Node: cfg.Name, Every: cfg.TLS.Every, Logger: cfg.Logger}); err != nil {
			return s, err
		}
	}
	if files, on := cfg.TLS.client(); on {
		if s.client, err = certs.Open(certs.Config{Files: files, Port: "client", Every: cfg.TLS.Every, Logger: cfg.Logger}); err != nil {
			return s, err
		}
		if _, err = s.domain(); err != nil && cfg.TLS.wantsCertificates() {
			return s, errNoDomain
		}
	}
	return s, nil
}

// domain is the trust domain of the node, and so of its clients.
func (s security) domain() (string, error) {
	source := cmp.Or(s.peers, s.client)
	id, err := source.ID()
	return id.Domain, err
}

// network makes connections between nodes secure.
func (s security) network(n peer.Network) peer.Network {
	if s.peers == nil {
		return n
	}
	return peer.Secure(n, s.peers)
}

// api is how clients are served; nil: plaintext.
func (s security) api(cfg tlsSettings) *rpc.TLS {
	if s.client == nil {
		return nil
	}
	domain, _ := s.domain() // openSecurity has found out that there is one where it matters.
	t := &rpc.TLS{Source: s.client, ClientAuth: certs.ClientAuth(cfg.ClientAuth), Domain: domain, MinVersion: tls.VersionTLS13}
	if cfg.MinVersion == tls12 {
		t.MinVersion = tls.VersionTLS12
	}
	return t
}

func (s security) collectors() []prometheus.Collector {
	var all []prometheus.Collector
	for _, source := range []*certs.Source{s.peers, s.client} {
		if source != nil {
			all = append(all, source.Collectors()...)
		}
	}
	return all
}

func (s security) close() {
	for _, source := range []*certs.Source{s.peers, s.client} {
		if source != nil {
			source.Close()
		}
	}
}

// plaintext lists the ports that others reach without TLS, by the names of their flags.
func (c serveConfig) plaintext() []string {
	_, client := c.TLS.client()
	_, peers := c.TLS.peers()
	var open []string
	for _, l := range []struct {
		name, listen string
		secure       bool
	}{{"--grpc-listen", c.GRPCListen, client}, {"--peer-listen", c.PeerListen, peers}} {
		if host, _, err := net.SplitHostPort(l.listen); err == nil && !isLoopback(host) && !l.secure {
			open = append(open, l.name)
		}
	}
	return open
}
