package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// maxDeliveryPeers is how many members are asked at once for who was told there. Clusters of more take turns.
const maxDeliveryPeers = 32

// DeliveryFunc tells who of those that watch a service at this node was told everything up to a revision. It returns when
// all were, and a moment before ctx ends in any case.
type DeliveryFunc func(ctx context.Context, req *peerv1.AwaitDeliveryRequest) (*apiv1.NodeDelivery, error)

// ServeDelivery has fn tell who was told at this node, whichever node asks.
func (n *Node) ServeDelivery(fn DeliveryFunc) { n.port.deliveries.Store(&fn) }

// AwaitDelivery asks all members, non-voters too, who was told there, and returns what each said, or why it could not be
// asked, sorted by name. A member that can't be reached is not waited for.
func (n *Node) AwaitDelivery(ctx context.Context, req *peerv1.AwaitDeliveryRequest) []*apiv1.NodeDelivery {
	servers := n.servers()
	if len(servers) == 0 { // Nobody knows whom to ask.
		why := ErrClosed
		if n.raft.Load() == nil {
			why = ErrStarting
		}
		return []*apiv1.NodeDelivery{{Node: n.cfg.Name, Problem: why.Error()}}
	}
	all := make([]*apiv1.NodeDelivery, len(servers))
	turns := make(chan struct{}, maxDeliveryPeers)
	var asking sync.WaitGroup
	for i, s := range servers {
		asking.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			told, err := n.deliveryAt(ctx, s.ID, req)
			if err != nil {
				told = &apiv1.NodeDelivery{Problem: "could not be asked: " + err.Error()}
			}
			told.Node = cmp.Or(n.feed.State().Member(string(s.ID)).GetName(), string(s.ID))
			all[i] = told
		})
	}
	asking.Wait()
	slices.SortFunc(all, func(a, b *apiv1.NodeDelivery) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	return all
}

func (n *Node) deliveryAt(
	ctx context.Context, id raft.ServerID, req *peerv1.AwaitDeliveryRequest,
) (*apiv1.NodeDelivery, error) {
	if string(id) == n.id {
		return n.deliveryHere(ctx, req)
	}
	client, err := n.peerByID(id)
	if err != nil {
		return nil, err
	}
	reply, err := client.AwaitDelivery(ctx, req)
	if err != nil {
		return nil, errors.New(status.Convert(err).Message()) // For people.
	}
	if err := fromFault(reply.GetFault()); err != nil {
		return nil, err
	}
	if reply.GetDelivery() == nil {
		return nil, fmt.Errorf("node %s answered nothing", id)
	}
	return reply.GetDelivery(), nil
}

func (n *Node) deliveryHere(ctx context.Context, req *peerv1.AwaitDeliveryRequest) (*apiv1.NodeDelivery, error) {
	fn := n.port.deliveries.Load()
	if fn == nil {
		return nil, ErrStarting
	}
	return (*fn)(ctx, req)
}

// AwaitDelivery tells who was told at this node.
func (s *peerServer) AwaitDelivery(
	ctx context.Context, req *peerv1.AwaitDeliveryRequest,
) (*peerv1.AwaitDeliveryResponse, error) {
	told, err := s.node.deliveryHere(ctx, req)
	return &peerv1.AwaitDeliveryResponse{Delivery: told, Fault: toFault(err)}, nil
}
