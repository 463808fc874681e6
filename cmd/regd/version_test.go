package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestVersionTellsTheBuild(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	if got := s.ok("version"); !strings.HasPrefix(got, "regd v1.2.3\ncommit abc\n") {
		t.Errorf("version: %q", got)
	}
	if v := decode[buildInfo](t, s.ok("version", "-o", "json")); v.Version != "v1.2.3" || v.Commit != "abc" {
		t.Errorf("version %+v", v)
	}
	if b := (buildInfo{Version: "devel"}).complete(); b.Go == "" || b.OS == "" || b.Version == "" {
		t.Errorf("build %+v", b)
	}
}

func TestVersionCheckComparesWithTheNodes(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	if got := s.ok("version", "--check"); !regexp.MustCompile(`^regd v1.2.3\n(?s:.*)\nNODE +VERSION\nn1 +v1.2.3\n$`).MatchString(got) {
		t.Errorf("printed %q", got)
	}
	type checked struct {
		Version string
		Same    bool
		Nodes   []nodeVersion
	}
	for version, want := range map[string]exitCode{"v1.2.3": exitOK, "v1.3.0": exitDegraded} {
		var stdout, stderr syncBuffer
		a := s.app(&stdout, &stderr)
		a.build.Version = version
		code := exitCode(a.run(t.Context(), []string{"version", "--check", "-o", "json"}))
		v := decode[checked](t, stdout.String())
		if code != want || v.Version != version || v.Same != (want == exitOK) || len(v.Nodes) != 1 || v.Nodes[0] != (nodeVersion{"n1", true, "v1.2.3"}) {
			t.Errorf("exit code %d, %+v", code, v)
		}
		if warned := strings.Contains(stderr.String(), "this binary is "+version+", n1 has v1.2.3"); warned == v.Same {
			t.Errorf("stderr %q", stderr.String())
		}
	}
	if r := newShell(t).run("version", "--check", "--timeout", "300ms", "--endpoint", freeAddress(t)); r.code != exitUnreachable {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
}
