package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// servers is Raft's latest configuration, empty while the node has no cluster.
func (n *Node) servers() []raft.Server {
	r := n.raft.Load()
	if r == nil {
		return nil
	}
	f := r.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

// server finds a member in Raft's latest configuration.
func (n *Node) server(id string) (raft.Server, bool) {
	for _, s := range n.servers() {
		if string(s.ID) == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// voters are the ids of those who vote.
func (n *Node) voters() []raft.ServerID {
	var ids []raft.ServerID
	for _, s := range n.servers() {
		if s.Suffrage == raft.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// findServer finds a member by id or name.
func (n *Node) findServer(node string) (raft.Server, error) {
	st := n.feed.State()
	for _, s := range n.servers() {
		if string(s.ID) == node || st.Member(string(s.ID)).GetName() == node {
			return s, nil
		}
	}
	return raft.Server{}, fmt.Errorf("%w: %q is neither the id nor the name of a member", ErrMemberNotFound, node)
}

// Join makes the empty node that answers at peerAddress a member: first a non-voter, which becomes a voter once it has
// caught up, unless nonVoter keeps it from that. It reports whether anything changed. A node of the same name that lost
// its disk is replaced: its former self, which is gone for good, is removed.
func (n *Node) Join(ctx context.Context, peerAddress string, nonVoter bool) (*registryv1.Member, bool, error) {
	reply, err := n.administer(ctx, &peerv1.AdministerRequest{
		Action: &peerv1.AdministerRequest_Join{Join: peerAddress}, Flag: nonVoter,
	})
	return reply.GetMember(), reply.GetChanged(), err
}

// Remove takes a member out, by id or name: also the leader and also a dead node. Without force it is refused when fewer
// than a majority of the remaining voters answer.
func (n *Node) Remove(ctx context.Context, node string, force bool) error {
	_, err := n.administer(ctx, &peerv1.AdministerRequest{
		Action: &peerv1.AdministerRequest_Remove{Remove: node}, Flag: force,
	})
	return err
}

// Promote makes a member a voter. It reports whether anything changed.
func (n *Node) Promote(ctx context.Context, node string) (bool, error) {
	reply, err := n.administer(ctx, &peerv1.AdministerRequest{Action: &peerv1.AdministerRequest_Promote{Promote: node}})
	return reply.GetChanged(), err
}

// Demote makes a member a non-voter that stays one. It reports whether anything changed.
func (n *Node) Demote(ctx context.Context, node string) (bool, error) {
	reply, err := n.administer(ctx, &peerv1.AdministerRequest{Action: &peerv1.AdministerRequest_Demote{Demote: node}})
	return reply.GetChanged(), err
}

// TransferLeadership hands leadership to a voter, by id or name, or to the one that is furthest when node is empty. It
// returns the name of the new leader.
func (n *Node) TransferLeadership(ctx context.Context, node string) (string, error) {
	before := n.Info().LeaderID
	_, err := n.administer(ctx, &peerv1.AdministerRequest{Action: &peerv1.AdministerRequest_Transfer{Transfer: node}})
	if err != nil {
		return "", err
	}
	for ctx.Err() == nil {
		if info := n.Info(); info.LeaderID != "" && (info.LeaderID != before || info.LeaderID == node || info.LeaderName == node) {
			return info.LeaderName, nil
		}
		sleep(ctx, n.cfg.HeartbeatTimeout/20)
	}
	return "", fmt.Errorf("leadership was handed over, but no new leader is known yet: %w", ctx.Err())
}

// administer has a change made by the leader. It waits for one up to Config.LeaderWait.
func (n *Node) administer(ctx context.Context, req *peerv1.AdministerRequest) (*peerv1.AdministerResponse, error) {
	var reply *peerv1.AdministerResponse
	err := n.untilLed(ctx, leaderless, func() (err error) {
		reply, err = n.administerOnce(ctx, req)
		return err
	})
	return reply, err
}

func (n *Node) administerOnce(ctx context.Context, req *peerv1.AdministerRequest) (*peerv1.AdministerResponse, error) {
	if n.leads() {
		return n.administerHere(ctx, req)
	}
	leader, err := n.leaderPeer()
	if err != nil {
		return nil, err
	}
	reply, err := leader.Administer(ctx, req)
	if err != nil {
		return nil, forwardError(ctx, err) // All changes can be repeated.
	}
	return reply, fromFault(reply.GetFault())
}

// administerHere makes a change on the leader.
func (n *Node) administerHere(ctx context.Context, req *peerv1.AdministerRequest) (*peerv1.AdministerResponse, error) {
	if err := n.pilot.lock(ctx); err != nil {
		return nil, err
	}
	defer n.pilot.unlock()
	var changed bool
	var member *registryv1.Member
	var err error
	switch a := req.GetAction().(type) {
	case *peerv1.AdministerRequest_Join:
		member, changed, err = n.joinHere(ctx, a.Join, req.GetFlag())
	case *peerv1.AdministerRequest_Remove:
		changed, err = true, n.removeHere(ctx, a.Remove, req.GetFlag())
	case *peerv1.AdministerRequest_Promote:
		changed, err = n.promoteHere(ctx, a.Promote)
	case *peerv1.AdministerRequest_Demote:
		changed, err = n.demoteHere(ctx, a.Demote)
	case *peerv1.AdministerRequest_Transfer:
		changed, err = true, n.transferHere(ctx, a.Transfer)
	default:
		err = fmt.Errorf("%w: unknown action", ErrMembership)
	}
	if err != nil {
		return nil, err
	}
	return &peerv1.AdministerResponse{Changed: changed, Member: member}, nil
}

func (n *Node) joinHere(ctx context.Context, address string, nonVoter bool) (*registryv1.Member, bool, error) {
	client, err := n.port.peers.at(address)
	if err != nil {
		return nil, false, err
	}
	who, err := identify(ctx, client)
	if err != nil {
		return nil, false, fmt.Errorf("%w: ask the node at %s who it is: %w", ErrMembership, address, err)
	}
	m := who.GetMember()
	ours := n.store.Identity().ClusterID
	if id := who.GetClusterId(); id != "" && id != ours {
		return nil, false, fmt.Errorf("%w: node %s at %s belongs to another cluster (%s): empty its data folder first",
			ErrMembership, m.GetName(), address, id)
	}
	if _, is := n.server(m.GetId()); is {
		return m, false, n.adoptAt(ctx, client, ours)
	}
	if err = tooOldToJoin(n.feed.State(), m); err != nil {
		n.pilot.refuses(m.GetId(), err)
		return nil, false, err
	}
	former, err := n.formerSelf(ctx, m)
	if err != nil {
		return nil, false, err
	}
	if former != "" { // First, as Raft's configuration holds an address only once.
		if err = n.dropServer(ctx, former); err != nil {
			return nil, false, fmt.Errorf("remove the former node %s: %w", m.GetName(), err)
		}
	}
	m.NonVoter = nonVoter
	if err = n.setMember(ctx, m); err != nil {
		return nil, false, fmt.Errorf("record node %s: %w", m.GetName(), err)
	}
	r := n.raft.Load()
	err = await(ctx, begin(func() raft.Future {
		return r.AddNonvoter(raft.ServerID(m.GetId()), raft.ServerAddress(m.GetPeerAddress()), 0, changeTimeout)
	}))
	if err != nil {
		return nil, false, fmt.Errorf("add node %s: %w", m.GetName(), changeError(err))
	}
	n.log.Info("member joined", "member", m.GetName(), "id", m.GetId(), "address", m.GetPeerAddress())
	return m, true, n.adoptAt(ctx, client, ours)
}

// changeTimeout bounds how long raft may take to accept a change of its configuration.
const changeTimeout = 10 * time.Second

func (n *Node) adoptAt(ctx context.Context, client peerv1.PeerServiceClient, cluster string) error {
	if _, err := client.Adopt(ctx, &peerv1.AdoptRequest{ClusterId: cluster}); err != nil {
		return fmt.Errorf("tell the node its cluster: %w", err)
	}
	return nil
}

// formerSelf finds the member that had the name of a joining node. When the joining node answers where that member is
// reached, the member is gone for good: it has lost its disk. Elsewhere the name is taken.
func (n *Node) formerSelf(ctx context.Context, m *registryv1.Member) (raft.ServerID, error) {
	for _, other := range n.feed.State().Members() {
		if other.GetName() != m.GetName() || other.GetId() == m.GetId() {
			continue
		}
		if _, is := n.server(other.GetId()); !is {
			continue
		}
		if other.GetPeerAddress() == m.GetPeerAddress() || !n.answers(ctx, raft.ServerID(other.GetId())) {
			return raft.ServerID(other.GetId()), nil
		}
		return "", fmt.Errorf("%w: the name %q belongs to the living member %s at %s: choose another name",
			ErrMembership, m.GetName(), other.GetId(), other.GetPeerAddress())
	}
	return "", nil
}

// answers tells whether a member is there, as itself.
func (n *Node) answers(ctx context.Context, id raft.ServerID) bool {
	if string(id) == n.id {
		return true
	}
	client, err := n.peerByID(id)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.HeartbeatTimeout)
	defer cancel()
	who, err := identify(ctx, client)
	return err == nil && who.GetMember().GetId() == string(id)
}

func (n *Node) removeHere(ctx context.Context, node string, force bool) error {
	s, err := n.findServer(node)
	if err != nil {
		return err
	}
	if s.Suffrage == raft.Voter && !force {
		if err := n.quorumWithout(ctx, s.ID); err != nil {
			return err
		}
	}
	if string(s.ID) != n.id {
		return n.dropServer(ctx, s.ID)
	}
	// Another one must lead first: it will do the rest, as the caller tries again.
	if len(n.voters()) < 2 {
		return fmt.Errorf("%w: %s is the only voter", ErrMembership, n.cfg.Name)
	}
	if err := await(ctx, n.raft.Load().LeadershipTransfer()); err != nil {
		return fmt.Errorf("%w: hand leadership over before removing the leader: %w", ErrNotLeader, err)
	}
	return fmt.Errorf("%w any more: it is about to be removed", ErrNotLeader)
}

// quorumWithout refuses a removal that would leave too few voters that answer.
func (n *Node) quorumWithout(ctx context.Context, gone raft.ServerID) error {
	rest, answering := 0, 0
	for _, id := range n.voters() {
		if id == gone {
			continue
		}
		rest++
		if n.answers(ctx, id) {
			answering++
		}
	}
	if rest == 0 || answering < rest/2+1 {
		return fmt.Errorf("%w: of the %d voters that remain only %d answer, which is no majority", ErrMembership, rest, answering)
	}
	return nil
}

// dropServer removes a member other than this node.
func (n *Node) dropServer(ctx context.Context, id raft.ServerID) error {
	r := n.raft.Load()
	if err := await(ctx, begin(func() raft.Future { return r.RemoveServer(id, 0, changeTimeout) })); err != nil {
		return changeError(err)
	}
	n.log.Info("member removed", "id", id)
	_, err := n.Propose(ctx, &raftlogv1.Command{
		Kind: &raftlogv1.Command_RemoveMember{RemoveMember: &raftlogv1.RemoveMember{Id: string(id)}},
	})
	return err
}

func (n *Node) promoteHere(ctx context.Context, node string) (bool, error) {
	s, err := n.findServer(node)
	if err != nil {
		return false, err
	}
	if err := n.keepNonVoter(ctx, s.ID, false); err != nil {
		return false, err
	}
	if s.Suffrage == raft.Voter {
		return false, nil
	}
	r := n.raft.Load()
	return true, changeError(await(ctx, begin(func() raft.Future { return r.AddVoter(s.ID, s.Address, 0, changeTimeout) })))
}

func (n *Node) demoteHere(ctx context.Context, node string) (bool, error) {
	s, err := n.findServer(node)
	if err != nil {
		return false, err
	}
	if s.Suffrage == raft.Voter {
		if err := n.quorumWithout(ctx, s.ID); err != nil {
			return false, err
		}
		if string(s.ID) == n.id {
			if err := await(ctx, n.raft.Load().LeadershipTransfer()); err != nil {
				return false, fmt.Errorf("%w: hand leadership over before demoting the leader: %w", ErrNotLeader, err)
			}
			return false, fmt.Errorf("%w any more: it is about to be demoted", ErrNotLeader)
		}
	}
	if err := n.keepNonVoter(ctx, s.ID, true); err != nil {
		return false, err
	}
	if s.Suffrage != raft.Voter {
		return false, nil
	}
	r := n.raft.Load()
	return true, changeError(await(ctx, begin(func() raft.Future { return r.DemoteVoter(s.ID, 0, changeTimeout) })))
}

// keepNonVoter records whether a member may be promoted by itself.
func (n *Node) keepNonVoter(ctx context.Context, id raft.ServerID, nonVoter bool) error {
	m := n.feed.State().Member(string(id))
	if m == nil || m.GetNonVoter() == nonVoter {
		return nil
	}
	m = proto.CloneOf(m)
	m.NonVoter = nonVoter
	return n.setMember(ctx, m)
}

func (n *Node) transferHere(ctx context.Context, node string) error {
	r := n.raft.Load()
	if node == "" {
		return changeError(await(ctx, r.LeadershipTransfer()))
	}
	s, err := n.findServer(node)
	if err != nil {
		return err
	}
	if string(s.ID) == n.id {
		return nil
	}
	if s.Suffrage != raft.Voter {
		return fmt.Errorf("%w: %s does not vote and so can't lead", ErrMembership, node)
	}
	return changeError(await(ctx, r.LeadershipTransferToServer(s.ID, s.Address)))
}

// changeError says what a failed change of Raft's configuration means: what can be tried again at the next leader is
// told apart from what is refused.
func changeError(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrUnknownOutcome):
		return err
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost),
		errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrNotLeader, err) // Each change can be repeated: outcome unknown is as good.
	default:
		return fmt.Errorf("%w: %w", ErrMembership, err)
	}
}

// Restore replaces the content of the registry, on all nodes, by that of a snapshot (as read by fsm.ReadSnapshot):
// instances, sessions, leases and locks. The cluster keeps its identity and members; a new epoch begins, and revisions
// go on above both.
func (n *Node) Restore(ctx context.Context, st *fsm.State) error {
	return n.untilLed(ctx, leaderless, func() error { return n.restoreOnce(ctx, st) })
}

func (n *Node) restoreOnce(ctx context.Context, st *fsm.State) error {
	if n.leads() {
		return n.restoreHere(ctx, st)
	}
	leader, err := n.leaderPeer()
	if err != nil {
		return err
	}
	stream, err := leader.Restore(ctx)
	if err != nil {
		return forwardError(ctx, err)
	}
	if err = st.WriteSnapshot(restoreWriter{stream}, nil); err != nil {
		// The answer says more than the failed write, when there is one.
		if _, recvErr := stream.CloseAndRecv(); recvErr != nil {
			return forwardError(ctx, recvErr)
		}
		return forwardError(ctx, err)
	}
	reply, err := stream.CloseAndRecv()
	if err != nil {
		return fmt.Errorf("%w: forward the restore: %w", ErrUnknownOutcome, err)
	}
	return fromFault(reply.GetFault())
}

// restoreWriter sends what is written to the leader.
type restoreWriter struct {
	stream peerv1.PeerService_RestoreClient
}

// Write implements io.Writer.
func (w restoreWriter) Write(p []byte) (int, error) {
	const chunk = 1 << 20
	for sent := 0; sent < len(p); {
		k := min(chunk, len(p)-sent)
		if err := w.stream.Send(&peerv1.RestoreRequest{Chunk: p[sent : sent+k]}); err != nil {
			return sent, err
		}
		sent += k
	}
	return len(p), nil
}
