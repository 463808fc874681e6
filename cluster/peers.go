package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// peers holds one connection to each peer that was talked to.
type peers struct {
	mux *peer.Mux

	mu     sync.Mutex
	conns  map[peerTarget]*grpc.ClientConn
	closed bool
}

// peerTarget is a place, and who must be there.
type peerTarget struct {
	id      string // Empty: whoever answers.
	address string
}

// at returns a client of whoever answers at an address: for finding out who that is. It does not wait for the connection.
func (p *peers) at(address string) (peerv1.PeerServiceClient, error) {
	return p.client(peerTarget{address: address})
}

// node returns a client of a node at an address: another one there is an error of each call, so that nobody's word counts
// as somebody else's.
func (p *peers) node(id, address string) (peerv1.PeerServiceClient, error) {
	return p.client(peerTarget{id, address})
}

func (p *peers) leader(at leaderAt) (peerv1.PeerServiceClient, error) {
	return p.node(at.id, at.address)
}

func (p *peers) client(to peerTarget) (peerv1.PeerServiceClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	conn := p.conns[to]
	if conn == nil {
		var err error
		if to.id == "" {
			conn, err = p.mux.DialGRPC(to.address)
		} else {
			conn, err = p.mux.DialNode(to.id, to.address)
		}
		if err != nil {
			return nil, fmt.Errorf("reach peer %s: %w", to.address, err)
		}
		p.conns[to] = conn
	}
	return peerv1.NewPeerServiceClient(conn), nil
}

// reset drops all connections: those that a node made before it had a cluster are good for nothing else.
func (p *peers) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		_ = conn.Close() // Nothing is lost with it.
	}
	clear(p.conns)
}

func (p *peers) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.reset()
}

// identify asks a peer who it is. With TLS it must have the name that its certificate proves: by that a node may come to take
// the place of a member.
func identify(
	ctx context.Context, client peerv1.PeerServiceClient, opts ...grpc.CallOption,
) (*peerv1.IdentifyResponse, error) {
	var conn grpcpeer.Peer
	who, err := client.Identify(ctx, &peerv1.IdentifyRequest{}, append(opts, grpc.Peer(&conn))...)
	if err != nil {
		return nil, err
	}
	info, _ := conn.AuthInfo.(peer.AuthInfo)
	if name := info.Remote.Name; name != "" && name != who.GetMember().GetName() {
		return nil, fmt.Errorf("%w: it says that it is %q and shows that of %q", peer.ErrWrongName, who.GetMember().GetName(), name)
	}
	return who, nil
}

// peerAddress tells where a member is reached: where it says itself, else where it was when it joined.
func (n *Node) peerAddress(id raft.ServerID) (string, error) {
	if m := n.feed.State().Member(string(id)); m.GetPeerAddress() != "" {
		return m.GetPeerAddress(), nil
	}
	if s, ok := n.server(string(id)); ok {
		return string(s.Address), nil
	}
	return "", fmt.Errorf("%w: %s", ErrMemberNotFound, id)
}

func (n *Node) peerByID(id raft.ServerID) (peerv1.PeerServiceClient, error) {
	address, err := n.peerAddress(id)
	if err != nil {
		return nil, err
	}
	return n.port.peers.node(string(id), address)
}

// leaderAt is who leads, and where.
type leaderAt struct{ id, address string }

// leaderAt tells who leads, or ErrNoLeader. When this node is itself said to lead, it is not ready yet: ErrNotLeader. The
// leader is reached where it says in its messages: a node that has just joined hears from it before it has the log that
// names the members.
func (n *Node) leaderAt() (leaderAt, error) {
	r := n.raft.Load()
	if r == nil {
		return leaderAt{}, ErrStarting
	}
	address, id := r.LeaderWithID()
	switch string(id) {
	case "":
		return leaderAt{}, ErrNoLeader
	case n.id:
		return leaderAt{}, ErrNotLeader
	}
	return leaderAt{string(id), string(address)}, nil
}

// leaderPeer returns a client of the leader; its errors are those of leaderAt.
func (n *Node) leaderPeer() (peerv1.PeerServiceClient, error) {
	at, err := n.leaderAt()
	if err != nil {
		return nil, err
	}
	return n.port.peers.leader(at)
}

// fetchIndex asks the leader for a read index.
func (n *Node) fetchIndex(ctx context.Context) (uint64, error) {
	leader, err := n.leaderPeer()
	if err != nil {
		return 0, err
	}
	reply, err := leader.ReadIndex(ctx, &peerv1.ReadIndexRequest{})
	if err != nil {
		return 0, forwardError(ctx, err)
	}
	return reply.GetIndex(), fromFault(reply.GetFault())
}

// forwardError says what a failed call to the leader means when it did nothing.
func forwardError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("forward to the leader: %w", ctx.Err())
	}
	return fmt.Errorf("%w: forward to the leader: %w", ErrNotLeader, err)
}

// openConfirm opens a stream of questions to a peer.
func (n *Node) openConfirm(ctx context.Context, id raft.ServerID) (peerv1.PeerService_ConfirmClient, error) {
	client, err := n.peerByID(id)
	if err != nil {
		return nil, err
	}
	return client.Confirm(ctx)
}

// peerServer answers the peers.
type peerServer struct {
	peerv1.UnimplementedPeerServiceServer

	node *Node
}

// Confirm answers the questions of a leader, and learns from them how old this node's State is.
func (s *peerServer) Confirm(stream peerv1.PeerService_ConfirmServer) error {
	n := s.node
	defer n.succession.lookUp() // The leader opens one to each node, and keeps it for as long as it leads.
	type asked struct {
		number, index uint64
		after         time.Time // this node's answer to the question before: the leader sent this one later
	}
	var open []asked
	var lastAnswer time.Time
	for {
		q, err := stream.Recv()
		if err != nil {
			return ignoreEOF(err)
		}
		if !lastAnswer.IsZero() {
			open = append(open, asked{q.GetQuestion(), q.GetIndex(), lastAnswer})
		}
		for len(open) > 0 && open[0].number <= q.GetConfirmedQuestion() {
			n.fresh.note(open[0].index, open[0].after)
			open = open[1:]
		}
		term := n.highestTerm()
		lastAnswer = time.Now()
		err = stream.Send(&peerv1.ConfirmResponse{Question: q.GetQuestion(), Ok: term <= q.GetTerm(), Term: term})
		if err != nil {
			return err
		}
		if len(open) > maxOpenQuestions {
			return status.Error(codes.ResourceExhausted, "too many questions without a proof")
		}
	}
}

// maxOpenQuestions bounds what one stream keeps; two are usual.
const maxOpenQuestions = 1024

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// answers returns nil when this node leads and the caller is a member. A node that was removed does not know it yet; it
// must not wait for entries that will never reach it.
func (s *peerServer) answers(ctx context.Context) error {
	n := s.node
	if !n.leads() {
		return ErrNotLeader
	}
	caller, ok := peer.FromContext(ctx)
	if _, member := n.server(caller.NodeID); !ok || !member {
		return fmt.Errorf("node %s: %w", caller.NodeID, ErrRemoved)
	}
	return nil
}

// ReadIndex answers a follower.
func (s *peerServer) ReadIndex(ctx context.Context, req *peerv1.ReadIndexRequest) (*peerv1.ReadIndexResponse, error) {
	if err := s.answers(ctx); err != nil {
		return &peerv1.ReadIndexResponse{Fault: toFault(err)}, nil
	}
	reply, err := s.node.readIndexHere(ctx, req.GetServers())
	if err != nil {
		return &peerv1.ReadIndexResponse{Fault: toFault(err)}, nil
	}
	return reply, nil
}

// Renew renews what a follower has gathered.
func (s *peerServer) Renew(ctx context.Context, req *peerv1.RenewRequest) (*peerv1.RenewResponse, error) {
	if err := s.answers(ctx); err != nil {
		return &peerv1.RenewResponse{Fault: toFault(err)}, nil
	}
	ended, err := s.node.renewHere(ctx, req.GetRenewals())
	return &peerv1.RenewResponse{Ended: ended, Fault: toFault(err)}, nil
}

// StateHash tells the hash at an index, or at the first later one that is kept.
func (s *peerServer) StateHash(ctx context.Context, req *peerv1.StateHashRequest) (*peerv1.StateHashResponse, error) {
	h, err := s.node.feed.HashAt(ctx, req.GetIndex())
	if err != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return &peerv1.StateHashResponse{
		Index: h.Index, Revision: h.Revision, StateHash: h.Hash[:], Chain: h.Chain[:], ContentHash: h.Content[:],
	}, nil
}

// NodeStatus tells how this node is.
func (s *peerServer) NodeStatus(context.Context, *peerv1.NodeStatusRequest) (*peerv1.NodeStatusResponse, error) {
	return s.node.localStatus(), nil
}

// Identify tells who this node is.
func (s *peerServer) Identify(context.Context, *peerv1.IdentifyRequest) (*peerv1.IdentifyResponse, error) {
	return s.node.identify(), nil
}

// Adopt makes this node, which must be empty, a part of a cluster.
func (s *peerServer) Adopt(_ context.Context, req *peerv1.AdoptRequest) (*peerv1.AdoptResponse, error) {
	if err := s.node.adopt(req.GetClusterId()); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &peerv1.AdoptResponse{}, nil
}

// RequestJoin makes the caller a member.
func (s *peerServer) RequestJoin(ctx context.Context, req *peerv1.RequestJoinRequest) (*peerv1.RequestJoinResponse, error) {
	_, changed, err := s.node.Join(ctx, req.GetMember().GetPeerAddress(), req.GetNonVoter())
	return &peerv1.RequestJoinResponse{
		ClusterId: s.node.store.Identity().ClusterID, Changed: changed, Fault: toFault(err),
	}, nil
}

// Administer changes membership or leadership on behalf of a follower.
func (s *peerServer) Administer(ctx context.Context, req *peerv1.AdministerRequest) (*peerv1.AdministerResponse, error) {
	if err := s.answers(ctx); err != nil {
		return &peerv1.AdministerResponse{Fault: toFault(err)}, nil
	}
	reply, err := s.node.administerHere(ctx, req)
	if err != nil {
		return &peerv1.AdministerResponse{Fault: toFault(err)}, nil
	}
	return reply, nil
}

// Restore replaces the State on behalf of a follower.
func (s *peerServer) Restore(stream peerv1.PeerService_RestoreServer) error {
	pr, pw := io.Pipe()
	go func() {
		for {
			part, err := stream.Recv()
			if err != nil {
				pw.CloseWithError(err) // io.EOF ends the snapshot.
				return
			}
			if _, err := pw.Write(part.GetChunk()); err != nil {
				return // The reader has given up.
			}
		}
	}()
	st, err := fsm.ReadSnapshot(pr)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	} else if err = s.answers(stream.Context()); err == nil {
		err = s.node.restoreHere(stream.Context(), st)
	}
	pr.CloseWithError(io.ErrClosedPipe)
	return stream.SendAndClose(&peerv1.RestoreResponse{Fault: toFault(err)})
}
