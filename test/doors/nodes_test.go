// Package doors_test has programs that speak foreign protocols ask a real node: one file for each door, here what they share. It also
// runs the commands of the pages about them, and measures them (make bench-doors).
// A test is skipped without its program, unless CHAOS_STRICT is set, and where regd does not have its door.
package doors_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(envEcho); address != "" {
		fmt.Fprintln(os.Stderr, echo(address))
		os.Exit(1)
	}
	code := m.Run()
	if scratch != "" {
		_ = os.RemoveAll(scratch) // Nothing depends on it.
	}
	os.Exit(code)
}

// scratch is the folder of the binary, once that is built.
var scratch string

// regd builds the binary under test, once, and returns its path.
var regd = sync.OnceValues(func() (string, error) {
	var err error
	if scratch, err = os.MkdirTemp("", "regd-doors-"); err != nil {
		return "", err
	}
	path := filepath.Join(scratch, "regd")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "github.com/regd-io/regd/cmd/regd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // As make build has it.
	if out, err := cmd.CombinedOutput(); err != nil {
		return path, fmt.Errorf("build regd: %w\n%s", err, out)
	}
	return path, nil
})

// program finds a program, or skips the test.
func program(tb testing.TB, name, debian string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("CHAOS_STRICT") != "":
		tb.Fatalf("there is no %s: install %s", name, debian)
	default:
		tb.Skipf("there is no %s: install %s to run this test", name, debian)
	}
	return ""
}

// nextPort is where the search for a free port goes on. Each process begins elsewhere, as several may test at once.
var nextPort atomic.Int64

func init() { nextPort.Store(rand.Int64N(lastPort - firstPort)) } //nolint:gochecknoinits // Before any test.

// The ports that are given lie below those that the system gives to connections, so that a port that is free stays so.
const firstPort, lastPort = 10_000, 32_000

// freeAddress is a local address on which nobody listens, neither by TCP nor by UDP, and which nobody here has been given.
func freeAddress(tb testing.TB) string {
	tb.Helper()
	for range lastPort - firstPort {
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+nextPort.Add(1)%(lastPort-firstPort))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		packets, err := net.ListenPacket("udp", address)
		l.Close()
		if err == nil {
			packets.Close()
			return address
		}
	}
	tb.Fatal("no port is free")
	return ""
}

// node is a cluster of one.
type node struct {
	client *client.Client
	grpc   string
	door   string // address of the door
	ops    string // address of the port for operations
}

// startNode runs a cluster of one with a door, until the test ends.
func startNode(tb testing.TB, door string, flags ...string) *node {
	tb.Helper()
	path, err := regd()
	if err != nil {
		tb.Fatal(err)
	}
	help, err := exec.Command(path, "serve", "--help").Output()
	if err != nil {
		tb.Fatal(err)
	}
	if !strings.Contains(string(help), "--"+door+"-listen") {
		tb.Skipf("this regd has no door for %s", door)
	}
	grpc, peer := freeAddress(tb), freeAddress(tb)
	n := &node{grpc: grpc, door: freeAddress(tb), ops: freeAddress(tb)}
	run(tb, path, append([]string{
		"serve", "--name", "n1", "--data-dir", filepath.Join(tb.TempDir(), "n1"), "--grpc-listen", grpc, "--peer-listen", peer,
		"--http-listen", n.ops, "--initial-peers", peer, "--heartbeat-timeout", "100ms", "--" + door + "-listen", n.door,
	}, flags...)...)
	if n.client, err = client.New([]string{grpc}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { n.client.Close() })
	return n
}

// run runs a program until the test ends, and shows what it said if the test fails.
func run(tb testing.TB, path string, args ...string) {
	tb.Helper()
	runWith(tb, nil, path, args...)
}

// runWith is run with more in the environment.
func runWith(tb testing.TB, env []string, path string, args ...string) {
	tb.Helper()
	var out output
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // It was killed: that is all it says.
		if tb.Failed() {
			tb.Logf("%s said:\n%s", filepath.Base(path), out.String())
		}
	})
}

// output is what a program says.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// eventually waits until a fact holds; the fact says what is missing, or nothing.
func eventually(tb testing.TB, fact func() string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	for {
		missing := fact()
		if missing == "" {
			return
		}
		if ctx.Err() != nil {
			tb.Fatal(missing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
