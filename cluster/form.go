package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/cluster/peer"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// formEvery is how often an empty node looks again for its cluster.
const formEvery = 500 * time.Millisecond

// form returns once this node belongs to a cluster: because its folder says so, because a member took it in, or because
// it and its initial peers have just founded one. A cluster is never founded beside another: all initial peers must
// answer and all must be empty, and only the one with the least id founds.
func (n *Node) form(ctx context.Context) error {
	empty, err := n.store.Empty()
	if err != nil {
		return err
	}
	if !empty {
		if n.store.Identity().ClusterID == "" {
			return n.store.SetClusterID(uuid.NewString()) // The founder stopped between its two first writes.
		}
		return nil
	}
	for ctx.Err() == nil {
		if n.store.Identity().ClusterID != "" {
			return nil
		}
		why, err := n.formOnce(ctx)
		if err != nil {
			return err
		}
		if why == "" {
			return nil
		}
		if last := n.waiting.Swap(&why); last == nil || *last != why {
			n.log.Info("waiting for the cluster", "why", why)
		}
		sleep(ctx, formEvery)
	}
	return ctx.Err()
}

// formOnce tries once. An empty reason means that the node has its cluster; an error, that it never will.
func (n *Node) formOnce(ctx context.Context) (why string, err error) {
	switch {
	case len(n.cfg.InitialPeers) > 0:
		return n.meet(ctx)
	case len(n.cfg.Join) > 0:
		return n.askToJoin(ctx, n.cfg.Join), nil
	default:
		return fmt.Sprintf("it has neither initial peers nor members to join: add it with \"regd members join %s\"",
			n.cfg.PeerAdvertise), nil
	}
}

// meet asks all initial peers who they are.
func (n *Node) meet(ctx context.Context) (why string, err error) {
	answers, missing := n.identifyAll(ctx, n.cfg.InitialPeers)
	// All answers count: one who was just taken in knows no members yet, while the founder may already name this node;
	// and one who was removed takes nobody in.
	var inside string
	var serving []string
	for _, a := range answers {
		if a.GetClusterId() == "" {
			continue
		}
		if slices.Contains(a.GetMemberIds(), n.id) {
			return "", n.store.SetClusterID(a.GetClusterId())
		}
		inside = a.GetMember().GetName()
		if !a.GetEmpty() && len(a.GetMemberIds()) > 0 {
			serving = append(serving, a.GetMember().GetPeerAddress())
		}
	}
	if len(serving) > 0 {
		return n.askToJoin(ctx, serving), nil
	}
	if inside != "" {
		return inside + " has just been taken in by a cluster", nil
	}
	if len(missing) > 0 {
		return "not yet answering: " + strings.Join(missing, ", "), nil
	}
	return n.found(answers)
}

// found founds the cluster if all agree that this node shall.
func (n *Node) found(answers []*peerv1.IdentifyResponse) (why string, err error) {
	peers := sortedPeers(n.cfg.InitialPeers)
	least, self := n.id, false
	var servers []raft.Server
	for _, a := range answers {
		m := a.GetMember()
		if !slices.Equal(a.GetInitialPeers(), peers) {
			return fmt.Sprintf("%s was started with other initial peers (%s) than this node (%s)",
				m.GetName(), strings.Join(a.GetInitialPeers(), ","), strings.Join(peers, ",")), nil
		}
		for _, s := range servers {
			if string(s.ID) == m.GetId() {
				return fmt.Sprintf("two of the initial peers are the same node, %s", m.GetName()), nil
			}
		}
		least, self = min(least, m.GetId()), self || m.GetId() == n.id
		servers = append(servers, raft.Server{ID: raft.ServerID(m.GetId()), Address: raft.ServerAddress(m.GetPeerAddress())})
	}
	if !self {
		return fmt.Sprintf("none of the initial peers (%s) is this node: is its advertised address %s among them?",
			strings.Join(peers, ","), n.cfg.PeerAdvertise), nil
	}
	if least != n.id {
		return "another of the initial peers is about to found the cluster", nil
	}
	notify := make(chan bool, 1)
	err = raft.BootstrapCluster(n.raftConfig(notify), n.disk.Logs(), n.disk.Stable(), n.store.Snapshots(), nil,
		raft.Configuration{Servers: servers})
	if err != nil {
		return "", fmt.Errorf("found the cluster: %w", err)
	}
	n.log.Info("cluster founded", "members", len(servers))
	return "", n.store.SetClusterID(uuid.NewString())
}

// identifyAll asks all addresses at once who answers there.
func (n *Node) identifyAll(ctx context.Context, addresses []string) (answers []*peerv1.IdentifyResponse, missing []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	replies := make([]*peerv1.IdentifyResponse, len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() {
			if client, err := n.port.peers.at(address); err == nil {
				replies[i], _ = identify(ctx, client, grpc.WaitForReady(true))
			}
		})
	}
	wg.Wait()
	for i, r := range replies {
		if r == nil {
			missing = append(missing, addresses[i])
			continue
		}
		answers = append(answers, r)
	}
	return answers, missing
}

// askToJoin asks members to take this node in. On success the leader has told this node its cluster.
func (n *Node) askToJoin(ctx context.Context, addresses []string) (why string) {
	var reasons []string
	for _, address := range addresses {
		if ctx.Err() != nil {
			break
		}
		err := n.askOneToJoin(ctx, address)
		if err == nil {
			return ""
		}
		reasons = append(reasons, fmt.Sprintf("%s: %v", address, err))
	}
	return "asking to join: " + strings.Join(reasons, "; ")
}

func (n *Node) askOneToJoin(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	client, err := n.port.peers.at(address)
	if err != nil {
		return err
	}
	reply, err := client.RequestJoin(ctx, &peerv1.RequestJoinRequest{Member: n.member(), NonVoter: n.cfg.NonVoter})
	if err != nil {
		return err
	}
	if err := fromFault(reply.GetFault()); err != nil {
		return err
	}
	return n.store.SetClusterID(reply.GetClusterId())
}

const joinTimeout = 15 * time.Second

// identify tells who this node is.
func (n *Node) identify() *peerv1.IdentifyResponse {
	who := &peerv1.IdentifyResponse{
		Member: n.member(), ClusterId: n.store.Identity().ClusterID, InitialPeers: sortedPeers(n.cfg.InitialPeers),
	}
	if empty, err := n.store.Empty(); err == nil {
		who.Empty = empty
	}
	for _, s := range n.servers() {
		who.MemberIds = append(who.MemberIds, string(s.ID))
	}
	return who
}

func sortedPeers(peers []string) []string {
	sorted := slices.Clone(peers)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}

// adopt makes this empty node a part of a cluster.
func (n *Node) adopt(cluster string) error {
	if ours := n.store.Identity().ClusterID; ours == cluster {
		return nil
	}
	empty, err := n.store.Empty()
	if err != nil {
		return err
	}
	if !empty {
		return errors.New("the node has a log already")
	}
	return n.store.SetClusterID(cluster)
}

// watchMembership finds out when this node was removed: nobody tells a removed follower, it just hears no more. It
// believes only the leader, and only when it says so twice.
func (n *Node) watchMembership(ctx context.Context) {
	for denials := 0; ctx.Err() == nil; sleep(ctx, n.cfg.HeartbeatTimeout) {
		if n.leads() || !n.lonely() {
			denials = 0
			continue
		}
		if !n.deniedByLeader(ctx) {
			denials = 0
			continue
		}
		if denials++; denials < 2 {
			continue
		}
		n.log.Error("this node was removed from the cluster and serves no more; "+
			"to bring it back empty its data folder and join it again", "id", n.id)
		n.removed.Store(true)
		if err := n.raft.Load().Shutdown().Error(); err != nil {
			n.log.Warn("stopping raft", "err", err)
		}
		return
	}
}

// lonely tells whether no leader has been heard of for a while.
func (n *Node) lonely() bool {
	last := n.raft.Load().LastContact()
	return time.Since(last) > 4*n.cfg.HeartbeatTimeout && time.Since(n.started) > 4*n.cfg.HeartbeatTimeout
}

// deniedByLeader asks the members that this node knows; it returns true when the one who leads doesn't count it as one.
func (n *Node) deniedByLeader(ctx context.Context) bool {
	addresses := map[string]bool{}
	for _, m := range n.feed.State().Members() {
		addresses[m.GetPeerAddress()] = true
	}
	for _, s := range n.servers() {
		addresses[string(s.Address)] = true
	}
	for address := range addresses {
		if address != n.cfg.PeerAdvertise && n.deniedBy(ctx, address) {
			return true
		}
	}
	return false
}

func (n *Node) deniedBy(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.HeartbeatTimeout)
	defer cancel()
	client, err := n.port.peers.at(address)
	if err != nil {
		return false
	}
	how, err := client.NodeStatus(ctx, &peerv1.NodeStatusRequest{})
	if err != nil || how.GetRaftState() != raft.Leader.String() || how.GetTerm() < n.raft.Load().CurrentTerm() {
		return false
	}
	who, err := identify(ctx, client)
	return err == nil && len(who.GetMemberIds()) > 0 && !slices.Contains(who.GetMemberIds(), n.id)
}

// admit holds back what a stranger may not ask: who has no cluster may only say who it is, or ask to join, and a node
// without a cluster only tells who it is, or lets itself be adopted.
func (n *Node) admit(ctx context.Context, method string) error {
	conn, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.PermissionDenied, "the connection has no peer handshake")
	}
	switch method {
	case peerv1.PeerService_Identify_FullMethodName, peerv1.PeerService_Adopt_FullMethodName:
		return nil
	case peerv1.PeerService_RequestJoin_FullMethodName:
		if n.store.Identity().ClusterID != "" {
			return nil
		}
		return status.Error(codes.FailedPrecondition, "this node has no cluster itself")
	}
	if ours := n.store.Identity().ClusterID; ours == "" || conn.ClusterID != ours {
		return status.Error(codes.PermissionDenied, "only members of the same cluster may ask this")
	}
	return nil
}

func (n *Node) admitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := n.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (n *Node) admitStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := n.admit(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}
