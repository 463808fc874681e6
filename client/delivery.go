package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// maxDeliveryPause bounds the wait before nodes are asked again that did not answer.
const maxDeliveryPause = 500 * time.Millisecond

// ErrUndelivered says that not all who watch a service are known to have been told.
var ErrUndelivered = errors.New("not all watchers are known to have been told")

// Delivery tells who of those that watch a service has been told everything up to a revision.
type Delivery struct {
	// Revision that it is about.
	Revision uint64
	// Complete is true when all nodes answered and nobody lags.
	Complete bool
	// RevisionOnly is set where the registry is too old to tell who was told: Complete then means that every known address
	// has come to the revision, and Nodes name addresses.
	RevisionOnly bool
	// Nodes are the members of the cluster, sorted by name.
	Nodes []NodeDelivery
}

// NodeDelivery tells who was told at one node. It counts the watch streams, one for each client, that have heard of the
// service since before the node had the revision.
type NodeDelivery struct {
	// Node is its name.
	Node string
	// Revision that it has come to. 0: it did not answer.
	Revision uint64
	// Problem is why it could not be asked, or that it has not come to the revision. Empty: none.
	Problem string
	// Streams is the sum of the next four.
	Streams int
	// Acknowledged: their clients took it in. Those of this package say so once the reader of each watch concerned has
	// come back for more.
	Acknowledged int
	// Sent: it was handed to the connection. Their clients do not acknowledge.
	Sent int
	// Ended before that, or no longer subscribed. What their clients know is not known.
	Ended int
	// Lagging: none of these yet.
	Lagging int
	// Laggards are the first 16 of the lagging ones.
	Laggards []Laggard
}

// Laggard is a watch stream that lags.
type Laggard struct {
	// Client is its address, host:port.
	Client string
	// Sent is true when it was told, and has not acknowledged it.
	Sent bool
}

// UndeliveredError says who is not known to have been told. It matches ErrUndelivered.
type UndeliveredError struct {
	// Delivery is what came of it.
	Delivery Delivery
}

// Error names the nodes, and their first laggards.
func (e *UndeliveredError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d: %v", e.Delivery.Revision, ErrUndelivered)
	for _, n := range e.Delivery.Nodes {
		switch {
		case n.Problem != "":
			fmt.Fprintf(&b, "; %s: %s", n.Node, n.Problem)
		case n.Lagging > 0:
			fmt.Fprintf(&b, "; %s: %d of %d streams lag", n.Node, n.Lagging, n.Streams)
			if len(n.Laggards) > 0 {
				fmt.Fprintf(&b, ", that of %s among them", n.Laggards[0].Client)
			}
		}
	}
	return b.String()
}

// Is makes it an ErrUndelivered.
func (e *UndeliveredError) Is(target error) bool { return target == ErrUndelivered }

// AwaitDelivery waits until on every node all who watch the service have been told everything up to a revision, such as a
// write's, and those who acknowledge have acknowledged it. An empty namespace is the client's. Nodes that do not answer are asked
// again. When ctx ends, it returns what has come of it so far, which is not Complete; without a deadline that is after the
// client's request timeout. It fails only when no node has said anything.
func (c *Client) AwaitDelivery(ctx context.Context, namespace, service string, revision uint64) (Delivery, error) {
	if namespace == "" {
		namespace = c.cfg.namespace
	}
	op := fmt.Sprintf("await delivery of revision %d of %s/%s", revision, namespace, service)
	ctx, cancel, err := c.begin(ctx)
	if err != nil {
		return Delivery{Revision: revision}, fmt.Errorf("%s: %w", op, err)
	}
	defer cancel()
	req := &apiv1.AwaitDeliveryRequest{Namespace: namespace, Service: service, Revision: revision}
	d := Delivery{Revision: revision}
	p := pause{limit: maxDeliveryPause}
	for {
		resp, err := invoke(ctx, c, method{op: op, repeat: always},
			func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.AwaitDeliveryResponse, error) {
				return apiv1.NewRegistryServiceClient(conn).AwaitDelivery(ctx, req, opts...)
			})
		var refused *Error
		switch {
		case err == nil:
			d = deliveryOf(revision, resp)
		case errors.As(err, &refused) && refused.Code == codes.Unimplemented && ctx.Err() == nil:
			return c.awaitRevision(ctx, revision), nil
		case len(d.Nodes) == 0 || ctx.Err() == nil:
			return d, err
		}
		if d.Complete {
			return d, nil
		}
		if p.wait(ctx, 0); ctx.Err() != nil {
			return d, nil
		}
	}
}

// awaitRevision waits until each known address has come to a revision: all that a registry can tell that does not know
// AwaitDelivery.
func (c *Client) awaitRevision(ctx context.Context, revision uint64) Delivery {
	p := pause{limit: maxDeliveryPause}
	for {
		d := Delivery{Revision: revision, RevisionOnly: true, Complete: true}
		for _, s := range c.Cluster().LocalStatuses(ctx) {
			n := NodeDelivery{Node: s.Address, Revision: s.Status.GetHeader().GetRevision()}
			switch {
			case s.Err != nil:
				n.Problem = s.Err.Error()
			case n.Revision < revision:
				n.Problem = fmt.Sprintf("it has come to revision %d, and not to %d", n.Revision, revision)
			}
			d.Complete = d.Complete && n.Problem == ""
			d.Nodes = append(d.Nodes, n)
		}
		if d.Complete {
			return d
		}
		if p.wait(ctx, 0); ctx.Err() != nil {
			return d
		}
	}
}

// deliveryOf reads an answer.
func deliveryOf(revision uint64, resp *apiv1.AwaitDeliveryResponse) Delivery {
	d := Delivery{Revision: revision, Complete: resp.GetComplete()}
	for _, n := range resp.GetNodes() {
		node := NodeDelivery{
			Node: n.GetNode(), Revision: n.GetRevision(), Problem: n.GetProblem(), Streams: int(n.GetStreams()),
			Acknowledged: int(n.GetAcknowledged()), Sent: int(n.GetSent()), Ended: int(n.GetEnded()), Lagging: int(n.GetLagging()),
		}
		for _, l := range n.GetLaggards() {
			node.Laggards = append(node.Laggards, Laggard{Client: l.GetClient(), Sent: l.GetSent()})
		}
		d.Nodes = append(d.Nodes, node)
	}
	return d
}

// Departure is how a Registration left.
type Departure struct {
	// Revision at which the instance was draining. 0: it could not be marked.
	Revision uint64
	// Delivery tells who heard of that before the instance was deregistered.
	Delivery Delivery
	// Err is nil when all who watch the service know. Else it is an *UndeliveredError, or what kept the instance from being
	// marked, or the nodes from being asked.
	Err error
}

// Leave is the safe end of an instance, in one call that takes the place of sleeps: it marks the instance as draining, waits
// until all who watch its service on any node have been told (see Client.AwaitDelivery), and deregisters it. Serve on
// meanwhile; once it returns, finish what is under way and stop.
//
// ctx bounds the wait, and without a deadline the client's request timeout does. Then the instance is deregistered all the
// same: also when ctx is cancelled, which cuts the wait short, and for at most the request timeout. The departure says who
// was told; the error is that of Deregister, after which Leave may be called again.
func (r *Registration) Leave(ctx context.Context) (d Departure, err error) {
	ctx, end := r.c.trace(ctx, OperationLeave, r.key)
	defer func() { end(err) }()
	d.Revision, d.Err = r.drain(ctx)
	if d.Err == nil {
		d.Delivery, d.Err = r.tell(ctx, d.Revision)
	}
	return d, r.Deregister(context.WithoutCancel(ctx))
}

// tell waits until all who watch the service know of a revision. The error says who does not.
func (r *Registration) tell(ctx context.Context, revision uint64) (d Delivery, err error) {
	ctx, end := r.c.trace(ctx, OperationAwaitDelivery, r.key)
	defer func() { end(err) }()
	d, err = r.c.AwaitDelivery(ctx, r.key.Namespace, r.key.Service, revision)
	if err == nil && !d.Complete {
		err = fmt.Errorf("leave as %s: %w", r.key, &UndeliveredError{Delivery: d})
	}
	return d, err
}
