// Package nodes runs real regd processes for tests: it builds the binary once, starts clusters on free loopback ports
// with data in temporary folders, or on a network and disks of its own (Options), and kills, pauses, starves and restarts
// single nodes. It knows nothing of what is tested.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/chaos/internal/disksim"
	"github.com/regd-io/regd/test/chaos/internal/netsim"
)

// binary builds regd once for all tests of a process, with the flags of make build: what that has compiled is not compiled
// again.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "regd-test-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "regd")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path,
		"github.com/regd-io/regd/cmd/regd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build regd: %w\n%s", err, out)
	}
	return path, nil
})

// wanted tells that binary was called.
var wanted atomic.Bool

// Cleanup removes the binary, if there is one. For TestMain.
func Cleanup() {
	if !wanted.Load() {
		return
	}
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
}

// Binary returns the path of the regd binary.
func Binary(tb testing.TB) string {
	tb.Helper()
	wanted.Store(true)
	path, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// Options say where and how the nodes of a cluster run. The zero value is what Start does.
type Options struct {
	// Args are further flags of regd serve.
	Args []string
	// Binary is what is run. Default: Binary.
	Binary string
	// Env gives a node's further environment, as NAME=value, at each start.
	Env func(*Node) []string
	// Net is where the nodes are: at the places of their names. Without it they are on loopback.
	Net *netsim.Network
	// DiskSize is the size in bytes of a disk of each node's own. 0: none, the data is in a temporary folder.
	DiskSize int64
}

// Cluster is a set of regd processes. It is ended with the test.
type Cluster struct {
	tb      testing.TB
	dir     string
	options Options
	nodes   []*Node
}

// Node is one regd process, or the place of one that was stopped.
type Node struct {
	// Name is the node's name: n1, n2, ...
	Name string
	// GRPC, Peer and HTTP are its addresses.
	GRPC, Peer, HTTP string
	// Dir is its data folder.
	Dir string
	// Binary is what the next Start runs.
	Binary string
	// Disk is what Dir is on. Nil: it has none of its own.
	Disk *disksim.Disk

	c     *Cluster
	place *netsim.Endpoint // nil: on loopback
	args  []string
	cmd   *exec.Cmd
	done  chan struct{} // closed when the process has ended
	conn  *grpc.ClientConn
}

// Start starts n nodes that found a cluster and waits until all are ready. args are further flags of regd serve.
func Start(tb testing.TB, n int, args ...string) *Cluster {
	tb.Helper()
	return StartWith(tb, n, Options{Args: args})
}

// StartWith is Start with options.
func StartWith(tb testing.TB, n int, options Options) *Cluster {
	tb.Helper()
	if options.Binary == "" {
		options.Binary = Binary(tb)
	}
	c := &Cluster{tb: tb, dir: tb.TempDir(), options: options}
	tb.Cleanup(c.tell)
	var peers []string
	for range n {
		peers = append(peers, c.place().Peer)
	}
	for _, node := range c.nodes {
		node.args = []string{"--initial-peers", strings.Join(peers, ",")}
		node.Start()
	}
	c.Ready()
	return c
}

// Add starts a further node that belongs to no cluster yet.
func (c *Cluster) Add() *Node {
	c.tb.Helper()
	node := c.place()
	node.Start()
	return node
}

// place makes a node that is not started.
func (c *Cluster) place() *Node {
	c.tb.Helper()
	n := &Node{Name: fmt.Sprintf("n%d", len(c.nodes)+1), Binary: c.options.Binary, c: c}
	n.Dir = filepath.Join(c.dir, n.Name)
	if size := c.options.DiskSize; size > 0 {
		n.Disk = disksim.New(c.tb, c.dir, n.Name, size)
		n.Dir = filepath.Join(n.Disk.Dir, "data")
	}
	if c.options.Net == nil {
		n.GRPC, n.Peer, n.HTTP = FreeAddress(c.tb), FreeAddress(c.tb), FreeAddress(c.tb)
	} else {
		places := c.options.Net.Nodes()
		if len(c.nodes) == len(places) {
			c.tb.Fatalf("the network has no place for %s", n.Name)
		}
		n.place = places[len(c.nodes)]
		address := func(port int) string { return fmt.Sprintf("%s:%d", n.place.Addr, port) }
		n.GRPC, n.Peer, n.HTTP = address(7400), address(7401), address(7402)
	}
	c.nodes = append(c.nodes, n)
	c.tb.Cleanup(n.end) // After its disk was made, so that it comes before that is unmade.
	return n
}

// nextPort is where the search for a free port goes on. Each process begins elsewhere, as several may test at once.
// searching guards it, as tests may run in parallel.
var (
	searching sync.Mutex
	nextPort  = rand.IntN(lastPort - firstPort)
)

// Ports that nodes get. They lie below those that the system gives to connections, so that a port that is free stays so
// while its node is down.
const firstPort, lastPort = 10_000, 32_000

// FreeAddress is a local address on which nobody listens, and that no other node of this process has been given.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	searching.Lock()
	defer searching.Unlock()
	for range lastPort - firstPort {
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+nextPort)
		nextPort = (nextPort + 1) % (lastPort - firstPort)
		lis, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		_ = lis.Close()
		return address
	}
	tb.Fatal("no port is free")
	return ""
}

// tell shows how the nodes of a test that failed have fared.
func (c *Cluster) tell() {
	if !c.tb.Failed() {
		return
	}
	for _, n := range c.nodes {
		c.tb.Logf("%s: %s; last of its log:\n%s", n.Name, n.Ended(), n.Log(60))
	}
}

// end ends what belongs to a node, before its disk and its network are taken away.
func (n *Node) end() {
	if n.Disk != nil {
		_, _ = n.Disk.Thaw() // It mostly isn't frozen. If it is, not even SIGKILL would end the process.
	}
	n.Resume()
	n.Kill()
	if n.conn != nil {
		_ = n.conn.Close()
	}
}

// Nodes are all nodes.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node is the node of a name, or nil.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Addresses are the client addresses of all nodes.
func (c *Cluster) Addresses() []string {
	var list []string
	for _, n := range c.nodes {
		list = append(list, n.GRPC)
	}
	return list
}

// Wait polls until the condition holds; it fails the test after the time.
func (c *Cluster) Wait(what string, d time.Duration, condition func(ctx context.Context) bool) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), d)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.tb.Fatalf("waited %v for: %s", d, what)
		}
	}
}

// Ready waits until all running nodes are ready.
func (c *Cluster) Ready() {
	c.tb.Helper()
	c.Wait("all nodes to be ready", 60*time.Second, func(ctx context.Context) bool {
		for _, n := range c.nodes {
			if n.Running() && !n.ready(ctx) {
				return false
			}
		}
		return true
	})
}

// Leader waits for a leader, not one of those excepted, and returns it.
func (c *Cluster) Leader(except ...*Node) *Node {
	c.tb.Helper()
	var leader *Node
	c.Wait("a leader", 30*time.Second, func(ctx context.Context) bool {
		leader = c.leader(ctx, except)
		return leader != nil
	})
	return leader
}

func (c *Cluster) leader(ctx context.Context, except []*Node) *Node {
	for _, n := range c.nodes {
		if !n.Running() || contains(except, n) {
			continue
		}
		callCtx, cancel := context.WithTimeout(ctx, time.Second)
		reply, err := n.Admin().Status(callCtx, &apiv1.StatusRequest{Local: true})
		cancel()
		if err == nil && reply.GetHeader().GetLeader() == n.GRPC {
			return n
		}
	}
	return nil
}

func contains(nodes []*Node, n *Node) bool {
	for _, x := range nodes {
		if x == n {
			return true
		}
	}
	return false
}

func (n *Node) logFile() string { return filepath.Join(n.c.dir, n.Name+".log") }

// Log returns the last lines of what the node has logged, over all its starts.
func (n *Node) Log(lines int) string {
	content, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Start starts the process, on the data folder that is there.
func (n *Node) Start() {
	n.c.tb.Helper()
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.c.tb.Fatal(err)
	}
	args := []string{
		n.Binary, "serve", "--name", n.Name, "--data-dir", n.Dir, "--grpc-listen", n.GRPC, "--peer-listen", n.Peer,
		"--http-listen", n.HTTP,
	}
	if n.place != nil {
		args = append(append(n.place.Command(), args...), "--insecure")
	}
	args = append(append(args, n.args...), n.c.options.Args...)
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec // Ours.
	if n.c.options.Env != nil {
		cmd.Env = append(os.Environ(), n.c.options.Env(n)...)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.c.tb.Fatalf("start %s: %v", n.Name, err)
	}
	n.cmd, n.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		_ = cmd.Wait() // Killed, mostly.
		_ = log.Close()
		close(done)
	}(n.done)
}

// PID is the id of the process that was started last.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Ended tells how the process that was started last ended, as in "exit status 73" or "signal: killed". Empty: it runs.
func (n *Node) Ended() string {
	if n.cmd == nil || n.Running() {
		return ""
	}
	return n.cmd.ProcessState.String()
}

// WaitEnd waits until the process has ended by itself and returns its exit code, -1 after a signal. It fails the test when
// that takes longer than the time.
func (n *Node) WaitEnd(d time.Duration) int {
	n.c.tb.Helper()
	select {
	case <-n.done:
	case <-time.After(d):
		n.c.tb.Fatalf("%s still runs after %v", n.Name, d)
	}
	return n.cmd.ProcessState.ExitCode()
}

// Running tells whether the process runs (or is paused).
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// Kill ends the process by SIGKILL and waits until it is gone.
func (n *Node) Kill() {
	if n.Running() {
		_ = n.cmd.Process.Kill() // It may have just ended.
		<-n.done
	}
}

// Terminate ends the process by SIGTERM and waits; it fails the test when that takes longer than the time.
func (n *Node) Terminate(d time.Duration) {
	n.c.tb.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.c.tb.Fatalf("terminate %s: %v", n.Name, err)
	}
	select {
	case <-n.done:
	case <-time.After(d):
		n.c.tb.Fatalf("%s has not ended %v after SIGTERM", n.Name, d)
	}
}

// LosePower cuts the power of the nodes' machines at one moment, as near as can be: what their disks have not synced is
// lost, and the processes are gone. The nodes need disks, and are not started again.
func LosePower(list ...*Node) {
	for _, n := range list {
		n.c.tb.Helper()
		if err := n.Disk.CutPower(); err != nil {
			n.c.tb.Fatal(err)
		}
	}
	for _, n := range list {
		n.Kill()
		if err := n.Disk.RestorePower(); err != nil {
			n.c.tb.Fatal(err)
		}
	}
}

// Pause stops the process where it is (SIGSTOP), and waits until the kernel says so.
func (n *Node) Pause() {
	n.c.tb.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		n.c.tb.Fatalf("pause %s: %v", n.Name, err)
	}
	n.c.Wait(n.Name+" to be paused", 5*time.Second, func(context.Context) bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
}

// Resume lets a paused process go on.
func (n *Node) Resume() {
	if n.Running() {
		_ = n.cmd.Process.Signal(syscall.SIGCONT) // Harmless when it was not paused.
	}
}

// Wipe deletes the data folder of a node that does not run.
func (n *Node) Wipe() {
	n.c.tb.Helper()
	if err := os.RemoveAll(n.Dir); err != nil {
		n.c.tb.Fatal(err)
	}
}

// Conn is a connection to the node's client port.
func (n *Node) Conn() *grpc.ClientConn {
	n.c.tb.Helper()
	if n.conn == nil {
		n.conn = n.Dial()
	}
	return n.conn
}

// Dial makes a further connection, which the caller closes.
func (n *Node) Dial() *grpc.ClientConn {
	n.c.tb.Helper()
	conn, err := grpc.NewClient(n.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		n.c.tb.Fatal(err)
	}
	return conn
}

// Registry is the node's registry service.
func (n *Node) Registry() apiv1.RegistryServiceClient {
	return apiv1.NewRegistryServiceClient(n.Conn())
}

// Admin is the node's service for operators.
func (n *Node) Admin() apiv1.ClusterServiceClient { return apiv1.NewClusterServiceClient(n.Conn()) }

// ready tells whether the node answers a linearizable read.
func (n *Node) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := n.Registry().ListServices(ctx, &apiv1.ListServicesRequest{})
	return err == nil
}
