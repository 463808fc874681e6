// Package clustertest runs clusters in one process for tests, on the network in memory of peertest. It is for tests only.
// Start at New. It works in real time, and in virtual time inside a testing/synctest bubble.
package clustertest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/peer/peertest"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"

	"google.golang.org/protobuf/proto"
)

// Cluster is n nodes in one process, on an in-memory network with real data folders. Made inside a testing/synctest
// bubble it runs in virtual time. It stops with the test.
type Cluster struct {
	// Net is the network between the nodes: cut it, delay it, hold it.
	Net *peertest.Net

	tb      testing.TB
	dir     string
	configs map[string]cluster.Config
	nodes   map[string]*cluster.Node
}

// Option changes the configuration of each node before it starts.
type Option func(*cluster.Config)

// New starts n nodes named n1, n2, ... that found a cluster. It does not wait for a leader.
func New(tb testing.TB, n int, opts ...Option) *Cluster {
	tb.Helper()
	c := &Cluster{
		Net: peertest.NewNet(), tb: tb, dir: tb.TempDir(),
		configs: map[string]cluster.Config{}, nodes: map[string]*cluster.Node{},
	}
	var peers []string
	for i := range n {
		peers = append(peers, peerAddress(name(i)))
	}
	for i := range n {
		c.Add(name(i), append([]Option{func(cfg *cluster.Config) { cfg.InitialPeers = peers }}, opts...)...)
	}
	tb.Cleanup(func() {
		c.Net.Heal()
		for _, name := range c.Names() {
			c.Stop(name)
		}
	})
	return c
}

func name(i int) string { return fmt.Sprintf("n%d", i+1) }

func peerAddress(name string) string { return name + ":7401" }

// Add starts a further node, without initial peers unless an option sets them.
func (c *Cluster) Add(name string, opts ...Option) *cluster.Node {
	c.tb.Helper()
	cfg := cluster.Config{
		Name: name, DataDir: filepath.Join(c.dir, name), NoSync: true, Network: c.Net.Host(name),
		PeerListen: peerAddress(name), GRPCAdvertise: name + ":7400", Logger: c.logger(),
		OnFatal: func(err error) { c.tb.Errorf("node %s can't go on: %v", name, err) },
	}
	for _, opt := range opts {
		opt(&cfg)
	}
	c.configs[name] = cfg
	return c.Start(name)
}

// logger shows what the nodes say when REGD_TEST_LOG is set: debug, info, warn.
func (c *Cluster) logger() *slog.Logger {
	var level slog.Level
	if level.UnmarshalText([]byte(os.Getenv("REGD_TEST_LOG"))) != nil {
		return nil
	}
	return slog.New(slog.NewTextHandler(c.tb.Output(), &slog.HandlerOptions{Level: level}))
}

// Start starts a node that was stopped, on its data folder.
func (c *Cluster) Start(name string) *cluster.Node {
	c.tb.Helper()
	n, err := cluster.Open(c.configs[name])
	if err != nil {
		c.tb.Fatalf("open %s: %v", name, err)
	}
	c.nodes[name] = n
	return n
}

// Stop stops a node, if it runs, without handing leadership over.
func (c *Cluster) Stop(name string) {
	c.tb.Helper()
	if n := c.nodes[name]; n != nil {
		delete(c.nodes, name)
		if err := n.Close(); err != nil {
			c.tb.Errorf("close %s: %v", name, err)
		}
	}
}

// Wipe deletes the data folder of a stopped node.
func (c *Cluster) Wipe(name string) {
	c.tb.Helper()
	if err := os.RemoveAll(c.configs[name].DataDir); err != nil {
		c.tb.Fatal(err)
	}
}

// Reconfigure changes the configuration with which a node starts next.
func (c *Cluster) Reconfigure(name string, opt Option) {
	cfg := c.configs[name]
	opt(&cfg)
	c.configs[name] = cfg
}

// Node returns a running node, nil when it is stopped.
func (c *Cluster) Node(name string) *cluster.Node { return c.nodes[name] }

// Names lists the running nodes.
func (c *Cluster) Names() []string {
	var names []string
	for name := range c.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Nodes are the running nodes, by name.
func (c *Cluster) Nodes() []*cluster.Node {
	var nodes []*cluster.Node
	for _, name := range c.Names() {
		nodes = append(nodes, c.nodes[name])
	}
	return nodes
}

// Wait polls until the condition holds, for at most a minute.
func (c *Cluster) Wait(what string, condition func() bool) {
	c.tb.Helper()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			c.tb.Fatalf("waited a minute for: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Leader waits for a running node that leads and is ready, not one of those excepted, and returns it.
func (c *Cluster) Leader(except ...string) *cluster.Node {
	c.tb.Helper()
	var leader *cluster.Node
	c.Wait("a leader", func() bool {
		for name, n := range c.nodes {
			if n.Info().Leading && !slices.Contains(except, name) {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// Follower waits for a leader, and returns a running node that is not it.
func (c *Cluster) Follower() *cluster.Node {
	c.tb.Helper()
	leader := c.Leader()
	for _, n := range c.Nodes() {
		if n != leader {
			return n
		}
	}
	c.tb.Fatal("there is no follower")
	return nil
}

// Ready waits until all running nodes are ready, know each other and are of one mind about their leader.
func (c *Cluster) Ready() {
	c.tb.Helper()
	c.Wait("all nodes to be ready", func() bool {
		leaders := map[string]bool{}
		for _, n := range c.nodes {
			if n.Ready() != nil || n.Feed().State().Counts().Members < len(c.nodes) {
				return false
			}
			leaders[n.Info().LeaderID] = true
		}
		return len(leaders) == 1
	})
}

// Register returns the command that registers an instance without a session.
func Register(service, id string) *raftlogv1.Command {
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(&registryv1.Instance{
		Namespace: "default", Service: service, Id: id, Address: "127.0.0.1", Weight: 100,
	})
	if err != nil {
		panic(err) // The message is fixed but for two strings.
	}
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: spec}}}
}

// Put registers an instance through a node, and fails the test when that fails within ten seconds.
func (c *Cluster) Put(n *cluster.Node, service, id string) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), 10*time.Second)
	defer cancel()
	outcome, err := n.Propose(ctx, Register(service, id))
	if err == nil {
		err = outcome.Err()
	}
	if err != nil {
		c.tb.Fatalf("register %s/%s through %s: %v", service, id, n.Info().Name, err)
	}
}
