package deploy

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// root is the folder of the repository.
const root = "../.."

// What all tests share.
var (
	regd    string // path of the binary under test
	waiting *node  // waits for another node, for ever
	alone   *node  // a cluster of one, with TLS between nodes
)

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func testMain(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "regd-deploy")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // Nothing depends on it.
	regd = filepath.Join(dir, "regd")
	const limit = 5 * time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	// As make build does it, which has compiled all of it before.
	build := []string{"build", "-trimpath", "-buildvcs=false", "-o", regd, "./cmd/regd"}
	if _, err = run(ctx, []string{"CGO_ENABLED=0"}, "go", build...); err != nil {
		return 1, err
	}
	if waiting, err = startNode(ctx, filepath.Join(dir, "waiting"), "--join", "127.0.0.1:1"); err != nil {
		return 1, err
	}
	defer waiting.stop()
	tls := filepath.Join(dir, "tls")
	if _, err = run(ctx, nil, regd, "tls", "init", "--out", tls, "--trust-domain", "test.example", "--node", "n1=127.0.0.1"); err != nil {
		return 1, err
	}
	if alone, err = startNode(ctx, filepath.Join(dir, "alone"), "--peer-tls-cert", filepath.Join(tls, "n1.crt"),
		"--peer-tls-key", filepath.Join(tls, "n1.key"), "--peer-tls-ca", filepath.Join(tls, "ca.crt")); err != nil {
		return 1, err
	}
	defer alone.stop()
	if err = alone.checksItself(ctx); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// statusOf is what a node that waits for others answers on its port for operations.
func statusOf(t *testing.T, path string) int {
	t.Helper()
	code, _, err := waiting.get(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// run runs a command in the folder of the repository and returns its stdout.
func run(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// kustomize renders a folder of deploy/kubernetes.
func kustomize(t *testing.T, folder string) []object {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).
		Run(filesys.MakeFsOnDisk(), filepath.Join(root, "deploy/kubernetes", folder))
	if err != nil {
		t.Fatal(err)
	}
	text, err := made.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, string(text))
}

// helm renders the chart with values as YAML in the namespace regd.
func helm(t *testing.T, values string) []object {
	t.Helper()
	text, err := renderChart(values)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, text)
}

// renderings are all ways to get manifests that the documentation names.
func renderings() map[string]func(t *testing.T) []object {
	kustomized := func(folder string) func(*testing.T) []object {
		return func(t *testing.T) []object { t.Helper(); return kustomize(t, folder) }
	}
	charted := func(values string) func(*testing.T) []object {
		return func(t *testing.T) []object { t.Helper(); return helm(t, values) }
	}
	return map[string]func(t *testing.T) []object{
		"kustomize insecure":   kustomized("overlays/insecure"),
		"kustomize dev":        kustomized("overlays/dev"),
		"kustomize production": kustomized("overlays/production"),
		"helm insecure":        charted("insecure: true"),
		"helm production":      func(t *testing.T) []object { t.Helper(); return helm(t, read(t, productionValues)) },
		"helm everything":      func(t *testing.T) []object { t.Helper(); return helm(t, read(t, everyValue)) },
	}
}

// Files of values that lie beside the chart.
const (
	productionValues = "deploy/helm/regd/ci/production.yaml"
	everyValue       = "deploy/helm/regd/ci/everything.yaml"
)
