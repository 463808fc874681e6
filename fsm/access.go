package fsm

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// A credential is how somebody has proved who it is: Command.actor. It stands for an identity, and identities have
// policies by their grants. The empty credential is that of the cluster itself.
const (
	// Anonymous is the credential, and the identity, of whoever shows neither a token nor a client certificate.
	Anonymous = "anonymous"

	tokenPrefix       = "token:"
	certificatePrefix = "certificate:"
)

// TokenCredential returns the credential of whoever has shown the token of that id.
func TokenCredential(id string) string { return tokenPrefix + id }

// CertificateCredential returns the credential of whoever has shown a client certificate of that name.
func CertificateCredential(name string) string { return certificatePrefix + name }

// validCredential accepts what may be the actor of a command.
func validCredential(credential string) bool {
	if !utf8.ValidString(credential) {
		return false
	}
	if name, ok := strings.CutPrefix(credential, tokenPrefix); ok {
		return validName(name)
	}
	if name, ok := strings.CutPrefix(credential, certificatePrefix); ok {
		return validName(name)
	}
	return credential == Anonymous
}

// access is who may do what, at one time. A State without one is that of a cluster in which nobody has ever said anything
// about it. It never changes once its transaction has ended.
type access struct {
	record   accessRecord
	policies table[*policy]           // by name, without those that are built in
	tokens   table[*Token]            // by id
	grants   table[*registryv1.Grant] // by identity
	owner    *mark                    // who may change this access in place: only the transaction that made it
}

// accessRecord is what there is once about access control.
type accessRecord struct {
	enforced   bool
	bootstraps uint64 // how often there was a first token
	revision   uint64 // of the last change to any of it, the tables included
}

// append encodes the record as a raftlogv1.AccessRecord.
func (r accessRecord) append(b []byte) []byte {
	b = appendBool(b, 1, r.enforced)
	b = appendUint(b, 2, r.bootstraps)
	return appendUint(b, 3, r.revision)
}

// rules returns who may do what, never nil. It must not be changed.
func (s *State) rules() *access {
	if s.access == nil {
		return new(access)
	}
	return s.access
}

// Enforced reports whether access control is on. While it is off, everybody may do everything.
func (s *State) Enforced() bool { return s.access != nil && s.access.record.enforced }

// Bootstraps returns how often the cluster was bootstrapped: the number that the next BootstrapAccess must name.
func (s *State) Bootstraps() uint64 { return s.rules().record.bootstraps }

// AccessRevision returns the revision of the last change to policies, tokens, grants or enforcement, 0 if there was none.
// While it and the epoch stay the same, so does what [State.Allowed] says, but for tokens, which end by time.
func (s *State) AccessRevision() uint64 { return s.rules().record.revision }

// Identity returns whom a credential stands for, false for a token that is unknown, was deleted, or has ended by
// [State.Time], and for what is no credential. The cluster itself has no identity, that is, the empty one.
func (s *State) Identity(credential string) (identity string, ok bool) {
	if id, ok := strings.CutPrefix(credential, tokenPrefix); ok {
		if s.access == nil {
			return "", false
		}
		t, ok := s.access.tokens.get(id)
		if !ok || t.endedBy(s.time) {
			return "", false
		}
		return t.Identity, true
	}
	if name, ok := strings.CutPrefix(credential, certificatePrefix); ok {
		return name, true
	}
	return credential, credential == Anonymous || credential == ""
}

// Allowed reports whether who shows a credential may do something to the service, lock or key of that namespace and name.
// Observing, operating and administering are about the whole cluster: the names don't matter. While access control is off
// everybody may do everything, and the cluster itself always. A credential that stands for nobody allows nothing, see
// [State.Identity]. It allocates nothing.
func (s *State) Allowed(credential string, action registryv1.Action, namespace, name string) bool {
	if credential == "" || !s.Enforced() {
		return true
	}
	identity, ok := s.Identity(credential)
	return ok && s.access.allows(identity, allowing(action), namespace, name)
}

// AllowedPrefix reports whether who shows a credential may do something to all keys of the namespace that begin with the prefix,
// those included that are not there: one rule must say so. It is for what is done to a prefix as a whole, such as deleting it.
func (s *State) AllowedPrefix(credential string, action registryv1.Action, namespace, prefix string) bool {
	if credential == "" || !s.Enforced() {
		return true
	}
	identity, ok := s.Identity(credential)
	return ok && s.access.allowsPrefix(identity, allowing(action), namespace, prefix)
}

// AllowedSomewhere reports whether who shows a credential may do something to any service or lock at all.
func (s *State) AllowedSomewhere(credential string, action registryv1.Action) bool {
	if credential == "" || !s.Enforced() {
		return true
	}
	identity, ok := s.Identity(credential)
	return ok && s.access.allowsSomewhere(identity, allowing(action))
}

// MayUse reports whether who shows a credential may use what belongs to the owner: the [Session] or [Lease] of his own, who
// may register or lock anything also one that belongs to nobody, and who may operate the cluster all.
func (s *State) MayUse(credential, owner string) bool {
	if credential == "" || !s.Enforced() {
		return true
	}
	identity, ok := s.Identity(credential)
	return ok && s.access.mayUse(identity, owner)
}

// mayUse reports whether an identity may use what belongs to the owner. What belongs to nobody is for those who could have
// one of their own: its id is no secret, and a mere reader must not end it.
func (a *access) mayUse(identity, owner string) bool {
	switch {
	case owner == "" && a.allowsSomewhere(identity, owning), owner != "" && owner == identity:
		return true
	default:
		return a.allows(identity, bit(registryv1.Action_ACTION_OPERATE), "", "")
	}
}

// allows reports whether an identity has any of the actions for these names.
func (a *access) allows(identity string, either actions, namespace, name string) bool {
	g, _ := a.grants.get(identity)
	for _, policy := range g.GetPolicies() {
		if everywhere, ok := builtIn(policy); ok {
			if everywhere&either != 0 {
				return true
			}
			continue
		}
		if p, ok := a.policies.get(policy); ok && p.allows(either, namespace, name) {
			return true
		}
	}
	return false
}

// allowsPrefix reports whether an identity has any of the actions for all names that begin with the prefix.
func (a *access) allowsPrefix(identity string, either actions, namespace, prefix string) bool {
	g, _ := a.grants.get(identity)
	return slices.ContainsFunc(g.GetPolicies(), func(name string) bool {
		if everywhere, ok := builtIn(name); ok {
			return everywhere&either != 0
		}
		p, ok := a.policies.get(name)
		return ok && p.allowsPrefix(either, namespace, prefix)
	})
}

// allowsSomewhere reports whether an identity has any of the actions for any names.
func (a *access) allowsSomewhere(identity string, either actions) bool {
	g, _ := a.grants.get(identity)
	for _, policy := range g.GetPolicies() {
		if everywhere, ok := builtIn(policy); ok {
			if everywhere&either != 0 {
				return true
			}
			continue
		}
		if p, ok := a.policies.get(policy); ok && p.actions&either != 0 {
			return true
		}
	}
	return false
}

// Policy returns a policy, also one that is built in, nil if there is none. It must not be changed.
func (s *State) Policy(name string) *registryv1.Policy {
	if everywhere, ok := builtIn(name); ok {
		if s.FeatureLevel() < KVLevel { // Nobody could put a policy that says the same.
			everywhere &^= bit(registryv1.Action_ACTION_KV_READ) | bit(registryv1.Action_ACTION_KV_WRITE)
		}
		return builtInPolicy(name, everywhere)
	}
	if p, ok := s.rules().policies.get(name); ok {
		return p.message
	}
	return nil
}

// Policies returns all policies sorted by name, those that are built in included. They must not be changed.
func (s *State) Policies() []*registryv1.Policy {
	rules := s.rules()
	all := make([]*registryv1.Policy, 0, len(builtInNames)+rules.policies.len())
	for _, name := range builtInNames {
		all = append(all, s.Policy(name))
	}
	rules.policies.ascend("", func(_ string, p *policy) bool {
		all = append(all, p.message)
		return true
	})
	slices.SortFunc(all, func(a, b *registryv1.Policy) int { return strings.Compare(a.GetName(), b.GetName()) })
	return all
}

// PoliciesOf returns those policies of whom a credential stands for that exist, in the order in which they were granted.
// They must not be changed. The cluster itself has none, and needs none.
func (s *State) PoliciesOf(credential string) []*registryv1.Policy {
	identity, ok := s.Identity(credential)
	if !ok {
		return nil
	}
	var all []*registryv1.Policy
	for _, name := range s.Grant(identity).GetPolicies() {
		if p := s.Policy(name); p != nil {
			all = append(all, p)
		}
	}
	return all
}

// Token returns a token, also one that has ended.
func (s *State) Token(id string) (Token, bool) {
	t, ok := s.rules().tokens.get(id)
	if !ok {
		return Token{}, false
	}
	return *t, true
}

// Tokens calls fn for the tokens with ids after the given one, in order of id, until fn returns false.
func (s *State) Tokens(after string, fn func(Token) bool) {
	s.rules().tokens.after(after, func(t *Token) bool { return fn(*t) })
}

// Grant returns what an identity was granted, nil if nothing. It must not be changed.
func (s *State) Grant(identity string) *registryv1.Grant {
	g, _ := s.rules().grants.get(identity)
	return g
}

// Grants calls fn for the grants of identities after the given one, in order of identity, until fn returns false. They
// must not be changed.
func (s *State) Grants(after string, fn func(*registryv1.Grant) bool) {
	s.rules().grants.after(after, fn)
}

// identify finds out on whose behalf a command is, and refuses it if that is nobody. Nobody can do nothing, and leaves no
// trace: this comes before what is remembered of clients.
//
// A command of a level without actors comes from a node that lags behind and does not know that access control is on, or
// it is the cluster's own. It is judged without an identity: only what callers never do is allowed.
func (t *txn) identify(cmd *command) (Outcome, bool) {
	t.actor = cmd.actor
	named := len(cmd.actor) > 0
	t.judged = (named || cmd.level < AccessLevel) && cmd.kind != kindBootstrap && t.st.Enforced()
	t.identity = ""
	if !t.judged || !named {
		return Outcome{}, false
	}
	var ok bool
	if t.identity, ok = t.st.Identity(string(cmd.actor)); ok {
		return Outcome{}, false
	}
	id := strings.TrimPrefix(string(cmd.actor), tokenPrefix)
	return refuse(raftlogv1.Code_CODE_DENIED, "token "+id+" is unknown or expired"), true
}

// needed returns what the actor of a command must be allowed in the whole cluster. What other commands need depends on the
// names in them.
func needed(kind protowire.Number) registryv1.Action {
	switch kind {
	case kindExpire, kindSetMember, kindRemoveMember, kindInitCluster:
		return registryv1.Action_ACTION_OPERATE
	case kindPutPolicy, kindDeletePolicy, kindCreateToken, kindDeleteToken, kindPutGrant, kindDeleteGrant, kindSetEnforcement,
		kindPutNamespace, kindDeleteNamespace:
		return registryv1.Action_ACTION_ADMINISTER
	default:
		return registryv1.Action_ACTION_UNSPECIFIED
	}
}

// deniedKind refuses a command that concerns the whole cluster.
func (t *txn) deniedKind(kind protowire.Number) (Outcome, bool) {
	action := needed(kind)
	switch {
	case !t.judged, action == registryv1.Action_ACTION_UNSPECIFIED, t.identity == "",
		t.st.access.allows(t.identity, bit(action), "", ""):
		return Outcome{}, false
	}
	return refuse(raftlogv1.Code_CODE_DENIED, actionName(action)), true
}

// denied refuses what the actor may not do to a service or a lock.
func (t *txn) denied(action registryv1.Action, namespace, name string) (Outcome, bool) {
	if !t.judged || t.st.access.allows(t.identity, allowing(action), namespace, name) {
		return Outcome{}, false
	}
	return refuse(raftlogv1.Code_CODE_DENIED, actionName(action)+" "+namespace+"/"+name), true
}

// deniedKey refuses a change of an instance. A term is what a leader names that acts by itself.
func (t *txn) deniedKey(key *raftlogv1.Key, term uint64) (Outcome, bool) {
	if t.identity == "" && term != 0 {
		return Outcome{}, false
	}
	return t.denied(registryv1.Action_ACTION_REGISTER, key.GetNamespace(), key.GetService())
}

// deniedSpec refuses a registration, also for what the instance would hang on.
func (t *txn) deniedSpec(sp *spec) (outcome Outcome, denied bool) {
	if !t.judged {
		return Outcome{}, false
	}
	outcome, denied = t.denied(registryv1.Action_ACTION_REGISTER, string(sp.namespace), string(sp.service))
	if !denied {
		outcome, denied = t.deniedSession(string(sp.session))
	}
	if !denied {
		outcome, denied = t.deniedLease(string(sp.lease))
	}
	return outcome, denied
}

// deniedOwning refuses a session or a lease to whom it would be of no use: else everybody could fill the tables.
func (t *txn) deniedOwning() (Outcome, bool) {
	if !t.judged || t.st.access.allowsSomewhere(t.identity, owning) {
		return Outcome{}, false
	}
	return refuse(raftlogv1.Code_CODE_DENIED, "register or lock"), true
}

// deniedSession and deniedLease refuse to use what belongs to another. What is not there belongs to nobody.
func (t *txn) deniedSession(id string) (Outcome, bool) {
	if !t.judged || id == "" {
		return Outcome{}, false
	}
	if s := t.st.Session(id); s == nil || t.st.access.mayUse(t.identity, s.Owner) {
		return Outcome{}, false
	}
	return refuse(raftlogv1.Code_CODE_DENIED, "session "+id), true
}

func (t *txn) deniedLease(id string) (Outcome, bool) {
	if !t.judged || id == "" {
		return Outcome{}, false
	}
	if l := t.st.Lease(id); l == nil || t.st.access.mayUse(t.identity, l.Owner) {
		return Outcome{}, false
	}
	return refuse(raftlogv1.Code_CODE_DENIED, "lease "+id), true
}

// changeAccess returns who may do what, for changing in place, as of the revision of the command under way, which it
// takes. The record is changed by change, which may be nil. What came to be or is gone goes into the event.
func (t *txn) changeAccess(what string, created bool, change func(*accessRecord)) *access {
	revision := t.change()
	a := t.st.access
	switch {
	case a == nil:
		a = &access{owner: t.mark}
	case a.owner != t.mark:
		fork := *a
		a = &fork
		a.owner = t.mark
	}
	if t.st.access != nil {
		t.scratch = a.record.append(t.scratch[:0])
		t.subSum(tableAccess, t.scratch)
	}
	t.st.access = a
	a.record.revision = revision
	if change != nil {
		change(&a.record)
	}
	t.scratch = a.record.append(t.scratch[:0])
	t.addSum(tableAccess, t.scratch)
	t.events = append(t.events, Event{Kind: EventAccess, Created: created, Revision: revision, Name: what})
	return a
}

// enforcementEvent is the Name of an event about enforcement.
const enforcementEvent = "enforcement"

// setEnforcement switches access control on or off. It is not switched on before the first bootstrap: that is open to
// everybody, and would be so in a cluster that seems to be closed.
func (t *txn) setEnforcement(cmd *raftlogv1.SetEnforcement) Outcome {
	switch {
	case cmd.GetEnforced() == t.st.Enforced():
		return Outcome{}
	case t.st.Bootstraps() == 0:
		return refuse(raftlogv1.Code_CODE_NOT_FOUND, "bootstrap")
	}
	t.changeAccess(enforcementEvent, cmd.GetEnforced(), func(r *accessRecord) { r.enforced = cmd.GetEnforced() })
	return Outcome{}
}

// bootstrapAccess creates a token for the identity of the operator, gives it all rights, and switches access control on.
// Everybody may do so, once for each number of resets: the first time nobody can tell who is who, and later ones are for
// those who can write to the disk of a node, which is for whoever proposes to check.
func (t *txn) bootstrapAccess(cmd *raftlogv1.BootstrapAccess) Outcome {
	if n := t.st.Bootstraps(); cmd.GetResets() != n {
		return refuse(raftlogv1.Code_CODE_STALE, strconv.FormatUint(n, 10))
	}
	next, malformed := newToken(cmd.GetToken(), operatorPolicy)
	if malformed != "" {
		return refuse(raftlogv1.Code_CODE_INVALID, malformed)
	}
	if _, ok := t.st.Token(next.ID); ok {
		return refuse(raftlogv1.Code_CODE_ALREADY_EXISTS, next.ID)
	}
	t.putToken(next)
	t.grant(operatorPolicy, []string{operatorPolicy})
	t.changeAccess(enforcementEvent, true, func(r *accessRecord) {
		r.bootstraps++
		r.enforced = true
	})
	return Outcome{ID: next.ID}
}
