package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
)

const (
	// A node that came back is met again within about a second.
	backoffBase = 100 * time.Millisecond
	backoffMax  = time.Second

	// window is how much of a stream, and of a connection, may be sent ahead of what is read. gRPC would measure the path for
	// a better one, with a ping to and fro for each message: more than many a message costs.
	window = 1 << 20

	// 10 s is the least that grpc-go allows to a client. It finds a connection whose packets vanish, where TCP
	// would go on retransmitting at ever longer intervals.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
	// Pings of clients come every keepaliveTime; the rest is for a clock that is off. The server itself pings only
	// who has fallen silent.
	keepaliveMinTime    = keepaliveTime / 2
	keepaliveServerTime = 2 * keepaliveTime
)

// FromContext returns who called a handler of a grpc.Server made with ServerOptions. A ClusterID of "" means that the
// caller had no cluster when it connected. ok is false when the call did not come through the peer port: to be treated
// as from nobody.
func FromContext(ctx context.Context) (caller Identity, ok bool) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return Identity{}, false
	}
	info, ok := p.AuthInfo.(AuthInfo)
	return info.Remote, ok
}

// AuthInfo is the credentials.AuthInfo of a connection through the peer port.
type AuthInfo struct {
	credentials.CommonAuthInfo
	// Remote is the other side, as it said in the handshake.
	Remote Identity
}

// AuthType implements credentials.AuthInfo.
func (AuthInfo) AuthType() string { return "regd-peer" }

// ServerOptions returns the options that the peer grpc.Server needs to serve GRPCListener: who calls, and keepalive
// that fits DialGRPC.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(handshakeCredentials{}),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveServerTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinTime, PermitWithoutStream: true}),
	}
}

// DialGRPC returns a client of the peer gRPC of the node at addr, host:port. It connects at the first call, and anew
// for as long as the Mux is open, resolving the name each time. The caller closes it.
func (m *Mux) DialGRPC(addr string) (*grpc.ClientConn, error) { return m.DialNode("", addr) }

// DialNode is DialGRPC for one certain node: a connection on which another one answers is not used. What is counted
// by node, such as a quorum, must be asked this way.
func (m *Mux) DialNode(nodeID, addr string) (*grpc.ClientConn, error) {
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := m.dial(ctx, kindGRPC, nodeID, addr)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	// passthrough: the name goes to the dialler as it is.
	cc, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithContextDialer(dialer),
		grpc.WithTransportCredentials(handshakeCredentials{}),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: backoffBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: backoffMax},
			MinConnectTimeout: m.cfg.HandshakeTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:                keepaliveTime,
			Timeout:             keepaliveTimeout,
			PermitWithoutStream: true,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("make client of peer %s: %w", addr, err)
	}
	return cc, nil
}

// handshakeCredentials tell gRPC what the handshake of the peer port, which lies behind the connection already, found.
type handshakeCredentials struct{}

var errNotThroughMux = errors.New("connection did not come through the peer port")

func (handshakeCredentials) info(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errNotThroughMux
	}
	level := credentials.NoSecurity
	if isTLS(c.Conn) {
		level = credentials.PrivacyAndIntegrity
	}
	return c, AuthInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: level}, Remote: c.remote}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (h handshakeCredentials) ClientHandshake(
	_ context.Context, _ string, raw net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	return h.info(raw)
}

// ServerHandshake implements credentials.TransportCredentials.
func (h handshakeCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return h.info(raw)
}

// Info implements credentials.TransportCredentials.
func (handshakeCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "regd-peer"}
}

// Clone implements credentials.TransportCredentials.
func (h handshakeCredentials) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handshakeCredentials) OverrideServerName(string) error { return nil }
