package deploy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// node is a regd process.
type node struct {
	ops  string // its port for operations
	grpc string
	stop func()
}

// startNode starts a node that founds a cluster of its own, unless further flags tell it to join one, and waits until it answers.
func startNode(ctx context.Context, dir string, flags ...string) (*node, error) {
	var lc net.ListenConfig
	free := func() string {
		lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return err.Error()
		}
		defer lis.Close() // It was only to find a port.
		return lis.Addr().String()
	}
	n := &node{ops: free(), grpc: free()}
	peers := free()
	args := append([]string{
		"serve", "--name", "n1", "--data-dir", dir, "--grpc-listen", n.grpc, "--peer-listen", peers, "--http-listen", n.ops,
	}, flags...)
	if !slices.Contains(flags, "--join") {
		args = append(args, "--initial-peers", peers)
	}
	cmd := exec.CommandContext(ctx, regd, args...)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	n.stop = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() } // It was killed: that is all it says.
	for ticker := time.NewTicker(20 * time.Millisecond); ; <-ticker.C {
		if code, _, err := n.get(ctx, "/livez"); err == nil && code == http.StatusOK {
			ticker.Stop()
			return n, nil
		} else if ctx.Err() != nil {
			ticker.Stop()
			return nil, fmt.Errorf("the node does not answer: %w", err)
		}
	}
}

// get asks the node's port for operations.
func (n *node) get(ctx context.Context, path string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.ops+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// checksItself lets the node check the health of a service, which is itself, so that it has all metrics there are.
func (n *node) checksItself(ctx context.Context) error {
	if _, err := run(ctx, nil, regd, "status", "--wait", "--endpoint", n.grpc); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(n.ops)
	if err != nil {
		return err
	}
	if _, err = run(ctx, nil, regd, "register", "regd", "--id", "n1", "--address", "127.0.0.1", "--port", port, "--check-http", "/livez",
		"--detach", "--endpoint", n.grpc); err != nil {
		return err
	}
	for ticker := time.NewTicker(100 * time.Millisecond); ; <-ticker.C {
		if _, body, err := n.get(ctx, "/metrics"); err != nil || strings.Contains(body, "\nregd_check_results_total{") {
			ticker.Stop()
			return err
		}
	}
}
