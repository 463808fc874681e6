package rpc

import (
	"context"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// sessionServer serves SessionService.
type sessionServer struct {
	apiv1.UnimplementedSessionServiceServer
	*core
}

// Open opens a session.
func (s *sessionServer) Open(ctx context.Context, req *apiv1.OpenRequest) (*apiv1.OpenResponse, error) {
	var f faults
	id := f.request(req)
	open := f.newSession(req)
	level := f.sessionTerms(open, req)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Level: level, Request: id, Kind: &raftlogv1.Command_OpenSession{OpenSession: open}})
	if err != nil {
		return nil, explain(err, "open session")
	}
	return &apiv1.OpenResponse{Header: s.writeHeader(out.Revision), Session: s.opened(out, open, 0)}, nil
}

// sessionWish is a request for a session: alone, or together with what hangs on it.
type sessionWish interface {
	GetClientName() string
	GetTtl() *durationpb.Duration
}

// newSession checks the fields of a wish, and gives the session its id: what is random is settled before the log.
func (f *faults) newSession(wish sessionWish) *raftlogv1.OpenSession {
	f.text("client_name", wish.GetClientName(), MaxClientNameLen)
	ttl := f.duration("ttl", wish.GetTtl(), span{least: MinTTL, most: MaxTTL, byDefault: DefaultSessionTTL})
	return &raftlogv1.OpenSession{Id: uuid.NewString(), ClientName: wish.GetClientName(), TtlMs: millis(ttl)}
}

// sessionTerms adds what a session says about keys, and returns the feature level that this takes.
func (f *faults) sessionTerms(open *raftlogv1.OpenSession, req *apiv1.OpenRequest) (level uint32) {
	if _, known := registryv1.SessionBehavior_name[int32(req.GetBehavior())]; !known {
		f.add("behavior", "is unknown: %d", int32(req.GetBehavior()))
	}
	open.Behavior = req.GetBehavior()
	if d := req.GetLockDelay(); d.GetSeconds() != 0 || d.GetNanos() != 0 {
		open.LockDelayMs = millis(f.duration("lock_delay", d, span{least: time.Millisecond, most: MaxLockDelay}))
	}
	if open.GetLockDelayMs() == 0 && open.GetBehavior() != registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
		return 0
	}
	return fsm.KVLevel
}

// ownSession is newSession for a registration, nil for one that opens none.
func (f *faults) ownSession(wish *apiv1.NewSession) *raftlogv1.OpenSession {
	if wish == nil {
		return nil
	}
	f.place.enter("open_session")
	defer f.place.leave()
	return f.newSession(wish)
}

// opened returns the session that a command opened with so many instances on it, nil if it was to open none. This node
// may not have it yet, and a retry may find that it has ended.
func (c *core) opened(out fsm.Outcome, open *raftlogv1.OpenSession, instances int) *registryv1.Session {
	if open == nil {
		return nil
	}
	st := c.node.Feed().State()
	if known := st.Session(out.ID); known != nil {
		return known.Proto(st)
	}
	session := &registryv1.Session{
		Id: out.ID, ClientName: open.GetClientName(), Ttl: durationOf(open.GetTtlMs()), CreateRevision: out.Revision,
		Instances: uint32(instances), Behavior: open.GetBehavior(),
	}
	if open.GetLockDelayMs() > 0 {
		session.LockDelay = durationOf(open.GetLockDelayMs())
	}
	return session
}

// Attach renews sessions over a stream; see renewStream.
func (s *sessionServer) Attach(stream grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error {
	return s.renewStream(stream.Context(), renewStream{
		kind:  peerv1.RenewKind_RENEW_KIND_SESSION,
		field: "session_ids",
		recv: func() ([]string, uint64, error) {
			req, err := stream.Recv()
			return req.GetSessionIds(), req.GetSequence(), err
		},
		send: func(r renewed) error {
			return stream.Send(&apiv1.AttachResponse{
				Sequence: r.sequence, Ended: r.ended, GoElsewhere: r.goElsewhere, Leader: r.leader,
				Epoch: s.node.Feed().State().Epoch(),
			})
		},
	})
}

// Renew renews sessions once.
func (s *sessionServer) Renew(ctx context.Context, req *apiv1.RenewRequest) (*apiv1.RenewResponse, error) {
	var f faults
	f.ids("session_ids", req.GetSessionIds())
	if err := f.err(); err != nil {
		return nil, err
	}
	err := s.mayRenew(ctx, peerv1.RenewKind_RENEW_KIND_SESSION, req.GetSessionIds())
	if err != nil {
		return nil, err
	}
	ended, err := s.node.Renew(ctx, peerv1.RenewKind_RENEW_KIND_SESSION, req.GetSessionIds())
	if err != nil {
		return nil, explain(err, "renew sessions")
	}
	return &apiv1.RenewResponse{Header: s.writeHeader(s.node.Feed().State().Revision()), Ended: ended}, nil
}

// Close ends a session and all that hangs on it.
func (s *sessionServer) Close(ctx context.Context, req *apiv1.CloseRequest) (*apiv1.CloseResponse, error) {
	var f faults
	id := f.request(req)
	f.word("session_id", req.GetSessionId(), MaxIDLen, nameChars)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_CloseSession{
		CloseSession: &raftlogv1.CloseSession{Id: req.GetSessionId()},
	}})
	if err != nil {
		return nil, explain(err, "close session "+req.GetSessionId(), "session", req.GetSessionId())
	}
	return &apiv1.CloseResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// List lists sessions, sorted by id.
func (s *sessionServer) List(ctx context.Context, req *apiv1.ListRequest) (*apiv1.ListResponse, error) {
	var f faults
	p, err := s.openPage(ctx, &f, &apiv1.ListRequest{}, req)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListResponse{Header: p.header}
	last := ""
	p.state.Sessions(p.last(0), func(session *fsm.Session) bool {
		item := session.Proto(p.state)
		if !p.take(proto.Size(item)) {
			resp.NextPageToken = p.next(last)
			return false
		}
		resp.Sessions, last = append(resp.Sessions, item), item.GetId()
		return true
	})
	return resp, nil
}

// durationOf is a number of milliseconds as the API shows it.
func durationOf(ms uint64) *durationpb.Duration {
	return &durationpb.Duration{Seconds: int64(ms / 1000), Nanos: int32(ms%1000) * 1e6}
}
