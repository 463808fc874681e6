package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdgrpc"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// keyHeader is the header in which the key of a call is, for policies that hash.
const keyHeader = "regd-key"

// grpcCaller calls by gRPC.
type grpcCaller struct {
	conn   *grpc.ClientConn
	health string
	key    string
}

func (f *callFlags) newGRPCCaller(d *discovery.Discovery, to *callTarget, _ *http.Request) (caller, error) {
	config, err := f.serviceConfig()
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if f.secure == "https" {
		secure, tlsErr := f.tls.config(to.service)
		if tlsErr != nil {
			return nil, tlsErr
		}
		creds = credentials.NewTLS(secure)
	}
	target := regdgrpc.Scheme + ":///" + to.service + "?namespace=" + to.namespace
	if f.choice.port != "" {
		target += "&port=" + f.choice.port
	}
	conn, err := grpc.NewClient(target,
		grpc.WithResolvers(&filteredBuilder{Builder: regdgrpc.NewBuilder(d), match: matches(to.filter)}),
		grpc.WithDefaultServiceConfig(config), grpc.WithTransportCredentials(creds), grpc.WithStatsHandler(grpcAttempter{}))
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", to.service, err)
	}
	return &grpcCaller{conn: conn, health: f.health, key: f.choice.key}, nil
}

// serviceConfig is the one of the Go client, with retries.
func (f *callFlags) serviceConfig() (string, error) {
	c := regdgrpc.Config{
		Policy: strings.ReplaceAll(f.choice.policy, "-", "_"), Region: f.choice.region, Zone: f.choice.zone, HashHeader: keyHeader,
	}
	var config map[string]any
	if err := json.Unmarshal([]byte(c.ServiceConfig()), &config); err != nil {
		return "", fmt.Errorf("service config: %w", err)
	}
	if f.retries > 0 {
		config["methodConfig"] = []any{map[string]any{
			"name": []any{map[string]any{"service": grpc_health_v1.Health_ServiceDesc.ServiceName}},
			"retryPolicy": map[string]any{
				"maxAttempts": 1 + f.retries, "initialBackoff": "0.01s", "maxBackoff": "0.1s", "backoffMultiplier": 2,
				"retryableStatusCodes": []string{"UNAVAILABLE"},
			},
		}}
	}
	text, err := json.Marshal(config)
	return string(text), err
}

func (c *grpcCaller) close() { _ = c.conn.Close() }

// call implements caller.
func (c *grpcCaller) call(ctx context.Context, v *callView) {
	tries := &grpcAttempts{}
	ctx = context.WithValue(ctx, attemptsKey{}, tries)
	if c.key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, keyHeader, c.key)
	}
	answer, err := grpc_health_v1.NewHealthClient(c.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: c.health})
	v.Attempts = append(v.Attempts, tries.ended()...)
	if err == nil {
		v.Status = answer.GetStatus().String()
		v.good = answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
		v.body = []byte(v.Status + "\n")
		if n := len(v.Attempts); n > 0 {
			v.Attempts[n-1].Status = v.Status
		}
		return
	}
	v.err, v.vain = grpcError(ctx, err, c.health), status.Code(err) == codes.Unavailable
}

// grpcError tells in words what the codes mean for a health check.
func grpcError(ctx context.Context, err error, service string) error {
	switch said := status.Convert(err); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case said.Code() == codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case said.Code() == codes.NotFound:
		return fmt.Errorf("the server knows no health of %q: --grpc-service must be a name that it serves", service)
	case said.Code() == codes.Unimplemented:
		return errors.New("the server does not serve grpc.health.v1.Health, or is no gRPC server: try without --grpc, or another --port")
	default:
		return errors.New(said.Code().String() + ": " + said.Message())
	}
}

// filteredBuilder makes resolvers that pass on only instances that match.
type filteredBuilder struct {
	*regdgrpc.Builder
	match func(*registryv1.Instance) bool
}

// Build implements resolver.Builder.
func (b *filteredBuilder) Build(t resolver.Target, cc resolver.ClientConn, o resolver.BuildOptions) (resolver.Resolver, error) {
	return b.Builder.Build(t, &filteredConn{ClientConn: cc, match: b.match}, o)
}

// filteredConn is told of all instances, and tells a channel of those that match.
type filteredConn struct {
	resolver.ClientConn
	match func(*registryv1.Instance) bool
}

// UpdateState implements resolver.ClientConn.
func (c *filteredConn) UpdateState(s resolver.State) error {
	s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e resolver.Endpoint) bool { return !c.match(regdgrpc.Instance(e)) })
	return c.ClientConn.UpdateState(s)
}

// grpcAttempts are the tries of one call. gRPC notes their ends in goroutines of its own.
type grpcAttempts struct {
	mu   sync.Mutex
	list []*grpcAttempt
}

type grpcAttempt struct {
	begun time.Time
	view  attemptView
}

// ended returns what is known of the tries.
func (a *grpcAttempts) ended() (out []attemptView) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.list {
		if at.view.Address != "" || at.view.Error != "" {
			out = append(out, at.view)
		}
	}
	return out
}

// grpcAttempter is a stats.Handler that notes each try.
type grpcAttempter struct{}

type grpcAttemptKey struct{}

// TagRPC implements stats.Handler.
func (grpcAttempter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	tries, ok := ctx.Value(attemptsKey{}).(*grpcAttempts)
	if !ok {
		return ctx
	}
	at := &grpcAttempt{begun: time.Now()}
	tries.mu.Lock()
	tries.list = append(tries.list, at)
	tries.mu.Unlock()
	return context.WithValue(ctx, grpcAttemptKey{}, at)
}

// HandleRPC implements stats.Handler.
func (grpcAttempter) HandleRPC(ctx context.Context, s stats.RPCStats) {
	at, ok := ctx.Value(grpcAttemptKey{}).(*grpcAttempt)
	tries, also := ctx.Value(attemptsKey{}).(*grpcAttempts)
	if !ok || !also {
		return
	}
	tries.mu.Lock()
	defer tries.mu.Unlock()
	switch s := s.(type) {
	case *stats.OutHeader:
		at.view.Address = s.RemoteAddr.String()
	case *stats.End:
		at.view.TookMs = milliseconds(time.Since(at.begun))
		if s.Error != nil {
			said := status.Convert(s.Error)
			at.view.Error = said.Code().String() + ": " + said.Message()
		}
	}
}

// TagConn implements stats.Handler.
func (grpcAttempter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (grpcAttempter) HandleConn(context.Context, stats.ConnStats) {}
