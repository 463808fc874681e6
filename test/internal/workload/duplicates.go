package workload

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// maxOld is how many requests are remembered in order to be sent again.
const maxOld = 5

// askTwice sends each request over two connections at once, mostly to two nodes, until one answers, and now and then
// sends an old one again.
func (w *Workload) askTwice(ctx context.Context, c *caller) {
	twin := w.newNamed(c.role+"b", "")
	defer twin.close()
	keys := []*apiv1.InstanceKey{
		{Namespace: namespaces[0], Service: services[0], Id: c.role},
		{Namespace: namespaces[1], Service: services[1], Id: c.role},
	}
	var old []proto.Message
	for sequence, client := uint64(1), c.role; c.pause(ctx); sequence++ {
		id := &apiv1.RequestID{ClientId: client, Sequence: sequence, AnsweredBelow: sequence}
		var req proto.Message = &apiv1.RegisterRequest{RequestId: id, Instance: c.fill(pick(c.rng, keys))}
		if c.rng.IntN(4) == 0 {
			req = &apiv1.DeregisterRequest{RequestId: id, Key: pick(c.rng, keys)}
		}
		for !c.sendTwice(ctx, req, twin) {
			if c.rng.IntN(6) == 0 || !c.pause(ctx) {
				c.rename()
				twin.rename()
				client, sequence = c.name, 0
				break
			}
		}
		if old = append(old, req); len(old) > maxOld {
			old = old[1:]
		}
		if c.rng.IntN(3) == 0 {
			_ = c.replay(ctx, pick(c.rng, old))
		}
	}
}

// sendTwice sends a request over both connections at once. It tells whether one of them was answered.
func (c *caller) sendTwice(ctx context.Context, req proto.Message, twin *caller) bool {
	var sent sync.WaitGroup
	var first, second error
	sent.Go(func() { first = c.replay(ctx, req) })
	sent.Go(func() { second = twin.replay(ctx, req) })
	sent.Wait()
	for _, err := range []error{first, second} {
		if err == nil || !passing(reasonOf(err)) {
			return true
		}
	}
	return false
}

// replay sends a request as it is.
func (c *caller) replay(ctx context.Context, req proto.Message) error {
	return c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		var err error
		switch req := req.(type) {
		case *apiv1.RegisterRequest:
			_, err = apiv1.NewRegistryServiceClient(conn).Register(ctx, req)
		case *apiv1.DeregisterRequest:
			_, err = apiv1.NewRegistryServiceClient(conn).Deregister(ctx, req)
		}
		return err
	})
}
