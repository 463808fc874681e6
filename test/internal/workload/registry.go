package workload

import (
	"context"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// useRegistry is a client that registers, finds and removes instances that belong to no session.
func (w *Workload) useRegistry(ctx context.Context, c *caller) {
	for c.pause(ctx) {
		key := w.keys.pick(c.rng)
		_ = c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
			resp, err := apiv1.NewRegistryServiceClient(conn).Register(ctx, &apiv1.RegisterRequest{
				RequestId: id, Instance: &registryv1.Instance{
					Namespace: key.GetNamespace(), Service: key.GetService(), Id: key.GetId(), Address: "10.0.0.1",
					Metadata: map[string]string{"v": c.name},
				},
			})
			c.saw(resp.GetHeader())
			return err
		})
	}
}
