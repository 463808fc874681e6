// Package netsim is a network of our own for processes under test: each node lives in a network namespace, and every
// frame between two of them, or between a node and the harness, passes a switch in this process, which drops, delays or
// resets it as it is told and counts what it did. It needs root; Probe says why it can't work here.
//
// Start at New. Nodes are named n1, n2, ... and the harness's own addresses ("legs") c1, c2, ...; rules hold for one
// direction of one pair of names.
package netsim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/regd-io/regd/test/chaos/internal/nodes/owner"
)

// Limits of a network.
const (
	maxNodes = 50
	maxLegs  = 100
)

// Endpoint is a place on a network.
type Endpoint struct {
	// Name is n1, n2, ... for nodes and c1, c2, ... for the legs of the harness.
	Name string
	// Addr is its address.
	Addr netip.Addr
	// Namespace is the network namespace of a node. Empty for a leg: it is in the harness's own.
	Namespace string

	mac  string
	port *port
}

// Command is what has to stand before a command line for it to run on the node's place of the network. The process
// keeps its id, and the mounts stay those of the caller (as they would not by "ip netns exec").
func (e *Endpoint) Command() []string {
	if e.Namespace == "" {
		return nil
	}
	return []string{"nsenter", "--net=" + netnsDir + "/" + e.Namespace, "--"}
}

// Dial connects from a leg to a host:port, by TCP. It fits grpc.WithContextDialer.
func (e *Endpoint) Dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: e.Addr.AsSlice()}}
	return d.DialContext(ctx, "tcp", address)
}

// Network is a switch and what hangs on it.
type Network struct {
	prefix  [3]byte // of all addresses
	ends    []*Endpoint
	places  [256]int // index in ends by the last byte of the address; -1: nobody
	links   [][]*link
	ports   []*port
	delayer *delayer
	reserve net.Listener // holds the prefix
	wg      sync.WaitGroup
	quit    chan struct{}
}

// runs numbers the networks of this process.
var runs atomic.Int64

// New makes a network with so many nodes and legs of the harness; all can reach each other. The seed feeds loss and
// jitter. It is taken down with the test, whose processes must have ended by then. What a harness that has died left
// behind is removed first.
func New(tb testing.TB, nodes, legs int, seed uint64) *Network {
	tb.Helper()
	if nodes < 1 || nodes > maxNodes || legs < 1 || legs > maxLegs {
		tb.Fatalf("netsim: %d nodes and %d legs, must be 1..%d and 1..%d", nodes, legs, maxNodes, maxLegs)
	}
	if err := removeLeftovers(); err != nil {
		tb.Fatal(err)
	}
	n := &Network{delayer: newDelayer(), quit: make(chan struct{})}
	tb.Cleanup(func() {
		if err := n.close(); err != nil {
			tb.Errorf("netsim: %v", err)
		}
	})
	if err := n.open(nodes, legs, seed); err != nil {
		tb.Fatalf("netsim: %v", err)
	}
	return n
}

func (n *Network) open(nodes, legs int, seed uint64) error {
	var err error
	if n.prefix, n.reserve, err = reservePrefix(); err != nil {
		return err
	}
	for i := range n.places {
		n.places[i] = -1
	}
	run := fmt.Sprintf("%s%d-", owner.Tag(kind), runs.Add(1))
	for i := 1; i <= nodes; i++ {
		n.place(fmt.Sprintf("n%d", i), byte(i), byte(i)).Namespace = fmt.Sprintf("%sn%d", run, i)
	}
	for i := 1; i <= legs; i++ {
		n.place(fmt.Sprintf("c%d", i), byte(100+i), 100)
	}
	for from := range n.ends {
		n.links = append(n.links, nil)
		for to := range n.ends {
			source := rand.NewPCG(seed, uint64(from*len(n.ends)+to))
			n.links[from] = append(n.links[from], &link{net: n, to: n.ends[to], rand: rand.New(source)}) //nolint:gosec // Not a secret.
		}
	}
	if err := n.plug(n.ends[:nodes], n.ends[nodes:]); err != nil {
		return err
	}
	for _, p := range n.ports {
		n.wg.Go(func() { n.read(p) })
	}
	n.wg.Go(func() { n.delayer.run(n.quit) })
	return nil
}

// place makes an endpoint of the last bytes of its address and its MAC.
func (n *Network) place(name string, last, mac byte) *Endpoint {
	addr := netip.AddrFrom4([4]byte{n.prefix[0], n.prefix[1], n.prefix[2], last})
	e := &Endpoint{Name: name, Addr: addr, mac: fmt.Sprintf("02:77:00:00:%02x:%02x", n.prefix[2], mac)}
	n.places[last] = len(n.ends)
	n.ends = append(n.ends, e)
	return e
}

// plug gives each node a namespace with one interface, eth0, whose other end is the switch, and the harness one
// interface with the addresses of all legs: with one for each the kernel would choose among them by its own lights.
func (n *Network) plug(nodes, legs []*Endpoint) error {
	harness, err := n.openPort()
	if err != nil {
		return err
	}
	root := []string{"link set dev " + harness.name + " address " + legs[0].mac + " addrgenmode none up"}
	for _, e := range legs {
		e.port = harness
		root = append(root, "addr add "+e.Addr.String()+"/24 dev "+harness.name)
	}
	root = append(root, n.neighbours(harness.name, harness)...)
	for _, e := range nodes {
		if e.port, err = n.openPort(); err != nil {
			return err
		}
		root = append(root, "netns add "+e.Namespace, "link set dev "+e.port.name+" netns "+e.Namespace)
	}
	if err := ip("", root...); err != nil {
		return err
	}
	var all errgroup.Group
	for _, e := range nodes {
		all.Go(func() error {
			return ip(e.Namespace, append([]string{
				"link set dev lo up",
				"link set dev " + e.port.name + " name eth0 address " + e.mac + " addrgenmode none",
				"link set dev eth0 up",
				"addr add " + e.Addr.String() + "/24 dev eth0",
			}, n.neighbours("eth0", e.port)...)...)
		})
	}
	return all.Wait()
}

// neighbours tells an interface the MACs of all that isn't behind the same port, so that no rule can hit ARP.
func (n *Network) neighbours(device string, self *port) []string {
	var all []string
	for _, e := range n.ends {
		if e.port != self {
			all = append(all, "neigh replace "+e.Addr.String()+" lladdr "+e.mac+" dev "+device+" nud permanent")
		}
	}
	return all
}

// Nodes are the places for nodes: n1, n2, ...
func (n *Network) Nodes() []*Endpoint { return n.kind(true) }

// Legs are the addresses of the harness: c1, c2, ... A connection that isn't bound to one has that of c1.
func (n *Network) Legs() []*Endpoint { return n.kind(false) }

func (n *Network) kind(node bool) []*Endpoint {
	var list []*Endpoint
	for _, e := range n.ends {
		if (e.Namespace != "") == node {
			list = append(list, e)
		}
	}
	return list
}

// close takes the network down: ports, goroutines, then the namespaces that it made.
func (n *Network) close() error {
	close(n.quit)
	var errs []error
	for _, p := range n.ports {
		errs = append(errs, p.file.Close()) // Ends its reader, and the interface is gone.
	}
	n.wg.Wait()
	var made []string
	for _, e := range n.ends {
		if e.Namespace != "" && exists(e.Namespace) {
			made = append(made, "netns del "+e.Namespace)
		}
	}
	errs = append(errs, ip("", made...))
	if n.reserve != nil {
		errs = append(errs, n.reserve.Close())
	}
	return errors.Join(errs...)
}

// ip runs commands of ip(8), in a namespace unless that is empty.
func ip(namespace string, commands ...string) error {
	args := []string{"-batch", "-"}
	if namespace != "" {
		args = append([]string{"-n", namespace}, args...)
	}
	cmd := exec.Command("ip", args...) //nolint:gosec // Ours.
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ip %s: %w: %s\n%s", strings.Join(args, " "), err, out.String(), strings.Join(commands, "\n"))
	}
	return nil
}

// port is a TAP interface as the switch sees it: what the other end sends is read from the file, what is written to
// it the other end receives. It lives as long as the file is open.
type port struct {
	name string
	file *os.File
}

// openPort makes a port that is closed with the network.
func (n *Network) openPort() (*port, error) {
	p, err := openPort()
	if err == nil {
		n.ports = append(n.ports, p)
	}
	return p, err
}

func openPort() (*port, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq("regd%d") // The kernel puts in a free number.
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd) // The first error is the one that matters.
		return nil, fmt.Errorf("make a TAP interface: %w", err)
	}
	return &port{name: req.Name(), file: os.NewFile(uintptr(fd), req.Name())}, nil
}
