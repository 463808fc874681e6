// Package workload is what clients do to a cluster while it is being tortured: it registers, renews, locks and watches
// through every node, and takes down each call and message with package history. It knows no fault and judges nothing;
// it works in a testing/synctest bubble as well as against processes. Each role has a file of its own. Start at New.
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
	// Nodes are the nodes that clients try, by name: those pinned to one are spread over them. Required.
	Nodes []string
	// Recorder takes everything down. Required.
	Recorder *history.Recorder
	// Seed decides what the clients choose.
	Seed uint64
	// Pause is the mean time between two calls of a client. Default 500 ms.
	Pause time.Duration
	// Timeout is the deadline of a call. Default 1 s.
	Timeout time.Duration
	// KeyOps is the number of operations on one instance after which the clients of the registry turn to a new one.
	// Default 600.
	KeyOps int
	// Counts are how many clients there are of each role.
	Counts Counts
}

// Counts are numbers of clients.
type Counts struct {
	// Pinned and Roaming are the clients of the registry that ask always the same node, and any.
	Pinned, Roaming int
}

// Workload is the clients. Run, Close: in this order, each once.
type Workload struct {
	cfg  Config
	keys *keyring
	work sync.WaitGroup
}

// New returns clients that do nothing yet.
func New(cfg Config) (*Workload, error) {
	if cfg.Dial == nil || cfg.Recorder == nil || len(cfg.Nodes) == 0 {
		return nil, errors.New("new workload: dialer, recorder and nodes must be set")
	}
	setDefault(&cfg.Pause, 500*time.Millisecond)
	setDefault(&cfg.Timeout, time.Second)
	setDefault(&cfg.KeyOps, 600)
	w := &Workload{cfg: cfg}
	w.keys = newKeyring(cfg.KeyOps)
	return w, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Run has the clients work until ctx ends, and returns when each has stopped. A call under way is waited for.
func (w *Workload) Run(ctx context.Context) {
	for i := range w.cfg.Counts.Pinned {
		w.start(ctx, w.newCaller(fmt.Sprintf("pinned%d", i), w.node(i)), w.useRegistry)
	}
	for i := range w.cfg.Counts.Roaming {
		w.start(ctx, w.newCaller(fmt.Sprintf("roaming%d", i), ""), w.useRegistry)
	}
	w.work.Wait()
}

func (w *Workload) start(ctx context.Context, c *caller, role func(context.Context, *caller)) {
	w.work.Go(func() {
		defer c.close()
		role(ctx, c)
	})
}

// node is the node of the i-th pinned client.
func (w *Workload) node(i int) string { return w.cfg.Nodes[i%len(w.cfg.Nodes)] }

// random returns the source of one client's choices.
func (w *Workload) random(client string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(client))
	return rand.New(rand.NewPCG(w.cfg.Seed, h.Sum64()))
}

// pause waits for about the mean pause. It tells whether ctx is still alive.
func (c *caller) pause(ctx context.Context) bool {
	return sleep(ctx, time.Duration(c.rng.ExpFloat64()*float64(c.w.cfg.Pause)))
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
