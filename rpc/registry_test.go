package rpc

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/health"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

var bg = context.Background()

func webKey(id string) *apiv1.InstanceKey { return &apiv1.InstanceKey{Service: "web", Id: id} }

func (r *rig) get(tb testing.TB, id string) *registryv1.Instance {
	tb.Helper()
	resp, err := r.registry.Get(bg, &apiv1.GetRequest{Key: webKey(id)})
	if err != nil {
		tb.Fatalf("Get %s: %v", id, err)
	}
	return resp.GetInstance()
}

func TestRegisteredInstanceIsServedInCanonicalForm(t *testing.T) {
	r := newRig(t)
	in := instance("web", "1")
	in.Tags = []string{"b", "a"}
	in.Health = registryv1.Health_HEALTH_CRITICAL // Not the client's to say.
	resp := r.register(t, in)
	if !resp.GetChanged() || resp.GetIncarnation() == 0 || resp.GetHeader().GetRevision() == 0 {
		t.Errorf("answer %v", resp)
	}
	got := r.get(t, "1")
	want := &registryv1.Instance{
		Namespace: "default", Service: "web", Id: "1", Address: "10.0.0.1", Tags: []string{"a", "b"}, Weight: 100,
		Incarnation: resp.GetIncarnation(), CreateRevision: resp.GetHeader().GetRevision(),
		ModifyRevision: resp.GetHeader().GetRevision(), Health: registryv1.Health_HEALTH_PASSING,
	}
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(want, "registered_unix_ms")); diff != "" {
		t.Errorf("instance (-want +got):\n%s", diff)
	}
	in.Tags = []string{"a", "b"}
	if again := r.register(t, in); again.GetChanged() || again.GetIncarnation() != resp.GetIncarnation() {
		t.Errorf("an equal registration changed something: %v", again)
	}
}

func TestHeaderSaysWhoAnswersAndHowFresh(t *testing.T) {
	r := newRig(t)
	r.register(t, instance("web", "1"))
	st := r.node.feed.State()
	for _, tt := range []struct {
		fresh     *apiv1.Freshness
		mode      apiv1.Mode
		staleness *durationpb.Duration
	}{
		{nil, apiv1.Mode_MODE_LINEARIZABLE, durationpb.New(time.Millisecond)},
		{&apiv1.Freshness{Mode: apiv1.Mode_MODE_STALE}, apiv1.Mode_MODE_STALE, durationpb.New(time.Millisecond)},
		{&apiv1.Freshness{Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(time.Second)}, apiv1.Mode_MODE_BOUNDED, durationpb.New(time.Millisecond)},
		{&apiv1.Freshness{Mode: apiv1.Mode_MODE_AT_LEAST, MinRevision: 1}, apiv1.Mode_MODE_AT_LEAST, nil},
	} {
		resp, err := r.registry.Get(bg, &apiv1.GetRequest{Key: webKey("1"), Freshness: tt.fresh})
		if err != nil {
			t.Fatalf("%v: %v", tt.mode, err)
		}
		want := &apiv1.ResponseHeader{
			ClusterId: "c1", Epoch: st.Epoch(), Revision: st.Revision(), Staleness: tt.staleness, Mode: tt.mode,
			Node: "n1", Leader: "n1:7400",
		}
		if diff := cmp.Diff(want, resp.GetHeader(), protocmp.Transform()); diff != "" {
			t.Errorf("%v: header (-want +got):\n%s", tt.mode, diff)
		}
	}
}

func TestFreshnessIsValidated(t *testing.T) {
	r := newRig(t)
	for name, fresh := range map[string]*apiv1.Freshness{
		"bounded without a bound": {Mode: apiv1.Mode_MODE_BOUNDED},
		"bound too small":         {Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(time.Millisecond - 1)},
		"bound too large":         {Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(time.Hour + 1)},
		"unknown mode":            {Mode: 99},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.registry.Get(bg, &apiv1.GetRequest{Key: webKey("1"), Freshness: fresh})
			wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		})
	}
}

func TestMissingInstanceIsNamed(t *testing.T) {
	r := newRig(t)
	_, err := r.registry.Get(bg, &apiv1.GetRequest{Key: webKey("nope")})
	info := wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
	if m := info.GetMetadata(); m["namespace"] != "default" || m["service"] != "web" || m["id"] != "nope" {
		t.Errorf("metadata %v", m)
	}
}

func TestBadRequestNamesEveryField(t *testing.T) {
	r := newRig(t)
	_, err := r.registry.Register(bg, &apiv1.RegisterRequest{
		Instance: &registryv1.Instance{Service: "a b", Id: "1"}, RequestId: &apiv1.RequestID{},
	})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	_, _, others := detailsOf(t, err)
	want := "[field_violations:{field:\"instance.service\""
	if got := fmt.Sprint(others); len(others) != 1 || len(got) < 200 {
		t.Errorf("details %s, want %s... and those of address, client_id and sequence", got, want)
	}
	if n := r.node.proposals(); n != 1 {
		t.Errorf("%d commands were proposed, want only that of the set-up", n)
	}
}

func TestConditionsOfRegister(t *testing.T) {
	r := newRig(t)
	first, second := r.openSession(t), r.openSession(t)
	in := instance("web", "1")
	in.SessionId = first
	r.register(t, in)
	in.SessionId = second
	_, err := r.registry.Register(bg, &apiv1.RegisterRequest{Instance: in, IfAbsent: true})
	wantReason(t, err, codes.AlreadyExists, apiv1.Reason_REASON_ALREADY_EXISTS)
	_, err = r.registry.Register(bg, &apiv1.RegisterRequest{Instance: in, ExpectedRevision: 99})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REVISION_MISMATCH)
	in.SessionId = "gone"
	_, err = r.registry.Register(bg, &apiv1.RegisterRequest{Instance: in})
	if info := wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_SESSION_NOT_FOUND); info.GetMetadata()["subject"] != "gone" {
		t.Errorf("metadata %v doesn't name the session", info.GetMetadata())
	}
}

func TestRetryIsAppliedOnceAndAnsweredAlike(t *testing.T) {
	r := newRig(t)
	id := &apiv1.RequestID{ClientId: "c", Sequence: 1}
	req := &apiv1.RegisterRequest{Instance: instance("web", "1"), RequestId: id}
	first, err := r.registry.Register(bg, req)
	if err != nil {
		t.Fatal(err)
	}
	r.register(t, &registryv1.Instance{Service: "web", Id: "1", Address: "other"})
	again, err := r.registry.Register(bg, req)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Errorf("answers differ (-first +retry):\n%s", diff)
	}
	if got := r.get(t, "1").GetAddress(); got != "other" {
		t.Errorf("the retry was applied again: address %q", got)
	}
	_, err = r.registry.Register(bg, &apiv1.RegisterRequest{Instance: instance("web", "2"), RequestId: id})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REQUEST_REUSED)
	_, err = r.registry.Register(bg, &apiv1.RegisterRequest{
		Instance: instance("web", "2"), RequestId: &apiv1.RequestID{ClientId: "c", Sequence: 9, AnsweredBelow: 9},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.registry.Register(bg, &apiv1.RegisterRequest{
		Instance: instance("web", "3"), RequestId: &apiv1.RequestID{ClientId: "c", Sequence: 5},
	})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REQUEST_TOO_OLD)
}

func TestDeregisterSparesTheSuccessor(t *testing.T) {
	r := newRig(t)
	old := r.register(t, instance("web", "1")).GetIncarnation()
	r.register(t, &registryv1.Instance{Service: "web", Id: "1", Address: "b"})
	_, err := r.registry.Deregister(bg, &apiv1.DeregisterRequest{Key: webKey("1"), Incarnation: old})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_STALE_INCARNATION)
	resp, err := r.registry.Deregister(bg, &apiv1.DeregisterRequest{Key: webKey("1")})
	if err != nil || !resp.GetChanged() {
		t.Errorf("Deregister: %v, %v", resp, err)
	}
	resp, err = r.registry.Deregister(bg, &apiv1.DeregisterRequest{Key: webKey("1")})
	if err != nil || resp.GetChanged() {
		t.Errorf("Deregister of nothing: %v, %v", resp, err)
	}
}

func TestBatchIsOneChange(t *testing.T) {
	r := newRig(t)
	r.register(t, instance("web", "old"))
	resp, err := r.registry.RegisterBatch(bg, &apiv1.RegisterBatchRequest{
		Register:   []*registryv1.Instance{instance("web", "1"), instance("web", "2")},
		Deregister: []*apiv1.InstanceKey{webKey("old")},
	})
	if err != nil || !resp.GetChanged() || resp.GetIncarnation() == 0 {
		t.Fatalf("RegisterBatch: %v, %v", resp, err)
	}
	for _, id := range []string{"1", "2"} {
		if got := r.get(t, id).GetModifyRevision(); got != resp.GetHeader().GetRevision() {
			t.Errorf("instance %s has revision %d, want %d", id, got, resp.GetHeader().GetRevision())
		}
	}
}

func TestBatchIsValidated(t *testing.T) {
	r := newRig(t)
	register := func(n int) *apiv1.RegisterBatchRequest {
		req := &apiv1.RegisterBatchRequest{}
		many(n, func(i int) { req.Register = append(req.Register, instance("web", fmt.Sprint(i))) })
		return req
	}
	if _, err := r.registry.RegisterBatch(bg, register(MaxBatch)); err != nil {
		t.Errorf("%d instances: %v", MaxBatch, err)
	}
	beyond := register(MaxBatch)
	beyond.Deregister = []*apiv1.InstanceKey{webKey("x")}
	twice := register(1)
	twice.Deregister = []*apiv1.InstanceKey{webKey("0")}
	bad := register(2)
	bad.Register[1].Address = ""
	for name, req := range map[string]*apiv1.RegisterBatchRequest{
		"nothing": {}, "too many": beyond, "one instance twice": twice, "a bad instance": bad,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.registry.RegisterBatch(bg, req)
			wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		})
	}
}

func TestDrainAndMaintenance(t *testing.T) {
	r := newRig(t)
	r.register(t, instance("web", "1"))
	drain := func(cancel bool) {
		t.Helper()
		if resp, err := r.registry.Drain(bg, &apiv1.DrainRequest{Key: webKey("1"), Cancel: cancel}); err != nil || !resp.GetChanged() {
			t.Fatalf("Drain: %v, %v", resp, err)
		}
	}
	maintain := func(on bool) {
		t.Helper()
		resp, err := r.registry.SetMaintenance(bg, &apiv1.SetMaintenanceRequest{Key: webKey("1"), Maintenance: on})
		if err != nil || !resp.GetChanged() {
			t.Fatalf("SetMaintenance: %v, %v", resp, err)
		}
	}
	want := func(h registryv1.Health) {
		t.Helper()
		if got := r.get(t, "1").GetHealth(); got != h {
			t.Errorf("health %v, want %v", got, h)
		}
	}
	drain(false)
	want(registryv1.Health_HEALTH_DRAINING)
	maintain(true)
	want(registryv1.Health_HEALTH_MAINTENANCE)
	maintain(false)
	drain(true)
	want(registryv1.Health_HEALTH_PASSING)
	_, err := r.registry.Drain(bg, &apiv1.DrainRequest{Key: webKey("nope")})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
	_, err = r.registry.SetMaintenance(bg, &apiv1.SetMaintenanceRequest{Key: webKey("nope")})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
}

// registerChecked registers web/1 with the named TTL checks.
func (r *rig) registerChecked(tb testing.TB, names ...string) *apiv1.RegisterResponse {
	tb.Helper()
	in := instance("web", "1")
	in.Ports = []*registryv1.Port{{Number: 80}}
	for _, name := range names {
		in.Checks = append(in.Checks, ttlCheck(name, time.Minute))
	}
	in.Checks = append(in.Checks, &registryv1.Check{Name: "probed", Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{}}})
	return r.register(tb, in)
}

func TestSetHealthProposesOnlyChanges(t *testing.T) {
	r := newRig(t)
	r.registerChecked(t, "beat")
	report := func(status registryv1.CheckStatus) *apiv1.SetHealthResponse {
		t.Helper()
		resp, err := r.registry.SetHealth(bg, &apiv1.SetHealthRequest{Key: webKey("1"), Status: status})
		if err != nil {
			t.Fatalf("SetHealth %v: %v", status, err)
		}
		return resp
	}
	for _, status := range []registryv1.CheckStatus{
		registryv1.CheckStatus_CHECK_STATUS_PASSING, registryv1.CheckStatus_CHECK_STATUS_WARNING,
		registryv1.CheckStatus_CHECK_STATUS_CRITICAL, registryv1.CheckStatus_CHECK_STATUS_PASSING,
	} {
		if !report(status).GetChanged() {
			t.Errorf("%v changed nothing", status)
		}
		before := r.node.proposals()
		if report(status).GetChanged() || r.node.proposals() != before {
			t.Errorf("repeating %v was proposed", status)
		}
	}
	id := health.CheckID("default", "web", "1", "beat")
	if diff := cmp.Diff([]string{id, id, id}, r.node.renewed(peerv1.RenewKind_RENEW_KIND_CHECK)); diff != "" {
		t.Errorf("renewals, but for critical, which has no deadline (-want +got):\n%s", diff)
	}
}

func TestSetHealthLetsTheLeaderKnowBetter(t *testing.T) {
	r := newRig(t)
	r.registerChecked(t, "beat")
	passing := &apiv1.SetHealthRequest{Key: webKey("1"), Status: registryv1.CheckStatus_CHECK_STATUS_PASSING}
	if _, err := r.registry.SetHealth(bg, passing); err != nil {
		t.Fatal(err)
	}
	r.node.set(func() {
		r.node.onRenew = func(_ context.Context, _ peerv1.RenewKind, ids []string) ([]string, error) { return ids, nil }
	})
	before := r.node.proposals()
	if _, err := r.registry.SetHealth(bg, passing); err != nil {
		t.Fatal(err)
	}
	if r.node.proposals() != before+1 {
		t.Error("a report that the leader could not renew was not proposed")
	}
}

func TestSetHealthLooksFurtherThanItsOwnState(t *testing.T) {
	r := newRig(t)
	r.node.set(func() {
		r.node.onView = func(context.Context, cluster.Freshness) error {
			// What the leader has, and this node gets while it waits for the read index.
			in := instance("web", "1")
			in.Checks = []*registryv1.Check{ttlCheck("beat", time.Minute)}
			var f faults
			data, err := encodeSpec(f.instance("instance", in, nil))
			if err != nil {
				return err
			}
			_, err = r.node.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: data}}})
			return err
		}
	})
	_, err := r.registry.SetHealth(bg, &apiv1.SetHealthRequest{Key: webKey("1"), Status: registryv1.CheckStatus_CHECK_STATUS_PASSING})
	if err != nil {
		t.Errorf("SetHealth of an instance that this node didn't know yet: %v", err)
	}
}

func TestSetHealthIsRefused(t *testing.T) {
	r := newRig(t)
	incarnation := r.registerChecked(t, "a", "b").GetIncarnation()
	passing := registryv1.CheckStatus_CHECK_STATUS_PASSING
	for _, tt := range []struct {
		name   string
		req    *apiv1.SetHealthRequest
		code   codes.Code
		reason apiv1.Reason
	}{
		{"no status", &apiv1.SetHealthRequest{Key: webKey("1"), Check: "a"}, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT},
		{"starting", &apiv1.SetHealthRequest{Key: webKey("1"), Check: "a", Status: registryv1.CheckStatus_CHECK_STATUS_STARTING}, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT},
		{"long output", &apiv1.SetHealthRequest{Key: webKey("1"), Check: "a", Status: passing, Output: long(257)}, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT},
		{"which of two checks", &apiv1.SetHealthRequest{Key: webKey("1"), Status: passing}, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT},
		{"no such check", &apiv1.SetHealthRequest{Key: webKey("1"), Check: "c", Status: passing}, codes.NotFound, apiv1.Reason_REASON_CHECK_NOT_FOUND},
		{"a check that is probed", &apiv1.SetHealthRequest{Key: webKey("1"), Check: "probed", Status: passing}, codes.NotFound, apiv1.Reason_REASON_CHECK_NOT_FOUND},
		{"no such instance", &apiv1.SetHealthRequest{Key: webKey("2"), Status: passing}, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND},
		{"another incarnation", &apiv1.SetHealthRequest{Key: webKey("1"), Check: "a", Status: passing, Incarnation: incarnation + 1}, codes.FailedPrecondition, apiv1.Reason_REASON_STALE_INCARNATION},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.registry.SetHealth(bg, tt.req)
			wantReason(t, err, tt.code, tt.reason)
		})
	}
}
