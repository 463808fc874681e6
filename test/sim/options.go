package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/test/internal/workload"
)

// options are all that a seed decides before a run begins.
type options struct {
	seed      uint64
	nodes     int
	heartbeat time.Duration
	lease     time.Duration // how long a leader goes on without a majority
	grace     time.Duration // how much longer than a TTL is waited
	latency   time.Duration // the longest of a link while nothing is wrong
	snapshots uint64        // entries after which one is taken
	trailing  uint64        // entries kept behind one
	history   feed.Limits
	minTTL    time.Duration
	pause     time.Duration // between two calls of a client
	counts    workload.Counts
	faults    []string // kinds that may happen
	episodes  int
}

// newOptions expands a seed. Each leaves out some of the clients and some of the faults: what always happens together
// hides what happens alone. All clients together make a call about every callsEvery, which decides how long a run takes.
func newOptions(seed uint64, callsEvery time.Duration) options {
	rng := rand.New(rand.NewPCG(seed, 1))
	among := func(least, most int) int { return least + rng.IntN(most-least+1) }
	o := options{
		seed: seed, nodes: 3,
		heartbeat: time.Duration(among(8, 16)) * 100 * time.Millisecond,
		latency:   []time.Duration{time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond}[rng.IntN(3)],
		snapshots: uint64(among(10, 50)), trailing: uint64(among(2, 10)),
		history: feed.Limits{Events: among(5, 60), QueueEvents: among(3, 40), DirtyKeys: among(3, 30)},
		minTTL:  time.Duration(among(2, 4)) * time.Second,
		counts: workload.Counts{
			Pinned: among(1, 3), Roaming: among(0, 3), Duplicates: among(0, 1), Sessions: among(0, 3), Leases: among(0, 2),
			Lockers: among(0, 4), Watchers: among(1, 3), Programs: among(0, 2),
		},
		episodes: among(3, 6),
	}
	o.lease = o.heartbeat / time.Duration(among(1, 2))
	o.grace = time.Duration(among(1, 5)) * 100 * time.Millisecond
	if rng.IntN(4) == 0 {
		o.nodes = 5
	}
	for _, f := range faults {
		if rng.IntN(3) > 0 {
			o.faults = append(o.faults, f.kind)
		}
	}
	clients := o.counts.Pinned + o.counts.Roaming + 2*o.counts.Duplicates + o.counts.Sessions + o.counts.Leases +
		o.counts.Lockers + o.counts.Programs
	o.pause = callsEvery * time.Duration(clients)
	return o
}

// names are the nodes that may ever be: one of them joins later, if at all.
func (o options) names() []string {
	var names []string
	for i := range o.nodes + 1 {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	return names
}

// founders are the nodes that found the cluster, and are its members at the end.
func (o options) founders() []string { return o.names()[:o.nodes] }

// configure sets what a node is started with.
func (o options) configure(cfg *cluster.Config) {
	cfg.HeartbeatTimeout = o.heartbeat
	cfg.LeaseTimeout = o.lease
	cfg.CommitTimeout = o.heartbeat / 5 // A tenth of a second is nothing here, and what is sent all the time costs most.
	cfg.SnapshotThreshold, cfg.TrailingLogs, cfg.SnapshotInterval = o.snapshots, o.trailing, time.Second
	cfg.FeedLimits = o.history
}

// String shows everything in a few lines.
func (o options) String() string {
	left := slices.DeleteFunc(kinds(), func(kind string) bool { return slices.Contains(o.faults, kind) })
	return fmt.Sprintf("seed %d: %d nodes, heartbeat %v, lease %v, grace %v, latency up to %v, snapshot each %d entries with %d left, history %+v,\n"+
		"TTLs from %v, a call of each client every %v, clients %+v,\n%d episodes of %s (left out: %s)",
		o.seed, o.nodes, o.heartbeat, o.lease, o.grace, o.latency, o.snapshots, o.trailing, o.history,
		o.minTTL, o.pause, o.counts, o.episodes, strings.Join(o.faults, " "), strings.Join(left, " "))
}
