package deck

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/build"
	"github.com/regd-io/regd/test/chaos/internal/disksim"
	"github.com/regd-io/regd/test/chaos/internal/netsim"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
	"github.com/regd-io/regd/test/chaos/internal/report"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/workload"
)

// world is a cluster with what is around it. The test's goroutine owns it, but for what is said to be safe.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	c       *nodes.Cluster
	rec     *history.Recorder
	net     *netsim.Network         // nil: the nodes are on loopback
	clocks  map[string]*build.Clock // by node
	dir     string                  // of what the nodes applied
	faults  []fault                 // that the machine allows
	skipped []string                // why others are not
	broken  []check.Violation       // what the nodes themselves did wrong
	least   map[string]int          // how often what has to be met
}

// profile is the size of a run.
type profile struct {
	name     string
	nodes    int
	args     []string // of the nodes
	episodes int
	kinds    []string      // of faults; none: all
	last     time.Duration // the least that a fault lasts
	counts   workload.Counts
	pause    time.Duration
	least    report.Minimum
	facts    map[string]int // how often it has to meet what, at least
}

// minTTL is the least TTL of sessions and leases, and half of the largest.
const minTTL = 3 * time.Second

// legs are the addresses from which clients come: a server lets each have a number of connections.
const legs = 4

// newWorld starts the nodes of a run on a network and disks of their own, as far as the machine allows.
func newWorld(t *testing.T, seed uint64, p profile, mutants ...build.Mutant) *world {
	t.Helper()
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), rec: history.NewRecorder(), clocks: map[string]*build.Clock{}, dir: t.TempDir(), least: p.facts,
	}
	o := nodes.Options{Args: p.args, Binary: build.Build(t, mutants...), Env: w.environment}
	w.faults = slices.Concat(processFaults(), memberFaults(), clockFaults())
	if w.allowed("a network of its own for each node", netsim.Probe()) {
		w.net = netsim.New(t, p.nodes, legs, seed)
		o.Net = w.net
		w.faults = append(w.faults, networkFaults()...)
	}
	probes := errors.Join(disksim.Probe(), disksim.ProbeFreeze(), disksim.ProbePowerLoss(), disksim.ProbeInject())
	if w.allowed("a disk of its own for each node", probes) {
		o.DiskSize = disksim.DefaultSize
		w.faults = append(w.faults, diskFaults()...)
	}
	for i := range p.nodes {
		name := fmt.Sprintf("n%d", i+1)
		w.clocks[name] = build.NewClock(t, filepath.Join(w.dir, name+".clock"))
	}
	w.c = nodes.StartWith(t, p.nodes, o)
	return w
}

// allowed tells whether the machine allows something. In CI it has to.
func (w *world) allowed(what string, err error) bool {
	w.t.Helper()
	if err == nil {
		return true
	}
	if os.Getenv("CHAOS_STRICT") == "1" {
		w.t.Fatalf("%s can't be had, and CHAOS_STRICT=1: %v", what, err)
	}
	w.skipped = append(w.skipped, fmt.Sprintf("%s: %v", what, err))
	return false
}

// environment makes the nodes small: snapshots are taken, installed and run out of history many times a minute.
func (w *world) environment(n *nodes.Node) []string {
	return []string{
		build.EnvApplied + "=" + w.appliedFile(n.Name), build.EnvClock + "=" + filepath.Join(w.dir, n.Name+".clock"),
		build.EnvSnapshotThreshold + "=200", build.EnvSnapshotInterval + "=1s", build.EnvTrailingLogs + "=50",
		build.EnvMinFreeBytes + "=8388608", build.EnvFeedEvents + "=500",
	}
}

func (w *world) appliedFile(node string) string { return filepath.Join(w.dir, node+".applied") }

// must ends the test when the harness itself fails.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// fault notes that a node broke a promise.
func (w *world) fault(rule, format string, args ...any) {
	v := check.Violation{Rule: rule, Detail: fmt.Sprintf(format, args...)}
	w.t.Log("VIOLATION ", v)
	w.broken = append(w.broken, v)
}

// others are all nodes but those given.
func (w *world) others(except ...*nodes.Node) []*nodes.Node {
	return slices.DeleteFunc(slices.Clone(w.c.Nodes()), func(n *nodes.Node) bool { return slices.Contains(except, n) })
}

// shuffled are all nodes in an order of chance.
func (w *world) shuffled() []*nodes.Node {
	all := slices.Clone(w.c.Nodes())
	w.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// follower is any running node that does not lead now.
func (w *world) follower() *nodes.Node {
	leader := w.c.Leader()
	all := slices.DeleteFunc(w.shuffled(), func(n *nodes.Node) bool { return n == leader || !n.Running() })
	return all[0]
}

// dial connects a client to a node by name, from a leg of the network that it shares with some. Safe for concurrent use.
func (w *world) dial(client, node string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: 2 * time.Second,
		}),
	}, opts...)
	if w.net != nil {
		h := fnv.New32a()
		_, _ = h.Write([]byte(client)) // A hash never fails.
		legs := w.net.Legs()
		opts = append(opts, grpc.WithContextDialer(legs[int(h.Sum32()%uint32(len(legs)))].Dial))
	}
	return grpc.NewClient("passthrough:///"+w.c.Node(node).GRPC, opts...)
}

// patience is how long a loyal client waits for an answer. It is much less than a pause lasts: what is asked before a pause,
// and answered after it, may be old.
const patience = 200 * time.Millisecond

// loyals are clients that ask nobody but one node, each over and over: some read, some renew a session. It returns when
// each has been answered once. What it returns lets the calls under way come to an end, and waits for them.
func (w *world) loyals(n *nodes.Node) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var first, all sync.WaitGroup
	begun := w.rec.Now()
	for i := range 24 {
		name := fmt.Sprintf("loyal%d.%d", i, begun.Milliseconds())
		conn, err := w.dial(name, n.Name, w.rec.DialOptions(name, n.Name)...)
		w.must(err)
		ask := readServices
		if i%2 == 0 {
			ask = w.openSession(name, conn)
		}
		first.Add(1)
		all.Go(func() {
			defer conn.Close()
			for round := 0; round == 0 || ctx.Err() == nil; round++ {
				callCtx, done := context.WithTimeout(w.t.Context(), patience)
				ask(callCtx, conn)
				done()
				if round == 0 {
					first.Done()
				}
			}
		})
	}
	first.Wait()
	return func() {
		cancel()
		all.Wait()
	}
}

// readServices makes a linearizable read, which is judged from the history.
func readServices(ctx context.Context, conn *grpc.ClientConn) {
	_, _ = apiv1.NewRegistryServiceClient(conn).ListServices(ctx, &apiv1.ListServicesRequest{
		Namespace: "harness", Freshness: &apiv1.Freshness{Mode: apiv1.Mode_MODE_LINEARIZABLE},
	})
}

// openSession opens a session of the least TTL. What it returns renews it, which is judged from the history.
func (w *world) openSession(client string, conn *grpc.ClientConn) (renew func(context.Context, *grpc.ClientConn)) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	resp, err := apiv1.NewSessionServiceClient(conn).Open(ctx, &apiv1.OpenRequest{
		RequestId: &apiv1.RequestID{ClientId: client, Sequence: 1}, ClientName: client, Ttl: durationpb.New(minTTL),
	})
	if err != nil {
		w.t.Logf("open a session through the node that is to be paused: %v", err)
		return readServices
	}
	return func(ctx context.Context, conn *grpc.ClientConn) {
		_, _ = apiv1.NewSessionServiceClient(conn).Renew(ctx, &apiv1.RenewRequest{SessionIds: []string{resp.GetSession().GetId()}})
	}
}

// verify has a node compare the replicas. What it says is judged from the history.
func (w *world) verify() {
	node := w.shuffled()[0].Name
	conn, err := w.dial("verifier", node, w.rec.DialOptions("verifier", node)...)
	w.must(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	_, _ = apiv1.NewClusterServiceClient(conn).Verify(ctx, &apiv1.VerifyRequest{})
}

// recover waits until each node serves a write and all voters answer. A node that has ended by itself is started, and
// told of.
func (w *world) recover(within time.Duration) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), within)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		for _, n := range w.c.Nodes() {
			if !n.Running() {
				w.fault("crash", "%s has ended by itself: %s: %s", n.Name, n.Ended(), n.Log(3))
				n.Start()
			}
		}
		if err = w.healthy(ctx); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("not recovered after %v: %w", within, err)
}

func (w *world) healthy(ctx context.Context) error {
	for _, n := range w.c.Nodes() {
		callCtx, cancel := context.WithTimeout(ctx, time.Second)
		_, err := n.Registry().Register(callCtx, &apiv1.RegisterRequest{
			Instance: &registryv1.Instance{Namespace: "harness", Service: "alive", Id: n.Name, Address: "127.0.0.1"},
		})
		cancel()
		if err != nil {
			return fmt.Errorf("write through %s: %w", n.Name, err)
		}
	}
	callCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := w.c.Nodes()[0].Admin().Status(callCtx, &apiv1.StatusRequest{})
	if err != nil {
		return err
	}
	if int(s.GetVoters()) != len(w.c.Nodes()) || s.GetVotersReachable() != s.GetVoters() {
		return fmt.Errorf("%d of %d voters answer", s.GetVotersReachable(), s.GetVoters())
	}
	return nil
}
