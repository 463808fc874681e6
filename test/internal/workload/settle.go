package workload

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	// watchersReach is how soon after the last write every watcher must have it.
	watchersReach = 5 * time.Second
	// settleTimeout is the deadline of the last calls: they are on a cluster that is well.
	settleTimeout = 5 * time.Second
	// poll is the pause between two looks at something that is waited for.
	poll = 100 * time.Millisecond
)

// Settle brings the run to an end that can be judged, on a cluster that is well: it waits until what programs keep is
// registered and what nobody renews has expired, makes a last write that every watcher must see, and reads everything
// through each of the nodes. It returns when the last write was acknowledged, since the start of the run, and an error
// when it could not do all that before ctx ended.
func (w *Workload) Settle(ctx context.Context, nodes []string) (time.Duration, error) {
	c := w.newCaller("settler", nodes[0])
	c.timeout = settleTimeout
	defer c.close()
	for _, p := range w.programs {
		if err := p.settle(ctx); err != nil {
			return 0, fmt.Errorf("settle %s: %w", p.role, err)
		}
		_ = p.regd.Close()
	}
	if err := c.untilAllHasExpired(ctx); err != nil {
		return 0, fmt.Errorf("settle: %w", err)
	}
	revision, err := c.mark(ctx)
	if err != nil {
		return 0, fmt.Errorf("settle: make the last write: %w", err)
	}
	settled := w.cfg.Recorder.Now()
	w.awaitWatchers(ctx, revision)
	var errs []error
	for _, node := range nodes {
		errs = append(errs, w.readAll(ctx, node))
	}
	return settled, errors.Join(append(errs, c.verify(ctx))...)
}

// settle waits until all that the program keeps is registered as it believes, and its views show what there is.
func (p *program) settle(ctx context.Context) error {
	for {
		before := p.incarnations()
		result, err := p.regd.Instances(ctx, client.Filter{Namespace: client.AllNamespaces})
		if err != nil {
			return err
		}
		wrong := p.compare(before, result.Instances)
		switch {
		case wrong != "":
		case !p.equal(result):
			wrong = fmt.Sprintf("its views are not what there is at revision %d", result.Revision)
		default:
			return nil
		}
		if !sleep(ctx, poll) {
			return fmt.Errorf("%s: %w", wrong, ctx.Err())
		}
	}
}

// incarnations are those that the client believes in, 0 for what is not registered now.
func (p *program) incarnations() [len(program{}.kept)]uint64 {
	var now [len(program{}.kept)]uint64
	for i, reg := range p.kept {
		if reg != nil && reg.State() == client.StateRegistered {
			now[i] = reg.Incarnation()
		}
	}
	return now
}

// compare says what is wrong about the instances that the program keeps, given what the client believed before they were
// read. What it is sure of at one moment may be wrong at the next, but not for long.
func (p *program) compare(believed [len(program{}.kept)]uint64, registered []*registryv1.Instance) string {
	for i, reg := range p.kept {
		if reg == nil {
			continue
		}
		var found uint64
		for _, instance := range registered {
			if nameOf(instance) == reg.Key() {
				found = instance.GetIncarnation()
			}
		}
		if found == 0 || found != believed[i] {
			return fmt.Sprintf("%s is %s (%v) with incarnation %d, and registered with %d",
				reg.Key(), reg.State(), reg.Err(), believed[i], found)
		}
	}
	return ""
}

func nameOf(i *registryv1.Instance) client.Key {
	return client.Key{Namespace: i.GetNamespace(), Service: i.GetService(), ID: i.GetId()}
}

// equal tells whether all views are at the result's revision and show its instances.
func (p *program) equal(result client.Result) bool {
	for _, v := range p.views {
		want := map[client.Key]uint64{}
		for _, i := range result.Instances {
			if v.all || i.GetNamespace() == namespaces[0] {
				want[nameOf(i)] = i.GetModifyRevision()
			}
		}
		if !v.equals(result.Revision, want) {
			return false
		}
	}
	return true
}

// untilAllHasExpired waits until there are no sessions and leases.
func (c *caller) untilAllHasExpired(ctx context.Context) error {
	for {
		var left []string
		err := c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			sessions, err := apiv1.NewSessionServiceClient(conn).List(ctx, &apiv1.ListRequest{})
			if err != nil {
				return err
			}
			leases, err := apiv1.NewLeaseServiceClient(conn).ListLeases(ctx, &apiv1.ListLeasesRequest{})
			for _, s := range sessions.GetSessions() {
				left = append(left, "session "+s.GetId()+" of "+s.GetClientName())
			}
			for _, l := range leases.GetLeases() {
				left = append(left, "lease "+l.GetId())
			}
			return err
		})
		if err == nil && len(left) == 0 {
			return nil
		}
		if !sleep(ctx, poll) {
			return fmt.Errorf("wait for all to expire, %s left: %w", strings.Join(left, ", "), errors.Join(err, ctx.Err()))
		}
	}
}

// mark makes a write that concerns every subscription, and returns its revision.
func (c *caller) mark(ctx context.Context) (revision uint64, err error) {
	req := &apiv1.RegisterBatchRequest{}
	for _, in := range namespaces {
		for _, service := range services {
			for _, zone := range zones {
				req.Register = append(req.Register, &registryv1.Instance{
					Namespace: in, Service: service, Id: "end-" + zone, Address: "10.0.0.1", Zone: zone, Tags: tags,
				})
			}
		}
	}
	err = c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		req.RequestId = id
		resp, failed := apiv1.NewRegistryServiceClient(conn).RegisterBatch(ctx, req)
		revision = resp.GetHeader().GetRevision()
		return failed
	})
	return revision, err
}

// awaitWatchers gives the watchers time to reach the revision, and says who has not.
func (w *Workload) awaitWatchers(ctx context.Context, revision uint64) {
	for range watchersReach / poll {
		behind := 0
		for _, r := range w.watchers {
			behind += r.behind(revision)
		}
		if behind == 0 || !sleep(ctx, poll) {
			break
		}
	}
	for _, r := range w.watchers {
		if n := r.behind(revision); n > 0 {
			w.fault("W13", "%s has %d subscriptions that are not at revision %d %v after it was written", r.role, n,
				revision, watchersReach)
		}
	}
}

// readAll reads everything through one node.
func (w *Workload) readAll(ctx context.Context, node string) error {
	c := w.newCaller("reader-"+node, node)
	c.timeout = settleTimeout
	defer c.close()
	linearizable := &apiv1.Freshness{Mode: apiv1.Mode_MODE_LINEARIZABLE}
	err := errors.Join(
		c.listInstances(ctx, &apiv1.Filter{Namespace: "*"}, linearizable),
		c.listServices(ctx, "*", linearizable),
		c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := apiv1.NewSessionServiceClient(conn).List(ctx, &apiv1.ListRequest{})
			return err
		}),
		c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := apiv1.NewLeaseServiceClient(conn).ListLeases(ctx, &apiv1.ListLeasesRequest{})
			return err
		}),
		c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := apiv1.NewLockServiceClient(conn).ListLocks(ctx, &apiv1.ListLocksRequest{Namespace: "*"})
			return err
		}))
	if err != nil {
		return fmt.Errorf("read everything through %s: %w", node, err)
	}
	return nil
}

// verify asks the nodes whether they are equal.
func (c *caller) verify(ctx context.Context) error {
	return c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := apiv1.NewClusterServiceClient(conn).Verify(ctx, &apiv1.VerifyRequest{})
		if err == nil && !resp.GetEqual() {
			c.w.fault("verify", "the nodes are not equal: %v", resp.GetReplicas())
		}
		return err
	})
}
