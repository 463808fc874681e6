package rpc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ErrBootstrapped says that access control was bootstrapped before.
var ErrBootstrapped = errors.New("access control was bootstrapped before")

// accessServer serves AccessService.
type accessServer struct {
	apiv1.UnimplementedAccessServiceServer
	*core
	resetFile string // shows access to this node's disk
}

// administer proposes a command of access control, which the members must all be able to apply.
func (s *accessServer) administer(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	cmd.Level = max(cmd.GetLevel(), fsm.AccessLevel)
	return s.propose(ctx, cmd)
}

// Bootstrap creates the first token and switches access control on.
func (s *accessServer) Bootstrap(ctx context.Context, req *apiv1.BootstrapRequest) (*apiv1.BootstrapResponse, error) {
	var f faults
	id := f.request(req)
	f.secretHash("secret_hash", req.GetSecretHash())
	if err := f.err(); err != nil {
		return nil, err
	}
	if err := s.checkReset(req.GetResets()); err != nil {
		return nil, explain(err, "bootstrap access control")
	}
	token := newToken(bootstrapIdentity, "made by bootstrap", 0)
	out, err := s.administer(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_BootstrapAccess{
		BootstrapAccess: &raftlogv1.BootstrapAccess{
			Token: &raftlogv1.CreateToken{Token: token, SecretHash: req.GetSecretHash()}, Resets: req.GetResets(),
		},
	}})
	if errors.Is(err, fsm.ErrStale) {
		return nil, s.bootstrapped(out, err)
	}
	if err != nil {
		return nil, explain(err, "bootstrap access control")
	}
	s.log.WarnContext(ctx, "access control was bootstrapped", slog.String("token", out.ID), slog.Uint64("resets", req.GetResets()))
	return &apiv1.BootstrapResponse{Header: s.writeHeader(out.Revision), Token: s.created(out, token)}, nil
}

// bootstrapIdentity is whose the first token is.
const bootstrapIdentity = "operator"

// checkReset checks that who bootstraps again has written the number of times before into a file of this node.
func (s *accessServer) checkReset(resets uint64) error {
	if resets == 0 {
		return nil
	}
	content, err := os.ReadFile(s.resetFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(content)) != strconv.FormatUint(resets, 10) {
		return fmt.Errorf("%w: the file %s of this node does not say %d", fsm.ErrDenied, s.resetFile, resets)
	}
	return err
}

// bootstrapped says how to do it again. The number of times is the subject of the state machine's refusal.
func (s *accessServer) bootstrapped(_ fsm.Outcome, err error) error {
	times := ""
	var refused *fsm.Error
	if errors.As(err, &refused) {
		times = refused.Subject
	}
	return explain(fmt.Errorf("%w: if no token that administers is left, write the number %s into the file %s of this node and "+
		"ask it again with that number of resets", ErrBootstrapped, times, s.resetFile), "bootstrap access control", "resets", times)
}

// SetEnforcement switches access control on or off.
func (s *accessServer) SetEnforcement(
	ctx context.Context, req *apiv1.SetEnforcementRequest,
) (*apiv1.SetEnforcementResponse, error) {
	var f faults
	id := f.request(req)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.administer(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_SetEnforcement{
		SetEnforcement: &raftlogv1.SetEnforcement{Enforced: req.GetEnforced()},
	}})
	if err != nil {
		return nil, explain(err, "set enforcement to "+strconv.FormatBool(req.GetEnforced()))
	}
	return &apiv1.SetEnforcementResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// PutPolicy puts a policy.
func (s *accessServer) PutPolicy(ctx context.Context, req *apiv1.PutPolicyRequest) (*apiv1.PutPolicyResponse, error) {
	var f faults
	id := f.request(req)
	policy := f.policy("policy", req.GetPolicy())
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.administer(ctx, &raftlogv1.Command{Level: policyLevel(policy), Request: id, Kind: &raftlogv1.Command_PutPolicy{
		PutPolicy: &raftlogv1.PutPolicy{Policy: policy},
	}})
	if err != nil {
		return nil, explain(err, "put policy "+policy.GetName(), "policy", policy.GetName())
	}
	return &apiv1.PutPolicyResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// policyLevel is the feature level that all members need to know what a policy says.
func policyLevel(p *registryv1.Policy) uint32 {
	for _, r := range p.GetRules() {
		if slices.Max(r.GetActions()) > registryv1.Action_ACTION_ADMINISTER {
			return fsm.KVLevel
		}
	}
	return fsm.AccessLevel
}

// DeletePolicy deletes a policy.
func (s *accessServer) DeletePolicy(ctx context.Context, req *apiv1.DeletePolicyRequest) (*apiv1.DeletePolicyResponse, error) {
	var f faults
	id := f.request(req)
	f.policyName(req.GetName())
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.administer(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_DeletePolicy{
		DeletePolicy: &raftlogv1.DeletePolicy{Name: req.GetName()},
	}})
	if err != nil {
		return nil, explain(err, "delete policy "+req.GetName(), "policy", req.GetName())
	}
	return &apiv1.DeletePolicyResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// ListPolicies lists policies by name.
func (s *accessServer) ListPolicies(ctx context.Context, req *apiv1.ListPoliciesRequest) (*apiv1.ListPoliciesResponse, error) {
	st, header, err := s.viewFor(ctx, req.GetFreshness(), "list policies")
	if err != nil {
		return nil, err
	}
	return &apiv1.ListPoliciesResponse{Header: header, Policies: st.Policies()}, nil
}

// CreateToken creates a token.
func (s *accessServer) CreateToken(ctx context.Context, req *apiv1.CreateTokenRequest) (*apiv1.CreateTokenResponse, error) {
	var f faults
	id := f.request(req)
	f.word("identity", req.GetIdentity(), MaxIDLen, nameChars)
	if req.GetIdentity() == fsm.Anonymous {
		f.add("identity", "must not be %s: that is who shows no token", fsm.Anonymous)
	}
	f.text("description", req.GetDescription(), MaxDescriptionLen)
	f.secretHash("secret_hash", req.GetSecretHash())
	if req.GetExpiresUnixMs() < 0 {
		f.add("expires_unix_ms", "must not be negative, is %d", req.GetExpiresUnixMs())
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	token := newToken(req.GetIdentity(), req.GetDescription(), req.GetExpiresUnixMs())
	out, err := s.administer(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_CreateToken{
		CreateToken: &raftlogv1.CreateToken{Token: token, SecretHash: req.GetSecretHash()},
	}})
	if err != nil {
		return nil, explain(err, "create token of "+req.GetIdentity(), "identity", req.GetIdentity())
	}
	return &apiv1.CreateTokenResponse{Header: s.writeHeader(out.Revision), Token: s.created(out, token)}, nil
}

// newToken makes a token with a random id: what is random is settled before the log. Ids are public; one that exists is
// refused.
func newToken(identity, description string, expiresUnixMs int64) *registryv1.Token {
	return &registryv1.Token{
		Id: strings.ToLower(rand.Text()[:12]), Identity: identity, Description: description, ExpiresUnixMs: expiresUnixMs,
	}
}

// created is the token that a command created, or the one that the same request had created before.
func (s *accessServer) created(out fsm.Outcome, token *registryv1.Token) *registryv1.Token {
	if known, ok := s.node.Feed().State().Token(out.ID); ok {
		return known.Proto()
	}
	token.Id, token.CreateRevision = out.ID, out.Revision
	return token
}

// DeleteToken deletes a token.
func (s *accessServer) DeleteToken(ctx context.Context, req *apiv1.DeleteTokenRequest) (*apiv1.DeleteTokenResponse, error) {
	var f faults
	id := f.request(req)
	f.word("id", req.GetId(), MaxIDLen, nameChars)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.administer(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_DeleteToken{
		DeleteToken: &raftlogv1.DeleteToken{Id: req.GetId()},
	}})
	if err != nil {
		return nil, explain(err, "delete token "+req.GetId(), "token", req.GetId())
	}
	return &apiv1.DeleteTokenResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// ListTokens lists tokens by id.
func (s *accessServer) ListTokens(ctx context.Context, req *apiv1.ListTokensRequest) (*apiv1.ListTokensResponse, error) {
	var f faults
	p, err := s.openPage(ctx, &f, &apiv1.ListTokensRequest{}, req)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListTokensResponse{Header: p.header}
	last := ""
	p.state.Tokens(p.last(0), func(token fsm.Token) bool {
		item := token.Proto()
		if !p.take(proto.Size(item)) {
			resp.NextPageToken = p.next(last)
			return false
		}
		resp.Tokens, last = append(resp.Tokens, item), item.GetId()
		return true
	})
	return resp, nil
}

// PutGrant gives policies to an identity.
func (s *accessServer) PutGrant(ctx context.Context, req *apiv1.PutGrantRequest) (*apiv1.PutGrantResponse, error) {
	var f faults
	id := f.request(req)
	grant := f.grant("grant", req.GetGrant())
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.administer(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_PutGrant{
		PutGrant: &raftlogv1.PutGrant{Grant: grant},
	}})
	if err != nil {
		return nil, explain(err, "grant policies to "+grant.GetIdentity(), "identity", grant.GetIdentity())
	}
	return &apiv1.PutGrantResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// DeleteGrant takes all policies from an identity.
func (s *accessServer) DeleteGrant(ctx context.Context, req *apiv1.DeleteGrantRequest) (*apiv1.DeleteGrantResponse, error) {
	var f faults
	id := f.request(req)
	f.word("identity", req.GetIdentity(), MaxIDLen, nameChars)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.administer(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_DeleteGrant{
		DeleteGrant: &raftlogv1.DeleteGrant{Identity: req.GetIdentity()},
	}})
	if err != nil {
		return nil, explain(err, "take the grant of "+req.GetIdentity(), "identity", req.GetIdentity())
	}
	return &apiv1.DeleteGrantResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// ListGrants lists grants by identity.
func (s *accessServer) ListGrants(ctx context.Context, req *apiv1.ListGrantsRequest) (*apiv1.ListGrantsResponse, error) {
	st, header, err := s.viewFor(ctx, req.GetFreshness(), "list grants")
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListGrantsResponse{Header: header}
	st.Grants("", func(g *registryv1.Grant) bool {
		resp.Grants = append(resp.Grants, g)
		return true
	})
	return resp, nil
}

// WhoAmI tells a caller who it is and what it may do.
func (s *accessServer) WhoAmI(ctx context.Context, _ *apiv1.WhoAmIRequest) (*apiv1.WhoAmIResponse, error) {
	st, header, err := s.viewFor(ctx, nil, "find out who calls")
	if err != nil {
		return nil, err
	}
	credential := credentialOf(ctx)
	identity, _ := st.Identity(credential)
	resp := &apiv1.WhoAmIResponse{
		Header: header, Identity: identity, Credential: credential, Policies: st.PoliciesOf(credential), Enforced: st.Enforced(),
	}
	if id, ok := strings.CutPrefix(credential, fsm.TokenCredential("")); ok {
		token, _ := st.Token(id)
		resp.ExpiresUnixMs = token.ExpiresUnixMs
	}
	return resp, nil
}

// viewFor returns a State as fresh as asked.
func (s *accessServer) viewFor(
	ctx context.Context, asked *apiv1.Freshness, what string,
) (*fsm.State, *apiv1.ResponseHeader, error) {
	var f faults
	fresh := f.freshness(asked)
	if err := f.err(); err != nil {
		return nil, nil, err
	}
	st, header, err := s.view(ctx, fresh)
	return st, header, explain(err, what)
}

// Limits of access control.
const (
	// MaxDescriptionLen is the length of a description in bytes.
	MaxDescriptionLen = 256
	// MaxRules is the number of rules of a policy.
	MaxRules = 64
	// MaxPoliciesPerGrant is the number of policies of an identity.
	MaxPoliciesPerGrant = 16
)

// secretHash checks the hash of a secret.
func (f *faults) secretHash(field string, hash []byte) {
	if len(hash) != sha256.Size {
		f.add(field, "must be a SHA-256 of %d bytes, has %d", sha256.Size, len(hash))
	}
}

// policy checks a policy and returns what the registry keeps of it.
func (f *faults) policy(field string, in *registryv1.Policy) *registryv1.Policy {
	if in == nil {
		f.add(field, "is required")
		return nil
	}
	f.place.enter(field)
	defer f.place.leave()
	f.policyName(in.GetName())
	f.text("description", in.GetDescription(), MaxDescriptionLen)
	out := &registryv1.Policy{Name: in.GetName(), Description: in.GetDescription()}
	if !f.count("rules", len(in.GetRules()), MaxRules) {
		return out
	}
	for i, r := range in.GetRules() {
		f.place.enterItem("rules", i)
		out.Rules = append(out.Rules, f.rule(r))
		f.place.leave()
	}
	return out
}

// policyName checks the name of a policy that is to be changed.
func (f *faults) policyName(name string) {
	if f.word("name", name, MaxIDLen, nameChars) && fsm.BuiltInPolicy(name) {
		f.add("name", "is that of a built-in policy, which can't be changed: %s", quote(name))
	}
}

// rule checks a rule. Where it speaks of what lives in namespaces, both names are needed: an empty one must not mean all.
func (f *faults) rule(in *registryv1.Rule) *registryv1.Rule {
	if len(in.GetActions()) == 0 {
		f.add("actions", "is required")
	}
	named := false
	name := f.pattern
	for _, a := range in.GetActions() {
		switch a {
		case registryv1.Action_ACTION_KV_READ, registryv1.Action_ACTION_KV_WRITE:
			named, name = true, f.keyPattern
		case registryv1.Action_ACTION_DISCOVER, registryv1.Action_ACTION_REGISTER, registryv1.Action_ACTION_SEE_LOCK,
			registryv1.Action_ACTION_LOCK:
			named = true
		case registryv1.Action_ACTION_OBSERVE, registryv1.Action_ACTION_OPERATE, registryv1.Action_ACTION_ADMINISTER:
		default:
			f.add("actions", "is unknown: %v", a)
		}
	}
	if named {
		f.pattern("namespace", in.GetNamespace(), MaxNamespaceLen)
		name("name", in.GetName(), MaxLockNameLen)
	} else if in.GetNamespace() != "" || in.GetName() != "" {
		f.add("namespace", "must be empty, as must be the name: %v is the whole cluster's", in.GetActions())
	}
	return &registryv1.Rule{Actions: in.GetActions(), Namespace: in.GetNamespace(), Name: in.GetName()}
}

// pattern checks a name, a prefix followed by "*", or "*".
func (f *faults) pattern(field, value string, limit int) {
	prefix, _ := strings.CutSuffix(value, "*")
	switch {
	case value == "":
		f.add(field, `is required: a name, a prefix followed by "*", or "*" for all`)
	case strings.Contains(prefix, "*"):
		f.add(field, `must have "*" only at its end, is %s`, quote(value))
	case prefix != "":
		f.path(field, prefix, limit)
	}
}

// keyPattern is pattern for keys, which have more characters.
func (f *faults) keyPattern(field, value string, limit int) {
	prefix, _ := strings.CutSuffix(value, "*")
	switch {
	case value == "" || strings.Contains(prefix, "*"):
		f.pattern(field, value, limit)
	case len(value) > limit:
		f.add(field, "has %d bytes, the limit is %d: %s", len(value), limit, quote(value))
	default:
		f.keyText(field, prefix, true)
	}
}

// grant checks a grant.
func (f *faults) grant(field string, in *registryv1.Grant) *registryv1.Grant {
	if in == nil {
		f.add(field, "is required")
		return nil
	}
	f.place.enter(field)
	defer f.place.leave()
	f.word("identity", in.GetIdentity(), MaxIDLen, nameChars)
	if len(in.GetPolicies()) == 0 {
		f.add("policies", "is required")
	}
	if f.count("policies", len(in.GetPolicies()), MaxPoliciesPerGrant) {
		for i, name := range in.GetPolicies() {
			f.place.enterItem("policies", i)
			f.word("", name, MaxIDLen, nameChars)
			f.place.leave()
		}
	}
	return &registryv1.Grant{Identity: in.GetIdentity(), Policies: in.GetPolicies()}
}
