package rpc

import (
	"context"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Node is what the API needs of a cluster node; *cluster.Node is the real one. All methods are safe for concurrent use
// and return errors that are the sentinels of package cluster, or wrap them.
type Node interface {
	// View returns a state as fresh as asked.
	View(ctx context.Context, fresh cluster.Freshness) (cluster.View, error)
	// Propose applies a command through the leader. A nil error means that it was judged by the state machine, whose
	// verdict is in the outcome.
	Propose(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error)
	// Renew renews sessions, leases or TTL checks, and returns those that are unknown or have ended.
	Renew(ctx context.Context, kind peerv1.RenewKind, ids []string) (ended []string, err error)
	// AwaitDelivery tells of each member, sorted by name, who was told there: at the latest when ctx ends.
	AwaitDelivery(ctx context.Context, req *peerv1.AwaitDeliveryRequest) []*apiv1.NodeDelivery
	// ServeDelivery has fn tell who was told at this node, when this or another one asks.
	ServeDelivery(fn cluster.DeliveryFunc)
	// Feed is what is visible on this node.
	Feed() *feed.Feed
	// Info says who this node is and who leads.
	Info() cluster.Info
	// Ready returns nil when the node can serve, else why not.
	Ready() error
	// Live returns nil unless the node is broken for good. It never depends on a leader or a quorum.
	Live() error

	Operator
}

var _ Node = (*cluster.Node)(nil)

// Operator is what the operator's service needs of a cluster node.
type Operator interface {
	// Status tells how the cluster is; local asks no other node.
	Status(ctx context.Context, local bool) (*apiv1.StatusResponse, error)
	// Join adds the empty node that listens at peerAddress.
	Join(ctx context.Context, peerAddress string, nonVoter bool) (member *registryv1.Member, changed bool, err error)
	// Remove removes a node, by id or name.
	Remove(ctx context.Context, node string, force bool) error
	// Promote makes a node a voter.
	Promote(ctx context.Context, node string) (changed bool, err error)
	// Demote makes a node a non-voter.
	Demote(ctx context.Context, node string) (changed bool, err error)
	// TransferLeadership hands leadership to a node ("": the one that is furthest) and returns the new leader's name.
	TransferLeadership(ctx context.Context, node string) (leader string, err error)
	// Verify compares the states of all nodes at one index.
	Verify(ctx context.Context) (*apiv1.VerifyResponse, error)
	// Restore replaces the content of the registry.
	Restore(ctx context.Context, st *fsm.State) error
}
