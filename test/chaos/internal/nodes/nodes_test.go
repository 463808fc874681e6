package nodes_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/disksim"
	"github.com/regd-io/regd/test/chaos/internal/netsim"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

func TestMain(m *testing.M) {
	code := m.Run()
	nodes.Cleanup()
	os.Exit(code)
}

// start starts a cluster on a network and disks of its own.
func start(t *testing.T, count int) (*nodes.Cluster, *netsim.Network) {
	t.Helper()
	nodes.Alone(t)
	nodes.Require(t, netsim.Probe(), disksim.Probe(), disksim.ProbePowerLoss())
	nodes.Binary(t) // Not what is timed.
	began := time.Now()
	n := netsim.New(t, count, 1, 1)
	c := nodes.StartWith(t, count, nodes.Options{Net: n, DiskSize: disksim.DefaultSize})
	t.Logf("%d nodes were ready after %v", count, time.Since(began).Round(time.Millisecond))
	return c, n
}

// register writes an instance through a node, until it is acknowledged or ctx ends.
func register(ctx context.Context, n *nodes.Node, id string) error {
	for sequence := uint64(1); ; sequence++ {
		callCtx, cancel := context.WithTimeout(ctx, time.Second)
		_, err := n.Registry().Register(callCtx, &apiv1.RegisterRequest{
			Instance: &registryv1.Instance{Service: "s", Id: id, Address: "127.0.0.1"},
		})
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func has(ctx context.Context, n *nodes.Node, id string) error {
	_, err := n.Registry().Get(ctx, &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "s", Id: id}})
	return err
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnIsolatedLeaderIsReplacedAndComesBack(t *testing.T) {
	c, net := start(t, 5)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	old := c.Leader()
	check(t, register(ctx, old, "before"))
	cut := time.Now()
	net.Isolate(old.Name)
	next := c.Leader(old)
	check(t, register(ctx, next, "meanwhile"))
	t.Logf("a write %v after the cut", time.Since(cut).Round(time.Millisecond))
	for _, n := range c.Nodes() {
		if n == old {
			continue
		}
		if net.Counts(old.Name, n.Name).Cut == 0 || net.Counts(n.Name, old.Name).Cut == 0 {
			t.Errorf("nothing was dropped between %s and %s", old.Name, n.Name)
		}
	}
	healed := time.Now()
	net.Heal()
	c.Ready()
	t.Logf("all ready %v after it was healed", time.Since(healed).Round(time.Millisecond))
	check(t, has(ctx, old, "meanwhile"))
}

func TestAcknowledgedWritesSurviveThatAllLosePower(t *testing.T) {
	c, _ := start(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	var acked []string
	writing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, n := range c.Nodes() {
		wg.Go(func() {
			for k := 0; ; k++ {
				id := fmt.Sprintf("%d-%d", i, k)
				if register(writing, n, id) != nil {
					return
				}
				mu.Lock()
				acked = append(acked, id)
				mu.Unlock()
			}
		})
	}
	c.Wait("some writes", 20*time.Second, func(context.Context) bool {
		mu.Lock()
		defer mu.Unlock()
		return len(acked) > 100
	})
	nodes.LosePower(c.Nodes()...)
	stop()
	wg.Wait()
	for _, n := range c.Nodes() {
		t.Logf("%s: %s", n.Name, n.Ended())
		n.Start()
	}
	c.Ready()
	for _, id := range acked {
		if err := has(ctx, c.Nodes()[0], id); err != nil {
			t.Errorf("the acknowledged write %s: %v", id, err)
		}
	}
	t.Logf("%d acknowledged writes were looked for", len(acked))
}

func TestANodeThatCantStartSaysWhy(t *testing.T) {
	c := nodes.Start(t, 1)
	n := c.Nodes()[0]
	n.Terminate(20 * time.Second)
	if got := n.WaitEnd(time.Second); got != 0 || n.Ended() != "exit status 0" {
		t.Errorf("after SIGTERM: %d, %s", got, n.Ended())
	}
	check(t, disksim.Truncate(filepath.Join(n.Dir, "raft.db"), 2*4096))
	n.Start()
	if got := n.WaitEnd(20 * time.Second); got != 73 || n.Ended() != "exit status 73" {
		t.Errorf("with a damaged database: %d, %s", got, n.Ended())
	}
	if log := n.Log(20); !strings.Contains(log, "raft.db") {
		t.Errorf("the log does not name the file:\n%s", log)
	}
}

func TestAStarvedProcessIsHeldBack(t *testing.T) {
	nodes.Alone(t)
	c := nodes.Start(t, 1)
	n := c.Nodes()[0]
	busy := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = register(ctx, n, strconv.Itoa(i)) // Only the load counts.
				}
			})
		}
		return func() { cancel(); wg.Wait() }
	}
	for name, starve := range map[string]func(float64) func() int{
		"quota": n.Starve, "turns": n.StarveByTurns,
	} {
		t.Run(name, func(t *testing.T) {
			stop := busy()
			defer stop()
			ticks := processorTime(t, n.PID())
			end := starve(0.1)
			time.Sleep(2 * time.Second)
			if held := end(); held < 5 {
				t.Errorf("it was held back %d times in 2s, want at least 5", held)
			}
			used := processorTime(t, n.PID()) - ticks
			t.Logf("it has used %v of processor time in 2s", used)
			c.Wait("the process to run", 5*time.Second, func(ctx context.Context) bool { return register(ctx, n, "x") == nil })
		})
	}
	n.Starve(0.5)() // Once more: nothing is in the way.
	end := n.Starve(0.5)
	n.Kill()
	end()
}

// processorTime is how long a process has run on processors.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	check(t, err)
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	const user, system, perSecond = 11, 12, 100
	u, err1 := strconv.Atoi(fields[user])
	s, err2 := strconv.Atoi(fields[system])
	check(t, errors.Join(err1, err2))
	return time.Duration(u+s) * time.Second / perSecond
}

// killMe makes the test below the harness that is killed: its value is the binary to run.
const killMe = "NODES_TEST_KILL_ME"

func TestAKilledHarnessTakesItsNodesAlongAndTheNextCleansUp(t *testing.T) {
	if binary := os.Getenv(killMe); binary != "" {
		n := nodes.StartWith(t, 1, nodes.Options{
			Binary: binary, Net: netsim.New(t, 1, 1, 1), DiskSize: disksim.DefaultSize,
		}).Nodes()[0]
		fmt.Printf("node %d %s\n", n.PID(), n.Disk.Dir)
		select {} // Until it is killed.
	}
	nodes.Alone(t)
	nodes.Require(t, netsim.Probe(), disksim.Probe(), disksim.ProbePowerLoss())
	harness := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	harness.Env = append(os.Environ(), killMe+"="+nodes.Binary(t), "TMPDIR="+t.TempDir())
	harness.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := harness.StdoutPipe()
	check(t, err)
	check(t, harness.Start())
	var pid int
	var disk string
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "node %d %s", &pid, &disk) // Other lines are the testing package's.
	}
	if pid == 0 {
		t.Fatalf("no node was started: %v", harness.Wait())
	}
	check(t, harness.Process.Kill())
	_ = harness.Wait() // Killed.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		command, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if readErr != nil || len(command) == 0 { // Empty: it has ended, and nobody has asked how.
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the node's process still runs: %q", command)
		}
	}
	start(t, 1)
	mounts, err := os.ReadFile("/proc/self/mounts")
	check(t, err)
	if strings.Contains(string(mounts), disk) {
		t.Errorf("%s is still mounted", disk)
	}
	names, err := os.ReadDir("/run/netns")
	check(t, err)
	for _, name := range names {
		if strings.Contains(name.Name(), fmt.Sprintf("-%d-", harness.Process.Pid)) {
			t.Errorf("namespace %s is still there", name.Name())
		}
	}
}
