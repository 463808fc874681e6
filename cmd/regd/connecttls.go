package main

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/cluster/certs"
)

// tlsFlags say how a command secures its connections.
type tlsFlags struct {
	set    *pflag.FlagSet // where they were defined
	wanted bool
	ca     string
	cert   string
	key    string
	name   string
}

func (f *tlsFlags) addFlags(fs *pflag.FlagSet) {
	f.set = fs
	fs.BoolVar(&f.wanted, "tls", false, "use TLS, as --ca-cert, --cert and --server-name do by themselves")
	bindEnv(fs, "tls", "REGD_TLS")
	fs.StringVar(&f.ca, "ca-cert", "", "`file` with the authorities of the nodes; default: those of the system")
	bindEnv(fs, "ca-cert", "REGD_CA_CERT")
	fs.StringVar(&f.cert, "cert", "", "`file` with a client certificate")
	bindEnv(fs, "cert", "REGD_CERT")
	fs.StringVar(&f.key, "cert-key", "", "`file` with its private key, mode 0600")
	bindEnv(fs, "cert-key", "REGD_CERT_KEY")
	fs.StringVar(&f.name, "server-name", "", "`name` that the nodes' certificates have; default: the host of --endpoint")
	bindEnv(fs, "server-name", "REGD_SERVER_NAME")
}

// on tells whether TLS is used.
func (f *tlsFlags) on() bool {
	if f.set != nil && f.set.Changed("tls") {
		return f.wanted
	}
	return cmp.Or(f.ca, f.cert, f.key, f.name) != ""
}

// orDev takes what the running dev cluster tells, unless a flag says something.
func (f *tlsFlags) orDev(dev *devTLS) {
	if dev == nil || f.on() || f.set.Changed("tls") {
		return
	}
	f.ca, f.cert, f.key = dev.CACert, dev.Cert, dev.Key
}

// options are those of the client.
func (f *tlsFlags) options() ([]client.Option, error) {
	if !f.on() {
		return nil, nil
	}
	if (f.cert == "") != (f.key == "") {
		return nil, usageErrorf("--cert and --cert-key: one of them is missing")
	}
	if f.key != "" {
		if err := certs.CheckKey(f.key); err != nil {
			return nil, &exitError{code: exitUsage, err: fmt.Errorf("--cert-key: %w", err), hint: keyHint(err)}
		}
	}
	return []client.Option{client.WithTLSFiles(client.TLSFiles{CA: f.ca, Cert: f.cert, Key: f.key, ServerName: f.name})}, nil
}

func keyHint(err error) string {
	if errors.Is(err, certs.ErrKeyMode) {
		return "a private key that others could have read should be replaced"
	}
	return ""
}
