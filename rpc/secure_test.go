package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/certs/certstest"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// journal is a log that tests can read.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// secured is a server with TLS on a socket.
type secured struct {
	*Server
	addr string
	dir  string
	log  journal
}

func serveTLS(t *testing.T, ca *certstest.Authority, node Node, cfg TLS) *secured {
	t.Helper()
	s := &secured{dir: t.TempDir()}
	var err error
	cfg.Source, err = certs.Open(certs.Config{
		Files: certstest.Write(t, s.dir, ca.Peer("n1"), ca.PEM()), Port: "client", Every: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Domain = certstest.Domain
	if s.Server, err = NewServer(Config{TLS: &cfg, Logger: slog.New(slog.NewTextHandler(&s.log, nil))}, node); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = lis.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(lis) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Shutdown(context.Background()), <-ended); err != nil {
			t.Error(err)
		}
		cfg.Source.Close()
	})
	return s
}

// ask asks for the server's health once.
func ask(t *testing.T, addr string, creds credentials.TransportCredentials) error {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

// shows are the credentials of a client that trusts the authority and shows a certificate, if any.
func shows(t *testing.T, ca *certstest.Authority, p *certstest.Pair) credentials.TransportCredentials {
	t.Helper()
	cfg := &tls.Config{RootCAs: ca.Pool()}
	if p != nil {
		c := p.TLS(t)
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
	}
	return credentials.NewTLS(cfg)
}

func TestOnlyTrustedClientsGetIn(t *testing.T) {
	ca, now := certstest.NewAuthority(t), time.Now()
	alone := certstest.NewAuthority(t)
	node := newFakeNode(t)
	for name, tt := range map[string]struct {
		pair  *certstest.Pair
		creds credentials.TransportCredentials // instead of what shows the pair
		asked string                           // in: what is asked of it; "": refused when a certificate is asked for
		logs  string                           // why it is refused
		hears string                           // what it is told
	}{
		"a client":             {pair: of(ca.Client("shop")), asked: "request,require"},
		"without":              {asked: "none,request", logs: "didn't provide a certificate", hears: "certificate required"},
		"a node":               {pair: of(ca.Peer("n2")), asked: "none", logs: "certificate of another role", hears: "bad certificate"},
		"another trust domain": {pair: of(ca.Client("a", certstest.URIs("spiffe://else/regd/client/a"))), asked: "none", logs: "another trust domain", hears: "bad certificate"},
		"another authority":    {pair: of(certstest.NewAuthority(t).Client("a")), asked: "none", logs: "unknown authority", hears: "unknown certificate authority"},
		"expired":              {pair: of(ca.Client("a", certstest.Between(now.Add(-2*time.Hour), now.Add(-time.Hour)))), asked: "none", logs: "has expired or is not yet valid", hears: "expired certificate"},
		"not yet valid":        {pair: of(ca.Client("a", certstest.Between(now.Add(time.Hour), now.Add(2*time.Hour)))), asked: "none", logs: "has expired or is not yet valid", hears: "expired certificate"},
		"self-signed":          {pair: &certstest.Pair{Cert: alone.PEM(), Key: alone.Key()}, asked: "none", logs: "x509: ", hears: "certificate"},
		"no SAN":               {pair: of(ca.Client("a", certstest.URIs())), asked: "none", logs: "it has no URI SAN", hears: "bad certificate"},
		"wrong use":            {pair: of(ca.Client("a", certstest.For(x509.ExtKeyUsageServerAuth))), asked: "none", logs: "incompatible key usage", hears: "bad certificate"},
		"plaintext":            {creds: insecure.NewCredentials(), logs: "does not speak TLS", hears: ""},
		"TLS 1.2": {
			creds: credentials.NewTLS(&tls.Config{RootCAs: ca.Pool(), MaxVersion: tls.VersionTLS12}),
			logs:  "client offered only unsupported versions", hears: "protocol version not supported",
		},
		"another protocol": {
			creds: alpn{ca.Pool()}, logs: "unsupported application protocols", hears: "no application protocol",
		},
	} {
		for _, auth := range []certs.ClientAuth{certs.ClientAuthNone, certs.ClientAuthRequest, certs.ClientAuthRequire} {
			t.Run(name+"/"+string(auth), func(t *testing.T) {
				s := serveTLS(t, ca, node, TLS{ClientAuth: auth})
				creds := tt.creds
				if creds == nil {
					creds = shows(t, ca, tt.pair)
				}
				err := ask(t, s.addr, creds)
				if strings.Contains(tt.asked, string(auth)) || name == "a client" {
					if err != nil {
						t.Errorf("refused: %v\n%s", err, s.log.String())
					}
					return
				}
				if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), tt.hears) {
					t.Errorf("the client gets %v, want %q", err, tt.hears)
				}
				if strings.Contains(err.Error(), "wanted") || strings.Contains(err.Error(), certstest.Domain) {
					t.Errorf("the client is told too much: %v", err)
				}
				s.logs(t, "client refused by TLS", tt.logs)
			})
		}
	}
}

// logs waits for what is logged once the other side has gone.
func (s *secured) logs(t *testing.T, texts ...string) {
	t.Helper()
	ticker, deadline := time.NewTicker(5*time.Millisecond), time.After(20*time.Second)
	defer ticker.Stop()
	for _, text := range texts {
		for !strings.Contains(s.log.String(), text) {
			select {
			case <-ticker.C:
			case <-deadline:
				t.Fatalf("the log lacks %q:\n%s", text, s.log.String())
			}
		}
	}
}

func of(p certstest.Pair) *certstest.Pair { return &p }

// alpn shakes hands for another protocol, as a node that is told the wrong port.
type alpn struct{ pool *x509.CertPool }

func (a alpn) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c := tls.Client(raw, &tls.Config{RootCAs: a.pool, ServerName: "localhost", NextProtos: []string{certs.PeerProtocol}})
	return c, credentials.TLSInfo{}, c.HandshakeContext(ctx)
}

func (alpn) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("not a server")
}

func (alpn) Info() credentials.ProtocolInfo            { return credentials.ProtocolInfo{SecurityProtocol: "tls"} }
func (a alpn) Clone() credentials.TransportCredentials { return a }
func (alpn) OverrideServerName(string) error           { return nil }

func TestOlderTLSIsServedOnlyIfAllowed(t *testing.T) {
	ca := certstest.NewAuthority(t)
	s := serveTLS(t, ca, newFakeNode(t), TLS{MinVersion: tls.VersionTLS12})
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{
			RootCAs: ca.Pool(), MinVersion: tls.VersionTLS10, MaxVersion: version, NextProtos: []string{"h2"},
		})
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// A handler knows the client by its certificate, and only by one that was verified.
func TestAClientIsKnownByItsCertificate(t *testing.T) {
	ca := certstest.NewAuthority(t)
	var mu sync.Mutex
	var name string
	var known bool
	node := newFakeNode(t)
	s := serveTLS(t, ca, &spying{fakeNode: node, spy: func(ctx context.Context) {
		mu.Lock()
		defer mu.Unlock()
		name, known = certificateName(ctx)
	}}, TLS{ClientAuth: certs.ClientAuthRequest})
	for want, creds := range map[string]credentials.TransportCredentials{
		"shop": shows(t, ca, of(ca.Client("shop"))), "": shows(t, ca, nil),
	} {
		cc, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		_, err = apiv1.NewClusterServiceClient(cc).Members(t.Context(), &apiv1.MembersRequest{})
		cc.Close()
		mu.Lock()
		if err != nil || name != want || known != (want != "") {
			t.Errorf("known as %q, %v (%v), want %q", name, known, err, want)
		}
		mu.Unlock()
	}
	for what, ctx := range map[string]context.Context{
		"no connection": t.Context(),
		"plaintext":     peer.NewContext(t.Context(), &peer.Peer{}),
		// What crypto/tls has read of a certificate is not what anybody has vouched for.
		"not verified": peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{
			State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{ca.Client("shop").TLS(t).Leaf}},
		}}),
	} {
		if name, ok := certificateName(ctx); ok {
			t.Errorf("%s: known as %q", what, name)
		}
	}
}

// spying is a node that looks at the contexts of calls.
type spying struct {
	*fakeNode
	spy func(context.Context)
}

func (s *spying) Status(ctx context.Context, local bool) (*apiv1.StatusResponse, error) {
	s.spy(ctx)
	return s.fakeNode.Status(ctx, local)
}

func TestClientsGoWithTheTrustInThem(t *testing.T) {
	before, after := certstest.NewAuthority(t), certstest.NewAuthority(t)
	s := serveTLS(t, before, newFakeNode(t), TLS{ClientAuth: certs.ClientAuthRequest})
	open := func(p *certstest.Pair) healthpb.Health_WatchClient {
		cc, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(shows(t, before, p)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cc.Close() })
		w, err := healthpb.NewHealthClient(cc).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = w.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	shown, bare := open(of(before.Client("shop"))), open(nil)
	certstest.Write(t, s.dir, after.Peer("n1"), after.PEM())
	if _, err := shown.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream of who is not trusted any more ends with %v", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for { // The files may have been read while they were written: until the next look the certificate is the old one.
		err := ask(t, s.addr, shows(t, after, of(after.Client("shop"))))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new certificate of the server: %v", err)
		}
	}
	if err := ask(t, s.addr, shows(t, after, of(before.Client("shop")))); err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
		t.Errorf("it may come again: %v", err)
	}
	s.Leave() // Who has shown none is still told news.
	if resp, err := bare.Recv(); err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("the stream of who was not asked: %v, %v", resp, err)
	}
}
