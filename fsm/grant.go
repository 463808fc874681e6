package fsm

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// appendGrant encodes a grant by hand, as appendPolicy does a policy.
func appendGrant(b []byte, g *registryv1.Grant) []byte {
	b = appendString(b, 1, g.GetIdentity())
	for _, name := range g.GetPolicies() {
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendString(b, name)
	}
	return appendUint(b, 3, g.GetModifyRevision())
}

// malformedGrant names what is malformed of a grant.
func malformedGrant(g *registryv1.Grant) string {
	n := len(g.GetPolicies())
	switch {
	case !validName(g.GetIdentity()):
		return "identity"
	case n == 0 || n > MaxGrantPolicies || slices.ContainsFunc(g.GetPolicies(), func(name string) bool { return !validName(name) }):
		return "policies"
	default:
		return ""
	}
}

// putGrant gives policies, all of which must exist, to an identity, in place of those it had.
func (t *txn) putGrant(cmd *raftlogv1.PutGrant) Outcome {
	from := cmd.GetGrant()
	if malformed := malformedGrant(from); malformed != "" {
		return refuse(raftlogv1.Code_CODE_INVALID, malformed)
	}
	rules := t.st.rules()
	for _, name := range from.GetPolicies() {
		if _, ok := rules.policies.get(name); !ok && !BuiltInPolicy(name) {
			return refuse(raftlogv1.Code_CODE_NOT_FOUND, name)
		}
	}
	if _, ok := rules.grants.get(from.GetIdentity()); !ok && rules.grants.len() >= MaxGrants {
		return refuse(raftlogv1.Code_CODE_LIMIT, "grants")
	}
	t.grant(from.GetIdentity(), from.GetPolicies())
	return Outcome{}
}

// grantEvent is what the Name of an event about a grant begins with.
const grantEvent = "grant:"

// grant gives policies to an identity, unless it has just them.
func (t *txn) grant(identity string, policies []string) {
	old, ok := t.st.rules().grants.get(identity)
	if ok && slices.Equal(old.GetPolicies(), policies) {
		return
	}
	a := t.changeAccess(grantEvent+identity, true, nil)
	if ok {
		t.subGrant(old)
	}
	next := &registryv1.Grant{Identity: identity, Policies: policies, ModifyRevision: a.record.revision}
	t.scratch = appendGrant(t.scratch[:0], next)
	t.addSum(tableGrants, t.scratch)
	a.grants.set(t.mark, identity, next)
}

// deleteGrant takes all policies from an identity. One that has none has lost them already.
func (t *txn) deleteGrant(cmd *raftlogv1.DeleteGrant) Outcome {
	old, ok := t.st.rules().grants.get(cmd.GetIdentity())
	if !ok {
		return Outcome{}
	}
	a := t.changeAccess(grantEvent+old.GetIdentity(), false, nil)
	t.subGrant(old)
	a.grants.delete(t.mark, old.GetIdentity())
	return Outcome{}
}

func (t *txn) subGrant(g *registryv1.Grant) {
	t.scratch = appendGrant(t.scratch[:0], g)
	t.subSum(tableGrants, t.scratch)
}
