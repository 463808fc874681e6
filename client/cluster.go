package client

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Cluster has the calls of an operator. They choose and change nodes as all calls do. Those that cannot be repeated
// safely fail with an error that matches ErrOutcomeUnknown when a node broke off.
type Cluster struct {
	c *Client
}

// Cluster returns the operator's calls.
func (c *Client) Cluster() *Cluster { return &Cluster{c: c} }

// clusterService is the ClusterService at the other end of a connection.
func clusterService(conn grpc.ClientConnInterface) apiv1.ClusterServiceClient {
	return apiv1.NewClusterServiceClient(conn)
}

// Status returns how the cluster is, as seen by one of its nodes.
func (o *Cluster) Status(ctx context.Context) (*apiv1.StatusResponse, error) {
	return read(ctx, o.c, "status",
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.StatusResponse, error) {
			return clusterService(conn).Status(ctx, &apiv1.StatusRequest{}, opts...)
		})
}

// NodeStatus is what one node said of itself.
type NodeStatus struct {
	// Address that was asked.
	Address string
	// Status of the node. Nil when Err is set.
	Status *apiv1.StatusResponse
	// Err is why there is no answer.
	Err error
}

// LocalStatus returns what the node at an address says of itself; it contacts no other one. It works without a leader.
func (o *Cluster) LocalStatus(ctx context.Context, address string) NodeStatus {
	op := "status of " + address
	ctx, cancel, err := o.c.begin(ctx)
	if err != nil {
		return NodeStatus{Address: address, Err: fmt.Errorf("%s: %w", op, err)}
	}
	defer cancel()
	ep, err := o.c.pool.at(address)
	if err != nil {
		return NodeStatus{Address: address, Err: fmt.Errorf("%s: %w", op, err)}
	}
	defer o.c.pool.release(ep)
	var resp *apiv1.StatusResponse
	e, _ := o.c.attempt(ctx, method{op: op}, ep, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		resp, err = clusterService(conn).Status(ctx, &apiv1.StatusRequest{Local: true}, opts...)
		return err
	})
	if e != nil {
		return NodeStatus{Address: address, Err: fmt.Errorf("%s: %w", op, e)}
	}
	return NodeStatus{Address: address, Status: resp}
}

// LocalStatuses asks every known address for its LocalStatus, all at once: the endpoints in their order, then the
// addresses that were learned.
func (o *Cluster) LocalStatuses(ctx context.Context) []NodeStatus {
	addresses := o.c.pool.addresses()
	statuses := make([]NodeStatus, len(addresses))
	var asking sync.WaitGroup
	for i, address := range addresses {
		asking.Go(func() { statuses[i] = o.LocalStatus(ctx, address) })
	}
	asking.Wait()
	return statuses
}

// Members returns the nodes, sorted by name.
func (o *Cluster) Members(ctx context.Context) (*apiv1.MembersResponse, error) {
	return read(ctx, o.c, "list members",
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.MembersResponse, error) {
			return clusterService(conn).Members(ctx, &apiv1.MembersRequest{}, opts...)
		})
}

// Join adds an empty, running node by the host:port of its peer port. It is promoted once it has caught up, unless it
// shall stay a non-voter.
func (o *Cluster) Join(ctx context.Context, peerAddress string, nonVoter bool) (*apiv1.JoinResponse, error) {
	req := &apiv1.JoinRequest{PeerAddress: peerAddress, NonVoter: nonVoter}
	return change(ctx, o, "join "+peerAddress, always,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.JoinResponse, error) {
			return clusterService(conn).Join(ctx, req, opts...)
		})
}

// Remove removes a node by id or name. With force also when fewer than a majority of the rest answer.
func (o *Cluster) Remove(ctx context.Context, node string, force bool) (*apiv1.RemoveResponse, error) {
	req := &apiv1.RemoveRequest{Node: node, Force: force}
	return change(ctx, o, "remove "+node, ifUndone,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.RemoveResponse, error) {
			return clusterService(conn).Remove(ctx, req, opts...)
		})
}

// Promote makes a non-voter a voter, by id or name.
func (o *Cluster) Promote(ctx context.Context, node string) (*apiv1.PromoteResponse, error) {
	req := &apiv1.PromoteRequest{Node: node}
	return change(ctx, o, "promote "+node, always,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.PromoteResponse, error) {
			return clusterService(conn).Promote(ctx, req, opts...)
		})
}

// Demote makes a voter a non-voter that stays one, by id or name.
func (o *Cluster) Demote(ctx context.Context, node string) (*apiv1.DemoteResponse, error) {
	req := &apiv1.DemoteRequest{Node: node}
	return change(ctx, o, "demote "+node, always,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.DemoteResponse, error) {
			return clusterService(conn).Demote(ctx, req, opts...)
		})
}

// TransferLeadership hands leadership to a node by id or name; empty: to the one that is furthest. The answer names the
// new leader.
func (o *Cluster) TransferLeadership(ctx context.Context, node string) (*apiv1.TransferLeadershipResponse, error) {
	req := &apiv1.TransferLeadershipRequest{Node: node}
	return change(ctx, o, "transfer leadership", ifUndone,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.TransferLeadershipResponse, error) {
			return clusterService(conn).TransferLeadership(ctx, req, opts...)
		})
}

// Verify compares the state of all nodes at one index.
func (o *Cluster) Verify(ctx context.Context) (*apiv1.VerifyResponse, error) {
	return change(ctx, o, "verify", always,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.VerifyResponse, error) {
			return clusterService(conn).Verify(ctx, &apiv1.VerifyRequest{}, opts...)
		})
}

// change is an operator's call: one attempt may take as long as ctx allows.
func change[R answer](ctx context.Context, o *Cluster, op string, repeat repeat, do send[R]) (R, error) {
	return public(ctx, o.c, method{op: op, repeat: repeat, patient: true}, do)
}
