package rpc

import (
	"bufio"
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// clusterServer serves ClusterService.
type clusterServer struct {
	apiv1.UnimplementedClusterServiceServer
	*core
	// restoring has a token while a snapshot is being received: its State is memory that only one may take.
	restoring chan struct{}
}

// nowHeader is the header of what is neither a read nor a write of the registry.
func (s *clusterServer) nowHeader() *apiv1.ResponseHeader {
	return s.writeHeader(s.node.Feed().State().Revision())
}

// Status tells how the cluster is.
func (s *clusterServer) Status(ctx context.Context, req *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	resp, err := s.node.Status(ctx, req.GetLocal())
	if err != nil {
		return nil, explain(err, "get status")
	}
	resp.Header = s.nowHeader()
	return resp, nil
}

// Members lists the nodes.
func (s *clusterServer) Members(ctx context.Context, _ *apiv1.MembersRequest) (*apiv1.MembersResponse, error) {
	st, err := s.node.Status(ctx, false)
	if err != nil {
		return nil, explain(err, "list members")
	}
	return &apiv1.MembersResponse{Header: s.nowHeader(), Members: st.GetMembers()}, nil
}

// Join adds a node.
func (s *clusterServer) Join(ctx context.Context, req *apiv1.JoinRequest) (*apiv1.JoinResponse, error) {
	var f faults
	f.hostPort("peer_address", req.GetPeerAddress())
	if err := f.err(); err != nil {
		return nil, err
	}
	member, changed, err := s.node.Join(ctx, req.GetPeerAddress(), req.GetNonVoter())
	if err != nil {
		return nil, explain(err, "join "+req.GetPeerAddress(), "peer_address", req.GetPeerAddress())
	}
	return &apiv1.JoinResponse{Header: s.nowHeader(), Member: member, Changed: changed}, nil
}

// Remove removes a node.
func (s *clusterServer) Remove(ctx context.Context, req *apiv1.RemoveRequest) (*apiv1.RemoveResponse, error) {
	err := s.about("remove", req.GetNode(), func() error { return s.node.Remove(ctx, req.GetNode(), req.GetForce()) })
	if err != nil {
		return nil, err
	}
	return &apiv1.RemoveResponse{Header: s.nowHeader()}, nil
}

// Promote makes a node a voter.
func (s *clusterServer) Promote(ctx context.Context, req *apiv1.PromoteRequest) (*apiv1.PromoteResponse, error) {
	var changed bool
	err := s.about("promote", req.GetNode(), func() (err error) {
		changed, err = s.node.Promote(ctx, req.GetNode())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &apiv1.PromoteResponse{Header: s.nowHeader(), Changed: changed}, nil
}

// Demote makes a node a non-voter.
func (s *clusterServer) Demote(ctx context.Context, req *apiv1.DemoteRequest) (*apiv1.DemoteResponse, error) {
	var changed bool
	err := s.about("demote", req.GetNode(), func() (err error) {
		changed, err = s.node.Demote(ctx, req.GetNode())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &apiv1.DemoteResponse{Header: s.nowHeader(), Changed: changed}, nil
}

// about runs an order about a node that must be named.
func (s *clusterServer) about(verb, node string, order func() error) error {
	var f faults
	if node == "" {
		f.add("node", "is required")
	}
	f.text("node", node, MaxNodeNameLen)
	if err := f.err(); err != nil {
		return err
	}
	return explain(order(), verb+" node "+node, "node", node)
}

// TransferLeadership hands leadership over.
func (s *clusterServer) TransferLeadership(
	ctx context.Context, req *apiv1.TransferLeadershipRequest,
) (*apiv1.TransferLeadershipResponse, error) {
	var f faults
	f.text("node", req.GetNode(), MaxNodeNameLen)
	if err := f.err(); err != nil {
		return nil, err
	}
	leader, err := s.node.TransferLeadership(ctx, req.GetNode())
	if err != nil {
		return nil, explain(err, "transfer leadership", "node", req.GetNode())
	}
	return &apiv1.TransferLeadershipResponse{Header: s.nowHeader(), Leader: leader}, nil
}

// Verify compares the states of all nodes.
func (s *clusterServer) Verify(ctx context.Context, _ *apiv1.VerifyRequest) (*apiv1.VerifyResponse, error) {
	resp, err := s.node.Verify(ctx)
	if err != nil {
		return nil, explain(err, "verify replicas")
	}
	resp.Header = s.nowHeader()
	return resp, nil
}

// SaveSnapshot streams a snapshot. Its State is immutable, so writes go on meanwhile.
func (s *clusterServer) SaveSnapshot(
	req *apiv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse],
) error {
	var f faults
	fresh := f.freshness(req.GetFreshness())
	if err := f.err(); err != nil {
		return err
	}
	st, header, err := s.view(stream.Context(), fresh)
	if err != nil {
		return explain(err, "save snapshot")
	}
	if err := stream.Send(&apiv1.SaveSnapshotResponse{Header: header, Info: snapshotInfo(st)}); err != nil {
		return err
	}
	// A pause after each block leaves the processor to the applier: it matters more than a backup.
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	w := bufio.NewWriterSize(chunkWriter{stream}, SnapshotChunk)
	if err := st.WriteSnapshot(w, func() { <-pace.C }); err != nil {
		return explain(err, "save snapshot")
	}
	return explain(w.Flush(), "save snapshot")
}

// chunkWriter sends what is written in chunks.
type chunkWriter struct {
	stream grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]
}

// Write sends p, which is no longer used once it returns, as gRPC has encoded it by then.
func (w chunkWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		chunk := p[n:min(n+SnapshotChunk, len(p))]
		if err := w.stream.Send(&apiv1.SaveSnapshotResponse{Chunk: chunk}); err != nil {
			return n, err
		}
		n += len(chunk)
	}
	return len(p), nil
}

// RestoreSnapshot replaces the registry's content. The snapshot is decoded as it comes in and checked whole before
// anything is replaced.
func (s *clusterServer) RestoreSnapshot(
	stream grpc.ClientStreamingServer[apiv1.RestoreSnapshotRequest, apiv1.RestoreSnapshotResponse],
) error {
	select {
	case s.restoring <- struct{}{}:
		defer func() { <-s.restoring }()
	default:
		return explain(fmt.Errorf("%w: another snapshot is being restored", ErrOverloaded), "restore snapshot")
	}
	st, err := fsm.ReadSnapshot(bufio.NewReader(&chunkReader{stream: stream, left: MaxSnapshotBytes}))
	if err != nil {
		return explain(err, "restore snapshot")
	}
	if err = s.node.Restore(stream.Context(), st); err != nil {
		return explain(err, "restore snapshot")
	}
	// The leader has it; this node waits until it has it too, so that the header tells the new epoch.
	_, header, err := s.view(stream.Context(), cluster.Freshness{Mode: cluster.ModeLinearizable})
	if err != nil {
		header = s.nowHeader()
	}
	return stream.SendAndClose(&apiv1.RestoreSnapshotResponse{Header: header, Info: snapshotInfo(st)})
}

// chunkReader reads what is sent in chunks, up to a limit.
type chunkReader struct {
	stream grpc.ClientStreamingServer[apiv1.RestoreSnapshotRequest, apiv1.RestoreSnapshotResponse]
	chunk  []byte
	left   int
}

// Read reads the next bytes of the snapshot.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		req, err := r.stream.Recv()
		if err != nil {
			return 0, err // io.EOF as well: the client has sent everything.
		}
		r.chunk = req.GetChunk()
		if r.left -= len(r.chunk); r.left < 0 {
			return 0, fmt.Errorf("%w: it has more than %d bytes", cluster.ErrBadSnapshot, MaxSnapshotBytes)
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

func snapshotInfo(st *fsm.State) *apiv1.SnapshotInfo {
	n, hash := st.Counts(), st.ContentHash()
	return &apiv1.SnapshotInfo{
		ClusterId: st.ClusterID(), Index: st.Index(), Term: st.Term(), Revision: st.Revision(), Epoch: st.Epoch(),
		ContentHash: hash[:], Instances: uint64(n.Instances), Sessions: uint64(n.Sessions), Leases: uint64(n.Leases),
		Locks: uint64(n.Locks), Version: snapshotVersion,
	}
}

// snapshotVersion is the format that this version writes (raftlog.v1.SnapshotHeader).
const snapshotVersion = 1
