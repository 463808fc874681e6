// Package nodes runs real regd processes for tests: it builds the binary once, starts clusters on free loopback ports
// with data in temporary folders, and kills, pauses and restarts single nodes. It knows nothing of what is tested.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// binary builds regd once for all tests of a process.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "regd-test-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "regd")
	cmd := exec.Command("go", "build", "-o", path, "github.com/regd-io/regd/cmd/regd")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build regd: %w\n%s", err, out)
	}
	return path, nil
})

// Cleanup removes the binary. For TestMain.
func Cleanup() {
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
}

// Binary returns the path of the regd binary.
func Binary(tb testing.TB) string {
	tb.Helper()
	path, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// Cluster is a set of regd processes. It is ended with the test.
type Cluster struct {
	tb    testing.TB
	dir   string
	args  []string
	nodes []*Node
}

// Node is one regd process, or the place of one that was stopped.
type Node struct {
	// Name is the node's name.
	Name string
	// GRPC, Peer and HTTP are its addresses.
	GRPC, Peer, HTTP string
	// Dir is its data folder.
	Dir string

	c    *Cluster
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	conn *grpc.ClientConn
}

// Start starts n nodes that found a cluster and waits until all are ready. args are further flags of regd serve.
func Start(tb testing.TB, n int, args ...string) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb, dir: tb.TempDir(), args: args}
	tb.Cleanup(c.stop)
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
	name := fmt.Sprintf("n%d", len(c.nodes)+1)
	node := &Node{
		Name: name, Dir: filepath.Join(c.dir, name), c: c,
		GRPC: freeAddress(c.tb), Peer: freeAddress(c.tb), HTTP: freeAddress(c.tb),
	}
	c.nodes = append(c.nodes, node)
	return node
}

func freeAddress(tb testing.TB) string {
	tb.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func (c *Cluster) stop() {
	for _, n := range c.nodes {
		n.Resume()
		n.Kill()
		if n.conn != nil {
			_ = n.conn.Close()
		}
	}
	if !c.tb.Failed() {
		return
	}
	for _, n := range c.nodes {
		if log, err := os.ReadFile(n.logFile()); err == nil {
			c.tb.Logf("last of the log of %s:\n%s", n.Name, tail(string(log), 60))
		}
	}
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
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

func (n *Node) logFile() string { return n.Dir + ".log" }

// Start starts the process, on the data folder that is there.
func (n *Node) Start() {
	n.c.tb.Helper()
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.c.tb.Fatal(err)
	}
	args := append([]string{
		"serve", "--name", n.Name, "--data-dir", n.Dir, "--grpc-listen", n.GRPC, "--peer-listen", n.Peer,
		"--http-listen", n.HTTP,
	}, append(n.args, n.c.args...)...)
	cmd := exec.Command(Binary(n.c.tb), args...)
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
	conn, err := grpc.NewClient(n.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
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
