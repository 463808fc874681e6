// Package pods plays Kubernetes' StatefulSet of deploy/kubernetes with processes: each pod has a place of its own on the network,
// with a new address at each start, the command line and the environment of the manifest, its claim at the path where the
// manifest mounts it, and a name that stands for its address from the moment on at which it runs. The probes of the manifest
// decide when it is ready, and so when clients are sent to it. What Kubernetes would do by itself (replace a pod that has ended, roll
// an update out) is for the test to do. It needs root; Probe says why it can't work here.
//
// Start at New.
package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/netsim"
)

// Namespace is that of the pods.
const Namespace = "regd"

// places is how many pods can run at a time, with as many again whose addresses were used last.
const places = 14

// Probe returns nil if pods can be played here, else why not.
func Probe() error {
	for _, program := range []string{"unshare", "mount"} { // Debian packages: util-linux, mount
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("pods: %w", err)
		}
	}
	if err := netsim.Probe(); err != nil {
		return err
	}
	if out, err := exec.Command("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/var/lib").CombinedOutput(); err != nil {
		return fmt.Errorf("pods: mount in a namespace: %w: %s", err, out)
	}
	return nil
}

// Set is a StatefulSet and its two Services. It is ended with the test.
type Set struct {
	tb      testing.TB
	binary  string
	dir     string
	net     *netsim.Network
	names   *names
	service *service
	m       manifest
	grpc    string // port
	started int    // pods so far: each start takes the next place

	mu   sync.Mutex
	pods map[int]*Pod // those that run, by ordinal
}

// Pod is one life of a pod.
type Pod struct {
	// Name is as in "regd-0".
	Name string
	// Addr is its address, which no pod had shortly before.
	Addr netip.Addr

	set    *Set
	place  *netsim.Endpoint
	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has ended
	stop   context.CancelFunc
	probes sync.WaitGroup
	ready  atomic.Bool
	ending atomic.Bool
}

// New plays the StatefulSet of a folder of deploy/kubernetes with a binary. No pod runs yet.
func New(tb testing.TB, binary, kubernetes string) *Set {
	tb.Helper()
	s := &Set{tb: tb, binary: binary, dir: tb.TempDir(), pods: map[int]*Pod{}}
	var err error
	if s.m, err = readManifest(kubernetes); err != nil {
		tb.Fatal(err)
	}
	if s.grpc, err = s.m.port("grpc"); err != nil {
		tb.Fatal(err)
	}
	s.net = netsim.New(tb, places, 1, 1)
	leg := s.net.Legs()[0].Addr
	if s.names, err = serveNames(leg); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.names.close)
	if s.service, err = serveClients(leg, s.grpc, s.endpoints); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		s.end()
		s.service.close()
	})
	return s
}

// end ends all pods, and tells how they have fared if the test failed.
func (s *Set) end() {
	for ordinal := range s.m.Spec.Replicas + places {
		s.Kill(ordinal)
		if log, err := os.ReadFile(s.path(ordinal, "log")); err == nil && s.tb.Failed() {
			lines := strings.Split(strings.TrimSpace(string(log)), "\n")
			s.tb.Logf("%s: last of its log:\n%s", s.name(ordinal), strings.Join(lines[max(0, len(lines)-25):], "\n"))
		}
	}
}

// Replicas is how many pods the manifest wants, and Parallel whether they are started without waiting for each other.
func (s *Set) Replicas() int { return s.m.Spec.Replicas }

// Parallel tells whether pods are started and ended without waiting for each other.
func (s *Set) Parallel() bool { return s.m.Spec.PodManagementPolicy == "Parallel" }

// Address is where clients reach the Service for them.
func (s *Set) Address() string { return s.service.lis.Addr().String() }

func (s *Set) name(ordinal int) string { return fmt.Sprintf("%s-%d", s.m.Metadata.Name, ordinal) }

func (s *Set) path(ordinal int, kind string) string {
	return filepath.Join(s.dir, s.name(ordinal)+"."+kind)
}

// endpoints are the pods that the Service for clients sends them to.
func (s *Set) endpoints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, p := range s.pods {
		if p.ready.Load() && !p.ending.Load() {
			list = append(list, p.Addr.String()+":"+s.grpc)
		}
	}
	return list
}

// pod is the running pod of an ordinal, or nil.
func (s *Set) pod(ordinal int) *Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pods[ordinal]
}

// Create starts pods that do not run, at new addresses, on the claims that they have. A pod without one gets an empty one.
func (s *Set) Create(tb testing.TB, ordinals ...int) {
	tb.Helper()
	for _, ordinal := range ordinals {
		if err := s.create(ordinal); err != nil {
			tb.Fatalf("create %s: %v", s.name(ordinal), err)
		}
	}
}

// setUp makes a pod's view of the file system: the name server, and its claim where the manifest has it, in a /var/lib of
// its own. Its arguments are the two, where the claim belongs, and the command.
const setUp = `mount --bind "$1" /etc/resolv.conf
mount -t tmpfs tmpfs /var/lib
mkdir -p "$3"
mount --bind "$2" "$3"
shift 3
exec "$@"`

func (s *Set) create(ordinal int) error {
	all := s.net.Nodes()
	p := &Pod{Name: s.name(ordinal), set: s, place: all[s.started%len(all)], done: make(chan struct{})}
	p.Addr = p.place.Addr
	s.started++
	claim, resolv := s.path(ordinal, "claim"), filepath.Join(s.dir, "resolv.conf")
	if err := os.MkdirAll(claim, 0o700); err != nil {
		return err
	}
	search := []string{Namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"}
	text := fmt.Sprintf("nameserver %s\nsearch %s\noptions ndots:5\n", s.net.Legs()[0].Addr, strings.Join(search, " "))
	if err := os.WriteFile(resolv, []byte(text), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(s.path(ordinal, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // The process has it.
	p.cmd, err = p.command(context.Background(), s.m.container().Args, "unshare", "--mount", "--propagation", "private",
		"sh", "-euc", setUp, "sh", resolv, claim, s.m.container().VolumeMounts[0].MountPath)
	if err != nil {
		return err
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = p.cmd.Wait() // How it ended is in its state.
		close(p.done)
	}()
	s.names.set(p.fullName(), p.Addr)
	s.mu.Lock()
	s.pods[ordinal] = p
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background()) // Until the pod has ended.
	p.stop = cancel
	p.probes.Go(func() { p.probe(ctx) })
	return nil
}

// fullName is what the pod's name in the Service for peers is looked up as.
func (p *Pod) fullName() string {
	return strings.Join([]string{p.Name, p.set.m.Spec.ServiceName, Namespace, "svc.cluster.local"}, ".")
}

// command is regd with arguments in the pod's place, with its environment, run by a command line before it.
func (p *Pod) command(ctx context.Context, args []string, before ...string) (*exec.Cmd, error) {
	env, err := p.set.m.environment(p.Name, Namespace)
	if err != nil {
		return nil, err
	}
	line := append(append(append(p.place.Command(), before...), p.set.binary), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...) //nolint:gosec // Ours.
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	return cmd, nil
}

// Exec runs regd with arguments in a pod, as kubectl exec does, and returns what it printed.
func (s *Set) Exec(ctx context.Context, ordinal int, args ...string) ([]byte, error) {
	p := s.pod(ordinal)
	if p == nil {
		return nil, fmt.Errorf("%s does not run", s.name(ordinal))
	}
	cmd, err := p.command(ctx, args)
	if err != nil {
		return nil, err
	}
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return nil, fmt.Errorf("regd %s in %s: %w: %s", strings.Join(args, " "), p.Name, err, failed.Stderr)
	}
	return out, err
}

// Delete ends pods as Kubernetes does: no new client is sent there, SIGTERM, and SIGKILL after the grace period, which
// fails the test. It waits for all of them.
func (s *Set) Delete(tb testing.TB, ordinals ...int) {
	tb.Helper()
	grace := time.Duration(s.m.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
	var ending []*Pod
	for _, ordinal := range ordinals {
		if p := s.pod(ordinal); p != nil {
			p.ending.Store(true)
			_ = p.cmd.Process.Signal(syscall.SIGTERM) // It may have just ended.
			ending = append(ending, p)
		}
	}
	late := time.After(grace)
	for _, p := range ending {
		select {
		case <-p.done:
		case <-late:
			tb.Errorf("%s has not ended within its grace period of %v", p.Name, grace)
		}
	}
	for _, ordinal := range ordinals {
		s.Kill(ordinal)
	}
}

// Kill ends pods at once, as a machine that is gone does.
func (s *Set) Kill(ordinals ...int) {
	for _, ordinal := range ordinals {
		p := s.pod(ordinal)
		if p == nil {
			continue
		}
		_ = p.cmd.Process.Kill() // It may have ended.
		<-p.done
		p.stop()
		p.probes.Wait()
		s.names.set(p.fullName(), netip.Addr{})
		s.mu.Lock()
		delete(s.pods, ordinal)
		s.mu.Unlock()
	}
}

// DeleteClaim deletes the data of a pod that does not run.
func (s *Set) DeleteClaim(tb testing.TB, ordinal int) {
	tb.Helper()
	if err := os.RemoveAll(s.path(ordinal, "claim")); err != nil {
		tb.Fatal(err)
	}
}

// Addr is the address of a running pod.
func (s *Set) Addr(ordinal int) netip.Addr { return s.pod(ordinal).Addr }

// Ready tells whether a pod runs and its readiness probe passes.
func (s *Set) Ready(ordinal int) bool {
	p := s.pod(ordinal)
	return p != nil && p.ready.Load()
}

// AwaitReady waits until all these pods are ready; it fails the test when that takes longer than the time, or when one has
// ended.
func (s *Set) AwaitReady(tb testing.TB, d time.Duration, ordinals ...int) {
	tb.Helper()
	s.Wait(tb, fmt.Sprintf("pods %v to be ready", ordinals), d, func() bool {
		for _, ordinal := range ordinals {
			p := s.pod(ordinal)
			select {
			case <-p.done:
				tb.Fatalf("%s has ended: %v", p.Name, p.cmd.ProcessState)
			default:
			}
			if !p.ready.Load() {
				return false
			}
		}
		return true
	})
}

// Wait polls until the condition holds; it fails the test after the time.
func (s *Set) Wait(tb testing.TB, what string, d time.Duration, condition func() bool) {
	tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(d); !condition(); {
		select {
		case <-tick.C:
		case <-end:
			tb.Fatalf("waited %v for: %s", d, what)
		}
	}
}
