package client

import (
	"context"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Explain tells what happened to an instance and why, also when it is gone: who registered it, what its checks found, why it
// went. It returns the newest changes, at most limit (up to 1,000; 0: 100), oldest first. The registry keeps some 90,000 changes
// of all instances together: the answer says how far back that reaches.
func (c *Client) Explain(ctx context.Context, key Key, limit int, opts ...ReadOption) (*apiv1.ExplainResponse, error) {
	key = key.in(c.cfg.namespace)
	op := "explain " + key.String()
	fresh, err := freshness(op, opts)
	if err != nil {
		return nil, err
	}
	req := &apiv1.ExplainRequest{Key: key.proto(), Freshness: fresh, Limit: int32(min(limit, 1<<30))} //nolint:gosec // The node checks it.
	return read(ctx, c, op,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ExplainResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).Explain(ctx, req, opts...)
		})
}
