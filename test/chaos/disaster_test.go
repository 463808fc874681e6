package chaos_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestTheDisasterRunbookBringsTheRegistryBack: of three nodes two lose their disks, under load. The commands of
// docs/operations.md, as they stand there, bring the cluster back: with every acknowledged write that had reached the disk
// which is left, with three members, for writers, watchers and services that never noticed whose cluster it is. A node with
// the data of the former cluster then disturbs nothing (G1, G9).
func TestTheDisasterRunbookBringsTheRegistryBack(t *testing.T) {
	nodes.Alone(t)
	c := nodes.Start(t, 3)
	n1, n2, n3 := c.Node("n1"), c.Node("n2"), c.Node("n3")
	v := observe(t, newClient(t, c.Addresses()))
	service := newClient(t, c.Addresses(), client.WithSessionTTL(5*time.Second))
	if _, err := service.Register(t.Context(), &registryv1.Instance{Service: "alive", Id: "a", Address: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	w := load(t, c.Addresses(), 8)
	w.progress(c)
	n3.Kill() // From now on it takes n1 and n2 to acknowledge a write: n1 has them all.
	w.progress(c)
	w.progress(c)
	n2.Kill() // In the middle of writes: of the last ones n1 may not know that they were committed.
	acked := w.counts()
	w.done.Store(true)
	former := filepath.Join(t.TempDir(), "former")
	if err := os.Rename(n3.Dir, former); err != nil {
		t.Fatal(err)
	}
	n2.Wipe()
	w.wg.Wait() // Their last calls fail: nobody can acknowledge them.
	for _, by := range w.writers {
		by.refused, by.unknown = nil, nil
	}

	begun := time.Now()
	followed := follow(t, c, "Disaster")
	t.Logf("%d commands were followed, in %v", followed, time.Since(begun).Round(time.Millisecond))
	all := newCLI(t, c.Addresses()...)
	all.awaitVoters(t, c, n1, n2, n3)
	t.Logf("acknowledged before the disaster, by writer: %d", acked)
	w.judge(t, newClient(t, c.Addresses()))

	again := load(t, c.Addresses(), 1)
	again.rest.Store(int64(20 * time.Millisecond))
	again.progress(c)

	// The disk of n3 turns up, and is put back.
	n3.Terminate(30 * time.Second)
	present := n3.Dir + ".present"
	move(t, n3.Dir, present)
	move(t, former, n3.Dir)
	n3.Start()
	rest := newCLI(t, n1.GRPC, n2.GRPC) // n3 would answer for the former cluster, of which it is a member still.
	before := again.count()
	c.Wait("n3 to be refused", 20*time.Second, func(context.Context) bool {
		return again.count() > before+10 && strings.Contains(n3.Log(200), "foreign cluster")
	})
	for _, m := range rest.members(t) {
		if m.Name == "n3" && m.Reachable {
			t.Errorf("n3 is counted as reachable although it has the data of the former cluster: %+v", m)
		}
	}
	n3.Terminate(30 * time.Second)
	move(t, n3.Dir, former)
	move(t, present, n3.Dir)
	n3.Start()
	all.awaitVoters(t, c, n1, n2, n3)
	again.judge(t, newClient(t, c.Addresses()))
	c.Wait("the service to be there", 20*time.Second, func(ctx context.Context) bool {
		have, err := newClient(t, c.Addresses()).Instances(ctx, client.Filter{Service: "alive"})
		return err == nil && len(have.Instances) == 1
	})
	v.shows(t, newClient(t, c.Addresses()), c.Wait) // All was told anew: the epoch is another.
	verify(t, c)
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// follow does what the first code blocks below a heading of docs/operations.md say, up to the first that is for kubectl. A
// line of the form "# n1 n2" says on which nodes the commands below it are run, "# anywhere" that it does not matter.
// systemctl is played by starting and stopping processes, the data folder is each node's own, and whoever would be asked
// says --yes. It returns how many commands were run; each must succeed.
func follow(t *testing.T, c *nodes.Cluster, heading string) (followed int) {
	t.Helper()
	on := []*nodes.Node{nil}
	for _, line := range commands(t, heading) {
		if where, comment := strings.CutPrefix(line, "# "); comment {
			on = on[:0]
			for name := range strings.FieldsSeq(where) {
				on = append(on, c.Node(name)) // nil: anywhere
			}
			continue
		}
		for _, n := range on {
			operate(t, c, n, line)
			followed++
		}
	}
	if followed == 0 {
		t.Fatalf("docs/operations.md has no commands below %q", heading)
	}
	return followed
}

// commands are the lines of the code blocks of a section.
func commands(t *testing.T, heading string) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("docs/operations.md has no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var lines []string
	for i, block := range strings.Split(section, "```") {
		if i%2 == 0 {
			continue
		}
		if strings.HasPrefix(strings.TrimSpace(block), "kubectl") {
			break
		}
		lines = append(lines, strings.Split(strings.TrimSpace(block), "\n")...)
	}
	return lines
}

// operate runs one command line on a node.
func operate(t *testing.T, c *nodes.Cluster, n *nodes.Node, line string) {
	t.Helper()
	name := "anywhere"
	if n != nil {
		name = n.Name
		line = strings.ReplaceAll(line, "/var/lib/regd/node", n.Dir)
	}
	t.Logf("%s: %s", name, line)
	switch {
	case line == "systemctl stop regd":
		if n.Running() {
			n.Terminate(60 * time.Second)
		}
		return
	case line == "systemctl start regd":
		n.Start()
		return
	case strings.HasPrefix(line, "regd recover ") && !strings.Contains(line, "--dry-run"):
		line += " --yes"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-euc", line) //nolint:gosec // Ours.
	cmd.Env = append(os.Environ(), "PATH="+binaries(t)+":"+os.Getenv("PATH"))
	endpoints := c.Addresses()
	if n != nil {
		endpoints = []string{n.GRPC}
	}
	cmd.Env = append(cmd.Env, "REGD_ENDPOINTS="+strings.Join(endpoints, ","))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", name, line, err, out)
	}
	if strings.TrimSpace(string(out)) != "" {
		t.Logf("%s", out)
	}
}

// binaries is the folder of the regd binary.
func binaries(t *testing.T) string {
	t.Helper()
	return filepath.Dir(nodes.Binary(t))
}
