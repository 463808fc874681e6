package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// Exit codes of the command line.
const (
	exitUnreachable = 5
	exitUnknown     = 9
)

// cli is the command line in the hands of somebody who knows some addresses.
type cli struct {
	binary    string
	endpoints string
}

func newCLI(t *testing.T, endpoints ...string) cli {
	t.Helper()
	return cli{nodes.Binary(t), strings.Join(endpoints, ",")}
}

// run runs a command to its end and returns what it printed. The error of a command that failed is an *exec.ExitError.
func (c cli) run(ctx context.Context, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, c.binary, append(args, "--endpoint", c.endpoints)...).Output() //nolint:gosec // Ours.
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return nil, fmt.Errorf("regd %s: %w: %s", strings.Join(args, " "), err, failed.Stderr)
	}
	return out, err
}

// register is a write of a load: a process for each.
func (c cli) register(ctx context.Context, id string) error {
	_, err := c.run(ctx, "register", "load", "--id", id, "--address", "127.0.0.1", "--detach")
	return err
}

// must is run; the test fails unless the command succeeds.
func (c cli) must(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := c.run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// member is what `regd members list -o json` says of a node: a part of it.
type member struct {
	Name, Role, Suffrage string
	Reachable            bool
}

func (c cli) members(t *testing.T) []member {
	t.Helper()
	var list struct{ Members []member }
	if err := json.Unmarshal(c.must(t, "members", "list", "-o", "json"), &list); err != nil {
		t.Fatal(err)
	}
	return list.Members
}

// leader waits until a node is listed as the leader.
func (c cli) leader(t *testing.T, cluster *nodes.Cluster) *nodes.Node {
	t.Helper()
	var leader *nodes.Node
	cluster.Wait("a listed leader", 20*time.Second, func(context.Context) bool {
		for _, m := range c.members(t) {
			if m.Role == "leader" {
				leader = cluster.Node(m.Name)
			}
		}
		return leader != nil
	})
	return leader
}

// awaitVoters waits until exactly these nodes are listed, and each votes and answers.
func (c cli) awaitVoters(t *testing.T, cluster *nodes.Cluster, want ...*nodes.Node) {
	t.Helper()
	cluster.Wait(fmt.Sprintf("%d voters", len(want)), 30*time.Second, func(context.Context) bool {
		listed := c.members(t)
		for _, m := range listed {
			if m.Suffrage != "voter" || !m.Reachable || !slices.Contains(want, cluster.Node(m.Name)) {
				return false
			}
		}
		return len(listed) == len(want)
	})
}

// exitCode is the exit code of a command's error; 0: it is no such error.
func exitCode(err error) int {
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return failed.ExitCode()
	}
	return 0
}

// saysRemoved tells whether a command was refused in as many words because its node was removed.
func saysRemoved(err error) bool {
	return exitCode(err) == exitUnreachable && strings.Contains(err.Error(), "was removed from the cluster")
}
