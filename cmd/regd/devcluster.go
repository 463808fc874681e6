package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// devCluster is a local cluster of child processes. Its methods may be called from any goroutine.
type devCluster struct {
	app   *app
	dir   string
	temp  bool // the folder is removed at the end
	nodes []*devNode
	tls   *devTLS // nil: plaintext

	// deaths gets the name of each node whose process ended untold.
	deaths chan string
	say    sync.Mutex // one message at a time
}

// devPlan is what a dev cluster is to be.
type devPlan struct {
	count     int
	chosen    bool // count was asked for, it is not the default
	dir       string
	firstPort int
	tls       bool
}

const (
	maxDevNodes = 9
	// devStride is the distance between the ports of two nodes.
	devStride = 10
	// devBlock is how many ports a cluster may use: nodes from the first on, demo services from demoPorts on.
	devBlock  = 100
	demoPorts = 91
	// stopTimeout is how long nodes may take to stop before they are killed.
	stopTimeout = 4 * time.Second
	// readyTimeout is how long a cluster may take to be ready.
	readyTimeout = 60 * time.Second
)

// newDevCluster prepares the nodes of a plan; none is started.
func newDevCluster(a *app, plan devPlan) (*devCluster, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	d := &devCluster{app: a, dir: plan.dir, deaths: make(chan string, maxDevNodes)}
	if d.dir == "" {
		d.temp = true
		d.dir, err = os.MkdirTemp("", "regd-dev-")
	} else if d.dir, err = filepath.Abs(d.dir); err == nil {
		err = os.MkdirAll(d.dir, 0o700)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(d.dir, "logs"), 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	addresses, err := d.place(plan)
	if err != nil {
		return nil, errors.Join(err, d.remove())
	}
	var peers []string
	for _, at := range addresses {
		peers = append(peers, at.Peer)
	}
	if plan.tls {
		if d.tls, err = makeDevTLS(d.dir, addresses); err != nil {
			return nil, errors.Join(err, d.remove())
		}
	}
	for _, at := range addresses {
		n := newDevNode(exe, d.dir, at, peers)
		n.args = append(n.args, d.tls.nodeArgs(at.Name)...)
		for _, open := range d.openings(at) {
			n.args = append(n.args, "--"+open.name+"-listen", open.address)
		}
		n.died = d.onDeath
		d.nodes = append(d.nodes, n)
	}
	return d, nil
}

// place gives each node its ports: those of the last run in the same folder, as the nodes know each other by them, else
// the first that are free.
func (d *devCluster) place(plan devPlan) ([]devAddresses, error) {
	before, err := readDevState(filepath.Join(d.dir, devStateFile))
	if err != nil {
		return nil, err
	}
	if before.running() {
		return nil, withHint(fmt.Errorf("a dev cluster is running in %s already (process %d)", d.dir, before.PID),
			"stop it by Ctrl-C, or give this one a --data-dir of its own")
	}
	if len(before.Nodes) == 0 {
		return d.freeAddresses(plan)
	}
	if plan.chosen && plan.count != len(before.Nodes) {
		return nil, withHint(usageErrorf("%s holds a cluster of %d, not %d", d.dir, len(before.Nodes), plan.count),
			"leave out --nodes, or give another --data-dir")
	}
	for _, n := range before.Nodes {
		for _, address := range d.listens(n) {
			if !portFree(address) {
				return nil, withHint(fmt.Errorf("%s is in use, and the cluster in %s knows node %s by it", address, d.dir, n.Name),
					"stop what listens there, or give another --data-dir")
			}
		}
	}
	return before.Nodes, nil
}

// freeAddresses finds a block of ports of which none is taken that a node needs.
func (d *devCluster) freeAddresses(plan devPlan) ([]devAddresses, error) {
	for first := plan.firstPort; first+devBlock <= 65536; first += devBlock {
		var nodes []devAddresses
		taken := ""
		for i := range plan.count {
			port := first + i*devStride
			at := devAddresses{
				Name: "n" + strconv.Itoa(i+1), GRPC: localPort(port), Peer: localPort(port + 1), HTTP: localPort(port + 2),
			}
			nodes = append(nodes, at)
			for _, address := range d.listens(at) {
				if taken == "" && !portFree(address) {
					taken = address
				}
			}
		}
		if taken == "" {
			return nodes, nil
		}
		d.app.note("%s is in use: taking the ports from %d on", taken, first+devBlock)
	}
	return nil, fmt.Errorf("there are not enough free ports above %d", plan.firstPort)
}

// devOpening is a door of a node: what it is called, and where it listens.
type devOpening struct{ name, title, address string }

// openings are the doors of a node. Their ports come after that for HTTP.
func (d *devCluster) openings(at devAddresses) []devOpening {
	var all []devOpening
	_, first, _ := net.SplitHostPort(at.HTTP) // It is what localPort made.
	port, _ := strconv.Atoi(first)
	for i, door := range d.app.openings() {
		all = append(all, devOpening{door.name(), door.title(), localPort(port + 1 + i)})
	}
	return all
}

// listens are all addresses on which a node listens.
func (d *devCluster) listens(at devAddresses) []string {
	all := []string{at.GRPC, at.Peer, at.HTTP}
	for _, open := range d.openings(at) {
		all = append(all, open.address)
	}
	return all
}

func localPort(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func portFree(address string) bool {
	l, err := net.Listen("tcp", address) //nolint:noctx // Binding does not wait.
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// onDeath tells that a node has ended by itself. It stays down: what crashes at once when started again would crash for
// ever.
func (d *devCluster) onDeath(n *devNode, state *os.ProcessState) {
	d.say.Lock()
	defer d.say.Unlock()
	d.app.note("\n%s has ended: %s; bring it back with  regd dev restart %s", n.Name, state, n.Name)
	if state.Exited() { // By itself, so that it knows why.
		d.app.note("  last lines of %s:", n.log)
		for _, line := range n.lastLines(5) {
			d.app.note("  %s", clean(line))
		}
	}
	select {
	case d.deaths <- n.Name:
	default:
	}
}

// start starts all nodes and waits until they are ready.
func (d *devCluster) start(ctx context.Context) error {
	for _, n := range d.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, n := range d.nodes {
		if err := d.awaitReady(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// awaitReady waits until a node is ready. It gives up when ctx ends or a node has died.
func (d *devCluster) awaitReady(ctx context.Context, n *devNode) error {
	const often = 50 * time.Millisecond
	ticker := time.NewTicker(often)
	defer ticker.Stop()
	for {
		reason := askReady(ctx, n.HTTP)
		if reason == "" {
			return nil
		}
		select {
		case name := <-d.deaths:
			return fmt.Errorf("node %s could not be started", name)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return withHint(fmt.Errorf("node %s is not ready: %s", n.Name, reason), "its log is %s", n.log)
		case <-ticker.C:
		}
	}
}

// askReady asks a node whether it is ready; empty: it is.
func askReady(ctx context.Context, address string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := oneShot().Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return err.Error()
	}
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	return strings.TrimSpace(string(body))
}

// stop asks all nodes to end, and kills those that don't in time or when hurry closes.
func (d *devCluster) stop(hurry <-chan struct{}) {
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	var ends []<-chan struct{}
	for _, n := range d.nodes {
		ends = append(ends, n.stop())
	}
	for i, n := range d.nodes {
		select {
		case <-ends[i]:
			continue
		case <-hurry:
		case <-timer.C:
			d.app.note("%s took longer than %v to stop: killing it", n.Name, stopTimeout)
			timer.Reset(0) // The rest has had its time too.
		}
		if err := n.kill(); err != nil && !errors.Is(err, errDevDown) {
			d.app.note("%v", err)
		}
	}
}

// remove removes the folder if it is a temporary one.
func (d *devCluster) remove() error {
	if !d.temp {
		return nil
	}
	if err := os.RemoveAll(d.dir); err != nil {
		return fmt.Errorf("remove temporary folder: %w", err)
	}
	return nil
}

// find returns a node by name.
func (d *devCluster) find(name string) (*devNode, error) {
	var names []string
	for _, n := range d.nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return nil, &exitError{
		code: exitNotFound, err: fmt.Errorf("no node %q; there are %s", name, strings.Join(names, ", ")),
	}
}

// state is what the cluster writes down about itself.
func (d *devCluster) state() devState {
	s := devState{PID: os.Getpid(), DataDir: d.dir, TLS: d.tls}
	for _, n := range d.nodes {
		s.Nodes = append(s.Nodes, n.devAddresses)
	}
	return s
}

// firstPort is the port of the first node for clients.
func (d *devCluster) firstPort() int {
	_, port, _ := net.SplitHostPort(d.nodes[0].GRPC) // It is what localPort made.
	number, _ := strconv.Atoi(port)
	return number
}

// oneShot is a client for a question now and then: it keeps no connection open.
func oneShot() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}
