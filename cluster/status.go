package cluster

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// localStatus tells how this node is.
func (n *Node) localStatus() *peerv1.NodeStatusResponse {
	st := n.feed.State()
	p50, p99 := n.store.AppendLatency()
	id := n.store.Identity()
	s := &peerv1.NodeStatusResponse{
		Member: n.knownSelf(), ClusterId: id.ClusterID, LogStore: string(id.LogStore),
		AppliedIndex: st.Index(), Revision: st.Revision(), RaftState: "Starting",
		LastContactMs: -1, StalenessMs: -1, DiskFreeBytes: n.store.DiskFree(), UptimeMs: time.Since(n.started).Milliseconds(),
		AppendP50Us: p50.Microseconds(), AppendP99Us: p99.Microseconds(),
	}
	if age := n.Staleness(); age >= 0 {
		s.StalenessMs = age.Milliseconds()
	}
	if r := n.raft.Load(); r != nil {
		s.RaftState, s.Term = r.State().String(), r.CurrentTerm()
		s.LastIndex, s.LastTerm = n.lastEntry()
		if last := r.LastContact(); r.State() == raft.Leader {
			s.LastContactMs = 0
		} else if !last.IsZero() {
			s.LastContactMs = time.Since(last).Milliseconds()
		}
	}
	if n.store.Full() {
		s.Problems = append(s.Problems, fmt.Sprintf("disk nearly full (%d MiB free): writes are refused; free some space",
			s.GetDiskFreeBytes()>>20))
	}
	if stall := n.disk.AppendStall(); stall > 2*n.cfg.HeartbeatTimeout {
		s.Problems = append(s.Problems, fmt.Sprintf("disk stalled: an append has been under way for %v", stall.Round(time.Millisecond)))
	}
	if err := n.serving(); err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	return s
}

// RaftStats is what Raft tells of itself, for people: its names and their meaning are those of hashicorp/raft. Nil: it does not run
// yet.
func (n *Node) RaftStats() map[string]string {
	r := n.raft.Load()
	if r == nil {
		return nil
	}
	return r.Stats()
}

// snapshotIndex is the Raft index up to which the newest snapshot reaches; 0 when there is none.
func (n *Node) snapshotIndex() float64 {
	r := n.raft.Load()
	if r == nil {
		return 0
	}
	index, _ := strconv.ParseUint(r.Stats()["last_snapshot_index"], 10, 64) // Raft prints what it has here.
	return float64(index)
}

// latestServers returns the members as the leader has them, once this node knows what that knew when it was asked: what Raft
// itself knows of them moves no index that could be waited for. It does not wait long: what this node knows has to do, without a
// leader also of who the members are.
func (n *Node) latestServers(ctx context.Context) []raft.Server {
	if n.Info().LeaderID == "" {
		return n.servers()
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.HeartbeatTimeout)
	defer cancel()
	var reply *peerv1.ReadIndexResponse
	err := n.untilLed(ctx, leaderless, func() (err error) {
		reply, err = n.askServers(ctx)
		return err
	})
	if err != nil || len(reply.GetServers()) == 0 { // A leader of an earlier version tells none.
		n.log.Debug("the status shows the members that this node knows", "err", err)
		return n.servers()
	}
	if _, err = n.feed.WaitIndex(ctx, reply.GetIndex()); err != nil {
		n.log.Debug("the status shows what this node, which is behind, knows of the members that its leader has", "err", err)
	}
	servers := make([]raft.Server, len(reply.GetServers()))
	for i, s := range reply.GetServers() {
		servers[i] = raft.Server{ID: raft.ServerID(s.GetId()), Address: raft.ServerAddress(s.GetAddress()), Suffrage: raft.Nonvoter}
		if s.GetVoter() {
			servers[i].Suffrage = raft.Voter
		}
	}
	return servers
}

// askServers asks the leader, which may be this node, for a read index and the servers.
func (n *Node) askServers(ctx context.Context) (*peerv1.ReadIndexResponse, error) {
	if n.leads() {
		return n.readIndexHere(ctx, true)
	}
	leader, err := n.leaderPeer()
	if err != nil {
		return nil, err
	}
	reply, err := leader.ReadIndex(ctx, &peerv1.ReadIndexRequest{Servers: true})
	if err != nil {
		return nil, forwardError(ctx, err)
	}
	return reply, fromFault(reply.GetFault())
}

// readIndexHere answers on the leader.
func (n *Node) readIndexHere(ctx context.Context, servers bool) (*peerv1.ReadIndexResponse, error) {
	index, err := n.confirmedIndex(ctx)
	if err != nil {
		return nil, err
	}
	reply := &peerv1.ReadIndexResponse{Index: index}
	if servers {
		for _, s := range n.servers() {
			reply.Servers = append(reply.Servers, &peerv1.Server{
				Id: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter,
			})
		}
	}
	return reply, nil
}

// knownSelf is this node as the cluster knows it, or as it will announce itself.
func (n *Node) knownSelf() *registryv1.Member {
	if m := n.feed.State().Member(n.id); m != nil {
		return m
	}
	return n.member()
}

// Status tells how the cluster is, as seen from this node; with local, only what this node knows without asking. Else, as long
// as the cluster has a leader, it shows every change of the members that was acknowledged before. The header is the caller's
// to fill. It returns an error only when ctx ends.
func (n *Node) Status(ctx context.Context, local bool) (*apiv1.StatusResponse, error) {
	servers := n.servers()
	if !local {
		servers = n.latestServers(ctx)
	}
	if len(servers) == 0 {
		servers = []raft.Server{{ID: raft.ServerID(n.id), Suffrage: raft.Nonvoter}}
	}
	var ids []raft.ServerID
	for _, s := range servers {
		if !local || string(s.ID) == n.id {
			ids = append(ids, s.ID)
		}
	}
	replies := n.statusOf(ctx, ids)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	counts := n.feed.State().Counts()
	reply := &apiv1.StatusResponse{
		Instances: uint64(counts.Instances), Services: uint64(counts.Services), Sessions: uint64(counts.Sessions),
		Leases: uint64(counts.Leases), Locks: uint64(counts.Locks),
	}
	for _, s := range servers {
		m := n.memberStatus(s, replies)
		reply.Members = append(reply.Members, m)
		if s.Suffrage == raft.Voter {
			reply.Voters++
			if m.GetReachable() {
				reply.VotersReachable++
			}
		}
	}
	slices.SortFunc(reply.GetMembers(), func(a, b *apiv1.MemberStatus) int {
		return cmp.Compare(a.GetMember().GetName(), b.GetMember().GetName())
	})
	reply.Quorum = reply.GetVoters()/2 + 1
	reply.Problems = n.problems(reply, local)
	return reply, nil
}

// memberStatus puts together what Raft knows of a member and what it says itself.
func (n *Node) memberStatus(s raft.Server, replies map[raft.ServerID]statusReply) *apiv1.MemberStatus {
	m := &apiv1.MemberStatus{Suffrage: apiv1.Suffrage_SUFFRAGE_NONVOTER}
	if s.Suffrage == raft.Voter {
		m.Suffrage = apiv1.Suffrage_SUFFRAGE_VOTER
	}
	m.Member = n.feed.State().Member(string(s.ID))
	recorded := m.GetMember() != nil
	if !recorded {
		m.Member = &registryv1.Member{Id: string(s.ID), Name: string(s.ID), PeerAddress: string(s.Address)}
	}
	reply, asked := replies[s.ID]
	if !asked {
		return m
	}
	if reply.err != nil {
		m.Problems = []string{"does not answer: " + reply.err.Error()}
		return m
	}
	m.Reachable, m.Member = true, reply.GetMember()
	m.Role = roles[reply.GetRaftState()]
	m.AppliedIndex, m.Term, m.Revision = reply.GetAppliedIndex(), reply.GetTerm(), reply.GetRevision()
	if ms := reply.GetStalenessMs(); ms >= 0 {
		m.Staleness = durationpb.New(time.Duration(ms) * time.Millisecond)
	}
	m.DiskFreeBytes, m.Problems, m.LogStore = reply.GetDiskFreeBytes(), reply.GetProblems(), reply.GetLogStore()
	if !recorded {
		m.Problems = append(m.GetProblems(), errUnrecorded.Error())
	}
	m.Uptime = durationpb.New(time.Duration(reply.GetUptimeMs()) * time.Millisecond)
	m.AppendP50 = durationpb.New(time.Duration(reply.GetAppendP50Us()) * time.Microsecond)
	m.AppendP99 = durationpb.New(time.Duration(reply.GetAppendP99Us()) * time.Microsecond)
	return m
}

var roles = map[string]apiv1.Role{ //nolint:gochecknoglobals // A table.
	raft.Leader.String(): apiv1.Role_ROLE_LEADER, raft.Follower.String(): apiv1.Role_ROLE_FOLLOWER,
	raft.Candidate.String(): apiv1.Role_ROLE_CANDIDATE, raft.Shutdown.String(): apiv1.Role_ROLE_SHUTDOWN,
}

// problems says what is wrong, each with the next step, most serious first.
func (n *Node) problems(s *apiv1.StatusResponse, local bool) []string {
	var list []string
	if err := n.serving(); err != nil {
		return []string{err.Error()}
	}
	if n.Info().LeaderID == "" {
		list = append(list, fmt.Sprintf("no leader: %d of %d voters answer, %d are needed; start the missing nodes",
			s.GetVotersReachable(), s.GetVoters(), s.GetQuorum()))
	}
	if local {
		return list
	}
	for _, m := range s.GetMembers() {
		name := m.GetMember().GetName()
		if !m.GetReachable() {
			list = append(list, fmt.Sprintf("%s does not answer at %s: start it, or remove it with \"regd members remove %s\"",
				name, m.GetMember().GetPeerAddress(), name))
			continue
		}
		for _, p := range m.GetProblems() {
			list = append(list, name+": "+p)
		}
	}
	if s.GetVoters() > 1 && s.GetVotersReachable() == s.GetQuorum() {
		list = append(list, "one more lost voter stops all writes")
	}
	if v := s.GetVoters(); v == 2 {
		list = append(list, "two voters can't lose either: add a third with \"regd members join\"")
	}
	return list
}

// Verify compares the State of all members at one index. The header is the caller's to fill. It returns an error when
// this node itself has no State to compare.
func (n *Node) Verify(ctx context.Context) (*apiv1.VerifyResponse, error) {
	if _, err := n.linearizable(ctx); err != nil {
		return nil, err
	}
	at := n.feed.State().Index()
	for {
		replicas, content := n.hashes(ctx, at)
		again := uint64(0)
		for _, r := range replicas {
			again = max(again, r.GetIndex())
		}
		if again > at && ctx.Err() == nil {
			at = again // Someone no longer had that State: compare at its next one.
			continue
		}
		return &apiv1.VerifyResponse{Equal: equalReplicas(replicas), Replicas: replicas, ContentHash: content}, nil
	}
}

// hashes asks all members for their hash at an index, within the time of ctx or verifyTimeout.
func (n *Node) hashes(ctx context.Context, at uint64) ([]*apiv1.ReplicaState, []byte) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	servers := n.servers()
	replicas := make([]*apiv1.ReplicaState, len(servers))
	var content []byte
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, s := range servers {
		wg.Go(func() {
			name := n.feed.State().Member(string(s.ID)).GetName()
			reply, err := n.hashOf(ctx, s.ID, at)
			if err != nil {
				replicas[i] = &apiv1.ReplicaState{Node: cmp.Or(name, string(s.ID)), Problem: err.Error()}
				return
			}
			replicas[i] = &apiv1.ReplicaState{
				Node: cmp.Or(name, string(s.ID)), Index: reply.GetIndex(), Revision: reply.GetRevision(),
				StateHash: reply.GetStateHash(), Chain: reply.GetChain(),
			}
			mu.Lock()
			defer mu.Unlock()
			content = reply.GetContentHash()
		})
	}
	wg.Wait()
	slices.SortFunc(replicas, func(a, b *apiv1.ReplicaState) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	return replicas, content
}

const verifyTimeout = 5 * time.Second

func (n *Node) hashOf(ctx context.Context, id raft.ServerID, at uint64) (*peerv1.StateHashResponse, error) {
	if string(id) == n.id {
		return (&peerServer{node: n}).StateHash(ctx, &peerv1.StateHashRequest{Index: at})
	}
	client, err := n.peerByID(id)
	if err != nil {
		return nil, err
	}
	// A node that has just come back is worth the wait: only an answer proves anything.
	return client.StateHash(ctx, &peerv1.StateHashRequest{Index: at}, grpc.WaitForReady(true))
}

func equalReplicas(replicas []*apiv1.ReplicaState) bool {
	for _, r := range replicas {
		first := replicas[0]
		if r.GetProblem() != "" || r.GetIndex() != first.GetIndex() || !bytes.Equal(r.GetStateHash(), first.GetStateHash()) ||
			!bytes.Equal(r.GetChain(), first.GetChain()) {
			return false
		}
	}
	return len(replicas) > 0
}
