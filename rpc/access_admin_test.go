package rpc

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestAccessIsAdministered(t *testing.T) {
	r := newRig(t, func(c *Config) { c.AccessResetFile = t.TempDir() + "/access-reset" })
	r.node.mustApply(t, &raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
		Member: &registryv1.Member{Id: "id1", Name: "n1", FeatureLevel: fsm.AccessLevel},
	}}})
	access := apiv1.NewAccessServiceClient(r.conn)
	hash := sha256.Sum256([]byte("s3cret"))
	first, err := access.Bootstrap(t.Context(), &apiv1.BootstrapRequest{SecretHash: hash[:]})
	if err != nil {
		t.Fatal(err)
	}
	root := metadata.AppendToOutgoingContext(t.Context(), "authorization", "bearer regd_"+first.GetToken().GetId()+"_s3cret")
	who, err := access.WhoAmI(root, &apiv1.WhoAmIRequest{})
	if err != nil || who.GetIdentity() != bootstrapIdentity || !who.GetEnforced() || len(who.GetPolicies()) != 1 {
		t.Errorf("who bootstrapped is %v, %v", who, err)
	}
	if _, err = access.Bootstrap(t.Context(), &apiv1.BootstrapRequest{SecretHash: hash[:]}); reasonOfError(err) != "BOOTSTRAPPED" ||
		!strings.Contains(err.Error(), "access-reset") {
		t.Errorf("bootstrap again: %v, want BOOTSTRAPPED that says how", err)
	}
	if _, err = access.Bootstrap(t.Context(), &apiv1.BootstrapRequest{SecretHash: hash[:], Resets: 1}); reasonOfError(err) != "PERMISSION_DENIED" {
		t.Errorf("bootstrap again without the file: %v, want PERMISSION_DENIED", err)
	}
	policy := &registryv1.Policy{Name: "p", Description: "d", Rules: []*registryv1.Rule{rule("team-*/*", registerIt), rule("", observeIt)}}
	if _, err = access.PutPolicy(root, &apiv1.PutPolicyRequest{Policy: policy}); err != nil {
		t.Error(err)
	}
	if _, err = access.PutGrant(root, &apiv1.PutGrantRequest{Grant: &registryv1.Grant{Identity: "svc", Policies: []string{"p"}}}); err != nil {
		t.Error(err)
	}
	created, err := access.CreateToken(root, &apiv1.CreateTokenRequest{Identity: "svc", Description: "for tests", SecretHash: hash[:]})
	if err != nil {
		t.Fatal(err)
	}
	if got := created.GetToken(); got.GetCreatedBy() != bootstrapIdentity || got.GetIdentity() != "svc" || got.GetCreateRevision() == 0 {
		t.Errorf("the token is %v", got)
	}
	svc := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer regd_"+created.GetToken().GetId()+"_s3cret")
	if who, err = access.WhoAmI(svc, &apiv1.WhoAmIRequest{}); err != nil || who.GetIdentity() != "svc" {
		t.Errorf("it stands for %v, %v", who, err)
	}
	policies, err := access.ListPolicies(root, &apiv1.ListPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range policies.GetPolicies() {
		names = append(names, p.GetName())
		if p.GetName() == "p" && cmp.Diff(policy.GetRules(), p.GetRules(), protocmp.Transform()) != "" {
			t.Errorf("the policy is %v", p)
		}
	}
	if diff := cmp.Diff([]string{"observer", "operator", "p", "reader", "service"}, names); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	tokens, err := access.ListTokens(root, &apiv1.ListTokensRequest{PageSize: 1})
	if err != nil || len(tokens.GetTokens()) != 1 || tokens.GetNextPageToken() == "" {
		t.Errorf("a page of tokens: %v, %v", tokens, err)
	}
	if data, _ := proto.Marshal(tokens); strings.Contains(string(data), string(hash[:])) {
		t.Error("a list of tokens has the hash of a secret")
	}
	grants, err := access.ListGrants(root, &apiv1.ListGrantsRequest{})
	if err != nil || len(grants.GetGrants()) != 2 {
		t.Errorf("grants: %v, %v, want that of the operator and that of svc", grants, err)
	}
	if _, err = access.DeleteToken(root, &apiv1.DeleteTokenRequest{Id: created.GetToken().GetId()}); err != nil {
		t.Error(err)
	}
	if _, err = access.WhoAmI(svc, &apiv1.WhoAmIRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("with the deleted token: %v", err)
	}
	if again, gone := access.DeleteToken(root, &apiv1.DeleteTokenRequest{Id: created.GetToken().GetId()}); gone != nil || again.GetChanged() {
		t.Errorf("delete it again: %v, %v, want no change", again, gone)
	}
	for name, want := range map[string]bool{"p": true, "none": false} {
		if got, failed := access.DeletePolicy(root, &apiv1.DeletePolicyRequest{Name: name}); failed != nil || got.GetChanged() != want {
			t.Errorf("delete policy %s: %v, %v, want a change: %t", name, got, failed, want)
		}
	}
	for identity, want := range map[string]bool{"svc": true, "none": false} {
		if got, failed := access.DeleteGrant(root, &apiv1.DeleteGrantRequest{Identity: identity}); failed != nil || got.GetChanged() != want {
			t.Errorf("delete grant of %s: %v, %v, want a change: %t", identity, got, failed, want)
		}
	}
	for _, bad := range []*registryv1.Policy{
		nil,
		{Name: "", Rules: policy.GetRules()},
		{Name: "operator", Rules: policy.GetRules()},
		{Name: "x", Rules: []*registryv1.Rule{{Namespace: "a", Name: "b"}}},
		{Name: "x", Rules: []*registryv1.Rule{rule("a", registerIt)}},
		{Name: "x", Rules: []*registryv1.Rule{rule("a*b/c", registerIt)}},
		{Name: "x", Rules: []*registryv1.Rule{rule("a/b", observeIt)}},
		{Name: "x", Rules: []*registryv1.Rule{rule("a/b", 99)}},
		{Name: "x", Rules: slices.Repeat([]*registryv1.Rule{rule("a/b", registerIt)}, MaxRules+1)},
	} {
		if _, err = access.PutPolicy(root, &apiv1.PutPolicyRequest{Policy: bad}); reasonOfError(err) != "INVALID_ARGUMENT" {
			t.Errorf("put %v: %v, want INVALID_ARGUMENT", bad, err)
		}
	}
	if _, err = access.SetEnforcement(root, &apiv1.SetEnforcementRequest{}); err != nil {
		t.Error(err)
	}
	if _, err = r.registry.Register(t.Context(), &apiv1.RegisterRequest{Instance: instance("web", "i")}); err != nil {
		t.Errorf("with access control off again: %v", err)
	}
}

// What is shown of a policy can be put again under another name, that of the built-in ones too.
func TestPoliciesAreShownAsTheyAreTaken(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	access, root := apiv1.NewAccessServiceClient(r.conn), showing(t.Context(), "root")
	list, err := access.ListPolicies(root, &apiv1.ListPoliciesRequest{})
	if err != nil || len(list.GetPolicies()) != 4 {
		t.Fatalf("%v, %v, want the four that are built in", list, err)
	}
	for _, p := range list.GetPolicies() {
		p.Name = "copy-of-" + p.GetName()
		if _, err := access.PutPolicy(root, &apiv1.PutPolicyRequest{Policy: p}); err != nil {
			t.Errorf("%s: %v", p.GetName(), err)
		}
	}
}
