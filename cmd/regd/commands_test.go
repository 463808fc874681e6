package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// decode reads the JSON that a command printed.
func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return v
}

type instancesDoc struct {
	Header    headerView     `json:"header"`
	Instances []instanceView `json:"instances"`
}

// instances lists the instances of a service.
func (s *shell) instances(service string) []instanceView {
	s.t.Helper()
	return decode[instancesDoc](s.t, s.ok("instances", service, "-o", "json")).Instances
}

// only returns the only instance of a service.
func (s *shell) only(service string) instanceView {
	s.t.Helper()
	all := s.instances(service)
	if len(all) != 1 {
		s.t.Fatalf("%d instances of %s, want 1", len(all), service)
	}
	return all[0]
}

func (s *shell) expect(want, got string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("printed %q, want %q", got, want)
	}
}

func TestDetachedInstanceLivesUntilDeregistered(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	register := []string{
		"register", "web", "--id", "w1", "--address", "10.0.0.1", "--port", "http=80", "--port", "admin=81", "--tag", "b", "--tag", "a",
		"--meta", "k=v", "--zone", "z", "--region", "r", "--weight", "7", "--detach",
	}
	if got := s.ok(register...); !regexp.MustCompile(`^instance/web/w1 registered \(revision \d+\)\n$`).MatchString(got) {
		t.Errorf("printed %q", got)
	}
	s.expect("instance/web/w1 unchanged\n", s.ok(register...))
	doc := decode[instancesDoc](t, s.ok("instances", "web", "-o", "json"))
	if doc.Header.Node != "n1" || doc.Header.Mode != "linearizable" || doc.Header.Revision == 0 || doc.Header.StalenessMs == nil {
		t.Errorf("header %+v", doc.Header)
	}
	i := s.only("web")
	if i.Health != "passing" || i.endpoint() != "10.0.0.1:80" || strings.Join(i.Tags, ",") != "a,b" || i.Metadata["k"] != "v" ||
		i.Zone != "z" || i.Region != "r" || i.Weight != 7 || i.SessionID != "" || len(i.Ports) != 2 {
		t.Errorf("instance %+v", i)
	}
	table := s.ok("instances", "web")
	if !regexp.MustCompile(`(?m)^w1 +web +passing +10.0.0.1:80 +z +a,b +\ds$`).MatchString(table) {
		t.Errorf("table:\n%s", table)
	}
	if strings.Contains(table, "\x1b") {
		t.Errorf("colour without a terminal: %q", table)
	}
	s.expect("instance/web/w1\n", s.ok("instances", "-o", "name"))
	s.expect("service/web\n", s.ok("services", "-o", "name"))
	if got := s.ok("services", "--no-headers"); !regexp.MustCompile(`^web +1 +1 +0 +0 +0\n$`).MatchString(got) {
		t.Errorf("services: %q", got)
	}
	s.expect("instance/web/w1 deregistered\n", s.ok("deregister", "web", "w1"))
	s.expect("instance/web/w1 unchanged\n", s.ok("deregister", "web", "w1"))
	s.expect("instance/web/w1\n", s.ok("deregister", "web", "w1", "-o", "name"))
	if c := decode[change](t, s.ok("deregister", "web", "w1", "-o", "json")); c.Changed || c.Name != "instance/web/w1" {
		t.Errorf("change %+v", c)
	}
	r := s.run("instances", "web")
	if r.code != exitOK || !strings.Contains(r.stderr, "no such instances of web in namespace default") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}

func TestFiltersChooseInstances(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.ok("register", "web", "--id", "a", "--port", "1", "--tag", "x", "--zone", "z1", "--meta", "v=1", "--detach")
	s.ok("register", "web", "--id", "b", "--port", "1", "--tag", "x", "--tag", "y", "--zone", "z2", "--detach")
	s.ok("register", "web", "--id", "c", "--port", "1", "--zone", "z2", "--detach", "-n", "other")
	s.ok("maintenance", "on", "web", "b")
	for args, want := range map[string]string{
		"":                     "a b",
		"--tag x":              "a b",
		"--tag x --tag y":      "b",
		"--zone z1":            "a",
		"--meta v=1":           "a",
		"--health passing":     "a",
		"--health maintenance": "a b",
		"-n other":             "c",
		"-n *":                 "a b c",
		"--freshness stale":    "a b",
		"--freshness bounded=5s --freshness at-least=1": "a b",
	} {
		var ids []string
		for line := range strings.Lines(s.ok(append([]string{"instances", "web", "-o", "jsonl"}, strings.Fields(args)...)...)) {
			ids = append(ids, decode[instanceView](t, line).ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("instances %s: %q, want %q", args, got, want)
		}
	}
}

func TestDrainAndMaintenanceShow(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.ok("register", "web", "--id", "w1", "--port", "1", "--detach")
	for _, step := range []struct{ args, says, health string }{
		{"drain web w1", "instance/web/w1 draining\n", "draining"},
		{"maintenance on web w1", "instance/web/w1 in maintenance\n", "maintenance"},
		{"maintenance off web w1", "instance/web/w1 no longer in maintenance\n", "draining"},
		{"drain web w1 --cancel", "instance/web/w1 no longer draining\n", "passing"},
	} {
		s.expect(step.says, s.ok(strings.Fields(step.args)...))
		s.expect("instance/web/w1 unchanged\n", s.ok(strings.Fields(step.args)...))
		if i := s.only("web"); i.Health != step.health {
			t.Errorf("after %s: %s, want %s", step.args, i.Health, step.health)
		}
	}
	old := s.only("web").Incarnation
	s.ok("register", "web", "--id", "w1", "--port", "2", "--detach")
	r := s.run("deregister", "web", "w1", "--incarnation", jsonNumber(old))
	if r.code != exitConflict {
		t.Errorf("deregister of an old incarnation: exit code %d\n%s", r.code, r.stderr)
	}
}

func jsonNumber(n uint64) string {
	b, _ := json.Marshal(n)
	return string(b)
}

func TestReportTurnsTTLCheck(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.ok("register", "cron", "--id", "c1", "--detach", "--ttl", "1h")
	if i := s.only("cron"); i.Health != "starting" {
		t.Errorf("health %s, want starting", i.Health)
	}
	for _, status := range []string{"passing", "warning", "critical"} {
		s.ok("report", status, "cron", "c1", "--text", "because")
		if i := s.only("cron"); i.Health != status || i.Checks[0].Output != "because" {
			t.Errorf("instance %+v, want %s", i, status)
		}
	}
}

func TestNotFoundHasItsExitCode(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	for _, args := range []string{
		"drain web nobody", "maintenance on web nobody", "report passing web nobody", "members remove nobody --yes",
		"members promote nobody", "leader transfer nobody", "snapshot inspect nofile", "snapshot restore nofile",
	} {
		if r := s.run(strings.Fields(args)...); r.code != exitNotFound || !strings.HasPrefix(r.stderr, "error: ") {
			t.Errorf("regd %s: exit code %d, want 3\n%s", args, r.code, r.stderr)
		}
	}
	r := s.run("drain", "web", "nobody")
	if strings.Contains(r.stderr, "rpc error") || strings.Count(r.stderr, "drain default/web/nobody") != 1 {
		t.Errorf("the error is not fit for people: %s", r.stderr)
	}
}

func TestInvalidFieldsAreNamed(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	r := s.run("register", "web", "--id", "a b", "--port", "1", "--check-http", "/x", "--check-interval", "100ms", "--detach")
	if r.code != exitUsage || !strings.Contains(r.stderr, "instance.id") || !strings.Contains(r.stderr, "instance.checks[0].interval") {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
}

func TestLockIsHeldByOneAtATime(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	held := s.start("lock", "backup", "-o", "json", "--value", "me")
	held.says(`"token"`)
	first := decode[struct{ Token uint64 }](t, held.stdout.String()).Token
	if r := s.run("lock", "backup", "--no-wait", "--", "echo", "no"); r.code != exitConflict || r.stdout != "" {
		t.Errorf("--no-wait: exit code %d, want 7\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := s.run("lock", "backup", "--timeout", "2s", "--", "echo", "no"); r.code != exitTimeout || r.stdout != "" {
		t.Errorf("--timeout: exit code %d, want 6\n%s%s", r.code, r.stdout, r.stderr)
	}
	next := s.start("lock", "backup", "--", "sh", "-c", "echo token=$REGD_LOCK_TOKEN; exit 3")
	eventually(t, func() string {
		for _, v := range decode[struct{ Sessions []sessionView }](t, s.ok("sessions", "-o", "json")).Sessions {
			if v.ID != "" && v.Locks == 1 && len(held.stdout.String()) > 0 {
				return ""
			}
		}
		return "nobody has the lock"
	})
	if code := held.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, held.stderr.String())
	}
	next.says("token=")
	<-next.ended
	token := strings.TrimSpace(strings.TrimPrefix(next.stdout.String(), "token="))
	if next.code != 3 || decode[uint64](t, token) <= first {
		t.Errorf("exit code %d, token %s after %d", next.code, token, first)
	}
}

func TestWatchShowsEveryChange(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.ok("register", "web", "--id", "w1", "--address", "10.0.0.1", "--port", "80", "--detach")
	people := s.start("watch", "web")
	people.says("web/w1")
	program := s.start("watch", "web", "--health", "passing", "-o", "jsonl")
	program.says(`"type":"synced"`)
	s.ok("drain", "web", "w1")
	people.says("passing -> draining\n")
	program.says(`"type":"delete"`)
	s.ok("deregister", "web", "w1")
	people.says("deregistered")
	if code := people.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, people.stderr.String())
	}
	line := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d{3} +\d+  (PUT|DELETE)`)
	if got := len(line.FindAllString(people.stdout.String(), -1)); got != 3 {
		t.Errorf("%d lines, want 3:\n%s", got, people.stdout.String())
	}
	program.wait()
	var types []string
	for line := range strings.Lines(program.stdout.String()) {
		if v := decode[changeView](t, line); v.Type != "synced" {
			types = append(types, v.Type)
		}
	}
	if got := strings.Join(types, " "); got != "put delete" {
		t.Errorf("changes %q, want \"put delete\"", got)
	}
}

func TestHostileTextReachesNoTerminal(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	evil := "\u202eowned\u200b" // The registry refuses control characters, but not all that is invisible.
	s.ok("register", "web", "--id", "w1", "--port", "1", "--detach", "--zone", "z"+evil, "--tag", "t"+evil, "--meta", "k=v"+evil)
	for _, args := range []string{"instances web", "instances web -o wide"} {
		if got := s.ok(strings.Fields(args)...); strings.Contains(got, evil) || !strings.Contains(got, `\u202eowned\u200b`) {
			t.Errorf("regd %s printed %q", args, got)
		}
	}
	if r := s.run("drain", "web", "\x1b]0;owned\a"); r.code == exitOK || strings.Contains(r.stderr, "\x1b") {
		t.Errorf("the error printed %q", r.stderr)
	}
}

func TestStatusAndMembersTellTheCluster(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	if got := s.ok("status"); !strings.HasPrefix(got, "healthy: 1/1 voters answer, leader n1, 0 problems\n") || !strings.Contains(got, "NAME") {
		t.Errorf("status:\n%s", got)
	}
	v := decode[statusView](t, s.ok("status", "-o", "json"))
	if v.Verdict != verdictHealthy || v.Leader != "n1" || v.Quorum != 1 || v.Voters != 1 || v.VotersReachable != 1 || len(v.Members) != 1 {
		t.Errorf("status %+v", v)
	}
	members := decode[struct{ Members []map[string]any }](t, s.ok("members", "-o", "json")).Members
	if len(members) != 1 {
		t.Fatalf("members %v", members)
	}
	for field, want := range map[string]any{"name": "n1", "role": "leader", "suffrage": "voter", "reachable": true} {
		if got := members[0][field]; got != want {
			t.Errorf("member's %s is %v, want %v", field, got, want)
		}
	}
	for _, field := range []string{"id", "address", "grpc_address", "applied_index", "term"} {
		if v := members[0][field]; v == nil || v == "" || v == 0.0 {
			t.Errorf("member's %s is %v", field, v)
		}
	}
	s.expect("member/n1\n", s.ok("members", "list", "-o", "name"))
	if got := s.ok("verify"); !strings.HasPrefix(got, "equal: all 1 replicas are the same\n") {
		t.Errorf("verify:\n%s", got)
	}
}

func TestDangerousActsNeedConsent(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	file := filepath.Join(t.TempDir(), "s.regd")
	s.ok("snapshot", "save", file)
	for _, args := range [][]string{{"members", "remove", "n1"}, {"snapshot", "restore", file}} {
		r := s.run(args...)
		if r.code != exitUsage || !strings.Contains(r.stderr, "hint: say --yes") {
			t.Errorf("regd %v: exit code %d\n%s", args, r.code, r.stderr)
		}
	}
}

func TestDryRunsChangeNothing(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	file := filepath.Join(t.TempDir(), "s.regd")
	s.ok("snapshot", "save", file)
	s.ok("register", "web", "--id", "w1", "--port", "1", "--detach")
	before := s.ok("verify", "-o", "json")
	for _, verb := range []string{"remove", "demote"} {
		s.expect("member/n1 would be "+verb+"d (dry run)\n"+
			"  now    1 voter, 1 of them answer and 1 are needed\n"+
			"  after  0 voters, 0 of them answer and 1 are needed\n"+
			"  - it is the only voter: this would be refused\n", s.ok("members", verb, "n1", "--dry-run"))
		p := decode[voterPlan](t, s.ok("members", verb, "n1", "--dry-run", "-o", "json"))
		if !p.DryRun || p.Before != (votersView{1, 1, 1}) || p.After.Voters != 0 || p.Problem == "" {
			t.Errorf("plan %+v", p)
		}
		s.expect("member/n1\n", s.ok("members", verb, "n1", "--dry-run", "-o", "name"))
		if r := s.run("members", verb, "nobody", "--dry-run"); r.code != exitNotFound {
			t.Errorf("exit code %d\n%s", r.code, r.stderr)
		}
	}
	got := s.ok("snapshot", "restore", file, "--dry-run")
	if !regexp.MustCompile(`would be restored \(dry run\)\n  now    1 instance, .*\n  after  0 instances, 0 sessions, 0 leases, 0 locks at`).MatchString(got) {
		t.Errorf("printed %q", got)
	}
	p := decode[struct{ Before, After contentView }](t, s.ok("snapshot", "restore", file, "--dry-run", "-o", "json"))
	if p.Before.Instances != 1 || p.After.Instances != 0 || p.Before.Revision == 0 {
		t.Errorf("plan %+v", p)
	}
	type content struct {
		ContentHash string `json:"content_hash"`
	}
	if was, is := decode[content](t, before), decode[content](t, s.ok("verify", "-o", "json")); was != is || s.only("web").ID != "w1" {
		t.Errorf("content %+v became %+v", was, is)
	}
	if v := decode[statusView](t, s.ok("status", "-o", "json")); v.Voters != 1 {
		t.Errorf("%d voters", v.Voters)
	}
}

func TestCompletionKnowsWhatIsRegistered(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.ok("register", "web", "--id", "w1", "--address", "10.0.0.1", "--port", "80", "--detach")
	for args, want := range map[string]string{
		"instances w":                       "web\t1 of 1 passing\n",
		"instances x":                       "",
		"deregister web ":                   "w1\tpassing 10.0.0.1:80\n",
		"maintenance ":                      "on\noff\n",
		"maintenance on web ":               "w1\tpassing 10.0.0.1:80\n",
		"members remove ":                   "n1\tleader voter\n",
		"instances -o ":                     "table\nwide\njson\nyaml\njsonl\nname\n",
		"instances --endpoint 127.0.0.1:1 ": "",
		"members remove --endpoint x ":      "",
	} {
		words := strings.Split(args, " ")
		got := s.ok(append([]string{"__complete"}, words...)...)
		got = regexp.MustCompile(`(?m)^:\d+\n`).ReplaceAllString(got, "")
		if got != want {
			t.Errorf("completion of %q: %q, want %q", args, got, want)
		}
	}
	for _, sh := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := s.ok("completion", sh); !strings.Contains(got, "regd") {
			t.Errorf("completion for %s: %q", sh, got)
		}
	}
}

func TestUnreachableClusterTellsWhatEachAddressSaid(t *testing.T) {
	t.Parallel()
	s, httpAddress := startNode(t)
	closed := freeAddress(t)
	r := s.run("instances", "--timeout", "300ms", "--endpoint", closed, "--endpoint", httpAddress)
	if r.code != exitUnreachable || r.stdout != "" {
		t.Errorf("exit code %d, want 5\n%s", r.code, r.stdout)
	}
	for _, says := range []string{
		"error: list instances: none of 2 nodes did it within 300ms\n",
		closed + "  connection refused\n",
		httpAddress + "  this is an HTTP port; the gRPC port of a node is 7400 by default\n",
		"hint: is a node running there?",
	} {
		if !strings.Contains(r.stderr, says) {
			t.Errorf("stderr lacks %q:\n%s", says, r.stderr)
		}
	}
	// One dead node among the endpoints is no news for whoever wants data.
	r = s.run("instances", "-o", "json", "--endpoint", closed, "--endpoint", s.env["REGD_ENDPOINTS"])
	if r.code != exitOK || r.stderr != "no such instances in namespace default\n" {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	decode[instancesDoc](t, r.stdout)
}

func TestEndpointsComeFromTheFirstSourceThatHasAny(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	resolve := func(endpoints ...string) (string, string) {
		c := &connection{app: s.app(io.Discard, io.Discard), endpoints: endpoints}
		return strings.Join(c.addresses(), ","), c.origin
	}
	if got, origin := resolve(); got != defaultGRPC || origin != "the default" {
		t.Errorf("nothing known: %s from %s", got, origin)
	}
	path := filepath.Join(s.env["XDG_STATE_HOME"], "regd", devStateFile)
	state := devState{PID: os.Getpid(), Nodes: []devAddresses{{GRPC: "a:1"}, {GRPC: "b:1"}}}
	if err := state.write(path); err != nil {
		t.Fatal(err)
	}
	if got, origin := resolve(); got != "a:1,b:1" || origin != path {
		t.Errorf("dev cluster: %s from %s", got, origin)
	}
	if got, _ := resolve("c:1"); got != "c:1" {
		t.Errorf("named: %s", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v %v, want mode 0600 as it holds a token", info.Mode(), err)
	}
	state.PID = 0
	if err := state.write(path); err != nil {
		t.Fatal(err)
	}
	if got, _ := resolve(); got != defaultGRPC {
		t.Errorf("dev cluster that has ended: %s", got)
	}
}

func TestInterruptedCommandSaysSo(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := s.runCtx(ctx, "instances", "--endpoint", freeAddress(t)); r.code != exitInterrupted || r.stderr != "interrupted\n" {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
}

func TestStatusWaitGivesUpInTime(t *testing.T) {
	t.Parallel()
	r := newShell(t).run("status", "--wait", "--timeout", "300ms", "--endpoint", freeAddress(t))
	if r.code != exitUnreachable && r.code != exitTimeout {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
}

// get asks the port for operations.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	return getAs(t, "", url)
}

// getAs is get with a token.
func getAs(t *testing.T, token, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := oneShot().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}
