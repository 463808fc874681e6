package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestAccessIsAdministeredByCommands(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	as := func(name string) {
		delete(s.env, "REGD_TOKEN_FILE")
		if name != "" {
			s.env["REGD_TOKEN_FILE"] = file(name)
		}
	}
	fails := func(code exitCode, says string, args ...string) {
		t.Helper()
		if r := s.run(args...); r.code != code || !strings.Contains(r.stderr, says) {
			t.Errorf("regd %s: %d, want %d that says %q:\n%s", strings.Join(args, " "), r.code, code, says, r.stderr)
		}
	}
	if got := s.ok("access", "whoami"); !strings.Contains(got, "anonymous") || !strings.Contains(got, "access control is off") {
		t.Errorf("whoami at first:\n%s", got)
	}
	s.expect("", s.ok("access", "bootstrap", "--out", file("root")))
	info, err := os.Stat(file("root"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v, %v", info.Mode(), err)
	}
	fails(exitUsage, "file exists", "access", "bootstrap", "--out", file("root"))
	fails(exitConflict, "was bootstrapped before", "access", "bootstrap", "--out", file("again"))
	if _, err = os.Stat(file("again")); err == nil {
		t.Error("an order that failed left a file")
	}
	fails(exitDenied, "hint: regd access whoami", "services")
	as("root")
	s.expect("policy/payment put\n", s.ok("access", "policies", "put", "payment", "--rule", "register:default/payment", "--rule", "discover:*/*"))
	s.expect("policy/payment unchanged\n", s.ok("access", "policies", "put", "payment", "--rule", "register:default/payment", "--rule", "discover:*/*"))
	fails(exitUsage, `unknown action "registr"; did you mean "register"?`, "access", "policies", "put", "p", "--rule", "registr:a/b")
	fails(exitUsage, "NAMESPACE/NAME", "access", "policies", "put", "p", "--rule", "register:a")
	fails(exitUsage, "regd access grants put: missing POLICY", "access", "grants", "put", "shop")
	fails(exitUsage, "needs a --rule", "access", "policies", "put", "p")
	fails(exitUsage, "is required", "access", "policies", "put", "p", "--rule", "register")
	s.expect("grant/shop put\n", s.ok("access", "grants", "put", "shop", "payment"))
	s.ok("access", "tokens", "create", "shop", "--expires", "1h", "--description", "for tests", "--out", file("shop"))
	token := s.ok("access", "tokens", "create", "shop")
	if !regexp.MustCompile(`^regd_[a-z0-9]+_[A-Za-z0-9_-]{43}\n$`).MatchString(token) {
		t.Errorf("a token is %q", token)
	}
	tokens := s.ok("access", "tokens", "-o", "wide")
	if strings.Count(tokens, "shop") != 2 || strings.Contains(tokens, strings.Split(strings.TrimSpace(token), "_")[2]) ||
		!regexp.MustCompile(`shop +\d{4}-.*Z +for tests .* operator`).MatchString(tokens) {
		t.Errorf("tokens:\n%s", tokens)
	}

	as("shop")
	who := s.ok("access", "whoami")
	for _, part := range []string{"shop  (token:", "the token ends in ", "may register:default/payment", "by policy payment", "may discover:*/*"} {
		if !strings.Contains(who, part) {
			t.Errorf("whoami lacks %q:\n%s", part, who)
		}
	}
	s.ok("register", "payment", "--id", "p1", "--address", "10.0.0.1", "--port", "http=80", "--detach")
	fails(exitDenied, "identity shop may not register default/web", "register", "web", "--id", "w1", "--address", "10.0.0.1", "--detach")
	fails(exitDenied, "may not observe", "status")
	fails(exitDenied, "may not administer", "access", "tokens")

	as("")
	s.env["REGD_TOKEN"] = strings.TrimSpace(token)
	if got := s.ok("access", "whoami"); !strings.HasPrefix(got, "shop ") {
		t.Errorf("with $REGD_TOKEN:\n%s", got)
	}
	s.env["REGD_TOKEN"] = "regd_x"
	fails(exitUsage, "must look like regd_ID_SECRET", "access", "whoami")
	delete(s.env, "REGD_TOKEN")
	as("root")
	id := strings.Split(strings.TrimSpace(token), "_")[1]
	s.expect("token/"+id+" deleted\n", s.ok("access", "tokens", "delete", id))
	s.expect("token/"+id+" unchanged\n", s.ok("access", "tokens", "delete", id))
	as("")
	s.env["REGD_TOKEN"] = strings.TrimSpace(token)
	fails(exitDenied, "nobody has this token", "services")
	delete(s.env, "REGD_TOKEN")

	as("root")
	s.ok("access", "grants", "put", "anonymous", "reader")
	as("")
	if got := s.ok("services"); !strings.Contains(got, "payment") {
		t.Errorf("services for everybody:\n%s", got)
	}
	as("root")
	if got := s.ok("access", "grants"); !regexp.MustCompile(`(?s)anonymous +reader\n.*operator +operator\n.*shop +payment\n`).MatchString(got) {
		t.Errorf("grants:\n%s", got)
	}
	s.expect("grant/anonymous deleted\n", s.ok("access", "grants", "delete", "anonymous"))
	s.expect("policy/payment deleted\n", s.ok("access", "policies", "delete", "payment"))
	fails(exitUsage, "is that of a built-in policy", "access", "policies", "delete", "operator")
	as("shop")
	if got := s.ok("access", "whoami"); !strings.Contains(got, "may do nothing") {
		t.Errorf("whoami without a policy:\n%s", got)
	}
	as("root")
	s.ok("access", "disable", "--yes")
	as("")
	s.ok("services")
	as("root")
	s.expect("access enabled\n", s.ok("access", "enable"))
	as("")
	fails(exitDenied, "", "services")
}

func TestRulesAreReadAsTheyAreShown(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]*registryv1.Rule{
		"register:default/pay-*": {Actions: []registryv1.Action{registryv1.Action_ACTION_REGISTER}, Namespace: "default", Name: "pay-*"},
		"see-lock,lock:*/jobs/a": {
			Actions: []registryv1.Action{registryv1.Action_ACTION_SEE_LOCK, registryv1.Action_ACTION_LOCK}, Namespace: "*", Name: "jobs/a",
		},
		"observe,operate": {Actions: []registryv1.Action{registryv1.Action_ACTION_OBSERVE, registryv1.Action_ACTION_OPERATE}},
	} {
		got, err := parseRule(text)
		if err != nil || cmp.Diff(want.String(), got.String()) != "" {
			t.Errorf("%q is read as %v, %v", text, got, err)
		} else if back := ruleText(got); back != text {
			t.Errorf("%q is shown as %q", text, back)
		}
	}
}

func TestOpsPortAsksWhoMay(t *testing.T) {
	t.Parallel()
	s, address := startNode(t)
	check := func(when, token string, want map[string]int) {
		t.Helper()
		for path, code := range want {
			if got, body := getAs(t, token, "http://"+address+path); got != code {
				t.Errorf("%s: %s is %d, want %d: %s", when, path, got, code, body)
			}
		}
	}
	check("while access control is off", "", map[string]int{"/readyz": 200, "/metrics": 200, "/debug/pprof/heap": 200})
	root := filepath.Join(t.TempDir(), "root")
	s.ok("access", "bootstrap", "--out", root)
	token, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	s.env["REGD_TOKEN_FILE"] = root
	s.ok("access", "grants", "put", "prometheus", "observer")
	scraper := strings.TrimSpace(s.ok("access", "tokens", "create", "prometheus"))
	check("nobody", "", map[string]int{"/livez": 200, "/readyz": 200, "/metrics": 403, "/debug/pprof/heap": 403})
	check("with a wrong token", "regd_x_y", map[string]int{"/readyz": 200, "/metrics": 401})
	check("the scraper", scraper, map[string]int{"/metrics": 200, "/debug/pprof/heap": 403})
	check("the operator", strings.TrimSpace(string(token)), map[string]int{"/metrics": 200, "/debug/pprof/heap": 200})
}
