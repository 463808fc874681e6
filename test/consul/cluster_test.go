package consul

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// regd is the binary, made by TestMain.
var regd string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "regd-consul")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }() // It is in the folder for what is temporary.
	regd = filepath.Join(dir, "regd")
	build := exec.CommandContext(context.Background(), "go", "build", "-o", regd, "./cmd/regd")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build regd: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// node is a process.
type node struct {
	name   string
	args   []string
	consul string
	certs  string // folder; "": no TLS
	cmd    *exec.Cmd
}

// cluster is what the tests have: all of them one.
type cluster struct {
	nodes []*node
}

// startCluster starts three nodes and waits for their leader.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	return startWith(t, "")
}

// startWith is startCluster for nodes with TLS, whose certificates are in a folder as  regd tls init  makes it; "": without.
func startWith(t *testing.T, certs string) *cluster {
	t.Helper()
	c := &cluster{}
	var peers []string
	ports := free(t, 12)
	for i := range 3 {
		peers = append(peers, ports[4*i])
	}
	for i := range 3 {
		n := &node{name: fmt.Sprintf("n%d", i+1), consul: ports[4*i+3], certs: certs}
		n.args = []string{
			"serve", "--name", n.name, "--data-dir", t.TempDir(), "--peer-listen", ports[4*i], "--grpc-listen", ports[4*i+1],
			"--http-listen", ports[4*i+2], "--consul-listen", n.consul, "--initial-peers", strings.Join(peers, ","),
		}
		if certs != "" {
			of := filepath.Join(certs, n.name)
			n.args = append(n.args, "--tls-cert", of+".crt", "--tls-key", of+".key", "--tls-ca", filepath.Join(certs, "ca.crt"), "--tls-client-auth", "require")
		}
		c.nodes = append(c.nodes, n)
		n.start(t)
		t.Cleanup(n.kill)
	}
	for k, n := range c.nodes {
		client := n.client(t)
		eventually(t, "a leader at "+n.name, func() error {
			leader, err := client.Status().Leader()
			if err == nil && leader == "" {
				err = fmt.Errorf("there is none")
			}
			if err == nil {
				_, _, err = client.Catalog().Nodes(nil)
			}
			if err == nil && k == 0 { // Soon after there is a leader all nodes have told it that they know keys.
				_, err = client.KV().Delete("none", nil)
			}
			return err
		})
	}
	return c
}

func (n *node) start(t *testing.T) {
	t.Helper()
	n.cmd = exec.CommandContext(context.Background(), regd, n.args...) // It is killed in the end.
	log, err := os.Create(filepath.Join(t.TempDir(), n.name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	n.cmd.Stderr = log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", n.name, text)
		}
	})
}

func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait() // It was killed: that is all it says.
		n.cmd = nil
	}
}

func (n *node) client(t *testing.T) *api.Client {
	t.Helper()
	cfg := &api.Config{Address: n.consul}
	if n.certs != "" {
		of := filepath.Join(n.certs, "shop")
		cfg.Scheme = "https"
		cfg.TLSConfig = api.TLSConfig{CAFile: filepath.Join(n.certs, "ca.crt"), CertFile: of + ".crt", KeyFile: of + ".key"}
	}
	client, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// leader returns the node that leads, and the two that follow.
func (c *cluster) leader(t *testing.T) (leader *node, followers []*node) {
	t.Helper()
	raft, err := c.nodes[0].client(t).Operator().RaftGetConfiguration(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range raft.Servers {
		for _, n := range c.nodes {
			if n.name == s.Node && s.Leader {
				leader = n
			} else if n.name == s.Node {
				followers = append(followers, n)
			}
		}
	}
	if leader == nil {
		t.Fatalf("nobody leads: %+v", raft.Servers)
	}
	return leader, followers
}

// free finds ports on which nobody listens.
func free(t *testing.T, count int) []string {
	t.Helper()
	var addresses []string
	for range count {
		var lc net.ListenConfig
		lis, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer lis.Close() // Together: else one could be given twice.
		addresses = append(addresses, lis.Addr().String())
	}
	return addresses
}

// eventually waits until fn succeeds.
func eventually(t *testing.T, what string, fn func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// follower makes one blocking query after the other, as Consul's clients do, and keeps what it was told.
type follower struct {
	mu      sync.Mutex
	seen    []string // ids of what passes, joined
	indexes []uint64
	errs    []error
}

// follow watches a service until ctx ends.
func follow(ctx context.Context, client *api.Client, service string) *follower {
	f := &follower{}
	go func() {
		index := uint64(0)
		for ctx.Err() == nil {
			entries, meta, err := client.Health().Service(service, "", true, (&api.QueryOptions{WaitIndex: index, WaitTime: time.Minute}).WithContext(ctx))
			f.mu.Lock()
			switch {
			case ctx.Err() != nil:
			case err != nil:
				f.errs = append(f.errs, err)
				index = 0
			default:
				var ids []string
				for _, e := range entries {
					ids = append(ids, e.Service.ID)
				}
				f.seen, f.indexes = append(f.seen, strings.Join(ids, ",")), append(f.indexes, meta.LastIndex)
				index = meta.LastIndex
			}
			f.mu.Unlock()
		}
	}()
	return f
}

// last is what the follower was told last.
func (f *follower) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) == 0 {
		return "nothing"
	}
	return f.seen[len(f.seen)-1]
}

func (f *follower) sees(t *testing.T, want string) {
	t.Helper()
	eventually(t, "the follower sees "+want, func() error {
		if got := f.last(); got != want {
			return fmt.Errorf("it sees %q", got)
		}
		return nil
	})
}
