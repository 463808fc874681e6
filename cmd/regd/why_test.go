package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestNamespacesAreBoundedAndInstancesExplainedByCommands(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	register := func(id string) []string {
		return []string{"register", "web", "-n", "team-a", "--id", id, "--address", "10.0.0.1", "--port", "http=80", "--detach"}
	}
	s.expect("namespace/team-a put\n", s.ok("namespaces", "put", "team-a", "--max-instances", "1", "--max-writes", "500", "--description", "ours"))
	s.expect("namespace/team-a unchanged\n", s.ok("namespaces", "put", "team-a", "--max-instances", "1", "--max-writes", "500", "--description", "ours"))
	s.ok(register("w1")...)
	if r := s.run(register("w2")...); r.code != exitFailed || !strings.Contains(r.stderr, "namespace team-a may have 1 instances, and has 1") ||
		!strings.Contains(r.stderr, "regd namespaces show") {
		t.Errorf("beyond the quota: %d\n%s", r.code, r.stderr)
	}
	if got := s.ok("namespaces"); !regexp.MustCompile(`NAME +INSTANCES +LOCKS .*\nteam-a +1/1 +0 +0 +0 +0 +500 +ours`).MatchString(got) {
		t.Errorf("list:\n%s", got)
	}
	for _, part := range []string{"team-a  ours\n", "instances          1/1  (full: no more are let in)", "locks              0 unlimited", "writes per second  500  (that each node takes)"} {
		if got := s.ok("namespaces", "show", "team-a"); !strings.Contains(got, part) {
			t.Errorf("show lacks %q:\n%s", part, got)
		}
	}
	if got := s.ok("namespaces", "show", "other"); !strings.Contains(got, "nothing was said about it") {
		t.Errorf("show of another:\n%s", got)
	}
	v := decode[namespaceView](t, s.ok("namespaces", "show", "team-a", "-o", "json"))
	if *v.Instances.Used != 1 || v.Instances.Limit != 1 || v.WritesPerSecond.Limit != 500 || v.Revision == 0 {
		t.Errorf("%+v", v)
	}
	s.expect("namespace/team-a deleted\n", s.ok("namespaces", "delete", "team-a"))
	s.ok(register("w2")...)

	s.ok("drain", "web", "w1", "-n", "team-a")
	s.ok("deregister", "web", "w1", "-n", "team-a")
	got := s.ok("why", "team-a/web/w1")
	want := regexp.MustCompile(`^team-a/web/w1 is gone\n` +
		`  \d{4}-\S+ \S+  revision \d+ +passing +registered as incarnation \d+.*\n` +
		`  .* draining +draining\n  .* gone +deregistered\n$`)
	if !want.MatchString(got) {
		t.Errorf("why:\n%s", got)
	}
	why := decode[whyView](t, s.ok("why", "web", "w1", "-n", "team-a", "--limit", "1", "-o", "json"))
	if why.Health != gone || !why.More || !why.Kept || len(why.Changes) != 1 || why.Changes[0].Cause != "deregistered" || why.Changes[0].Text != "deregistered" {
		t.Errorf("%+v", why)
	}
	if got = s.ok("why", "web/none"); !strings.Contains(got, "default/web/none is not registered\n  the history has nothing of it") {
		t.Errorf("why of none:\n%s", got)
	}
	if r := s.run("why", "web"); r.code != exitUsage || !strings.Contains(r.stderr, "[NAMESPACE/]SERVICE/INSTANCE") {
		t.Errorf("%d: %s", r.code, r.stderr)
	}
}

func TestEachCauseIsSaidForPeople(t *testing.T) {
	t.Parallel()
	const critical = registryv1.CheckStatus_CHECK_STATUS_CRITICAL
	for want, tr := range map[string]*registryv1.Transition{
		"registered as incarnation 3 on session s, by payments":    {Cause: registryv1.Cause(1), Incarnation: 3, SessionId: "s", Actor: "payments"},
		"incarnation 3 replaced by a registration as 4 on lease l": {Cause: registryv1.Cause(1), Incarnation: 4, Replaced: 3, LeaseId: "l"},
		"deregistered, by ops": {Cause: registryv1.Cause(2), Actor: "ops"},
		"session s expired after 15.2s of silence, judged by node n2 in term 7": {Cause: registryv1.Cause(3), SessionId: "s", SilenceMs: 15_210, Judge: "n2", Term: 7},
		"session s expired, judged by the leader in term 7":                     {Cause: registryv1.Cause(3), SessionId: "s", Term: 7},
		"session s was closed": {Cause: registryv1.Cause(4), SessionId: "s"},
		"lease l expired after 30s of silence, judged by node n2 in term 7":              {Cause: registryv1.Cause(5), LeaseId: "l", SilenceMs: 30_000, Judge: "n2", Term: 7},
		"lease l ended with session s after 15s of silence, judged by node n2 in term 7": {Cause: registryv1.Cause(5), LeaseId: "l", SessionId: "s", SilenceMs: 15_000, Judge: "n2", Term: 7},
		"lease l was revoked":                       {Cause: registryv1.Cause(6), LeaseId: "l"},
		"lease l ended with session s, by payments": {Cause: registryv1.Cause(6), LeaseId: "l", SessionId: "s", Actor: "payments"},
		`check "web" turned critical: "connection refused", judged by node n2 in term 7`: {Cause: registryv1.Cause(7), Check: "web", Status: critical, Output: "connection refused", Judge: "n2", Term: 7},
		"draining":                 {Cause: registryv1.Cause(8), Set: true},
		"no longer draining":       {Cause: registryv1.Cause(8)},
		"in maintenance, by ops":   {Cause: registryv1.Cause(9), Set: true, Actor: "ops"},
		"no longer in maintenance": {Cause: registryv1.Cause(9)},
		"removed for being critical for 1m0s, judged by node n1 in term 2":                          {Cause: registryv1.Cause(10), SilenceMs: 60_000, Judge: "n1", Term: 2},
		"the registry was restored from a snapshot: the instance was as it was there, or not there": {Cause: registryv1.Cause(12)},
	} {
		if got := transitionText(tr); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for n, name := range registryv1.Cause_name {
		if c := registryv1.Cause(n); c != registryv1.Cause_CAUSE_UNSPECIFIED && c != registryv1.Cause_CAUSE_RESYNC &&
			transitionText(&registryv1.Transition{Cause: c}) == enumWord(name, "CAUSE_") && n != 2 {
			t.Errorf("%s is not said for people", name)
		}
	}
}

func TestWhySaysWhatIsNotKept(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_700_000_060_000)
	live := &registryv1.Instance{Health: registryv1.Health_HEALTH_PASSING, Incarnation: 9, RegisteredUnixMs: 1_600_000_000_000}
	created := &registryv1.Transition{Cause: registryv1.Cause_CAUSE_REGISTERED, Incarnation: 1, Revision: 51}
	for _, tt := range []struct {
		resp *apiv1.ExplainResponse
		want []string
		not  string
	}{
		{&apiv1.ExplainResponse{Instance: live}, []string{"is passing", "no history is kept yet"}, ""},
		{&apiv1.ExplainResponse{Instance: live, Kept: true, AfterRevision: 50, AfterUnixMs: 1_700_000_000_000}, []string{
			"what happened before revision 50 (", ", 1m0s ago) is no longer kept; it was registered as incarnation 9 at 2020-09-1",
		}, "no history"},
		{&apiv1.ExplainResponse{Kept: true, AfterRevision: 50}, []string{"is not registered", "the history has nothing of it; it reaches back to revision 50"}, ""},
		{&apiv1.ExplainResponse{Instance: live, Kept: true, AfterRevision: 50, Transitions: []*registryv1.Transition{created}}, []string{"registered as incarnation 1"}, "kept"},
		{
			&apiv1.ExplainResponse{Kept: true, More: true, IdentitiesWithheld: true, Transitions: []*registryv1.Transition{created}},
			[]string{"older changes are left out: --limit shows more", "Who did it is not shown to you"},
			"kept",
		},
	} {
		var out bytes.Buffer
		if err := viewWhy(client.Key{Namespace: "n", Service: "s", ID: "i"}, tt.resp).print(&out, now); err != nil {
			t.Fatal(err)
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("lacks %q:\n%s", want, out.String())
			}
		}
		if tt.not != "" && strings.Contains(out.String(), tt.not) {
			t.Errorf("has %q:\n%s", tt.not, out.String())
		}
	}
}

func TestInstancesAreNamed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want client.Key
	}{
		{[]string{"web/1"}, client.Key{Namespace: "default", Service: "web", ID: "1"}},
		{[]string{"team/web/1"}, client.Key{Namespace: "team", Service: "web", ID: "1"}},
		{[]string{"web", "rack/7/1"}, client.Key{Namespace: "default", Service: "web", ID: "rack/7/1"}},
		{[]string{"web"}, client.Key{}},
		{[]string{"a/b/c/d"}, client.Key{}},
	} {
		if got, err := namedInstance("default", tt.args); got != tt.want || (err == nil) != (tt.want != client.Key{}) {
			t.Errorf("%q: %v, %v", tt.args, got, err)
		}
	}
}
