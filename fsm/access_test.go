package fsm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// rulesFor returns n rules of which the last allows to register default/web.
func rulesFor(n int) []*registryv1.Rule {
	rules := make([]*registryv1.Rule, n)
	for i := range rules {
		rules[i] = &registryv1.Rule{
			Actions: []registryv1.Action{registryv1.Action_ACTION_REGISTER}, Namespace: "default", Name: fmt.Sprintf("w%d*", i),
		}
	}
	rules[n-1].Name = "web"
	return rules
}

// withPolicies returns a state in which the token "t" has so many policies of so many rules, beside others.
func withPolicies(tb testing.TB, policies, rules int) *fsm.State {
	tb.Helper()
	m := newMachine(tb)
	var names []string
	for i := range policies {
		name := fmt.Sprintf("p%d", i)
		r := rulesFor(rules)
		if i < policies-1 {
			r[rules-1].Name = "other"
		}
		m.must(putPolicy(name, r...))
		names = append(names, name)
	}
	for i := range 1000 {
		m.must(createToken(fmt.Sprintf("other-%d", i), fmt.Sprintf("other-%d", i), 0))
		m.must(putGrant(fmt.Sprintf("other-%d", i), names...))
	}
	m.must(putGrant("svc", names...))
	m.must(createToken("t", "svc", 0))
	m.must(bootstrap("root", 0))
	return m.st
}

func TestAllowedAllocatesNothing(t *testing.T) {
	st := withPolicies(t, 3, 5)
	for _, who := range []string{"token:t", "token:root", "certificate:svc", "token:nobody", fsm.Anonymous} {
		allocs := testing.AllocsPerRun(100, func() {
			st.Allowed(who, registryv1.Action_ACTION_REGISTER, "default", "web")
			st.AllowedSomewhere(who, registryv1.Action_ACTION_REGISTER)
			st.MayUse(who, "other")
		})
		if allocs > 0 {
			t.Errorf("%v allocations for %s", allocs, who)
		}
	}
	if allocs := testing.AllocsPerRun(100, func() { st.FeatureLevel() }); allocs > 0 {
		t.Errorf("%v allocations for the feature level", allocs)
	}
}

func BenchmarkAllowed(b *testing.B) {
	for _, size := range [][2]int{{1, 2}, {16, 64}} {
		b.Run(fmt.Sprintf("policies=%d/rules=%d", size[0], size[1]), func(b *testing.B) {
			st := withPolicies(b, size[0], size[1])
			b.ReportAllocs()
			for b.Loop() {
				if !st.Allowed("token:t", registryv1.Action_ACTION_REGISTER, "default", "web") {
					b.Fatal("denied")
				}
			}
		})
	}
}

// TestFeatureLevelIsTheLowest of the levels of the members. One that names none has the first.
func TestFeatureLevelIsTheLowest(t *testing.T) {
	m := newMachine(t)
	want := func(level uint32) {
		t.Helper()
		if got := m.st.FeatureLevel(); got != level {
			t.Fatalf("level %d, want %d", got, level)
		}
	}
	set := func(id string, level uint32) {
		t.Helper()
		x := member(id)
		x.FeatureLevel = level
		m.must(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: x}}})
	}
	want(1)
	set("a", fsm.FeatureLevel)
	want(fsm.FeatureLevel)
	set("b", 0)
	want(1)
	set("b", fsm.FeatureLevel+1)
	want(fsm.FeatureLevel)
	set("c", 1)
	want(1)
	m.must(bootstrap("root", 0)) // Who can't follow that is lost anyway.
	want(fsm.AccessLevel)
}

// TestActorsNeedALevel holds that what has an actor says the level that it needs, and names somebody.
func TestActorsNeedALevel(t *testing.T) {
	for _, c := range []*raftlogv1.Command{
		{Actor: fsm.Anonymous, Kind: openSession("s").GetKind()},
		{Actor: fsm.Anonymous, Level: 1, Kind: openSession("s").GetKind()},
		{Kind: putGrant("svc", "reader").GetKind()},
		{Level: 1, Kind: bootstrap("t", 0).GetKind()},
		as("svc", openSession("s")),
		as("token:", openSession("s")),
		as("certificate:", openSession("s")),
		as("token:a\x00b", openSession("s")),
		as(fsm.CertificateCredential(strings.Repeat("x", fsm.MaxNameBytes+1)), openSession("s")),
	} {
		m := newMachine(t)
		if o := m.one(c); !errors.Is(o.Err(), fsm.ErrInvalid) || o.Subject != "command" || m.st.Revision() != 0 {
			t.Errorf("%v: outcome %+v", c, o)
		}
	}
}

func TestAccessIsBounded(t *testing.T) {
	long := strings.Repeat("x", fsm.MaxNameBytes+1)
	rule := func(change func(*registryv1.Rule)) *raftlogv1.Command {
		r := rulesFor(1)[0]
		change(r)
		return putPolicy("p", rulesFor(1)[0], r)
	}
	token := func(change func(*raftlogv1.CreateToken)) *raftlogv1.Command {
		c := createToken("t", "svc", 0)
		change(c.GetCreateToken())
		return c
	}
	described := putPolicy("p")
	described.GetPutPolicy().Policy.Description = long
	var readers []string
	for range fsm.MaxGrantPolicies + 1 {
		readers = append(readers, "reader")
	}
	for _, row := range []struct {
		subject string
		command *raftlogv1.Command
	}{
		{"name", putPolicy("")},
		{"name", putPolicy(long)},
		{"name", putPolicy("operator")},
		{"description", described},
		{"rules", putPolicy("p", rulesFor(fsm.MaxRules+1)...)},
		{"rules[1].actions", rule(func(r *registryv1.Rule) { r.Actions = nil })},
		{"rules[1].actions", rule(func(r *registryv1.Rule) { r.Actions = make([]registryv1.Action, fsm.MaxActions+1) })},
		{"rules[1].actions", rule(func(r *registryv1.Rule) { r.Actions[0] = 8 })},
		{"rules[1].actions", rule(func(r *registryv1.Rule) { r.Actions[0] = -1 })},
		{"rules[1].namespace", rule(func(r *registryv1.Rule) { r.Namespace = "" })},
		{"rules[1].namespace", rule(func(r *registryv1.Rule) { r.Namespace = "a*b" })},
		{"rules[1].name", rule(func(r *registryv1.Rule) { r.Name = "**" })},
		{"rules[1].name", rule(func(r *registryv1.Rule) { r.Name = long })},
		{"id", token(func(c *raftlogv1.CreateToken) { c.Token.Id = "" })},
		{"id", token(func(c *raftlogv1.CreateToken) { c.Token.Id = long })},
		{"description", token(func(c *raftlogv1.CreateToken) { c.Token.Description = long })},
		{"identity", token(func(c *raftlogv1.CreateToken) { c.Token.Identity = "" })},
		{"expires_unix_ms", token(func(c *raftlogv1.CreateToken) { c.Token.ExpiresUnixMs = -1 })},
		{"secret_hash", token(func(c *raftlogv1.CreateToken) { c.SecretHash = c.GetSecretHash()[1:] })},
		{"identity", putGrant("", "reader")},
		{"identity", putGrant(long, "reader")},
		{"policies", putGrant("svc")},
		{"policies", putGrant("svc", "")},
		{"policies", putGrant("svc", readers...)},
	} {
		m := newMachine(t)
		if o := m.one(row.command); !errors.Is(o.Err(), fsm.ErrInvalid) || o.Subject != row.subject || m.st.Revision() != 0 {
			t.Errorf("%v: outcome %+v, want %s", row.command, o, row.subject)
		}
	}
}

func TestAccessTablesAreBounded(t *testing.T) {
	for _, row := range []struct {
		subject string
		most    int
		command func(n int) *raftlogv1.Command
	}{
		{"policies", fsm.MaxPolicies, func(n int) *raftlogv1.Command { return putPolicy(fmt.Sprint(n)) }},
		{"tokens", fsm.MaxTokens, func(n int) *raftlogv1.Command { return createToken(fmt.Sprint(n), "svc", 0) }},
		{"grants", fsm.MaxGrants, func(n int) *raftlogv1.Command { return putGrant(fmt.Sprint(n), "reader") }},
	} {
		m := newMachine(t)
		commands := make([]*raftlogv1.Command, row.most+1)
		for n := range commands {
			commands[n] = row.command(n)
		}
		outcomes := m.apply(commands...).Outcomes
		if o := outcomes[row.most]; !errors.Is(o.Err(), fsm.ErrLimit) || o.Subject != row.subject || !outcomes[row.most-1].Changed {
			t.Errorf("%s: outcome %+v beyond the limit", row.subject, o)
		}
		m.must(bootstrap("root", 0)) // Whoever has lost all tokens must get one.
		audit(t, restored(t, snapshotOf(t, m.st)))
	}
}

// TestSecretHashStaysInside holds that what is shown of a token has not even the hash of its secret.
func TestSecretHashStaysInside(t *testing.T) {
	m := newMachine(t)
	m.must(createToken("t", "svc", 5))
	token, ok := m.st.Token("t")
	if !ok || string(token.SecretHash[:]) != strings.Repeat("h", fsm.SecretHashBytes) {
		t.Fatalf("token %+v", token)
	}
	if shown := string(encode(t, token.Proto())); strings.Contains(shown, "hhhh") {
		t.Fatalf("shown: %q", shown)
	}
}
