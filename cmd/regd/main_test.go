package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files and docs/reference")

// asRegd makes the test binary behave as regd: for tests with real processes.
const asRegd = "TEST_AS_REGD"

func TestMain(m *testing.M) {
	if os.Getenv(asRegd) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// result is what became of a command.
type result struct {
	code           exitCode
	stdout, stderr string
}

// shell runs commands as if typed, with an environment and a working folder of its own.
type shell struct {
	t   *testing.T
	env map[string]string
}

func newShell(t *testing.T) *shell {
	t.Helper()
	return &shell{t: t, env: map[string]string{"XDG_STATE_HOME": t.TempDir()}}
}

// run runs a command to its end.
func (s *shell) run(args ...string) result {
	s.t.Helper()
	return s.runCtx(s.t.Context(), args...)
}

func (s *shell) runCtx(ctx context.Context, args ...string) result {
	s.t.Helper()
	var stdout, stderr syncBuffer
	code := s.app(&stdout, &stderr).run(ctx, args)
	return result{exitCode(code), stdout.String(), stderr.String()}
}

func (s *shell) app(stdout, stderr io.Writer) *app {
	return &app{
		stdin: strings.NewReader(""), stdout: stdout, stderr: stderr,
		getenv: func(name string) string { return s.env[name] },
		build:  buildInfo{Version: "v1.2.3", Commit: "abc", Date: "2026-01-02"},
	}
}

// ok runs a command that must succeed and returns its stdout.
func (s *shell) ok(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.code != exitOK {
		s.t.Fatalf("regd %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// start runs a command in the background until stop is called or the test ends.
func (s *shell) start(args ...string) *running {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	r := &running{t: s.t, stop: cancel, ended: make(chan struct{})}
	a := s.app(&r.stdout, &r.stderr)
	go func() {
		defer close(r.ended)
		r.code = exitCode(a.run(ctx, args))
	}()
	s.t.Cleanup(func() { r.wait() })
	return r
}

// running is a command in the background.
type running struct {
	t              *testing.T
	stop           context.CancelFunc
	ended          chan struct{}
	code           exitCode // once ended
	stdout, stderr syncBuffer
}

// wait stops the command and waits for its end.
func (r *running) wait() exitCode {
	r.t.Helper()
	r.stop()
	select {
	case <-r.ended:
	case <-time.After(20 * time.Second):
		r.t.Fatalf("the command does not end\n%s%s", r.stdout.String(), r.stderr.String())
	}
	return r.code
}

// says waits until stdout contains a text.
func (r *running) says(text string) {
	r.t.Helper()
	eventually(r.t, func() string {
		if strings.Contains(r.stdout.String(), text) {
			return ""
		}
		return "stdout lacks " + text + ":\n" + r.stdout.String() + r.stderr.String()
	})
}

// eventually waits until a fact holds; the fact says what is missing, or nothing.
func eventually(t *testing.T, fact func() string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		missing := fact()
		if missing == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatal(missing)
		case <-ticker.C:
		}
	}
}

// syncBuffer is a buffer that is written and read by different goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// nextPort is a port that no other test has been given. It lies below those that the system gives to connections, so
// that a port that is free stays so.
var nextPort atomic.Int64

// freePort finds the first of count ports in a row on which nobody listens.
func freePort(t *testing.T, count int) int {
	t.Helper()
	const first, last = 20000, 32000
	for {
		port := first + int(nextPort.Add(int64(count))) - count
		if port+count > last {
			t.Fatal("no free port is left")
		}
		free := true
		for i := range count {
			free = free && portFree(localPort(port+i))
		}
		if free {
			return port
		}
	}
}

// freeAddress is a local address on which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	return localPort(freePort(t, 1))
}

// startNode runs a cluster of one in this process, and returns a shell whose commands find it.
func startNode(t *testing.T) (s *shell, httpAddress string) {
	t.Helper()
	return startNodeWith(t, tlsSettings{})
}

// startNodeWith is startNode with TLS and other changes of the configuration; of TLS the shell is told nothing, and not waited
// for.
func startNodeWith(t *testing.T, secure tlsSettings, changes ...func(*serveConfig)) (s *shell, httpAddress string) {
	t.Helper()
	s = newShell(t)
	peerAddress := freeAddress(t)
	type addresses struct{ grpc, http string }
	up := make(chan addresses, 1)
	cfg := serveConfig{
		Name: "n1", DataDir: filepath.Join(t.TempDir(), "n1"),
		GRPCListen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", PeerListen: peerAddress, InitialPeers: []string{peerAddress},
		HeartbeatTimeout: 100 * time.Millisecond, NoSync: true, Logger: slog.New(slog.DiscardHandler), TLS: secure, Limits: defaultLimits(),
		Build: buildInfo{Version: "v1.2.3", Commit: "abc", Go: "go1"}, LogLines: &lastLines{},
		Up: func(grpc, http net.Addr) { up <- addresses{grpc.String(), http.String()} },
	}
	for _, change := range changes {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case at := <-up:
		s.env["REGD_ENDPOINTS"] = at.grpc
		if secure == (tlsSettings{}) {
			s.ok("status", "--wait")
		}
		return s, at.http
	case err := <-ended:
		ended <- nil
		t.Fatalf("serve: %v", err)
		return nil, ""
	}
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	asReviewed(t, filepath.Join("testdata", name), got)
}

// asReviewed compares a text with the file that has been reviewed, or writes that anew.
func asReviewed(t *testing.T, path, got string) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -rewrite)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}
