package client_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// module is this module's path.
const module = "github.com/regd-io/regd"

// TestWhatUsersLink checks that no package for users links raft, a store, or a server's package, that only regdotel links
// OpenTelemetry, and that it links the API alone.
func TestWhatUsersLink(t *testing.T) {
	t.Parallel()
	packages := linked(t)
	for _, name := range []string{"", "/discovery", "/balance", "/regdhttp", "/regdgrpc", "/lifecycle", "/election", "/regdotel"} {
		if len(packages[module+"/client"+name]) == 0 {
			t.Errorf("package client%s was not found", name)
		}
	}
	for name, deps := range packages {
		for _, fault := range faults(name, deps) {
			t.Error(fault)
		}
	}
}

// What the test above relies on: each kind of fault is found.
func TestWrongLinksAreFound(t *testing.T) {
	t.Parallel()
	for dep, users := range map[string][2]int{ // how many faults in client, and in regdotel
		"github.com/hashicorp/raft": {1, 1}, "go.etcd.io/bbolt": {1, 1}, module + "/fsm": {1, 1}, module + "/cluster/storage": {1, 1},
		module + "/rpc": {1, 1}, "go.opentelemetry.io/otel": {1, 0}, "go.opentelemetry.io/otel/sdk/metric": {1, 1},
		"go.opentelemetry.io/otel/exporters/prometheus": {1, 1}, module + "/client/internal/livetest": {1, 1},
		module + "/proto/api/v1": {}, module + "/client/balance": {}, "google.golang.org/grpc": {}, "net/http": {},
	} {
		for i, name := range []string{module + "/client", module + "/client/regdotel"} {
			if got := faults(name, []string{dep}); len(got) != users[i] {
				t.Errorf("%s in %s: faults %v, want %d", dep, name, got, users[i])
			}
		}
	}
}

// faults are the packages that one must not link.
func faults(name string, deps []string) (found []string) {
	for _, dep := range deps {
		own, ours := strings.CutPrefix(dep, module+"/")
		telemetry := strings.HasPrefix(dep, "go.opentelemetry.io/")
		// Of the rest, auto/sdk is linked by the API itself.
		api := !strings.Contains(dep, "/otel/sdk") && !strings.Contains(dep, "/exporters/") && !strings.Contains(dep, "/contrib/")
		switch {
		case strings.HasPrefix(dep, "github.com/hashicorp/"), strings.HasPrefix(dep, "go.etcd.io/"),
			ours && !strings.HasPrefix(own, "client") && !strings.HasPrefix(own, "proto/"),
			ours && strings.HasPrefix(own, "client/internal/"),
			telemetry && (!api || name != module+"/client/regdotel"):
			found = append(found, name+" links "+dep)
		}
	}
	return found
}

// linked returns what each package links, all the way down. Those for tests are left out.
func linked(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Deps", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	packages := make(map[string][]string)
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Deps       []string
		}
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(p.ImportPath, "/internal/") {
			packages[p.ImportPath] = p.Deps
		}
	}
}
