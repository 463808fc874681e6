package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/storage"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// Config says how a node runs. It is checked once by Open and never changed after.
type Config struct {
	// Name is what people call the node. Unique in the cluster, 1 to 63 characters.
	Name string
	// DataDir is the folder of the node's log, snapshots and identity.
	DataDir string
	// LogStore is what keeps the log in it. Default storage.LogStoreBoltDB.
	LogStore storage.LogStore
	// PeerListen is the host:port on which peers are answered.
	PeerListen string
	// PeerAdvertise is the host:port under which peers reach this node; names are resolved at each dial. Default: PeerListen.
	PeerAdvertise string
	// GRPCAdvertise is the host:port under which clients reach this node.
	GRPCAdvertise string
	// HTTPAdvertise is the host:port of the port for operations. May be empty.
	HTTPAdvertise string
	// Version is the version of the binary, for people.
	Version string

	// InitialPeers are the peer addresses of all first members, this node's among them. An empty node asks them all:
	// it joins if one has a cluster, and a cluster is founded only when all answer and all are empty.
	InitialPeers []string
	// Join are peer addresses of members of a cluster that an empty node asks for membership.
	Join []string
	// NonVoter asks to stay a non-voter when joining.
	NonVoter bool

	// HeartbeatTimeout is how long a follower waits for its leader before it asks for votes, and how long an election
	// may take. Default 500 ms, at least 50 ms.
	HeartbeatTimeout time.Duration
	// LeaseTimeout is how long a leader goes on without a majority: nothing depends on its being short, as reads are proven
	// otherwise. Default, and at most, HeartbeatTimeout: half of it made leaders of overloaded machines step down.
	LeaseTimeout time.Duration
	// CommitTimeout is how soon Raft tells followers of the last commit who could not be told at once. Default 50 ms:
	// at 10 ms its empty messages were a tenth of the CPU time of a few thousand small reads a second.
	CommitTimeout time.Duration
	// SnapshotThreshold is the number of log entries after which a snapshot is taken. Default 8192. One is also taken
	// after 8 to 64 MiB of log, by the size of the registry.
	SnapshotThreshold uint64
	// SnapshotInterval is how often the threshold is looked at. Default 30 s.
	SnapshotInterval time.Duration
	// TrailingLogs is the number of entries kept behind a snapshot for slow followers. Default 10240.
	TrailingLogs uint64
	// MinFreeBytes is the free disk space below which writes are refused. Default 64 MiB.
	MinFreeBytes uint64
	// NoSync leaves out fsync. For tests only: it breaks the promise that nothing acknowledged is lost.
	NoSync bool

	// LeaderWait is how long a call waits for a leader to appear before it fails. Default 3 times HeartbeatTimeout.
	LeaderWait time.Duration
	// MaxPending is the number of proposals that may wait on a leader. Default 4096.
	MaxPending int
	// PromoteAfter is how long a new member must be stable before it becomes a voter. Default 2 s.
	PromoteAfter time.Duration
	// DeadAfter is how long a member must be gone before it is removed by itself. 0: never.
	DeadAfter time.Duration
	// MinQuorum is the number of voters below which no dead member is removed by itself. Default 3.
	MinQuorum uint

	// Network is how the peer port is reached. Default peer.TCP().
	Network peer.Network
	// FeedLimits bound the kept history. The zero value means the defaults of package feed.
	FeedLimits feed.Limits
	// Logger gets what the node has to say. Default: nothing is logged.
	Logger *slog.Logger

	// Lead runs while this node leads and is ready; it must return when ctx ends.
	Lead func(ctx context.Context, term uint64)
	// Renew records renewals on the leader; see Node.Renew. taken lies before the round that proved the leadership.
	Renew func(term uint64, taken time.Time, renewals []*peerv1.Renewals) (ended []*peerv1.Renewals, err error)
	// Applied sees each log entry once the node's State holds it and before its proposer has the outcome, in the order
	// of the log. It runs on Raft's goroutine, which waits for it: it must be quick. data is an encoded raftlogv1.Entry;
	// it may be kept but must never be changed, as the log shares it. It is for auditing, and need not be all there is:
	// a node that installs a snapshot or starts from one has skipped entries, and one that starts applies again what
	// its last snapshot lacks. Default: nobody sees them.
	Applied func(index, term uint64, data []byte)
	// Tracer is told of the steps of writes and linearizable reads. Default: nobody is, which costs nothing.
	Tracer Tracer
	// OnFatal is called at most once when the node can't go on (a failed fsync, a damaged log, a command that this
	// version does not know): it serves no more, and the process should end with the error. It is called on the
	// goroutine that met the error, and may keep it: Raft panics on some of what it is told next.
	OnFatal func(error)

	// disk wraps the node's disk, for tests.
	disk func(disk) disk
	// level is the highest feature level that the node takes part in. Default fsm.FeatureLevel; lower is for tests.
	level uint32
}

// DefaultHeartbeatTimeout is the default of Config.HeartbeatTimeout: measured as the shortest without false elections on
// saturated small machines, with room for a noisy neighbour.
const DefaultHeartbeatTimeout = 500 * time.Millisecond

func (c Config) withDefaults() Config {
	setDefault(&c.PeerAdvertise, c.PeerListen)
	setDefault(&c.HeartbeatTimeout, DefaultHeartbeatTimeout)
	setDefault(&c.LeaseTimeout, c.HeartbeatTimeout)
	setDefault(&c.CommitTimeout, 50*time.Millisecond)
	setDefault(&c.SnapshotThreshold, 8192)
	setDefault(&c.SnapshotInterval, 30*time.Second)
	setDefault(&c.TrailingLogs, 10240)
	setDefault(&c.MinFreeBytes, 64<<20)
	setDefault(&c.LeaderWait, 3*c.HeartbeatTimeout)
	setDefault(&c.MaxPending, 4096)
	setDefault(&c.PromoteAfter, 2*time.Second)
	setDefault(&c.MinQuorum, 3)
	setDefault(&c.level, fsm.FeatureLevel)
	if c.Network == nil {
		c.Network = peer.TCP()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Lead == nil {
		c.Lead = func(ctx context.Context, _ uint64) { <-ctx.Done() }
	}
	if c.Renew == nil {
		c.Renew = func(uint64, time.Time, []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
			return nil, errors.New("cluster: this node renews nothing")
		}
	}
	if c.Applied == nil {
		c.Applied = func(uint64, uint64, []byte) {}
	}
	if c.disk == nil {
		c.disk = func(d disk) disk { return d }
	}
	if c.OnFatal == nil {
		c.OnFatal = func(error) {}
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate reports all faults of a configuration whose defaults are filled in.
func (c Config) Validate() error {
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if n := len(c.Name); n == 0 || n > 63 {
		bad("name %q: must have 1 to 63 characters", c.Name)
	}
	if c.DataDir == "" {
		bad("data folder: must be set")
	}
	faults = append(faults, c.validateAddresses()...)
	if c.HeartbeatTimeout < 50*time.Millisecond {
		bad("heartbeat timeout %v: must be at least 50ms", c.HeartbeatTimeout)
	}
	if c.LeaseTimeout > c.HeartbeatTimeout || c.LeaseTimeout < 5*time.Millisecond {
		bad("lease timeout %v: must be between 5ms and the heartbeat timeout %v", c.LeaseTimeout, c.HeartbeatTimeout)
	}
	if c.CommitTimeout < time.Millisecond || c.CommitTimeout > c.HeartbeatTimeout {
		bad("commit timeout %v: must be between 1ms and the heartbeat timeout %v", c.CommitTimeout, c.HeartbeatTimeout)
	}
	if c.DeadAfter < 0 {
		bad("dead after %v: must not be negative", c.DeadAfter)
	}
	return errors.Join(faults...)
}

func (c Config) validateAddresses() []error {
	var faults []error
	address := func(what, value string) {
		host, port, err := net.SplitHostPort(value)
		if err != nil || host == "" || port == "" {
			faults = append(faults, fmt.Errorf("%s %q: must be host:port", what, value))
			return
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			faults = append(faults, fmt.Errorf("%s %q: nobody can reach an unspecified address; name the host", what, value))
		}
	}
	address("peer advertise address", c.PeerAdvertise)
	address("gRPC advertise address", c.GRPCAdvertise)
	for _, p := range c.InitialPeers {
		address("initial peer", p)
	}
	for _, p := range c.Join {
		address("join address", p)
	}
	return faults
}
