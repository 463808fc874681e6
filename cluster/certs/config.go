package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// PeerProtocol is what the peer port speaks, for ALPN. A client that is sent to the wrong port is told so by TLS.
const PeerProtocol = "regd-peer"

// ClientAuth says what a port wants to know of its clients.
type ClientAuth string

// What is asked of clients: nothing; a certificate if they have one; a certificate.
const (
	ClientAuthNone    ClientAuth = "none"
	ClientAuthRequest ClientAuth = "request"
	ClientAuthRequire ClientAuth = "require"
)

// PeerServer is how the peer port accepts: TLS 1.3, with peers of the own trust domain only.
func (s *Source) PeerServer() *tls.Config {
	return s.server(tls.VersionTLS13, []string{PeerProtocol}, func(m *material, cfg *tls.Config) {
		cfg.ClientCAs, cfg.ClientAuth = m.roots, tls.RequireAndVerifyClientCert
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			return check(cs.PeerCertificates[0], m.id.Domain, RolePeer)
		}
	})
}

// PeerClient is how other nodes are dialled: as PeerServer accepts. The host name is not compared. That a certificate is of
// a peer in the own trust domain says more, and its name is compared with that of the node that is meant; names that stay
// when addresses change are what such certificates are issued for.
func (s *Source) PeerClient() *tls.Config {
	m := s.current.Load()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{PeerProtocol},
		// Asked instead of chosen by crypto/tls, which shows none when the other side does not trust its authority: the error
		// would be that there is none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.cert, nil },
		InsecureSkipVerify:   true, // VerifyConnection does it, all but the host name.
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := m.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
			}
			return check(cs.PeerCertificates[0], m.id.Domain, RolePeer)
		},
	}
}

// Server is how the client port accepts. Certificates of clients must have the role of a client in the trust domain, also
// where they are asked for and not required: who shows a wrong one wants to know. Not every other ALPN than protocols is
// refused: who offers none is let in by crypto/tls.
func (s *Source) Server(auth ClientAuth, domain string, minVersion uint16, protocols ...string) *tls.Config {
	return s.server(minVersion, protocols, func(m *material, cfg *tls.Config) {
		switch auth {
		case ClientAuthRequire:
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		case ClientAuthRequest:
			cfg.ClientAuth = tls.VerifyClientCertIfGiven
		default:
			return
		}
		cfg.ClientCAs = m.roots
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return check(cs.PeerCertificates[0], domain, RoleClient)
		}
	})
}

// server makes a configuration that uses the latest material at each handshake. There are no session tickets: with one a
// connection could be taken up that the authorities of today would not allow.
func (s *Source) server(minVersion uint16, protocols []string, more func(*material, *tls.Config)) *tls.Config {
	return &tls.Config{
		MinVersion: minVersion,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := s.current.Load()
			cfg := &tls.Config{
				MinVersion: minVersion, NextProtos: protocols, Certificates: []tls.Certificate{m.cert}, SessionTicketsDisabled: true,
			}
			more(m, cfg)
			return cfg, nil
		},
	}
}

const (
	// lingerTime and lingerBytes bound how long the other side's last words are awaited.
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// Accept shakes hands on a connection made by tls.Server, until ctx ends. When it fails the other side gets TLS's word for
// it, and the error says why, also who came: that is for the log. The caller closes the connection.
func Accept(ctx context.Context, conn *tls.Conn) error {
	err := conn.HandshakeContext(ctx)
	if err == nil {
		return nil
	}
	var header tls.RecordHeaderError
	if errors.As(err, &header) {
		return errPlain
	}
	if ctx.Err() == nil {
		linger(ctx, conn.NetConn())
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) && len(cert.UnverifiedCertificates) > 0 {
		return fmt.Errorf("%w (%s)", err, describe(cert.UnverifiedCertificates[0]))
	}
	return err
}

// linger reads on for a moment. A connection that is closed over unread bytes is reset, and the reset may overtake what
// the other side was told.
func linger(ctx context.Context, raw net.Conn) {
	if half, ok := raw.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // Then it is closed soon anyway.
	}
	if raw.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		defer context.AfterFunc(ctx, func() { _ = raw.SetReadDeadline(time.Unix(1, 0)) })()
		_, _ = io.CopyN(io.Discard, raw, lingerBytes) // Ends with the other side, by time or by size.
	}
}

// describe tells whose certificate it is.
func describe(cert *x509.Certificate) string {
	who := cert.Subject.String()
	if len(cert.URIs) > 0 {
		who = cert.URIs[0].String()
	}
	return fmt.Sprintf("certificate of %q by %q, %s to %s", who, cert.Issuer.String(),
		cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339))
}
