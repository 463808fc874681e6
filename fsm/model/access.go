package model

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Short names for what can be allowed.
const (
	discover   = registryv1.Action_ACTION_DISCOVER
	register   = registryv1.Action_ACTION_REGISTER
	seeLock    = registryv1.Action_ACTION_SEE_LOCK
	useLock    = registryv1.Action_ACTION_LOCK
	observe    = registryv1.Action_ACTION_OBSERVE
	operate    = registryv1.Action_ACTION_OPERATE
	administer = registryv1.Action_ACTION_ADMINISTER
	kvRead     = registryv1.Action_ACTION_KV_READ
	kvWrite    = registryv1.Action_ACTION_KV_WRITE
)

// builtIn returns what the policies that are always there allow.
func builtIn() map[string][]registryv1.Action {
	return map[string][]registryv1.Action{
		"operator": {discover, register, seeLock, useLock, observe, operate, administer, kvRead, kvWrite},
		"service":  {discover, register, seeLock, useLock, kvRead, kvWrite},
		"reader":   {discover, seeLock},
		"observer": {observe},
	}
}

// Identity returns whom a credential stands for, false if for nobody.
func (m *Registry) Identity(credential string) (string, bool) {
	kind, name, _ := strings.Cut(credential, ":")
	switch kind {
	case "token":
		t := m.Tokens[name].GetToken()
		alive := t != nil && (t.GetExpiresUnixMs() == 0 || m.Time < t.GetExpiresUnixMs())
		if !alive {
			return "", false
		}
		return t.GetIdentity(), true
	case "certificate":
		return name, true
	default:
		return credential, true
	}
}

// Allowed tells whether who shows a credential may do something.
func (m *Registry) Allowed(credential string, action registryv1.Action, namespace, name string) bool {
	if !m.Enforced || credential == "" {
		return true
	}
	identity, ok := m.Identity(credential)
	return ok && m.may(identity, action, namespace, name)
}

// may tells whether an identity may do something.
func (m *Registry) may(identity string, action registryv1.Action, namespace, name string) bool {
	everywhere := action == observe || action == operate || action == administer
	for _, r := range m.rulesOf(identity) {
		for _, a := range r.GetActions() {
			if implies(a, action) && (everywhere || fits(r.GetNamespace(), namespace) && fits(r.GetName(), name)) {
				return true
			}
		}
	}
	return false
}

// rulesOf returns all rules of all policies of an identity.
func (m *Registry) rulesOf(identity string) []*registryv1.Rule {
	var all []*registryv1.Rule
	for _, name := range m.Grants[identity].GetPolicies() {
		all = append(all, m.Policies[name].GetRules()...)
		if actions := builtIn()[name]; actions != nil {
			all = append(all, &registryv1.Rule{Actions: actions, Namespace: "*", Name: "*"})
		}
	}
	return all
}

func implies(has, wanted registryv1.Action) bool {
	return has == wanted || has == register && wanted == discover || has == useLock && wanted == seeLock ||
		has == operate && wanted == observe || has == kvWrite && wanted == kvRead
}

func fits(pattern, name string) bool {
	if strings.HasSuffix(pattern, "*") {
		return strings.HasPrefix(name, strings.TrimRight(pattern, "*"))
	}
	return pattern == name
}

// actor is on whose behalf a command is.
type actor struct {
	credential string
	judged     bool   // what it does must be allowed
	identity   string // empty: nobody, from a node that does not know of access control
}

// act notes on whose behalf a command is. It returns an outcome if that is nobody.
func (m *Registry) act(cmd *raftlogv1.Command) *raftlogv1.Outcome {
	m.actor = actor{credential: cmd.GetActor()}
	if !m.Enforced || cmd.GetBootstrapAccess() != nil || cmd.GetActor() == "" && cmd.GetLevel() >= 2 {
		return nil
	}
	m.actor.judged = true
	identity, ok := m.Identity(cmd.GetActor())
	if !ok {
		return fail(raftlogv1.Code_CODE_DENIED, "token "+strings.TrimPrefix(cmd.GetActor(), "token:")+" is unknown or expired")
	}
	m.actor.identity = identity
	return nil
}

// denied refuses what the actor may not do; nil: it may.
func (m *Registry) denied(action registryv1.Action, namespace, name string) *raftlogv1.Outcome {
	if !m.actor.judged || m.may(m.actor.identity, action, namespace, name) {
		return nil
	}
	text := map[registryv1.Action]string{
		register: "register ", useLock: "lock ", kvRead: "kv_read ", kvWrite: "kv_write ",
	}[action]
	return fail(raftlogv1.Code_CODE_DENIED, shortened(text+namespace+"/"+name))
}

// deniedCluster refuses what concerns the whole cluster and is not its own doing.
func (m *Registry) deniedCluster(action registryv1.Action, text string) *raftlogv1.Outcome {
	if !m.actor.judged || m.actor.identity == "" || m.may(m.actor.identity, action, "", "") {
		return nil
	}
	return fail(raftlogv1.Code_CODE_DENIED, text)
}

// deniedKey refuses a change of an instance, unless a leader acts by itself.
func (m *Registry) deniedKey(k *raftlogv1.Key, term uint64) *raftlogv1.Outcome {
	if m.actor.identity == "" && term > 0 {
		return nil
	}
	return m.denied(register, k.GetNamespace(), k.GetService())
}

// deniedOwning refuses a session or a lease to whom can't use it.
func (m *Registry) deniedOwning() *raftlogv1.Outcome {
	if !m.actor.judged || m.mayOwn() {
		return nil
	}
	return fail(raftlogv1.Code_CODE_DENIED, "register or lock")
}

// mayOwn tells whether the actor could make use of a session at all.
func (m *Registry) mayOwn() bool {
	return slices.ContainsFunc(m.rulesOf(m.actor.identity), func(r *registryv1.Rule) bool {
		return slices.ContainsFunc(r.GetActions(), func(a registryv1.Action) bool {
			return a == register || a == useLock || a == kvWrite
		})
	})
}

// foreign tells whether what belongs to the owner is not for the actor.
func (m *Registry) foreign(owner string) bool {
	if !m.actor.judged || m.may(m.actor.identity, operate, "", "") {
		return false
	}
	if owner == "" {
		return !m.mayOwn()
	}
	return owner != m.actor.identity
}

func (m *Registry) deniedSession(id string) *raftlogv1.Outcome {
	if s := m.Sessions[id]; s != nil && m.foreign(s.GetOwner()) {
		return fail(raftlogv1.Code_CODE_DENIED, "session "+id)
	}
	return nil
}

func (m *Registry) deniedLease(id string) *raftlogv1.Outcome {
	if l := m.Leases[id]; l != nil && m.foreign(l.GetOwner()) {
		return fail(raftlogv1.Code_CODE_DENIED, "lease "+id)
	}
	return nil
}

// dispatchAccess applies a command about who may do what.
//
//nolint:gocyclo // A table of the kinds.
func (m *Registry) dispatchAccess(cmd *raftlogv1.Command) (changed bool, outcome *raftlogv1.Outcome) {
	if cmd.GetBootstrapAccess() == nil {
		if refused := m.deniedCluster(administer, "administer"); refused != nil {
			return false, refused
		}
	}
	switch kind := cmd.GetKind().(type) {
	case *raftlogv1.Command_PutPolicy:
		changed, outcome = m.putPolicy(kind.PutPolicy.GetPolicy())
	case *raftlogv1.Command_DeletePolicy:
		if builtIn()[kind.DeletePolicy.GetName()] != nil {
			return false, fail(raftlogv1.Code_CODE_INVALID, "name")
		}
		changed, outcome = m.Policies[kind.DeletePolicy.GetName()] != nil, done()
		delete(m.Policies, kind.DeletePolicy.GetName())
	case *raftlogv1.Command_CreateToken:
		changed, outcome = m.createToken(kind.CreateToken)
	case *raftlogv1.Command_DeleteToken:
		changed, outcome = m.Tokens[kind.DeleteToken.GetId()] != nil, done()
		delete(m.Tokens, kind.DeleteToken.GetId())
	case *raftlogv1.Command_PutGrant:
		changed, outcome = m.putGrant(kind.PutGrant.GetGrant())
	case *raftlogv1.Command_DeleteGrant:
		changed, outcome = m.Grants[kind.DeleteGrant.GetIdentity()] != nil, done()
		delete(m.Grants, kind.DeleteGrant.GetIdentity())
	case *raftlogv1.Command_SetEnforcement:
		on := kind.SetEnforcement.GetEnforced()
		if on && !m.Enforced && m.Bootstraps == 0 {
			return false, fail(raftlogv1.Code_CODE_NOT_FOUND, "bootstrap")
		}
		changed, outcome = on != m.Enforced, done()
		m.Enforced = on
	case *raftlogv1.Command_BootstrapAccess:
		changed, outcome = m.bootstrap(kind.BootstrapAccess)
	case *raftlogv1.Command_PutNamespace:
		return m.putNamespace(kind.PutNamespace.GetNamespace())
	case *raftlogv1.Command_DeleteNamespace:
		_, known := m.Namespaces[kind.DeleteNamespace.GetName()]
		delete(m.Namespaces, kind.DeleteNamespace.GetName())
		return known, done()
	default:
		return false, fail(raftlogv1.Code_CODE_INVALID, "command")
	}
	if changed {
		m.AccessRevision = m.Revision
	}
	return changed, outcome
}

func (m *Registry) putPolicy(p *registryv1.Policy) (bool, *raftlogv1.Outcome) {
	switch {
	case !name(p.GetName()) || builtIn()[p.GetName()] != nil:
		return false, fail(raftlogv1.Code_CODE_INVALID, "name")
	case len(p.GetDescription()) > maxName:
		return false, fail(raftlogv1.Code_CODE_INVALID, "description")
	case len(p.GetRules()) > maxRules:
		return false, fail(raftlogv1.Code_CODE_INVALID, "rules")
	}
	for i, r := range p.GetRules() {
		if field := m.wrongRule(r); field != "" {
			return false, fail(raftlogv1.Code_CODE_INVALID, fmt.Sprintf("rules[%d].%s", i, field))
		}
	}
	next := proto.CloneOf(p)
	next.ModifyRevision = m.Revision
	if old := m.Policies[p.GetName()]; old != nil {
		was := proto.CloneOf(old)
		was.ModifyRevision = m.Revision
		if proto.Equal(was, next) {
			return false, done()
		}
	} else if len(m.Policies) == maxPolicies {
		return false, fail(raftlogv1.Code_CODE_LIMIT, "policies")
	}
	m.Policies[p.GetName()] = next
	return true, done()
}

// lastAction returns the last action that commands of the level know, and how many of them there may be in a rule.
func (m *Registry) lastAction() (last registryv1.Action, most int) {
	if m.level >= 4 {
		return kvWrite, 9
	}
	return administer, 7
}

func (m *Registry) wrongRule(r *registryv1.Rule) string {
	last, most := m.lastAction()
	if len(r.GetActions()) == 0 || len(r.GetActions()) > most {
		return "actions"
	}
	named := false
	for _, a := range r.GetActions() {
		if a < discover || a > last {
			return "actions"
		}
		named = named || a < observe || a > administer
	}
	wrong := func(pattern string) bool {
		return !name(pattern) || strings.Contains(strings.TrimSuffix(pattern, "*"), "*")
	}
	switch {
	case wrong(r.GetNamespace()) && (named || r.GetNamespace() != ""):
		return "namespace"
	case wrong(r.GetName()) && (named || r.GetName() != ""):
		return "name"
	default:
		return ""
	}
}

// newToken makes a token of an order, or says what is wrong with it.
func (m *Registry) newToken(c *raftlogv1.CreateToken, identity string) (*raftlogv1.TokenRecord, *raftlogv1.Outcome) {
	t := c.GetToken()
	switch {
	case !name(t.GetId()):
		return nil, fail(raftlogv1.Code_CODE_INVALID, "id")
	case len(t.GetDescription()) > maxName:
		return nil, fail(raftlogv1.Code_CODE_INVALID, "description")
	case !name(identity):
		return nil, fail(raftlogv1.Code_CODE_INVALID, "identity")
	case t.GetExpiresUnixMs() < 0:
		return nil, fail(raftlogv1.Code_CODE_INVALID, "expires_unix_ms")
	case len(c.GetSecretHash()) != 32:
		return nil, fail(raftlogv1.Code_CODE_INVALID, "secret_hash")
	}
	creator, _ := m.Identity(m.actor.credential)
	return &raftlogv1.TokenRecord{
		Token: &registryv1.Token{
			Id: t.GetId(), Description: t.GetDescription(), Identity: identity, ExpiresUnixMs: t.GetExpiresUnixMs(),
			CreateRevision: m.Revision, CreatedUnixMs: m.Time, CreatedBy: creator,
		},
		SecretHash: c.GetSecretHash(),
	}, nil
}

func (m *Registry) createToken(c *raftlogv1.CreateToken) (bool, *raftlogv1.Outcome) {
	next, refused := m.newToken(c, c.GetToken().GetIdentity())
	if refused != nil {
		return false, refused
	}
	id := c.GetToken().GetId()
	if old := m.Tokens[id]; old != nil {
		was := old.GetToken()
		if was.GetDescription() == next.GetToken().GetDescription() && was.GetIdentity() == next.GetToken().GetIdentity() &&
			was.GetExpiresUnixMs() == next.GetToken().GetExpiresUnixMs() && bytes.Equal(old.GetSecretHash(), next.GetSecretHash()) {
			return false, &raftlogv1.Outcome{Id: id}
		}
		return false, fail(raftlogv1.Code_CODE_ALREADY_EXISTS, id)
	}
	if len(m.Tokens) >= maxTokens {
		return false, fail(raftlogv1.Code_CODE_LIMIT, "tokens")
	}
	m.Tokens[id] = next
	return true, &raftlogv1.Outcome{Id: id}
}

func (m *Registry) putGrant(g *registryv1.Grant) (bool, *raftlogv1.Outcome) {
	if !name(g.GetIdentity()) {
		return false, fail(raftlogv1.Code_CODE_INVALID, "identity")
	}
	if n := len(g.GetPolicies()); n == 0 || n > 16 {
		return false, fail(raftlogv1.Code_CODE_INVALID, "policies")
	}
	for _, p := range g.GetPolicies() {
		if !name(p) {
			return false, fail(raftlogv1.Code_CODE_INVALID, "policies")
		}
	}
	for _, p := range g.GetPolicies() {
		if m.Policies[p] == nil && builtIn()[p] == nil {
			return false, fail(raftlogv1.Code_CODE_NOT_FOUND, p)
		}
	}
	old := m.Grants[g.GetIdentity()]
	if old == nil && len(m.Grants) >= maxGrants {
		return false, fail(raftlogv1.Code_CODE_LIMIT, "grants")
	}
	return m.grant(g.GetIdentity(), g.GetPolicies()), done()
}

// grant gives policies to an identity and reports whether it did not have just them.
func (m *Registry) grant(identity string, policies []string) bool {
	if old := m.Grants[identity]; old != nil && slices.Equal(old.GetPolicies(), policies) {
		return false
	}
	m.Grants[identity] = &registryv1.Grant{Identity: identity, Policies: slices.Clone(policies), ModifyRevision: m.Revision}
	return true
}

func (m *Registry) bootstrap(c *raftlogv1.BootstrapAccess) (bool, *raftlogv1.Outcome) {
	if c.GetResets() != m.Bootstraps {
		return false, fail(raftlogv1.Code_CODE_STALE, strconv.FormatUint(m.Bootstraps, 10))
	}
	next, refused := m.newToken(c.GetToken(), "operator")
	if refused != nil {
		return false, refused
	}
	id := next.GetToken().GetId()
	if m.Tokens[id] != nil {
		return false, fail(raftlogv1.Code_CODE_ALREADY_EXISTS, id)
	}
	m.Tokens[id] = next
	m.grant("operator", []string{"operator"})
	m.Bootstraps++
	m.Enforced = true
	return true, &raftlogv1.Outcome{Id: id}
}
