package rpc

import (
	"context"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// leaseServer serves LeaseService.
type leaseServer struct {
	apiv1.UnimplementedLeaseServiceServer
	*core
}

// Grant grants a lease.
func (s *leaseServer) Grant(ctx context.Context, req *apiv1.GrantRequest) (*apiv1.GrantResponse, error) {
	var f faults
	id := f.request(req)
	ttl := millis(f.duration("ttl", req.GetTtl(), span{least: MinTTL, most: MaxTTL}))
	f.optionalName("session_id", req.GetSessionId(), MaxIDLen)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_GrantLease{
		GrantLease: &raftlogv1.GrantLease{Id: uuid.NewString(), TtlMs: ttl, SessionId: req.GetSessionId()},
	}})
	if err != nil {
		return nil, explain(err, "grant lease", "session", req.GetSessionId())
	}
	lease := &registryv1.Lease{
		Id: out.ID, Ttl: durationOf(ttl), SessionId: req.GetSessionId(), CreateRevision: out.Revision,
	}
	st := s.node.Feed().State()
	if known := st.Lease(out.ID); known != nil {
		lease = known.Proto(st)
	}
	return &apiv1.GrantResponse{Header: s.writeHeader(out.Revision), Lease: lease}, nil
}

// KeepAlive renews leases over a stream; see renewStream.
func (s *leaseServer) KeepAlive(stream grpc.BidiStreamingServer[apiv1.KeepAliveRequest, apiv1.KeepAliveResponse]) error {
	return s.renewStream(stream.Context(), renewStream{
		kind:  peerv1.RenewKind_RENEW_KIND_LEASE,
		field: "lease_ids",
		recv: func() ([]string, uint64, error) {
			req, err := stream.Recv()
			return req.GetLeaseIds(), req.GetSequence(), err
		},
		send: func(r renewed) error {
			return stream.Send(&apiv1.KeepAliveResponse{
				Sequence: r.sequence, Ended: r.ended, GoElsewhere: r.goElsewhere, Leader: r.leader,
			})
		},
	})
}

// Revoke ends a lease and the instances that hang on it.
func (s *leaseServer) Revoke(ctx context.Context, req *apiv1.RevokeRequest) (*apiv1.RevokeResponse, error) {
	var f faults
	id := f.request(req)
	f.word("lease_id", req.GetLeaseId(), MaxIDLen, nameChars)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_RevokeLease{
		RevokeLease: &raftlogv1.RevokeLease{Id: req.GetLeaseId()},
	}})
	if err != nil {
		return nil, explain(err, "revoke lease "+req.GetLeaseId(), "lease", req.GetLeaseId())
	}
	return &apiv1.RevokeResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// GetLease returns one lease.
func (s *leaseServer) GetLease(ctx context.Context, req *apiv1.GetLeaseRequest) (*apiv1.GetLeaseResponse, error) {
	var f faults
	f.word("lease_id", req.GetLeaseId(), MaxIDLen, nameChars)
	fresh := f.freshness(req.GetFreshness())
	if err := f.err(); err != nil {
		return nil, err
	}
	st, header, err := s.view(ctx, fresh)
	if err != nil {
		return nil, explain(err, "get lease "+req.GetLeaseId(), "lease", req.GetLeaseId())
	}
	lease := st.Lease(req.GetLeaseId())
	if lease == nil {
		return nil, explain(fsm.ErrLeaseNotFound, "get lease "+req.GetLeaseId(), "lease", req.GetLeaseId())
	}
	return &apiv1.GetLeaseResponse{Header: header, Lease: lease.Proto(st)}, nil
}

// ListLeases lists leases, sorted by id.
func (s *leaseServer) ListLeases(ctx context.Context, req *apiv1.ListLeasesRequest) (*apiv1.ListLeasesResponse, error) {
	var f faults
	p, err := s.openPage(ctx, &f, &apiv1.ListLeasesRequest{}, req)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListLeasesResponse{Header: p.header}
	last := ""
	p.state.Leases(p.last(0), func(lease *fsm.Lease) bool {
		item := lease.Proto(p.state)
		if !p.take(proto.Size(item)) {
			resp.NextPageToken = p.next(last)
			return false
		}
		resp.Leases, last = append(resp.Leases, item), item.GetId()
		return true
	})
	return resp, nil
}
