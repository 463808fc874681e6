package workload

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// own opens a session or lease, works with the instances that hang on it, and ends it or dies: again and again.
func (w *Workload) own(ctx context.Context, c *caller, k kind) {
	for c.pause(ctx) {
		l := c.live(ctx, k)
		if l == nil {
			continue
		}
		o := &owner{caller: c, life: l}
		o.work(ctx)
		switch {
		case c.rng.IntN(3) == 0:
			l.finish(ctx, c)
		case c.rng.IntN(2) == 0:
			o.comeBack(ctx)
		default:
			l.leave()
		}
	}
}

// owner is one who lives as long as a life, and its instances.
type owner struct {
	*caller
	*life
	instances [3]*registryv1.Instance // as registered last
}

// work registers instances and changes them for a few TTLs.
func (o *owner) work(ctx context.Context) {
	end := time.Now().Add(o.within(o.ttl/2, 4*o.ttl))
	o.enter(ctx, 0)
	for time.Now().Before(end) && !o.over.Load() && o.pause(ctx) {
		i := o.rng.IntN(len(o.instances))
		instance := o.instances[i]
		if instance == nil {
			o.enter(ctx, i)
			continue
		}
		switch o.rng.IntN(8) {
		case 0:
			o.enter(ctx, i)
		case 1:
			o.drain(ctx, instance)
		case 2:
			_ = o.remove(ctx, &apiv1.DeregisterRequest{Key: keyOf(instance), Incarnation: instance.GetIncarnation()})
		default:
			o.report(ctx, instance)
		}
	}
}

// enter registers the i-th instance. Each has its place in one of the namespaces, and every other a check.
func (o *owner) enter(ctx context.Context, i int) {
	instance := o.fill(&apiv1.InstanceKey{
		Namespace: namespaces[i%len(namespaces)], Service: services[i%len(services)], Id: fmt.Sprintf("%s-%d", o.role, i),
	})
	o.hang(instance, o.id)
	if i%2 == 0 {
		reported(instance, o.ttl/2)
	}
	if resp, err := o.put(ctx, &apiv1.RegisterRequest{Instance: instance}); err == nil {
		instance.Incarnation = resp.GetIncarnation()
		o.instances[i] = instance
	}
}

// report says that the check passes or does not; without reports it turns critical. What has no check goes into
// maintenance or comes out of it.
func (o *owner) report(ctx context.Context, instance *registryv1.Instance) {
	if len(instance.GetChecks()) == 0 {
		o.maintain(ctx, instance)
		return
	}
	status := pick(o.rng, []registryv1.CheckStatus{
		registryv1.CheckStatus_CHECK_STATUS_PASSING, registryv1.CheckStatus_CHECK_STATUS_WARNING,
		registryv1.CheckStatus_CHECK_STATUS_CRITICAL,
	})
	_ = o.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		_, err := apiv1.NewRegistryServiceClient(conn).SetHealth(ctx, &apiv1.SetHealthRequest{
			RequestId: id, Key: keyOf(instance), Status: status,
		})
		return err
	})
}

// maintain takes an instance out of service or back.
func (o *owner) maintain(ctx context.Context, instance *registryv1.Instance) {
	to := o.rng.IntN(2) == 0
	_ = o.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		_, err := apiv1.NewRegistryServiceClient(conn).SetMaintenance(ctx, &apiv1.SetMaintenanceRequest{
			RequestId: id, Key: keyOf(instance), Maintenance: to,
		})
		return err
	})
}

// drain announces the end of an instance, or takes that back.
func (o *owner) drain(ctx context.Context, instance *registryv1.Instance) {
	cancel := o.rng.IntN(2) == 0
	_ = o.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		_, err := apiv1.NewRegistryServiceClient(conn).Drain(ctx, &apiv1.DrainRequest{
			RequestId: id, Key: keyOf(instance), Cancel: cancel,
		})
		return err
	})
}

// comeBack falls silent for a while, about as long as the TTL, and then goes on as if nothing had been.
func (o *owner) comeBack(ctx context.Context) {
	defer o.leave()
	o.silence()
	if sleep(ctx, o.within(o.ttl/2, 5*o.ttl/2)) {
		o.speak(ctx)
		o.enter(ctx, 0)
		sleep(ctx, o.ttl)
	}
}

func keyOf(i *registryv1.Instance) *apiv1.InstanceKey {
	return &apiv1.InstanceKey{Namespace: i.GetNamespace(), Service: i.GetService(), Id: i.GetId()}
}
