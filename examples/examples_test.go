// Package examples_test runs the examples as their readers do: as processes, beside a real cluster of three nodes.
package examples_test

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestExamples(t *testing.T) {
	e := build(t)
	dev := e.startCluster(t)
	t.Run("reachable", func(t *testing.T) {
		t.Run("HTTPServiceLeavesWithoutLosingARequest", func(t *testing.T) {
			t.Parallel()
			leavesWithoutLoss(t, e, "http-service", "http-consumer", "-attempts", "1")
		})
		t.Run("GRPCServiceLeavesWithoutLosingACall", func(t *testing.T) {
			t.Parallel()
			leavesWithoutLoss(t, e, "grpc-service", "grpc-consumer")
		})
		t.Run("NextLeaderHasALargerToken", func(t *testing.T) {
			t.Parallel()
			nextLeaderTakesOver(t, e)
		})
		t.Run("CanaryGetsItsShare", func(t *testing.T) {
			t.Parallel()
			canaryGetsItsShare(t, e)
		})
	})
	t.Run("ConsumerOutlivesTheRegistry", func(t *testing.T) { consumerOutlivesRegistry(t, e, dev) })
}

// leavesWithoutLoss has two instances answer a consumer, stops one of them, and finds that no call was lost.
func leavesWithoutLoss(t *testing.T, e *env, service, consumer string, flags ...string) {
	a := e.start(t, service, "-service", service, "-id", "a", "-takes", "20ms")
	b := e.start(t, service, "-service", service, "-id", "b", "-takes", "20ms")
	a.says(t, 0, "msg=serving")
	b.says(t, 0, "msg=serving")
	c := e.start(t, consumer, append(flags, "-service", service, "-every", "2ms")...)
	c.says(t, 0, "hello from a")
	c.says(t, 0, "hello from b")

	c.says(t, c.output.len(), "hello from b") // After b often comes a: it is stopped with a call under way.
	a.stop(t)
	c.says(t, c.output.len(), "hello from b")
	c.stop(t)
	c.says(t, 0, " failed=0\n")
	b.stop(t)
}

// nextLeaderTakesOver kills a leader and then stops one, and finds that each time the other works, under a larger token.
func nextLeaderTakesOver(t *testing.T, e *env) {
	worker := func(id string) *process {
		p := e.start(t, "leader-worker", "-election", t.Name(), "-id", id, "-ttl", "2s", "-every", "10ms")
		p.says(t, 0, "standing for election")
		return p
	}
	token := func(p *process) int {
		p.says(t, 0, " does step 2\n")
		n, err := strconv.Atoi(regexp.MustCompile(`(?m)^token (\d+): `).FindStringSubmatch(p.output.String())[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a := worker("a")
	first := token(a)
	b := worker("b")
	if text := b.output.String(); strings.Contains(text, "does step") {
		t.Errorf("b works although a leads:\n%s", text)
	}
	a.kill()
	second := token(b)
	c := worker("c")
	b.stop(t)
	third := token(c)
	c.stop(t)
	if !(first < second && second < third) {
		t.Errorf("tokens %d, %d, %d do not grow", first, second, third)
	}
}

// canaryGetsItsShare compares the shares of the two versions with the configuration.
func canaryGetsItsShare(t *testing.T, e *env) {
	for version, id := range map[string]string{"1": "old", "2": "new"} {
		e.start(t, "http-service", "-id", id, "-version", version).says(t, 0, "msg=serving")
	}
	const calls = 1000
	counted := regexp.MustCompile(`(?m)^version 2: (\d+) of`)
	canary := func(config string) (news int, text string) {
		p := e.start(t, "canary", "-config", config, "-calls", strconv.Itoa(calls))
		p.wait(t)
		text = p.output.String()
		if m := counted.FindStringSubmatch(text); m != nil {
			news, _ = strconv.Atoi(m[1])
		}
		return news, text
	}
	// With a draw for each call the count is binomial; 6 standard deviations are missed once in 10^9 runs.
	const share = 0.1
	news, text := canary(filepath.Join("canary", "canary.json"))
	if diff := math.Abs(float64(news) - calls*share); diff > 6*math.Sqrt(calls*share*(1-share)) {
		t.Errorf("%d of %d calls went to the new version, want a share of %v\n%s", news, calls, share, text)
	}
	for share, want := range map[string]int{"0": 0, "1": calls} {
		config := filepath.Join(t.TempDir(), "canary.json")
		if err := os.WriteFile(config, fmt.Appendf(nil, `{"service": "hello", "version": "2", "share": %s}`, share), 0o600); err != nil {
			t.Fatal(err)
		}
		if news, text := canary(config); news != want {
			t.Errorf("%d of %d calls went to the new version, want a share of %s\n%s", news, calls, share, text)
		}
	}
}

// consumerOutlivesRegistry stops the cluster, and finds that the consumer goes on, also after a restart.
func consumerOutlivesRegistry(t *testing.T, e *env, cluster *process) {
	cache := filepath.Join(t.TempDir(), "cache")
	consumer := func() *process {
		return e.start(t, "http-consumer", "-service", "durable", "-cache", cache, "-every", "2ms")
	}
	e.start(t, "http-service", "-service", "durable").says(t, 0, "msg=serving")
	before := consumer()
	before.says(t, 0, "hello from a (live list of 1)")
	cluster.stop(t)
	before.says(t, before.output.len(), "hello from a (cached list of 1)")
	before.stop(t)
	before.says(t, 0, " failed=0\n")

	after := consumer()
	after.says(t, 0, "hello from a (file list of 1)")
	after.stop(t)
	after.says(t, 0, " failed=0\n")
}

// env is what the examples run in.
type env struct {
	dir       string // of the binaries
	endpoints string // of the cluster
}

// build builds regd and the examples, with the flags of make build: what that has compiled is not compiled again. It has no
// race detector: what the examples do with the client is held by the client's own tests, which have it.
func build(t *testing.T) *env {
	t.Helper()
	e := &env{dir: t.TempDir()}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", e.dir, "../cmd/regd", "./...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the examples: %v\n%s", err, out)
	}
	return e
}

// startCluster starts a dev cluster, until the test ends.
func (e *env) startCluster(t *testing.T) *process {
	t.Helper()
	// Taken ports are skipped. Runs at the same time begin at different ones.
	port := 10000 + os.Getpid()%90*100
	p := e.run(t, "regd", "dev", "--data-dir", filepath.Join(t.TempDir(), "dev"), "--port", strconv.Itoa(port))
	p.says(t, 0, "Ctrl-C stops everything.")
	var endpoints []string
	for _, m := range regexp.MustCompile(`gRPC (\S+)`).FindAllStringSubmatch(p.output.String(), -1) {
		endpoints = append(endpoints, m[1])
	}
	if len(endpoints) != 3 {
		t.Fatalf("endpoints %q, want those of 3 nodes\n%s", endpoints, p.output)
	}
	e.endpoints = strings.Join(endpoints, ",")
	return p
}

// start starts an example on the cluster.
func (e *env) start(t *testing.T, example string, flags ...string) *process {
	t.Helper()
	return e.run(t, example, append([]string{"-endpoint", e.endpoints}, flags...)...)
}

// process is a running binary. It is killed when its test ends.
type process struct {
	cmd    *exec.Cmd
	output *output // stdout and stderr
	ended  chan struct{}
}

func (e *env) run(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(filepath.Join(e.dir, name), args...), output: newOutput(), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+t.TempDir())
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // wait looks at the outcome.
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			text := p.output.String()
			t.Logf("%s %q:\n%s", name, args, text[max(0, len(text)-3000):])
		}
	})
	return p
}

// patience is how long is waited for what must come.
const patience = 30 * time.Second

// says waits until the output contains a text, from a place on.
func (p *process) says(t *testing.T, from int, text string) {
	t.Helper()
	deadline := time.After(patience)
	for last := false; ; {
		said, grown := p.output.since(from)
		switch {
		case strings.Contains(said, text):
			return
		case last:
			t.Fatalf("%s has ended and did not say %q", p.cmd, text)
		}
		select {
		case <-grown:
		case <-p.ended:
			last = true
		case <-deadline:
			t.Fatalf("%s does not say %q", p.cmd, text)
		}
	}
}

// stop ends the process as a supervisor does, in order.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
}

// wait waits for the end of the process, which must be a success.
func (p *process) wait(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%s does not end", p.cmd)
	}
	if state := p.cmd.ProcessState; !state.Success() {
		t.Fatalf("%s: %v", p.cmd, state)
	}
}

// kill ends the process as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // It may have ended.
	<-p.ended
}

// output is what a process has written.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{} // closed by the next write
}

func newOutput() *output { return &output{grown: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.grown)
	o.grown = make(chan struct{})
	return o.text.Write(p)
}

// since returns what was written from a place on, and a channel that closes when there is more.
func (o *output) since(from int) (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text.Bytes()[from:]), o.grown
}

func (o *output) String() string {
	text, _ := o.since(0)
	return text
}

func (o *output) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Len()
}
