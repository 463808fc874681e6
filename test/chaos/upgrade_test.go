package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestARollingUpgradeFailsNoWrite: three nodes of the previous version are replaced one after the other by the present one, on
// the same data, the leader last, while writers write some 200 times a second and a watcher watches; and back again, if both
// have the same feature level. No write fails, nothing acknowledged is lost, there is never a gap of two seconds between two
// acknowledgements, the watch has neither gap nor repeat, and the replicas are equal (G1, G4, G10, G11).
//
// CHAOS_PREVIOUS is another commit, branch or tag to come from.
func TestARollingUpgradeFailsNoWrite(t *testing.T) {
	nodes.Alone(t)
	const (
		writers = 16
		rest    = 60 * time.Millisecond // and what each write takes
		gap     = 2 * time.Second
	)
	ref, err := previous(t)
	nodes.Require(t, err)
	old, present := buildOf(t, ref), nodes.Binary(t)
	c := nodes.StartWith(t, 3, nodes.Options{Binary: old})
	all := newCLI(t, c.Addresses()...)
	from := all.versions(t)
	v := observe(t, newClient(t, c.Addresses()))
	w := load(t, c.Addresses(), writers)
	w.rest.Store(int64(rest))
	w.progress(c)
	begun, before := time.Now(), w.count()
	replace(t, c, w, present)
	to := all.versions(t)
	if slices.Equal(from, to) {
		t.Errorf("the nodes are %v before and after the upgrade: nothing was tried", from)
	}
	if from[0].Level == to[0].Level {
		replace(t, c, w, old)
	} else {
		t.Logf("level %d became %d: there is no way back", from[0].Level, to[0].Level)
	}
	took := time.Since(begun)
	acked := w.count() - before
	w.judge(t, newClient(t, c.Addresses()))
	t.Logf("from %s: %d writes were acknowledged in %v, %.0f a second, longest gap %v",
		ref, acked, took.Round(time.Millisecond), float64(acked)/took.Seconds(), w.longest.Round(time.Millisecond))
	if w.longest > gap {
		t.Errorf("no write was acknowledged for %v, at most %v are allowed", w.longest, gap)
	}
	v.equals(t, newClient(t, c.Addresses()), c.Wait)
	verify(t, c)
}

// replace restarts all nodes with another binary on the data that they have, the leader last.
func replace(t *testing.T, c *nodes.Cluster, w *writes, binary string) {
	t.Helper()
	order := slices.Clone(c.Nodes())
	leader := c.Leader()
	slices.SortStableFunc(order, func(a, b *nodes.Node) int {
		switch leader {
		case a:
			return 1
		case b:
			return -1
		}
		return 0
	})
	for _, n := range order {
		n.Binary = binary
		n.Terminate(30 * time.Second)
		n.Start()
		c.Ready()
		w.progress(c)
	}
}

// version is what a member is.
type version struct {
	Name    string
	Version string
	Level   uint32 `json:"feature_level"`
}

func (c cli) versions(t *testing.T) []version {
	t.Helper()
	var list struct{ Members []version }
	if err := json.Unmarshal(c.must(t, "members", "list", "-o", "json"), &list); err != nil {
		t.Fatal(err)
	}
	return list.Members
}

// What the binary is built of.
func sources() []string {
	return []string{
		"cluster", "cmd", "fsm", "health", "proto", "rpc", "client", "go.mod",
		":(exclude,glob)**/*_test.go", ":(exclude,glob)**/testdata/**",
	}
}

// previous is the newest commit whose sources are not the present ones: that before the last change, which may not be
// committed yet. In a clone without so much history there is none.
func previous(t *testing.T) (string, error) {
	t.Helper()
	if ref := os.Getenv("CHAOS_PREVIOUS"); ref != "" {
		return ref, nil
	}
	changed, err := git(t, append([]string{"status", "--porcelain", "--"}, sources()...)...)
	if err != nil {
		return "", err
	}
	ref := "HEAD"
	if changed == "" {
		if ref, err = git(t, append([]string{"rev-list", "-1", "HEAD", "--"}, sources()...)...); err != nil {
			return "", err
		}
		ref += "^"
	}
	commit, err := git(t, "rev-parse", "--verify", "--short", ref+"^{commit}")
	if err != nil {
		return "", fmt.Errorf("this clone has no commit before the last change to upgrade from (git fetch --deepen 50, "+
			"or CHAOS_PREVIOUS=<commit>): %w", err)
	}
	return commit, nil
}

func git(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...) //nolint:gosec // Ours.
	cmd.Dir = "../.."
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, failed.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// buildOf builds regd as it was at a commit.
func buildOf(t *testing.T, commit string) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	tree := filepath.Join(dir, "tree.tar")
	if _, err := git(t, "archive", "--output", tree, commit); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "regd")
	for _, args := range [][]string{
		{"tar", "-xf", tree},
		{"go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=" + commit, "-o", binary, "./cmd/regd"},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // Ours.
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("build regd of %s: %s: %v\n%s", commit, args[0], err, out.String())
		}
	}
	return binary
}
