package rpc

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// encodeCommand is an entry with one command.
func encodeCommand(cmd *raftlogv1.Command) ([]byte, error) {
	b, err := proto.Marshal(cmd)
	return fsm.AppendEntry(nil, time.Now().UnixMilli(), [][]byte{b}), err
}

// causes are the causes of changes and the identities behind them, in order.
func causes(resp *apiv1.ExplainResponse) string {
	var parts []string
	for _, tr := range resp.GetTransitions() {
		text := strings.ToLower(strings.TrimPrefix(tr.GetCause().String(), "CAUSE_"))
		if tr.GetActor() != "" {
			text += " by " + tr.GetActor()
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

func TestExplainTellsWhatHappenedAndWhy(t *testing.T) {
	r := newRig(t)
	key := &apiv1.InstanceKey{Service: "web", Id: "1"}
	explained := func(ctx context.Context, limit int32) *apiv1.ExplainResponse {
		t.Helper()
		resp, err := r.registry.Explain(ctx, &apiv1.ExplainRequest{Key: key, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	r.register(t, instance("web", "1"))
	if resp := explained(bg, 0); resp.GetKept() || resp.GetInstance().GetId() != "1" || len(resp.GetTransitions()) > 0 {
		t.Errorf("before all members know of it: %v", resp)
	}
	r.node.enforce(t)
	r.node.upgraded(t)
	r.node.identity(t, "payments", rule("default/*", registerIt))
	r.node.identity(t, "finder", rule("default/*", discoverIt))
	r.node.identity(t, "watcher", rule("default/*", discoverIt), &registryv1.Rule{Actions: []registryv1.Action{observeIt}})
	pay, root := showing(t.Context(), "payments"), showing(t.Context(), "root")
	changed := instance("web", "1")
	changed.Address = "10.0.0.2"
	if _, err := r.registry.Register(pay, &apiv1.RegisterRequest{Instance: changed}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.registry.Drain(pay, &apiv1.DrainRequest{Key: key}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.registry.Deregister(root, &apiv1.DeregisterRequest{Key: key}); err != nil {
		t.Fatal(err)
	}
	resp := explained(showing(t.Context(), "watcher"), 0)
	if got, want := causes(resp), "registered by payments, drain by payments, deregistered by operator"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if resp.GetInstance() != nil || !resp.GetKept() || resp.GetMore() || resp.GetIdentitiesWithheld() ||
		resp.GetAfterRevision() == 0 || resp.GetTransitions()[0].GetRevision() <= resp.GetAfterRevision() {
		t.Errorf("%v", resp)
	}
	if resp = explained(root, 1); causes(resp) != "deregistered by operator" || !resp.GetMore() {
		t.Errorf("the newest: %v", resp)
	}
	// Who only discovers the service learns what happened, not who did it, nor does its owner of others.
	for _, who := range []string{"finder", "payments"} {
		resp = explained(showing(t.Context(), who), 0)
		if got, want := causes(resp), "registered, drain, deregistered"; got != want || !resp.GetIdentitiesWithheld() {
			t.Errorf("%s is told %q, want %q", who, got, want)
		}
	}
	if resp = explained(root, 0); !strings.Contains(causes(resp), "by payments") {
		t.Errorf("what was withheld from one is withheld from all: %v", causes(resp))
	}
	for _, limit := range []int32{-1, MaxPageSize + 1} {
		_, err := r.registry.Explain(root, &apiv1.ExplainRequest{Key: key, Limit: limit})
		wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	}
	_, err := r.registry.Explain(showing(t.Context(), "finder"), &apiv1.ExplainRequest{Key: &apiv1.InstanceKey{Namespace: "other", Service: "web", Id: "1"}})
	wantReason(t, err, codes.PermissionDenied, apiv1.Reason_REASON_PERMISSION_DENIED)
}
