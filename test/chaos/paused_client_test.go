package chaos_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

const (
	// envRole has the test's binary play a part, see play, with the nodes of envNodes.
	envRole, envNodes = "REGD_CHAOS_ROLE", "REGD_CHAOS_NODES"
	// shortTTL is the shortest of a session.
	shortTTL = 2 * time.Second
	// wokenAfter is how long a process has to have done nothing to say that it was paused.
	wokenAfter = 3 * hungAfter
	// lookedWithin is how long before a pause the consumer has looked, and may have been told something since.
	lookedWithin = 3 * hungAfter / 2
	// hungAfter is when a consumer tries another instance: one that is paused takes requests, and never answers.
	hungAfter = 500 * time.Millisecond
)

// play is the part of a process of its own, which lasts until its standard input is closed: "instance", which keeps itself
// registered as instance "paused" of payment, or "consumer", which calls payment. Each says on its standard output what happens.
func play(role string) int {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	c, err := client.New(strings.Split(os.Getenv(envNodes), ","), client.WithSessionTTL(shortTTL))
	if err == nil {
		err = map[string]func(context.Context, *client.Client) error{"instance": playInstance, "consumer": playConsumer}[role](ctx, c)
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func playInstance(ctx context.Context, c *client.Client) error {
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(echo)}
	go func() { _ = server.Serve(lis) }()
	reg, err := c.Register(ctx, instanceAt("paused", lis.Addr()))
	if err != nil {
		return err
	}
	for state := range reg.States(ctx) {
		fmt.Println(state, reg.Incarnation())
	}
	return server.Close()
}

// playConsumer says "calls" when it begins, "failed" of each call that does, and after a pause "woke", how long it was, how old the view then is, and
// whom it lists.
func playConsumer(ctx context.Context, c *client.Client) error {
	d, err := discovery.New(c)
	if err != nil {
		return err
	}
	defer d.Close()
	s, err := d.Service(payment)
	if err != nil {
		return err
	}
	calls, err := newCalls(d)
	if err != nil {
		return err
	}
	defer calls.stop()
	if _, err := s.View(ctx); err != nil {
		return err
	}
	fmt.Println("calls", payment)
	for looked := time.Now(); ctx.Err() == nil; {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			continue
		}
		v, err := s.View(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		if gap, age := now.Sub(looked), now.Sub(v.SyncedAt); gap > wokenAfter {
			fmt.Println("woke", gap.Milliseconds(), age.Milliseconds(), ids(v))
		}
		looked = now
		if err := calls.one(ctx); err != nil && ctx.Err() == nil {
			fmt.Println("failed", err)
		}
	}
	return nil
}

// echo answers with what it gets.
func echo(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }

func instanceAt(id string, address net.Addr) *registryv1.Instance {
	_, port, _ := net.SplitHostPort(address.String())
	number, _ := strconv.ParseUint(port, 10, 16)
	return &registryv1.Instance{
		Service: payment, Id: id, Address: "127.0.0.1", Ports: []*registryv1.Port{{Name: "http", Number: uint32(number)}},
	}
}

func ids(v *discovery.View) string {
	var all []string
	for _, i := range v.Instances {
		all = append(all, i.GetId())
	}
	return strings.Join(all, ",")
}

// calls calls payment over HTTP.
type calls struct {
	tr    *regdhttp.Transport
	inner *http.Transport
}

func newCalls(d *discovery.Discovery) (*calls, error) {
	inner := &http.Transport{ResponseHeaderTimeout: hungAfter}
	tr, err := regdhttp.New(d, regdhttp.WithTransport(inner))
	return &calls{tr: tr, inner: inner}, err
}

func (c *calls) stop() {
	c.tr.Close()
	c.inner.CloseIdleConnections()
}

func (c *calls) one(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+payment+".service/", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := c.tr.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// actor is a process that plays a part.
type actor struct {
	t   *testing.T
	cmd *exec.Cmd

	mu   sync.Mutex
	said []string
}

// cast starts a process that ends with the test, at the latest.
func cast(t *testing.T, c *nodes.Cluster, role string) *actor {
	t.Helper()
	a := &actor{t: t, cmd: exec.Command(os.Args[0])} //nolint:gosec // This very program.
	a.cmd.Env = append(os.Environ(), envRole+"="+role, envNodes+"="+strings.Join(c.Addresses(), ","))
	a.cmd.Stderr = t.Output()
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := a.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			a.mu.Lock()
			a.said = append(a.said, lines.Text())
			a.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		a.signal(syscall.SIGCONT)
		_ = in.Close()
		<-heard
		if err := a.cmd.Wait(); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	})
	return a
}

func (a *actor) signal(s syscall.Signal) {
	a.t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil {
		a.t.Error(err)
	}
}

// lines are what it has said that begins with a word.
func (a *actor) lines(word string) (lines []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, line := range a.said {
		if rest, ok := strings.CutPrefix(line, word+" "); ok {
			lines = append(lines, rest)
		}
	}
	return lines
}

// TestProcessesThatWerePaused: an instance and a consumer are stopped where they are for longer than a TTL. The instance leaves,
// and all who watch know; when it goes on it knows that it was lost, and registers again under its id by itself. The consumer
// knows when it goes on how old its view is. No call of anybody fails, as another instance is healthy all the time (G5, G7).
func TestProcessesThatWerePaused(t *testing.T) {
	t.Parallel()
	c := nodes.Start(t, 3)
	keep := func(id string) *client.Registration {
		lis := listen(t)
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(echo)}
		go func() { _ = server.Serve(lis) }()
		t.Cleanup(func() { _ = server.Close() })
		reg, err := newClient(t, c.Addresses()).Register(t.Context(), instanceAt(id, lis.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		return reg
	}
	keep("steady")
	going := keep("going")
	instance, consumer := cast(t, c, "instance"), cast(t, c, "consumer")
	d := discover(t, c)
	s, err := d.Service(payment)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	lists := func(want string) func(context.Context) bool {
		return func(ctx context.Context) bool {
			v, failed := s.View(ctx)
			return failed == nil && ids(v) == want
		}
	}
	c.Wait("all to be registered", 20*time.Second, lists("going,paused,steady"))
	c.Wait("both processes to be at work", 20*time.Second, func(context.Context) bool {
		return len(instance.lines("registered")) > 0 && len(consumer.lines("calls")) > 0
	})
	calls, err := newCalls(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(calls.stop)
	ctx, cancel := context.WithCancel(t.Context())
	var calling sync.WaitGroup
	var sent atomic.Int64
	for range 4 {
		calling.Go(func() {
			for ctx.Err() == nil {
				if failed := calls.one(ctx); failed != nil && ctx.Err() == nil {
					t.Errorf("a call failed: %v", failed)
				}
				sent.Add(1)
				<-time.After(10 * time.Millisecond)
			}
		})
	}
	t.Cleanup(calling.Wait)
	t.Cleanup(cancel)
	before, err := s.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	for _, a := range []*actor{instance, consumer} {
		a.signal(syscall.SIGSTOP)
	}
	stopped := time.Now()
	if err = going.Deregister(t.Context()); err != nil { // The consumer does not hear of it.
		t.Fatal(err)
	}
	c.Wait("the paused instance to leave", 20*time.Second, lists("steady"))
	if after := time.Since(stopped); after < shortTTL/2 {
		t.Errorf("it left after %v: its TTL is %v", after, shortTTL)
	}
	for _, a := range []*actor{instance, consumer} {
		a.signal(syscall.SIGCONT)
	}
	c.Wait("it to come back", 20*time.Second, lists("paused,steady"))
	after, err := s.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if had, has := before.Instance("paused").GetIncarnation(), after.Instance("paused").GetIncarnation(); has <= had {
		t.Errorf("incarnation %d came after %d", has, had)
	}
	c.Wait("it to know", 10*time.Second, func(context.Context) bool {
		return len(instance.lines("registered")) > 1
	})
	want := []string{
		fmt.Sprint("registered ", before.Instance("paused").GetIncarnation()),
		fmt.Sprint("lost ", before.Instance("paused").GetIncarnation()),
		fmt.Sprint("registered ", after.Instance("paused").GetIncarnation()),
	}
	instance.mu.Lock()
	said := slices.Clone(instance.said)
	instance.mu.Unlock()
	if !slices.Equal(said, want) {
		t.Errorf("the instance says %q, want %q", said, want)
	}
	c.Wait("the consumer to wake", 10*time.Second, func(context.Context) bool { return len(consumer.lines("woke")) > 0 })
	for _, line := range consumer.lines("woke") {
		var gap, age int64
		var view string
		if _, err := fmt.Sscan(line, &gap, &age, &view); err != nil {
			t.Fatalf("woke %q: %v", line, err)
		}
		t.Logf("the consumer woke after %d ms with a view of %s that it says is %d ms old", gap, view, age)
		if strings.Contains(view, "going") && age < gap-lookedWithin.Milliseconds() {
			t.Errorf("after a pause of %d ms the view is old, and is said to be %d ms old", gap, age)
		}
	}
	cancel()
	calling.Wait()
	if failed := consumer.lines("failed"); len(failed) > 0 {
		t.Errorf("the consumer's calls failed: %q", failed)
	}
	t.Logf("%d calls of another consumer; all took %v", sent.Load(), time.Since(stopped).Round(time.Millisecond))
}
