package fsm_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/fsm/model"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// credential is one of those that the world of the generator has.
func (g *generator) credential() string {
	return pick(g.t, "credential", fsm.Anonymous, "token:t1", "token:t1", "token:t2", "token:t3", "certificate:svc",
		"certificate:ops", "certificate:operator")
}

// on lets a command be on behalf of somebody, of the cluster itself, or of nobody knows whom.
func (g *generator) on(c *raftlogv1.Command) *raftlogv1.Command {
	switch {
	case c.GetLevel() == 0 && g.chance(25):
		return c
	case g.chance(45):
		c.Actor = g.credential()
	}
	c.Level = pick[uint32](g.t, "level", fsm.AccessLevel, fsm.HistoryLevel, fsm.KVLevel)
	if needsLevel4 := c.GetKvTransaction() != nil || c.GetOpenSession().GetLockDelayMs() > 0; needsLevel4 && g.chance(97) {
		c.Level = fsm.KVLevel
	}
	if needsLevel3 := c.GetPutNamespace() != nil || c.GetDeleteNamespace() != nil; needsLevel3 && g.chance(95) {
		c.Level = pick[uint32](g.t, "level", fsm.HistoryLevel, fsm.KVLevel)
	}
	if c.GetActor() != "" && g.chance(3) {
		c.Level = 1
	}
	return c
}

func (g *generator) rule() *registryv1.Rule {
	r := &registryv1.Rule{
		Namespace: pick(g.t, "rule namespace", "*", "*", "default", "default", "de*", "dev", "", "d*v"),
		Name:      pick(g.t, "rule name", "*", "*", "web", "web*", "db", "leader", "*o*", "", "a*", "a/b"),
	}
	for range 1 + upTo(g.t, "actions", 3) {
		r.Actions = append(r.Actions, registryv1.Action(1+upTo(g.t, "action", 9)))
	}
	if g.chance(4) {
		r.Actions = pick(g.t, "wrong actions", nil, []registryv1.Action{0}, []registryv1.Action{10})
	}
	return r
}

func (g *generator) policy() string {
	return pick(g.t, "policy", "p1", "p1", "p2", "p2", "p3", "reader", "service", "operator", "observer")
}

func (g *generator) identity() string {
	return pick(g.t, "identity", "svc", "svc", "ops", "operator", fsm.Anonymous, "")
}

func (g *generator) createToken() *raftlogv1.CreateToken {
	c := &raftlogv1.CreateToken{
		Token: &registryv1.Token{
			Id: pick(g.t, "token", "t1", "t2", "t3", "t4", "t5", ""), Identity: g.identity(), Description: pick(g.t, "description", "", "x"),
		},
		SecretHash: []byte(strings.Repeat(pick(g.t, "hash", "a", "b"), fsm.SecretHashBytes)),
	}
	switch {
	case g.chance(40):
		c.Token.ExpiresUnixMs = g.time + int64(upTo(g.t, "lives", 10_000))
	case g.chance(4):
		c.Token.ExpiresUnixMs = -1
	case g.chance(4):
		c.SecretHash = c.GetSecretHash()[1:]
	}
	return c
}

// access makes a command about who may do what.
func (g *generator) access() *raftlogv1.Command {
	c := &raftlogv1.Command{Level: fsm.AccessLevel}
	switch n := upTo(g.t, "access", 100); {
	case n < 25:
		p := &registryv1.Policy{Name: g.policy(), Description: pick(g.t, "description", "", "x", strings.Repeat("x", 257))}
		for range upTo(g.t, "rules", 3) {
			p.Rules = append(p.Rules, g.rule())
		}
		c.Kind = &raftlogv1.Command_PutPolicy{PutPolicy: &raftlogv1.PutPolicy{Policy: p}}
	case n < 32:
		c.Kind = &raftlogv1.Command_DeletePolicy{DeletePolicy: &raftlogv1.DeletePolicy{Name: g.policy()}}
	case n < 47:
		c.Kind = &raftlogv1.Command_CreateToken{CreateToken: g.createToken()}
	case n < 53:
		c.Kind = &raftlogv1.Command_DeleteToken{DeleteToken: &raftlogv1.DeleteToken{Id: pick(g.t, "token", "t1", "t2", "t3", "t4")}}
	case n < 72:
		policies := []string{g.policy(), g.policy()}[:upTo(g.t, "policies", 3)]
		c.Kind = &raftlogv1.Command_PutGrant{PutGrant: &raftlogv1.PutGrant{
			Grant: &registryv1.Grant{Identity: g.identity(), Policies: policies},
		}}
	case n < 76:
		c.Kind = &raftlogv1.Command_DeleteGrant{DeleteGrant: &raftlogv1.DeleteGrant{Identity: g.identity()}}
	case n < 82:
		c.Kind = &raftlogv1.Command_SetEnforcement{SetEnforcement: &raftlogv1.SetEnforcement{Enforced: g.chance(60)}}
	default:
		resets := g.m.Bootstraps
		if g.chance(20) {
			resets = uint64(upTo(g.t, "resets", 3))
		}
		c.Kind = &raftlogv1.Command_BootstrapAccess{BootstrapAccess: &raftlogv1.BootstrapAccess{
			Token: g.createToken(), Resets: resets,
		}}
	}
	return c
}

// accessOf is what a state shows of access control, by kind and name.
func accessOf(s *fsm.State) []string {
	all := []string{fmt.Sprintf("enforced %t bootstraps %d revision %d", s.Enforced(), s.Bootstraps(), s.AccessRevision())}
	for _, p := range s.Policies() {
		if !fsm.BuiltInPolicy(p.GetName()) {
			all = append(all, policyText(p))
		}
	}
	s.Tokens("", func(t fsm.Token) bool { all = append(all, tokenText(t.Proto(), t.SecretHash[:])); return true })
	s.Grants("", func(g *registryv1.Grant) bool { all = append(all, grantText(g)); return true })
	slices.Sort(all)
	return all
}

func accessOfModel(m *model.Registry) []string {
	all := []string{fmt.Sprintf("enforced %t bootstraps %d revision %d", m.Enforced, m.Bootstraps, m.AccessRevision)}
	for _, p := range m.Policies {
		all = append(all, policyText(p))
	}
	for _, t := range m.Tokens {
		all = append(all, tokenText(t.GetToken(), t.GetSecretHash()))
	}
	for _, g := range m.Grants {
		all = append(all, grantText(g))
	}
	slices.Sort(all)
	return all
}

func policyText(p *registryv1.Policy) string {
	text := fmt.Sprintf("policy %s %q modified %d", p.GetName(), p.GetDescription(), p.GetModifyRevision())
	for _, r := range p.GetRules() {
		text += " [" + actionsText(r.GetActions()) + " " + r.GetNamespace() + "/" + r.GetName() + "]"
	}
	return text
}

func actionsText(actions []registryv1.Action) string {
	names := make([]string, len(actions))
	for i, a := range actions {
		names[i] = strings.ToLower(strings.TrimPrefix(a.String(), "ACTION_"))
	}
	return strings.Join(names, ",")
}

func tokenText(t *registryv1.Token, hash []byte) string {
	return fmt.Sprintf("token %s %q identity %s expires %d created %d at %d by %q hash %.3x", t.GetId(), t.GetDescription(),
		t.GetIdentity(), t.GetExpiresUnixMs(), t.GetCreateRevision(), t.GetCreatedUnixMs(), t.GetCreatedBy(), hash)
}

func grantText(g *registryv1.Grant) string {
	return fmt.Sprintf("grant %s %v modified %d", g.GetIdentity(), g.GetPolicies(), g.GetModifyRevision())
}

// compareRights holds that a state allows what the model does, to everybody.
func compareRights(t failer, s *fsm.State, m *model.Registry) {
	t.Helper()
	for _, who := range []string{"", fsm.Anonymous, "token:t1", "token:t2", "token:nobody", "certificate:svc", "certificate:ops"} {
		for action := registryv1.Action(-1); action < 10; action++ {
			for _, on := range [][2]string{{"default", "web"}, {"default", "web-1"}, {"dev", "db"}, {"", ""}} {
				if got, want := s.Allowed(who, action, on[0], on[1]), m.Allowed(who, action, on[0], on[1]); got != want {
					t.Fatalf("%q may %v %v: %t, the model says %t", who, action, on, got, want)
				}
			}
		}
	}
}

// TestWithoutRightsNothingChanges holds whatever was before, for every command but bootstrapping: who has no grant, and who
// shows a token that is not there, changes nothing.
func TestWithoutRightsNothingChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, states := history(t)
		m := &machine{t: t, st: states[len(states)-1], term: 1000, time: 1_800_000_000_000}
		m.one(bootstrap("root", m.st.Bootstraps()))
		m.one(&raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_DeleteGrant{
			DeleteGrant: &raftlogv1.DeleteGrant{Identity: fsm.Anonymous},
		}})
		g := &generator{t: t, term: m.term, m: model.New()}
		c := g.command()
		c.Actor, c.Level = pick(t, "who", fsm.Anonymous, "certificate:stranger", "token:gone"), fsm.HistoryLevel
		if c.GetBootstrapAccess() != nil {
			return
		}
		before := m.st
		result := m.apply(c)
		if len(result.Events) > 0 || m.st.Revision() != before.Revision() || m.st.ContentHash() != before.ContentHash() ||
			m.st.AccessRevision() != before.AccessRevision() {
			t.Fatalf("%v changed something: %+v", c, result)
		}
	})
}

// TestADeletedTokenDoesNothing holds from the entry on that deletes it, also for what follows in that entry, and leaves
// those alone that have another token of the same identity.
func TestADeletedTokenDoesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, states := history(t)
		m := &machine{t: t, st: states[len(states)-1], term: 1000, time: 1_800_000_000_000}
		m.one(bootstrap("root", m.st.Bootstraps()))
		m.must(putPolicy("everything", &registryv1.Rule{Actions: []registryv1.Action{2, 4}, Namespace: "*", Name: "*"}))
		m.must(putGrant("deleted", "everything"))
		m.must(createToken("first", "deleted", 0))
		m.must(createToken("second", "deleted", 0))
		m.must(as("token:first", openSession("own")))
		g := &generator{t: t, term: m.term, m: model.New()}
		c := g.command()
		c.Actor, c.Level = "token:first", fsm.HistoryLevel
		if c.GetBootstrapAccess() != nil {
			return
		}
		before := m.st.ContentHash()
		result := m.apply(deleteToken("first"), c)
		if o := result.Outcomes[1]; o.Changed || o.Code != raftlogv1.Code_CODE_DENIED && o.Code != raftlogv1.Code_CODE_INVALID ||
			m.st.ContentHash() != before {
			t.Fatalf("%v: outcome %+v", c, o)
		}
		m.must(as("token:second", closeSession("own")))
	})
}

// TestRebaseKeepsAccessControlOn holds for any two states: what is on stays on, no number comes again, and who asks again
// sees that something has changed.
func TestRebaseKeepsAccessControlOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, some := history(t)
		_, others := history(t)
		snapshot := restored(t, snapshotOf(t, some[len(some)-1]))
		onto := others[len(others)-1]
		next := fsm.Rebase(snapshot, onto)
		audit(t, next)
		audit(t, restored(t, snapshotOf(t, next)))
		used := snapshot.AccessRevision() > 0 || onto.AccessRevision() > 0
		switch {
		case next.Enforced() != (snapshot.Enforced() || onto.Enforced()):
			t.Fatalf("enforced %t, before %t, in the snapshot %t", next.Enforced(), onto.Enforced(), snapshot.Enforced())
		case next.Bootstraps() < max(snapshot.Bootstraps(), onto.Bootstraps()):
			t.Fatalf("%d bootstraps, before %d, in the snapshot %d", next.Bootstraps(), onto.Bootstraps(), snapshot.Bootstraps())
		case used && next.AccessRevision() <= max(snapshot.AccessRevision(), onto.AccessRevision()):
			t.Fatalf("access revision %d, before %d", next.AccessRevision(), onto.AccessRevision())
		}
	})
}

// TestAStateWithoutAccessControlIsAsBefore holds that what a version without access control wrote is the same to this one:
// its snapshot has the tables that there were then, and no owners.
func TestAStateWithoutAccessControlIsAsBefore(t *testing.T) {
	m := newMachine(t)
	m.must(openSession("s"))
	m.must(as("certificate:svc", openSession("t")))
	header := headerOf(t, m.st)
	if len(header.GetTableHashes()) != 7 || len(header.GetTableCounts()) != 7 || m.st.Session("t").Owner != "" {
		t.Fatalf("%d tables, owner %q", len(header.GetTableHashes()), m.st.Session("t").Owner)
	}
	m.must(putGrant(fsm.Anonymous, "reader"))
	m.must(as("", &raftlogv1.Command{Kind: &raftlogv1.Command_DeleteGrant{
		DeleteGrant: &raftlogv1.DeleteGrant{Identity: fsm.Anonymous},
	}}))
	if n := len(headerOf(t, m.st).GetTableHashes()); n != 11 {
		t.Fatalf("%d tables with access control", n)
	}
	audit(t, restored(t, snapshotOf(t, m.st)))
}

func headerOf(t failer, s *fsm.State) *raftlogv1.SnapshotHeader {
	t.Helper()
	h, err := fsm.ReadSnapshotHeader(bytes.NewReader(snapshotOf(t, s)))
	if err != nil {
		t.Fatalf("read header: %v", err)
	}
	return h
}

func as(credential string, c *raftlogv1.Command) *raftlogv1.Command {
	c = proto.CloneOf(c)
	c.Actor, c.Level = credential, max(c.GetLevel(), fsm.AccessLevel)
	return c
}

func bootstrap(id string, resets uint64) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_BootstrapAccess{
		BootstrapAccess: &raftlogv1.BootstrapAccess{Resets: resets, Token: createToken(id, "", 0).GetCreateToken()},
	}}
}

func createToken(id, identity string, expires int64) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_CreateToken{
		CreateToken: &raftlogv1.CreateToken{
			Token:      &registryv1.Token{Id: id, Identity: identity, ExpiresUnixMs: expires},
			SecretHash: []byte(strings.Repeat("h", fsm.SecretHashBytes)),
		},
	}}
}

func deleteToken(id string) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_DeleteToken{
		DeleteToken: &raftlogv1.DeleteToken{Id: id},
	}}
}

func putPolicy(name string, rules ...*registryv1.Rule) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_PutPolicy{
		PutPolicy: &raftlogv1.PutPolicy{Policy: &registryv1.Policy{Name: name, Rules: rules}},
	}}
}

func putGrant(identity string, policies ...string) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_PutGrant{
		PutGrant: &raftlogv1.PutGrant{Grant: &registryv1.Grant{Identity: identity, Policies: policies}},
	}}
}

// guarded is the populated state with access control: a policy, tokens, grants, a session and a lease with owners.
func guarded(tb testing.TB) *fsm.State {
	tb.Helper()
	st := populated(tb)
	m := &machine{t: tb, st: st, term: st.Term(), time: st.Time()}
	m.must(putPolicy("payments", &registryv1.Rule{
		Actions: []registryv1.Action{registryv1.Action_ACTION_REGISTER, registryv1.Action_ACTION_LOCK}, Namespace: "*", Name: "pay*",
	}))
	m.must(bootstrap("root", 0))
	m.must(as("token:root", putGrant("payments", "payments", "reader")))
	m.must(as("token:root", createToken("p", "payments", m.time+1_000_000)))
	m.must(as("token:p", openSession("guarded")))
	m.must(as("token:p", grantLease("guarded", "guarded")))
	return m.st
}
