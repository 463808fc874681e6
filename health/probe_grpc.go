package health

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// maxHealthAnswer bounds the answer of a gRPC health service, in bytes.
const maxHealthAnswer = 1 << 10

// grpc asks the gRPC health service over a connection of its own.
func (ps *probes) grpc(ctx context.Context, p *plan, check *registryv1.GRPCCheck) result {
	transport := insecure.NewCredentials()
	if check.GetTls() != nil {
		transport = credentials.NewTLS(ps.tlsConfig(check.GetTls(), p.host))
	}
	var unreached atomic.Pointer[error]
	note := func(err error) {
		if err != nil {
			unreached.Store(&err)
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+p.target,
		grpc.WithTransportCredentials(notingCredentials{transport, note}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := ps.dialer.DialContext(ctx, "tcp", address)
			note(err)
			return c, err
		}),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithUserAgent(userAgent),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxHealthAnswer)),
	)
	if err != nil {
		return critical(err.Error())
	}
	defer conn.Close()
	request := &grpc_health_v1.HealthCheckRequest{Service: check.GetService()}
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, request)
	if err != nil {
		if why := unreached.Load(); why != nil {
			return failure(ctx, p, *why)
		}
		return grpcFailure(ctx, p, err)
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return critical("gRPC health: " + answer.GetStatus().String())
	}
	return passing("gRPC health: SERVING")
}

// notingCredentials tells of handshakes that fail.
type notingCredentials struct {
	credentials.TransportCredentials
	note func(error)
}

// ClientHandshake implements credentials.TransportCredentials.
func (c notingCredentials) ClientHandshake(
	ctx context.Context, authority string, raw net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	c.note(err)
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (c notingCredentials) Clone() credentials.TransportCredentials {
	return notingCredentials{c.TransportCredentials.Clone(), c.note}
}

// grpcFailure words the error of a call to a server that was reached.
func grpcFailure(ctx context.Context, p *plan, err error) result {
	switch s := status.Convert(err); s.Code() {
	case codes.DeadlineExceeded:
		return failure(ctx, p, context.DeadlineExceeded)
	case codes.NotFound:
		return critical("gRPC health: the service is not known")
	case codes.Unimplemented:
		return critical("gRPC health: not implemented")
	default: // The text may quote what the server answered, the body of its error page included.
		return failure(ctx, p, fmt.Errorf("gRPC health: %s", s.Code()))
	}
}
