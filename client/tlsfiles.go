package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
)

// TLSFiles are PEM files for TLS. All of them are optional.
type TLSFiles struct {
	// CA has the authorities that may vouch for nodes. Default: those of the system.
	CA string
	// Cert and Key authenticate the client.
	Cert, Key string
	// ServerName is the name that nodes' certificates must have. Default: the host of the address that is dialled.
	ServerName string
}

// WithTLSFiles is WithTLS 1.3 from files that are read again for each connection, so that certificates can be renewed while the
// program runs. New fails when they can't be used; later a connection does.
func WithTLSFiles(files TLSFiles) Option {
	return func(c *config) error {
		if _, err := files.load(); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		c.credentials = fileCredentials{files}
		return nil
	}
}

// load reads the files.
func (f TLSFiles) load() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a certificate and its key belong together: one of the files is missing")
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		// crypto/tls would choose to show none to a node that does not name its authority, and the node's answer be that it lacks.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if f.CA == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("authorities %s: no certificate in PEM form", f.CA)
	}
	return cfg, nil
}

// fileCredentials are credentials.NewTLS of files as they are when a connection is made.
type fileCredentials struct{ files TLSFiles }

// ClientHandshake implements credentials.TransportCredentials.
func (f fileCredentials) ClientHandshake(
	ctx context.Context, authority string, raw net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := f.files.load()
	if err != nil {
		return nil, nil, err
	}
	// What the certificate must be for is taken from the authority, not from the configuration.
	return credentials.NewTLS(cfg).ClientHandshake(ctx, cmp.Or(f.files.ServerName, authority), raw)
}

// ServerHandshake implements credentials.TransportCredentials.
func (fileCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for a client")
}

// Info implements credentials.TransportCredentials.
func (fileCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (f fileCredentials) Clone() credentials.TransportCredentials { return f }

// OverrideServerName implements credentials.TransportCredentials. The name is one of TLSFiles.
func (fileCredentials) OverrideServerName(string) error {
	return errors.New("the server name is set by TLSFiles.ServerName")
}
