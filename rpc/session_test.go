package rpc

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestOpenedSessionIsListed(t *testing.T) {
	r := newRig(t)
	resp, err := r.sessions.Open(bg, &apiv1.OpenRequest{ClientName: "web-1", Ttl: durationpb.New(2500 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	want := &registryv1.Session{
		ClientName: "web-1", Ttl: durationpb.New(2500 * time.Millisecond), CreateRevision: resp.GetHeader().GetRevision(),
	}
	ignore := protocmp.IgnoreFields(want, "id", "opened_unix_ms")
	if diff := cmp.Diff(want, resp.GetSession(), protocmp.Transform(), ignore); diff != "" {
		t.Errorf("session (-want +got):\n%s", diff)
	}
	list, err := r.sessions.List(bg, &apiv1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*registryv1.Session{resp.GetSession()}, list.GetSessions(), protocmp.Transform()); diff != "" {
		t.Errorf("list (-opened +listed):\n%s", diff)
	}
}

func TestRetriedOpenGivesTheSameSession(t *testing.T) {
	r := newRig(t)
	req := &apiv1.OpenRequest{RequestId: &apiv1.RequestID{ClientId: "c", Sequence: 1}}
	first, err := r.sessions.Open(bg, req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.sessions.Open(bg, req)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Errorf("answers differ (-first +retry):\n%s", diff)
	}
}

func TestRegistrationOpensItsOwnSession(t *testing.T) {
	r := newRig(t)
	before := r.node.proposals()
	resp, err := r.registry.Register(bg, &apiv1.RegisterRequest{
		Instance: instance("web", "1"), OpenSession: &apiv1.NewSession{ClientName: "web-1", Ttl: durationpb.New(MinTTL)},
	})
	if err != nil {
		t.Fatal(err)
	}
	revision := resp.GetHeader().GetRevision()
	want := &registryv1.Session{ClientName: "web-1", Ttl: durationpb.New(MinTTL), CreateRevision: revision, Instances: 1}
	ignore := protocmp.IgnoreFields(want, "id", "opened_unix_ms")
	if diff := cmp.Diff(want, resp.GetSession(), protocmp.Transform(), ignore); diff != "" {
		t.Errorf("session (-want +got):\n%s", diff)
	}
	in := r.get(t, "1")
	if in.GetSessionId() != resp.GetSession().GetId() || in.GetCreateRevision() != revision || in.GetIncarnation() != resp.GetIncarnation() {
		t.Errorf("instance %v, want it on the session of answer %v", in, resp)
	}
	if n := r.node.proposals() - before; n != 1 {
		t.Errorf("%d commands, want one", n)
	}
	named := instance("web", "1")
	named.SessionId = resp.GetSession().GetId()
	if again := r.register(t, named); again.GetChanged() {
		t.Errorf("the same registration on the session by name changed something: %v", again)
	}
	if _, err = r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: resp.GetSession().GetId()}); err != nil {
		t.Fatal(err)
	}
	_, err = r.registry.Get(bg, &apiv1.GetRequest{Key: webKey("1")})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
}

func TestBatchOpensOneSessionForAll(t *testing.T) {
	r := newRig(t)
	r.register(t, instance("web", "old"))
	resp, err := r.registry.RegisterBatch(bg, &apiv1.RegisterBatchRequest{
		Register:    []*registryv1.Instance{instance("web", "1"), instance("db", "1")},
		Deregister:  []*apiv1.InstanceKey{webKey("old")},
		OpenSession: &apiv1.NewSession{},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &registryv1.Session{
		Id: r.get(t, "1").GetSessionId(), Ttl: durationpb.New(DefaultSessionTTL), CreateRevision: resp.GetHeader().GetRevision(), Instances: 2,
	}
	if diff := cmp.Diff(want, resp.GetSession(), protocmp.Transform(), protocmp.IgnoreFields(want, "opened_unix_ms")); diff != "" {
		t.Errorf("session (-want +got):\n%s", diff)
	}
}

// TestRefusedRegistrationOpensNoSession holds that there is either both or neither.
func TestRefusedRegistrationOpensNoSession(t *testing.T) {
	r := newRig(t)
	r.register(t, instance("web", "1"))
	orphan := instance("web", "2")
	orphan.LeaseId = "gone"
	for _, req := range []*apiv1.RegisterRequest{
		{Instance: instance("web", "1"), IfAbsent: true, OpenSession: &apiv1.NewSession{}},
		{Instance: instance("web", "1"), ExpectedRevision: 99, OpenSession: &apiv1.NewSession{}},
		{Instance: orphan, OpenSession: &apiv1.NewSession{}},
	} {
		if resp, err := r.registry.Register(bg, req); err == nil {
			t.Errorf("%v: answer %v", req, resp)
		}
	}
	_, err := r.registry.RegisterBatch(bg, &apiv1.RegisterBatchRequest{
		Register: []*registryv1.Instance{instance("web", "3"), orphan}, OpenSession: &apiv1.NewSession{},
	})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_LEASE_NOT_FOUND)
	if list, err := r.sessions.List(bg, &apiv1.ListRequest{}); err != nil || len(list.GetSessions()) > 0 {
		t.Errorf("sessions %v, %v; want none", list.GetSessions(), err)
	}
}

func TestRetriedRegistrationGivesTheSameSession(t *testing.T) {
	r := newRig(t)
	id := &apiv1.RequestID{ClientId: "c", Sequence: 1}
	req := &apiv1.RegisterRequest{RequestId: id, Instance: instance("web", "1"), OpenSession: &apiv1.NewSession{ClientName: "a"}}
	batch := &apiv1.RegisterBatchRequest{
		RequestId: &apiv1.RequestID{ClientId: "c", Sequence: 2}, Register: []*registryv1.Instance{instance("web", "2")}, OpenSession: &apiv1.NewSession{},
	}
	var answers [2][]proto.Message
	for i := range answers {
		single, err := r.registry.Register(bg, req)
		if err != nil {
			t.Fatal(err)
		}
		several, err := r.registry.RegisterBatch(bg, batch)
		if err != nil {
			t.Fatal(err)
		}
		answers[i] = []proto.Message{single, several}
	}
	if diff := cmp.Diff(answers[0], answers[1], protocmp.Transform()); diff != "" {
		t.Errorf("answers differ (-first +retry):\n%s", diff)
	}
	other := &apiv1.RegisterRequest{RequestId: id, Instance: instance("web", "1"), OpenSession: &apiv1.NewSession{ClientName: "b"}}
	_, err := r.registry.Register(bg, other)
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REQUEST_REUSED)
	other.RequestId = nil
	first, err := r.registry.Register(bg, other)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := r.registry.Register(bg, other); err != nil || second.GetSession().GetId() == first.GetSession().GetId() {
		t.Errorf("without a request id: %v, %v; want another session", second, err)
	}
}

func TestWishForASessionIsValidated(t *testing.T) {
	r := newRig(t)
	owned := instance("web", "1")
	owned.SessionId = r.openSession(t)
	for name, tt := range map[string]struct {
		call func() error
		want string
	}{
		"a session already": {func() error {
			_, err := r.registry.Register(bg, &apiv1.RegisterRequest{Instance: owned, OpenSession: &apiv1.NewSession{}})
			return err
		}, `instance.session_id: must be empty where open_session is set`},
		"a session already, in a batch": {func() error {
			_, err := r.registry.RegisterBatch(bg, &apiv1.RegisterBatchRequest{Register: []*registryv1.Instance{owned}, OpenSession: &apiv1.NewSession{}})
			return err
		}, `register[0].session_id: must be empty where open_session is set`},
		"nothing to register": {func() error {
			_, err := r.registry.RegisterBatch(bg, &apiv1.RegisterBatchRequest{Deregister: []*apiv1.InstanceKey{webKey("1")}, OpenSession: &apiv1.NewSession{}})
			return err
		}, `open_session: needs an instance to register`},
		"short": {func() error {
			_, err := r.registry.Register(bg, &apiv1.RegisterRequest{
				Instance: instance("web", "1"), OpenSession: &apiv1.NewSession{Ttl: durationpb.New(MinTTL - 1), ClientName: long(MaxClientNameLen + 1)},
			})
			return err
		}, `open_session.client_name: has 129 bytes, the limit is 128`},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.call()
			wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestTTLsAreValidated(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		ttl  time.Duration
		want bool
	}{
		{MinTTL, true}, {MinTTL - 1, false}, {MaxTTL, true}, {MaxTTL + 1, false}, {-time.Second, false},
	} {
		t.Run(tt.ttl.String(), func(t *testing.T) {
			_, err := r.sessions.Open(bg, &apiv1.OpenRequest{Ttl: durationpb.New(tt.ttl)})
			if (err == nil) != tt.want {
				t.Errorf("Open: %v", err)
			}
			_, err = r.leases.Grant(bg, &apiv1.GrantRequest{Ttl: durationpb.New(tt.ttl)})
			if (err == nil) != tt.want {
				t.Errorf("Grant: %v", err)
			}
		})
	}
	if resp, err := r.sessions.Open(bg, &apiv1.OpenRequest{}); err != nil || resp.GetSession().GetTtl().AsDuration() != DefaultSessionTTL {
		t.Errorf("Open without a TTL: %v, %v", resp, err)
	}
	_, err := r.leases.Grant(bg, &apiv1.GrantRequest{})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
}

func TestMillisNeverCutsAPromiseShort(t *testing.T) {
	if got := millis(2*time.Second + 1); got != 2001 {
		t.Errorf("2 s and 1 ns are %d ms, want 2001", got)
	}
}

func TestRenewTellsWhatHasEnded(t *testing.T) {
	r := newRig(t)
	id := r.openSession(t)
	resp, err := r.sessions.Renew(bg, &apiv1.RenewRequest{SessionIds: []string{id, "gone"}})
	if err != nil || !slices.Equal(resp.GetEnded(), []string{"gone"}) {
		t.Errorf("Renew: %v, %v", resp, err)
	}
}

func TestRenewalsAreLimited(t *testing.T) {
	r := newRig(t)
	ids := func(n int) []string {
		var out []string
		many(n, func(i int) { out = append(out, fmt.Sprint("s", i)) })
		return out
	}
	if _, err := r.sessions.Renew(bg, &apiv1.RenewRequest{SessionIds: ids(MaxRenewals)}); err != nil {
		t.Errorf("%d ids: %v", MaxRenewals, err)
	}
	_, err := r.sessions.Renew(bg, &apiv1.RenewRequest{SessionIds: ids(MaxRenewals + 1)})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	_, err = r.sessions.Renew(bg, &apiv1.RenewRequest{SessionIds: []string{"a/b"}})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
}

func TestClosedSessionTakesItsInstancesAlong(t *testing.T) {
	r := newRig(t)
	id := r.openSession(t)
	in := instance("web", "1")
	in.SessionId = id
	r.register(t, in)
	if resp, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: id}); err != nil || !resp.GetChanged() {
		t.Fatalf("Close: %v, %v", resp, err)
	}
	_, err := r.registry.Get(bg, &apiv1.GetRequest{Key: webKey("1")})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
	if resp, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: id}); err != nil || resp.GetChanged() {
		t.Errorf("Close again: %v, %v", resp, err)
	}
}

func TestSessionsAndLeasesArePaged(t *testing.T) {
	r := newRig(t)
	many(5, func(int) {
		r.openSession(t)
		if _, err := r.leases.Grant(bg, &apiv1.GrantRequest{Ttl: durationpb.New(time.Minute)}); err != nil {
			t.Fatal(err)
		}
	})
	var sessions, leases []string
	for token, more := "", true; more; {
		resp, err := r.sessions.List(bg, &apiv1.ListRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range resp.GetSessions() {
			sessions = append(sessions, s.GetId())
		}
		token, more = resp.GetNextPageToken(), resp.GetNextPageToken() != ""
		r.openSession(t) // Not part of the list.
	}
	for token, more := "", true; more; {
		resp, err := r.leases.ListLeases(bg, &apiv1.ListLeasesRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range resp.GetLeases() {
			leases = append(leases, l.GetId())
		}
		token, more = resp.GetNextPageToken(), resp.GetNextPageToken() != ""
	}
	for what, ids := range map[string][]string{"sessions": sessions, "leases": leases} {
		if len(ids) != 5 || !slices.IsSorted(ids) || len(slices.Compact(ids)) != 5 {
			t.Errorf("%s %v, want 5, sorted", what, ids)
		}
	}
}

func TestLeaseLivesFromGrantToRevoke(t *testing.T) {
	r := newRig(t)
	session := r.openSession(t)
	granted, err := r.leases.Grant(bg, &apiv1.GrantRequest{Ttl: durationpb.New(time.Minute), SessionId: session})
	if err != nil {
		t.Fatal(err)
	}
	id := granted.GetLease().GetId()
	in := instance("web", "1")
	in.LeaseId = id
	r.register(t, in)
	got, err := r.leases.GetLease(bg, &apiv1.GetLeaseRequest{LeaseId: id})
	if err != nil {
		t.Fatal(err)
	}
	want := &registryv1.Lease{
		Id: id, Ttl: durationpb.New(time.Minute), SessionId: session, Instances: 1,
		CreateRevision: granted.GetHeader().GetRevision(),
	}
	if diff := cmp.Diff(want, got.GetLease(), protocmp.Transform()); diff != "" {
		t.Errorf("lease (-want +got):\n%s", diff)
	}
	revoked, err := r.leases.Revoke(bg, &apiv1.RevokeRequest{LeaseId: id})
	if err != nil || !revoked.GetChanged() {
		t.Fatalf("Revoke: %v, %v", revoked, err)
	}
	_, err = r.registry.Get(bg, &apiv1.GetRequest{Key: webKey("1")})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
	_, err = r.leases.GetLease(bg, &apiv1.GetLeaseRequest{LeaseId: id})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_LEASE_NOT_FOUND)
	_, err = r.leases.Grant(bg, &apiv1.GrantRequest{Ttl: durationpb.New(time.Minute), SessionId: "gone"})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_SESSION_NOT_FOUND)
}
