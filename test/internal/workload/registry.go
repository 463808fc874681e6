package workload

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// registrar is a client that registers, finds and removes instances that belong to no session.
type registrar struct {
	*caller
	keys *keyring
	// known is what it saw last of each instance.
	known map[string]*registryv1.Instance
}

// useRegistry starts registrars; at most maxPerKey fight for the same instances.
func (w *Workload) useRegistry(ctx context.Context, pinned, roaming int) {
	var keys *keyring
	for i := range pinned + roaming {
		if i%maxPerKey == 0 {
			keys = newKeyring(fmt.Sprintf("%skey%d", w.cfg.Name, i/maxPerKey), w.cfg.KeyOps)
		}
		c := w.newCaller(fmt.Sprintf("roaming%d", i-pinned), "")
		if i < pinned {
			c = w.newCaller(fmt.Sprintf("pinned%d", i), w.node(i))
		}
		r := &registrar{caller: c, keys: keys, known: map[string]*registryv1.Instance{}}
		w.startOne(ctx, c, func(ctx context.Context, _ *caller) { r.run(ctx) })
	}
}

func (r *registrar) run(ctx context.Context) {
	for r.pause(ctx) {
		switch n := r.rng.IntN(20); {
		case n < 8:
			r.register(ctx, r.keys.pick(r.rng))
		case n < 11:
			r.deregister(ctx, r.keys.pick(r.rng))
		case n < 12:
			r.batch(ctx)
		case n < 17:
			r.get(ctx, r.keys.pick(r.rng))
		case n < 19:
			_ = r.listInstances(ctx, filter(r.rng), r.freshness())
		default:
			_ = r.listServices(ctx, "", r.freshness())
		}
	}
}

// register puts an instance: as it is, only if it is not there, or only if it is as it was seen.
func (r *registrar) register(ctx context.Context, key *apiv1.InstanceKey) {
	req := &apiv1.RegisterRequest{Instance: r.fill(key)}
	switch known := r.known[key.GetId()]; r.rng.IntN(4) {
	case 0:
		req.IfAbsent = true
	case 1:
		req.ExpectedRevision = known.GetModifyRevision()
	default:
	}
	_, _ = r.put(ctx, req)
}

// put sends a registration.
func (c *caller) put(ctx context.Context, req *apiv1.RegisterRequest) (resp *apiv1.RegisterResponse, err error) {
	err = c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		req.RequestId = id
		resp, err = apiv1.NewRegistryServiceClient(conn).Register(ctx, req)
		c.saw(resp.GetHeader())
		return err
	})
	return resp, err
}

// deregister removes an instance: whatever it is, or only what was seen.
func (r *registrar) deregister(ctx context.Context, key *apiv1.InstanceKey) {
	req := &apiv1.DeregisterRequest{Key: key}
	if r.rng.IntN(2) == 0 {
		req.Incarnation = r.known[key.GetId()].GetIncarnation()
	}
	_ = r.remove(ctx, req)
}

// remove sends a deregistration.
func (c *caller) remove(ctx context.Context, req *apiv1.DeregisterRequest) error {
	return c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		req.RequestId = id
		resp, err := apiv1.NewRegistryServiceClient(conn).Deregister(ctx, req)
		c.saw(resp.GetHeader())
		return err
	})
}

// batch registers some and deregisters others of a few instances that only batches touch.
func (r *registrar) batch(ctx context.Context) {
	req := &apiv1.RegisterBatchRequest{}
	for _, i := range r.rng.Perm(5)[:2+r.rng.IntN(3)] {
		key := &apiv1.InstanceKey{
			Namespace: namespaces[i%len(namespaces)], Service: services[i%len(services)], Id: fmt.Sprintf("%sbatch-%d", r.w.cfg.Name, i),
		}
		if r.rng.IntN(3) == 0 {
			req.Deregister = append(req.Deregister, key)
		} else {
			req.Register = append(req.Register, r.fill(key))
		}
	}
	_ = r.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		req.RequestId = id
		resp, err := apiv1.NewRegistryServiceClient(conn).RegisterBatch(ctx, req)
		r.saw(resp.GetHeader())
		return err
	})
}

// get reads an instance, linearizable mostly.
func (r *registrar) get(ctx context.Context, key *apiv1.InstanceKey) {
	fresh := r.freshness()
	if r.rng.IntN(2) == 0 {
		fresh = &apiv1.Freshness{Mode: apiv1.Mode_MODE_LINEARIZABLE}
	}
	_ = r.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := apiv1.NewRegistryServiceClient(conn).Get(ctx, &apiv1.GetRequest{Key: key, Freshness: fresh})
		if err == nil {
			r.saw(resp.GetHeader())
			r.known[key.GetId()] = resp.GetInstance()
		}
		return err
	})
}

// freshness chooses one of the four ways to read, now and then one that has to wait or fail.
func (c *caller) freshness() *apiv1.Freshness {
	switch c.rng.IntN(5) {
	case 0:
		return &apiv1.Freshness{Mode: apiv1.Mode_MODE_STALE}
	case 1:
		return &apiv1.Freshness{
			Mode:         apiv1.Mode_MODE_BOUNDED,
			MaxStaleness: durationpb.New(c.within(time.Millisecond, 2*time.Second)),
		}
	case 2:
		revision := c.revision
		if c.rng.IntN(4) == 0 {
			revision += 1 + c.rng.Uint64N(3)
		}
		return &apiv1.Freshness{Mode: apiv1.Mode_MODE_AT_LEAST, MinRevision: revision}
	default:
		return &apiv1.Freshness{Mode: apiv1.Mode_MODE_LINEARIZABLE}
	}
}

// listInstances reads a list to its end, sometimes in small pages. All pages are asked of one node: the others do not
// keep the State that they show.
func (c *caller) listInstances(ctx context.Context, f *apiv1.Filter, fresh *apiv1.Freshness) error {
	req := &apiv1.ListInstancesRequest{Filter: f, Freshness: fresh, PageSize: c.pageSize()}
	return c.pages(ctx, func(ctx context.Context, conn *grpc.ClientConn, token string) (string, error) {
		req.PageToken = token
		resp, err := apiv1.NewRegistryServiceClient(conn).ListInstances(ctx, req)
		c.saw(resp.GetHeader())
		return resp.GetNextPageToken(), err
	})
}

// listServices is listInstances for services.
func (c *caller) listServices(ctx context.Context, in string, fresh *apiv1.Freshness) error {
	req := &apiv1.ListServicesRequest{Namespace: in, Freshness: fresh, PageSize: c.pageSize()}
	return c.pages(ctx, func(ctx context.Context, conn *grpc.ClientConn, token string) (string, error) {
		req.PageToken = token
		resp, err := apiv1.NewRegistryServiceClient(conn).ListServices(ctx, req)
		c.saw(resp.GetHeader())
		return resp.GetNextPageToken(), err
	})
}

func (c *caller) pageSize() int32 {
	if c.rng.IntN(2) == 0 {
		return 0
	}
	return 2 + c.rng.Int32N(4)
}

// pages asks for one page after the other.
func (c *caller) pages(ctx context.Context, ask func(context.Context, *grpc.ClientConn, string) (string, error)) error {
	for token, node := "", c.at; ; {
		err := c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
			token, err = ask(ctx, conn, token)
			return err
		})
		if err != nil || token == "" {
			return err
		}
		c.at = node
	}
}
