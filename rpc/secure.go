package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/regd-io/regd/cluster/certs"
)

// TLS says how connections are secured.
type TLS struct {
	// Source has the certificate of the port, and the authorities of its clients. Required.
	Source *certs.Source
	// ClientAuth says what clients must show. Default: nothing.
	ClientAuth certs.ClientAuth
	// Domain is the trust domain whose clients' certificates are accepted. Required unless ClientAuth is none.
	Domain string
	// MinVersion is the oldest version of TLS. Default: 1.3.
	MinVersion uint16
}

// refusalLogInterval is the least time between two warnings of refused connections.
const refusalLogInterval = 5 * time.Second

// serverTLS shakes hands with clients for gRPC: as credentials.NewTLS does, and it tells why a connection was refused,
// which gRPC does not, and ends connections whose certificate is not trusted any more.
type serverTLS struct {
	source  *certs.Source
	cfg     *tls.Config
	log     *slog.Logger
	warned  atomic.Int64 // when the last refusal was logged, Unix ns
	refused prometheus.Counter
}

func newServerTLS(cfg TLS, log *slog.Logger) *serverTLS {
	s := &serverTLS{source: cfg.Source, log: log, refused: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "regd_tls_refused_connections_total",
		Help: "Connections of clients that were refused by TLS: without it, or with a certificate that is not trusted.",
	})}
	return s.speaking(&cfg, "h2")
}

// speaking returns one for other protocols, which counts with this one.
func (s *serverTLS) speaking(cfg *TLS, protocols ...string) *serverTLS {
	return &serverTLS{
		source: s.source, log: s.log, refused: s.refused,
		cfg: s.source.Server(cfg.ClientAuth, cfg.Domain, cmp.Or(cfg.MinVersion, tls.VersionTLS13), protocols...),
	}
}

// ServerHandshake implements credentials.TransportCredentials. The server has given the connection a deadline.
func (s *serverTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := tls.Server(raw, s.cfg)
	if err := s.accept(context.Background(), raw, conn); err != nil {
		return nil, nil, err
	}
	state := conn.ConnectionState()
	info, err := certifiedBy(state)
	if state.NegotiatedProtocol == "" {
		err = errors.New("the client offers no protocol by ALPN, so it does not speak HTTP/2")
		s.refuse(raw, err)
	}
	if err != nil {
		_ = conn.Close() // It has had its last word.
		return nil, nil, err
	}
	stop := s.source.Watch(state, false, func() { raw.Close() })
	return &watchedConn{Conn: conn, stop: sync.OnceFunc(stop)}, info, nil
}

// accept shakes hands on a connection over raw. When it fails the operator is told, and the connection is closed.
func (s *serverTLS) accept(ctx context.Context, raw net.Conn, conn *tls.Conn) error {
	err := certs.Accept(ctx, conn)
	if err != nil {
		s.refuse(raw, err)
		_ = conn.Close() // It has had its last word.
	}
	return err
}

// refuse tells the operator of a refused connection, not oftener than every refusalLogInterval. Who just goes away, as health
// checks of load balancers do, is not refused.
func (s *serverTLS) refuse(raw net.Conn, err error) {
	if errors.Is(err, io.EOF) {
		return
	}
	s.refused.Inc()
	now, last := time.Now().UnixNano(), s.warned.Load()
	if now-last >= int64(refusalLogInterval) && s.warned.CompareAndSwap(last, now) {
		s.log.Warn("client refused by TLS", "address", raw.RemoteAddr().String(), "err", err)
	}
}

// ClientHandshake implements credentials.TransportCredentials.
func (*serverTLS) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for a server")
}

// Info implements credentials.TransportCredentials.
func (*serverTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (s *serverTLS) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials.
func (*serverTLS) OverrideServerName(string) error { return nil }

// watchedConn is a connection that may be ended when its client's certificate is no longer trusted.
type watchedConn struct {
	*tls.Conn
	stop func()
}

// Close closes the connection.
func (c *watchedConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// certified is the credentials.AuthInfo of a connection with TLS.
type certified struct {
	credentials.TLSInfo
	name string // of the client, by its certificate
}

// certifiedBy is what the certificate of a connection says of the other side. It can't fail where a handshake has asked for one.
func certifiedBy(state tls.ConnectionState) (certified, error) {
	info := certified{TLSInfo: credentials.TLSInfo{
		State: state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}}
	if len(state.VerifiedChains) > 0 {
		id, err := certs.IDOf(state.VerifiedChains[0][0])
		if err != nil {
			return info, err
		}
		info.name = id.Name
	}
	return info, nil
}

// certificateName returns who calls, by the client certificate of the connection, which an authority has vouched for. false:
// the connection has none, as nobody asked for it, the client showed none, or there is no TLS.
func certificateName(ctx context.Context) (string, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", false
	}
	info, _ := p.AuthInfo.(certified)
	return info.name, info.name != ""
}
