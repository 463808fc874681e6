package netsim_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/regd-io/regd/test/chaos/internal/netsim"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

func network(t *testing.T, places, legs int) *netsim.Network {
	t.Helper()
	nodes.Require(t, netsim.Probe())
	began := time.Now()
	n := netsim.New(t, places, legs, 1)
	t.Logf("a network of %d nodes and %d legs took %v", places, legs, time.Since(began).Round(time.Millisecond))
	return n
}

// inside runs f on a thread of its own in the endpoint's namespace: sockets that f makes belong there.
func inside(t *testing.T, e *netsim.Endpoint, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // For good: the thread ends with the goroutine.
		ns, err := os.Open("/run/netns/" + e.Namespace)
		if err == nil {
			defer ns.Close()
			if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
				err = f()
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", e.Name, err)
	}
}

func address(e *netsim.Endpoint) string { return netip.AddrPortFrom(e.Addr, 7000).String() }

// listen makes a listener on a node.
func listen(t *testing.T, e *netsim.Endpoint) net.Listener {
	t.Helper()
	var lis net.Listener
	inside(t, e, func() (err error) {
		lis, err = net.Listen("tcp", address(e))
		return err
	})
	t.Cleanup(func() { _ = lis.Close() })
	return lis
}

// connect makes a connection from one node to another, and returns both ends.
func connect(t *testing.T, from *netsim.Endpoint, lis net.Listener) (client, server net.Conn) {
	t.Helper()
	if from.Namespace == "" {
		var err error
		if client, err = from.Dial(t.Context(), lis.Addr().String()); err != nil {
			t.Fatal(err)
		}
	} else {
		inside(t, from, func() (err error) {
			client, err = net.DialTimeout("tcp", lis.Addr().String(), 5*time.Second)
			return err
		})
	}
	server, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{client, server} {
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return client, server
}

func say(t *testing.T, c net.Conn, line string) {
	t.Helper()
	if _, err := c.Write([]byte(line + "\n")); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || got != want+"\n" {
		t.Fatalf("heard %q, %v, want %q", got, err, want)
	}
}

func TestAllReachEachOtherAndLegsAreTold(t *testing.T) {
	n := network(t, 3, 2)
	for _, to := range n.Nodes() {
		lis := listen(t, to)
		for _, from := range append(n.Nodes(), n.Legs()...) {
			if from == to {
				continue
			}
			client, server := connect(t, from, lis)
			say(t, client, "ping")
			hear(t, server, "ping")
			say(t, server, "pong")
			hear(t, client, "pong")
			host, _, _ := net.SplitHostPort(server.RemoteAddr().String())
			if host != from.Addr.String() {
				t.Errorf("%s sees %s at %s, want %s", to.Name, from.Name, host, from.Addr)
			}
			if n.Counts(from.Name, to.Name).Passed == 0 || n.Counts(to.Name, from.Name).Passed == 0 {
				t.Errorf("%s and %s have talked, and no frame was counted", from.Name, to.Name)
			}
		}
	}
	if total := n.Total(); total.Cut+total.Lost+total.Delayed+total.Reset+total.Overrun > 0 {
		t.Errorf("nothing was asked for, yet %+v", total)
	}
}

func TestACutOfOneDirectionLeavesTheOther(t *testing.T) {
	n := network(t, 2, 1)
	lis := listen(t, n.Nodes()[1])
	for _, from := range []*netsim.Endpoint{n.Nodes()[0], n.Legs()[0]} {
		client, server := connect(t, from, lis)
		n.CutOneWay("n2", from.Name) // Only the responses.
		before := n.Counts("n2", from.Name)
		say(t, client, "request")
		hear(t, server, "request")
		say(t, server, "response")
		waitFor(t, "a dropped response", func() bool { return n.Counts("n2", from.Name).Sub(before).Cut >= 2 })
		if got := n.Counts("n2", from.Name).Sub(before).Passed; got != 0 {
			t.Errorf("%d frames passed a cut", got)
		}
		if got := n.Counts(from.Name, "n2").Cut; got != 0 {
			t.Errorf("%d frames of the other direction were dropped", got)
		}
		n.Heal()
		hear(t, client, "response")
	}
}

func TestAnIsolatedNodeIsReachedByTheHarnessOnly(t *testing.T) {
	n := network(t, 3, 1)
	lis := listen(t, n.Nodes()[0])
	n.Isolate("n1")
	client, server := connect(t, n.Legs()[0], lis)
	say(t, client, "ping")
	hear(t, server, "ping")
	for _, e := range n.Nodes()[1:] {
		inside(t, e, func() error {
			if c, err := net.DialTimeout("tcp", lis.Addr().String(), 300*time.Millisecond); err == nil {
				return errors.Join(errors.New("connected to an isolated node"), c.Close())
			}
			return nil
		})
		if n.Counts(e.Name, "n1").Cut == 0 {
			t.Errorf("no frame from %s to n1 was dropped", e.Name)
		}
	}
	other := listen(t, n.Nodes()[1])
	connect(t, n.Nodes()[2], other)
}

// datagrams sends numbered datagrams from n1 to n2 and returns the numbers in the order of arrival.
func datagrams(t *testing.T, n *netsim.Network, count int) []int {
	t.Helper()
	var in net.PacketConn
	var out net.Conn
	inside(t, n.Nodes()[1], func() (err error) {
		in, err = net.ListenPacket("udp", address(n.Nodes()[1]))
		return err
	})
	defer in.Close()
	inside(t, n.Nodes()[0], func() (err error) {
		out, err = net.Dial("udp", address(n.Nodes()[1]))
		return err
	})
	defer out.Close()
	before := n.Counts("n1", "n2")
	dropped := func() uint64 { c := n.Counts("n1", "n2").Sub(before); return c.Lost + c.Cut + c.Overrun }
	var got []int
	buf := make([]byte, 8)
	deadline := time.Now().Add(20 * time.Second)
	for i := range count {
		if _, err := out.Write(binary.BigEndian.AppendUint64(nil, uint64(i))); err != nil {
			t.Fatal(err)
		}
		if i%batch != batch-1 { // A batch fits into the queues of interface and socket.
			continue
		}
		for uint64(len(got))+dropped() <= uint64(i) {
			if err := in.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if size, _, err := in.ReadFrom(buf); err == nil && size == 8 {
				got = append(got, int(binary.BigEndian.Uint64(buf)))
			} else if time.Now().After(deadline) {
				t.Fatalf("%d of %d datagrams have come, %d are known to be dropped", len(got), i+1, dropped())
			}
		}
	}
	return got
}

// batch is how many datagrams are under way at most.
const batch = 100

func TestDelayKeepsTheOrderAndJitterDoesNot(t *testing.T) {
	const count = 2 * batch
	n := network(t, 2, 1)
	n.Set("n1", "n2", netsim.Rule{Delay: 100 * time.Millisecond})
	began := time.Now()
	got := datagrams(t, n, count)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("two batches with a delay of 100ms took %v", took)
	}
	if !slices.IsSorted(got) {
		t.Errorf("a constant delay has mixed up %v", got)
	}
	n.Set("n1", "n2", netsim.Rule{Jitter: 50 * time.Millisecond})
	if got := datagrams(t, n, count); slices.IsSorted(got) {
		t.Error("jitter has mixed up nothing")
	}
	if c := n.Counts("n1", "n2"); c.Delayed != 2*count || c.Passed != 2*count {
		t.Errorf("counted %+v, want %d delayed and passed", c, 2*count)
	}
}

func TestADelayedFrameMeetsTheCutOfItsTime(t *testing.T) {
	n := network(t, 2, 1)
	lis := listen(t, n.Nodes()[1])
	client, server := connect(t, n.Nodes()[0], lis)
	n.Set("n1", "n2", netsim.Rule{Delay: 200 * time.Millisecond})
	say(t, client, "late")
	waitFor(t, "a frame to be held back", func() bool { return n.Counts("n1", "n2").Delayed > 0 })
	n.CutOneWay("n1", "n2")
	waitFor(t, "the frame to be dropped", func() bool { return n.Counts("n1", "n2").Cut > 0 })
	n.Heal()
	hear(t, server, "late") // Sent again by TCP.
}

func TestLossDropsItsShare(t *testing.T) {
	const count = 20 * batch
	n := network(t, 2, 1)
	n.Set("n1", "n2", netsim.Rule{Loss: 0.3})
	got := datagrams(t, n, count)
	lost := n.Counts("n1", "n2").Lost
	if lost < 500 || lost > 700 || len(got)+int(lost) != count {
		t.Errorf("%d of %d were lost and %d have come, want 30%% lost", lost, count, len(got))
	}
}

func TestResetEndsConnectionsAndRefusesNewOnes(t *testing.T) {
	n := network(t, 2, 1)
	lis := listen(t, n.Nodes()[1])
	client, server := connect(t, n.Nodes()[0], lis)
	say(t, client, "before")
	hear(t, server, "before")
	n.Set("n1", "n2", netsim.Rule{Reset: true})
	say(t, client, "after")
	for end, c := range map[string]net.Conn{"n1": client, "n2": server} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v, want a reset", end, err)
		}
	}
	inside(t, n.Nodes()[0], func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := new(net.Dialer).DialContext(ctx, "tcp", lis.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new connection: %v, want it refused", err)
		}
		return nil
	})
	if c := n.Counts("n1", "n2"); c.Reset < 2 {
		t.Errorf("counted %+v, want two resets", c)
	}
	n.Heal()
	connect(t, n.Nodes()[0], lis)
}

func TestAProcessInsideKeepsItsIDAndItsMounts(t *testing.T) {
	n := network(t, 1, 1)
	e := n.Nodes()[0]
	args := append(e.Command(), "sleep", "60")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	proc := "/proc/" + strconv.Itoa(cmd.Process.Pid)
	waitFor(t, "sleep to run under the id of nsenter", func() bool {
		comm, err := os.ReadFile(proc + "/comm")
		return err == nil && string(comm) == "sleep\n"
	})
	for name, same := range map[string]bool{"mnt": true, "net": false} {
		mine, err1 := os.Readlink("/proc/self/ns/" + name)
		its, err2 := os.Readlink(proc + "/ns/" + name)
		if err := errors.Join(err1, err2); err != nil || (mine == its) != same {
			t.Errorf("namespace %s: mine is %s and its %s, %v; want same: %v", name, mine, its, err, same)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	nodes.Require(t, netsim.Probe())
	var n *netsim.Network
	t.Run("network", func(t *testing.T) { n = netsim.New(t, 2, 3, 1) })
	for _, e := range n.Nodes() {
		if _, err := os.Stat("/run/netns/" + e.Namespace); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("namespace %s: %v", e.Namespace, err)
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, leg := range n.Legs() {
		for _, a := range addresses {
			if strings.HasPrefix(a.String(), leg.Addr.String()+"/") {
				t.Errorf("address %s is still there", leg.Addr)
			}
		}
	}
}

func TestWhatADeadHarnessLeftIsRemovedAndOnlyThat(t *testing.T) {
	nodes.Require(t, netsim.Probe())
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	left := "regd-netsim-" + strconv.Itoa(dead.Process.Pid) + "-1-n1"
	living := "regd-netsim-" + strconv.Itoa(os.Getppid()) + "-1-n1"
	for _, name := range []string{left, living} {
		if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	defer func() {
		if out, err := exec.Command("ip", "netns", "del", living).CombinedOutput(); err != nil {
			t.Errorf("the namespace of a living harness: %v: %s", err, out)
		}
	}()
	orphan := exec.Command("nsenter", "--net=/run/netns/"+left, "sleep", "60")
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the orphan to be inside", func() bool {
		out, err := exec.Command("ip", "netns", "pids", left).Output()
		return err == nil && strings.TrimSpace(string(out)) == strconv.Itoa(orphan.Process.Pid)
	})
	netsim.New(t, 1, 1, 1)
	var exit *exec.ExitError
	if err := orphan.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process in the namespace of a dead harness: %v", err)
	}
	if _, err := os.Stat("/run/netns/" + left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace of a dead harness: %v", err)
	}
}

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
