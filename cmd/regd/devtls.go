package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cmd/regd/internal/pki"
)

const (
	devDomain = "dev.regd"
	// devClient is the client that the commands are for a dev cluster, and its demo services.
	devClient = "dev"
)

// makeDevTLS makes the certificates of a dev cluster in its data folder. The authority stays from run to run, so that
// programs need not be told of another; all others are new each time.
func makeDevTLS(dataDir string, nodes []devAddresses) (*devTLS, error) {
	dir := filepath.Join(dataDir, "tls")
	path := func(name string) string { return filepath.Join(dir, name) }
	now := time.Now()
	ca, err := pki.LoadAuthority(path("ca.crt"), path("ca.key"))
	if errors.Is(err, os.ErrNotExist) {
		if ca, err = pki.NewAuthority(devDomain, now); err == nil {
			err = ca.Write(path("ca.crt"), path("ca.key"), false)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("authority of the dev cluster: %w", err)
	}
	write := func(name string, p pki.Pair, err error) error {
		if err == nil {
			err = p.Write(path(name+".crt"), path(name+".key"), true)
		}
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", name, err)
		}
		return nil
	}
	var errs []error
	var p pki.Pair
	for _, n := range nodes {
		p, err = ca.Node(n.Name, nil, now, pki.DefaultLife)
		errs = append(errs, write(n.Name, p, err))
	}
	p, err = ca.Client(devClient, now, pki.DefaultLife)
	errs = append(errs, write(devClient, p, err))
	return &devTLS{CACert: path("ca.crt"), Cert: path(devClient + ".crt"), Key: path(devClient + ".key")}, errors.Join(errs...)
}

// nodeArgs are the flags of a node. The methods of nil are those of a cluster without TLS.
func (t *devTLS) nodeArgs(name string) []string {
	if t == nil {
		return nil
	}
	own := filepath.Join(filepath.Dir(t.CACert), name)
	return []string{
		"--tls-ca", t.CACert, "--tls-cert", own + ".crt", "--tls-key", own + ".key", "--tls-client-auth", string(certs.ClientAuthRequest),
	}
}

// options are those of a client.
func (t *devTLS) options() []client.Option {
	if t == nil {
		return nil
	}
	return []client.Option{client.WithTLSFiles(client.TLSFiles{CA: t.CACert, Cert: t.Cert, Key: t.Key})}
}

// describe says how it is, for the block that dev prints.
func (t *devTLS) describe() []string {
	if t == nil {
		return []string{"off (dev only); --tls turns it on"}
	}
	return []string{"on, nodes and clients; clients are asked for a certificate", "authority " + t.CACert}
}

// env are the variables that tell a client where the nodes and its files are.
func (t *devTLS) env(endpoints []string) []string {
	return []string{"REGD_ENDPOINTS=" + strings.Join(endpoints, ","), "REGD_CA_CERT=" + t.CACert, "REGD_CERT=" + t.Cert, "REGD_CERT_KEY=" + t.Key}
}
