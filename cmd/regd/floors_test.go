package main

import (
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// floors are the oldest versions without a known hole, as SECURITY.md lists them.
var floors = map[string]string{
	// Authorization bypass by a path without a slash (CVE-2026-33186); bypass of the fix of rapid reset (GHSA-hrxh-6v49-42gf).
	"google.golang.org/grpc": "v1.82.1",
	// Endless loop on some JSON (CVE-2024-24786).
	"google.golang.org/protobuf": "v1.33.0",
	// CONTINUATION flood of HTTP/2 (CVE-2023-45288).
	"golang.org/x/net": "v0.23.0",
	// No known hole; the version whose behaviour cluster/peer was built and tortured with.
	"github.com/hashicorp/raft": "v1.7.3",
}

func TestDependenciesAreNotBelowTheirFloors(t *testing.T) {
	t.Parallel()
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("the binary does not know what it is made of")
	}
	found := map[string]string{}
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			t.Errorf("%s is replaced by %s", dep.Path, dep.Replace.Path)
		}
		found[dep.Path] = dep.Version
	}
	security, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	for path, floor := range floors {
		if v := found[path]; slices.Compare(release(t, v), release(t, floor)) < 0 {
			t.Errorf("%s is %q, at least %s is needed", path, v, floor)
		}
		if !strings.Contains(string(security), "`"+path+"` "+floor) {
			t.Errorf("SECURITY.md does not name the floor %s of %s", floor, path)
		}
	}
	listed := regexp.MustCompile("(?m)^- `[a-z].*` v").FindAllString(string(security), -1)
	if len(listed) != len(floors) {
		t.Errorf("SECURITY.md lists %d floors, here are %d", len(listed), len(floors))
	}
}

// release takes a version apart: major, minor, patch. Of a pre-release it is the one before.
func release(t *testing.T, version string) []int {
	t.Helper()
	n := make([]int, 3)
	if _, err := fmt.Sscanf(version, "v%d.%d.%d", &n[0], &n[1], &n[2]); err != nil {
		t.Errorf("version %q: %v", version, err)
	}
	if strings.Contains(version, "-") {
		n = append(n[:2], n[2]-1)
	}
	return n
}
