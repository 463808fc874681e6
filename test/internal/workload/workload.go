// Package workload is what clients do to a cluster while it is being tortured: they register, renew, lock and watch
// through every node, and take down each call and message with package history. It knows no fault and works in a
// testing/synctest bubble as well as against processes. Each role has a file of its own: registry, duplicates, owners,
// lockers, watchers, and the programs that use the Go client. Start at New.
package workload

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/test/internal/history"
)

// Dialer connects a client to a node, both by name, with the given options besides its own.
type Dialer func(client, node string, opts ...grpc.DialOption) (*grpc.ClientConn, error)

// Config says who does what, and how often.
type Config struct {
	// Dial connects clients. Required.
	Dial Dialer
	// Nodes are the nodes that clients know, by name: those pinned to one are spread over them. Nodes may be missing at
	// times. Required.
	Nodes []string
	// Address is the host:port that a node gives to clients. Required if there are programs.
	Address func(node string) string
	// Name begins the names of all clients, and of what they fight for: two workloads on one cluster need two. Default: none.
	Name string
	// Recorder takes everything down. Required.
	Recorder *history.Recorder
	// Seed decides what the clients choose.
	Seed uint64
	// Pause is the mean time between two calls of a client. Default 500 ms.
	Pause time.Duration
	// Timeout is the deadline of a call. Default 1 s.
	Timeout time.Duration
	// MinTTL and MaxTTL bound the TTLs of sessions and leases. Default 4 s and 10 s.
	MinTTL, MaxTTL time.Duration
	// KeyOps is the number of operations on one instance after which the clients of the registry turn to a new one.
	// Default 600.
	KeyOps int
	// Counts are how many clients there are of each role.
	Counts Counts
}

// Counts are numbers of clients.
type Counts struct {
	// Pinned and Roaming use the registry, asking always the same node, and any.
	Pinned, Roaming int
	// Duplicates send each request twice.
	Duplicates int
	// Sessions and Leases open one after the other, and hang instances on them.
	Sessions, Leases int
	// Lockers fight for locks.
	Lockers int
	// Watchers watch; half of them are pinned to a node.
	Watchers int
	// Programs use package client.
	Programs int
}

// maxPerKey is how many clients of the registry fight for the same instances.
const maxPerKey = 8

// Workload is the clients. First Run, then Settle, then Close.
type Workload struct {
	cfg      Config
	watchers []*watcher
	programs []*program
	locks    *exclusion
	work     sync.WaitGroup // of Run
	watching sync.WaitGroup
	end      context.CancelFunc // of the watchers and programs
	settling chan struct{}      // closed once nobody writes any more

	mu     sync.Mutex
	broken []string
}

// New returns clients that do nothing yet.
func New(cfg Config) (*Workload, error) {
	if cfg.Dial == nil || cfg.Recorder == nil || len(cfg.Nodes) == 0 || cfg.Address == nil && cfg.Counts.Programs > 0 {
		return nil, errors.New("new workload: dialer, recorder, nodes and addresses must be set")
	}
	setDefault(&cfg.Pause, 500*time.Millisecond)
	setDefault(&cfg.Timeout, time.Second)
	setDefault(&cfg.MinTTL, 4*time.Second)
	setDefault(&cfg.MaxTTL, 10*time.Second)
	setDefault(&cfg.KeyOps, 600)
	return &Workload{cfg: cfg, locks: newExclusion(), settling: make(chan struct{})}, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Run has the clients work until ctx ends, and returns when each has stopped but those that watch. A call under way is
// waited for.
func (w *Workload) Run(ctx context.Context) error {
	n := w.cfg.Counts
	w.useRegistry(ctx, n.Pinned, n.Roaming)
	w.start(ctx, "twice", n.Duplicates, w.askTwice)
	w.start(ctx, "session", n.Sessions, func(ctx context.Context, c *caller) { w.own(ctx, c, sessions) })
	w.start(ctx, "lease", n.Leases, func(ctx context.Context, c *caller) { w.own(ctx, c, leases) })
	w.start(ctx, "locker", n.Lockers, w.contend)
	// What watches goes on until Close: it has to see the end.
	var watching context.Context
	watching, w.end = context.WithCancel(context.WithoutCancel(ctx))
	w.watch(watching, n.Watchers)
	err := w.runPrograms(ctx, watching, n.Programs)
	w.work.Wait()
	close(w.settling)
	return err
}

// start starts n roaming clients.
func (w *Workload) start(ctx context.Context, role string, n int, do func(context.Context, *caller)) {
	for i := range n {
		w.startOne(ctx, w.newCaller(fmt.Sprintf("%s%d", role, i), ""), do)
	}
}

func (w *Workload) startOne(ctx context.Context, c *caller, do func(context.Context, *caller)) {
	w.work.Go(func() {
		defer c.close()
		do(ctx, c)
	})
}

// Close ends what still watches, and waits for it.
func (w *Workload) Close() {
	w.end()
	w.watching.Wait()
}

// Broken returns what the clients themselves found wrong, as "rule: detail": promises that package client makes to its
// user, and what Settle saw.
func (w *Workload) Broken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

func (w *Workload) fault(rule, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, rule+": "+fmt.Sprintf(format, args...))
}

// node is the node of the i-th pinned client.
func (w *Workload) node(i int) string { return w.cfg.Nodes[i%len(w.cfg.Nodes)] }

// random returns the source of one client's choices.
func (w *Workload) random(client string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(client))
	return rand.New(rand.NewPCG(w.cfg.Seed, h.Sum64()))
}

// sleep waits for d. It tells whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
