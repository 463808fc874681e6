// Package cluster is one node of a regd cluster: it replicates the registry's state machine by Raft and answers reads
// and writes with the guarantees that regd gives.
//
// Start with Node: Propose writes, View reads, Renew keeps alive, Feed streams. All three first work on any node; what
// only the leader can do is forwarded in one place (peers.go). What is on disk is package storage's, what is on the wire
// between nodes package peer's, what is visible package feed's, and what a command means package fsm's.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/storage"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// Node is one node. All methods may be called from any goroutine.
type Node struct {
	cfg     Config
	id      string
	log     *slog.Logger
	started time.Time
	lifecycle

	store *storage.Store
	disk  disk // of store
	port  *port
	feed  *feed.Feed
	fsm   *machine

	raft       atomic.Pointer[raft.Raft] // nil until the node has a cluster
	leadership atomic.Pointer[leadership]
	led        atomic.Uint64 // the last term in which Config.Lead ran
	proposer   *proposer
	forwards   *forwards
	asks       *indexAsks
	renewals   *renewals
	fresh      freshness
	pilot      *pilot
	tracing    *tracing
	succession succession
}

// lifecycle is how a node starts and stops.
type lifecycle struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// formed is closed once Raft has been started, or never will be.
	formed   chan struct{}
	stopping atomic.Bool
	removed  atomic.Bool
	// waiting says what an empty node waits for.
	waiting atomic.Pointer[string]
	fatal   func(error)
	close   sync.Once
	closed  error
}

// port is the peer port and what is served and asked over it.
type port struct {
	mux       *peer.Mux
	transport atomic.Pointer[peer.Transport]
	server    *grpc.Server
	peers     *peers
	// deliveries tells who was told at this node; nil: nobody serves watches yet.
	deliveries atomic.Pointer[DeliveryFunc]
}

// Open starts a node. It returns once the data folder is found sound and peers are answered; whether the node has a
// cluster and has caught up is told by Ready. The caller must Close it.
//
// Errors are those of storage.Open, ErrTooOld, and those of listening on the peer port.
func Open(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration of node %q: %w", cfg.Name, err)
	}
	n := &Node{cfg: cfg, log: cfg.Logger.With("node", cfg.Name), started: time.Now(), tracing: newTracing(cfg.Tracer)}
	n.formed = make(chan struct{})
	n.succession = newSuccession()
	var once sync.Once
	n.fatal = func(err error) {
		once.Do(func() {
			n.stopping.Store(true) // Whatever becomes of the process, this node serves no more.
			n.log.Error("this node can't go on", "err", err)
			cfg.OnFatal(err)
		})
	}
	var err error
	n.store, err = storage.Open(storage.Config{
		Dir: cfg.DataDir, LogStore: cfg.LogStore, NoSync: cfg.NoSync, MinFreeBytes: cfg.MinFreeBytes, Logger: n.log, OnFatal: n.fatal,
	})
	if err != nil {
		return nil, err
	}
	n.disk = cfg.disk(n.store)
	if err := tooOldToStart(n.store, cfg.level); err != nil {
		return nil, errors.Join(err, n.store.Close())
	}
	n.id = n.store.Identity().NodeID
	n.feed = feed.New(fsm.New(), cfg.FeedLimits)
	if err := n.listen(); err != nil {
		n.feed.Close()
		return nil, errors.Join(err, n.store.Close())
	}
	n.fsm = newMachine(n.feed, cfg.Applied, n.fatal)
	n.proposer = newProposer(cfg.MaxPending, n.tracing, func(data []byte) raft.ApplyFuture {
		return n.raft.Load().Apply(data, enqueueTimeout)
	}, func(index uint64) { n.port.transport.Load().Committed(index) }) // Raft has committed: there is a transport.
	n.forwards = &forwards{dial: n.port.peers.leader, most: cfg.MaxPending}
	n.asks = &indexAsks{fetch: n.fetchIndex, timeout: 2 * cfg.HeartbeatTimeout}
	n.renewals = &renewals{send: n.sendRenewals}
	ctx, cancel := context.WithCancel(context.Background()) // Lives until Close.
	n.cancel = cancel
	n.wg.Go(func() { _ = n.port.server.Serve(n.port.mux.GRPCListener()) }) // Ends with the listener.
	n.wg.Go(func() { n.run(ctx) })
	return n, nil
}

// listen opens the peer port. Until the node has a cluster only who wants to know who it is gets an answer.
func (n *Node) listen() error {
	mux, err := peer.Listen(peer.Config{
		Network: n.cfg.Network, Listen: n.cfg.PeerListen, Advertise: n.cfg.PeerAdvertise, NodeID: n.id,
		ClusterID: func() string { return n.store.Identity().ClusterID }, Logger: n.log,
		NameOf: func(id string) string { return n.feed.State().Member(id).GetName() },
	})
	if err != nil {
		return fmt.Errorf("listen for peers on %s: %w", n.cfg.PeerListen, err)
	}
	n.port = &port{
		mux: mux,
		server: grpc.NewServer(append(peer.ServerOptions(), grpc.MaxRecvMsgSize(maxPeerMessage),
			grpc.UnaryInterceptor(n.admitUnary), grpc.StreamInterceptor(n.admitStream))...),
		peers: &peers{mux: mux, conns: map[peerTarget]*grpc.ClientConn{}},
	}
	peerv1.RegisterPeerServiceServer(n.port.server, &peerServer{node: n})
	return nil
}

// maxPeerMessage bounds a message between nodes: the largest is a batch of renewals.
const maxPeerMessage = 8 << 20

// run takes the node from an empty or old folder to a working member, and keeps it so until ctx ends.
func (n *Node) run(ctx context.Context) {
	notify := make(chan bool, 8)
	err := n.form(ctx)
	if err == nil {
		n.port.mux.DropAnonymous()
		n.port.peers.reset()
		err = n.startRaft(notify)
	}
	close(n.formed)
	if err != nil {
		if ctx.Err() == nil {
			n.fatal(err)
		}
		return
	}
	n.wg.Go(func() { n.announce(ctx) })
	n.wg.Go(func() { n.guardDisk(ctx) })
	n.wg.Go(func() { n.watchMembership(ctx) })
	n.wg.Go(func() { n.takeSnapshots(ctx) })
	n.wg.Go(func() { n.succeedLeaders(ctx) })
	n.watchLeadership(ctx, notify)
}

// startRaft starts Raft on the node's stores.
func (n *Node) startRaft(notify chan<- bool) error {
	voted, err := n.termOnDisk()
	if err != nil {
		return err
	}
	var started atomic.Pointer[raft.Raft]
	following := func(term uint64) bool {
		r := started.Load()
		return r != nil && r.State() == raft.Follower && r.CurrentTerm() == term
	}
	t := peer.NewTransport(n.port.mux, peer.TransportConfig{
		HighestTerm: voted, Gate: n.gate, Following: following, AddressProvider: addressProvider{n}, Timeout: transportTimeout,
		MaxPool: 3, AheadFor: n.cfg.HeartbeatTimeout / 2, Logger: newRaftLogger(n.log.With("component", "transport")),
	})
	logs := aheadLogs{LogStore: n.tracing.logs(n.disk.Logs()), send: func(entries []*raft.Log) {
		if r := started.Load(); r != nil {
			t.SendAhead(entries, r.CommitIndex())
		}
	}}
	n.port.transport.Store(t)
	r, err := raft.NewRaft(n.raftConfig(notify), n.fsm, logs, n.disk.Stable(), n.store.Snapshots(), t)
	if err != nil {
		return errors.Join(fmt.Errorf("start raft: %w", err), t.Close())
	}
	started.Store(r)
	n.pilot = newPilot(n, r)
	n.raft.Store(r)
	return nil
}

// termOnDisk is the highest term that this node has voted in or known before it was started.
func (n *Node) termOnDisk() (uint64, error) {
	var highest uint64
	for _, key := range []string{"CurrentTerm", "LastVoteTerm"} { // Raft's names.
		term, err := n.disk.Stable().GetUint64([]byte(key))
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return 0, fmt.Errorf("read %s: %w", key, err)
		}
		highest = max(highest, term)
	}
	return highest, nil
}

const transportTimeout = 10 * time.Second

func (n *Node) raftConfig(notify chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.id)
	c.HeartbeatTimeout, c.ElectionTimeout = n.cfg.HeartbeatTimeout, n.cfg.HeartbeatTimeout
	c.LeaderLeaseTimeout, c.CommitTimeout = n.cfg.LeaseTimeout, n.cfg.CommitTimeout
	c.SnapshotThreshold, c.SnapshotInterval, c.TrailingLogs = n.cfg.SnapshotThreshold, n.cfg.SnapshotInterval, n.cfg.TrailingLogs
	c.ShutdownOnRemove = false // It fires on the leader only; watchMembership does the same for all.
	c.NoLegacyTelemetry = true
	c.NotifyCh = notify
	c.Logger = newRaftLogger(n.log.With("component", "raft"))
	return c
}

// takeSnapshots has Raft take one whenever the last is far behind, until ctx ends. Raft does so by itself after
// Config.SnapshotThreshold entries; but one of ours holds up to 512 commands, and a restart applies them all again.
func (n *Node) takeSnapshots(ctx context.Context) {
	const every = time.Second
	for ; ctx.Err() == nil; sleep(ctx, every) {
		if !n.fsm.overdue() {
			continue
		}
		if err := await(ctx, n.raft.Load().Snapshot()); err != nil && ctx.Err() == nil {
			n.log.Warn("taking a snapshot", "err", err)
		}
	}
}

// gate keeps a leader whose disk has stalled from holding its followers: raft would go on sending heartbeats while no
// write can be made, and the cluster would stand still for as long as the stall lasts.
func (n *Node) gate() error {
	if stall := n.disk.AppendStall(); stall > 2*n.cfg.HeartbeatTimeout {
		return fmt.Errorf("the disk of node %s has not finished an append for %v", n.cfg.Name, stall.Round(time.Millisecond))
	}
	return nil
}

// addressProvider lets raft reach a member where it says that it is now.
type addressProvider struct{ node *Node }

// ServerAddr implements raft.ServerAddressProvider.
func (p addressProvider) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	address, err := p.node.peerAddress(id)
	return raft.ServerAddress(address), err
}

// highestTerm is the highest term that this node knows of, by Raft or by a vote that it asked for or gave.
func (n *Node) highestTerm() uint64 {
	var term uint64
	if r := n.raft.Load(); r != nil {
		term = r.CurrentTerm()
	}
	if t := n.port.transport.Load(); t != nil {
		term = max(term, t.HighestTerm())
	}
	return term
}

// isUrgent tells whether an encoded command frees something.
func (n *Node) isUrgent(command []byte) bool {
	if !n.store.Full() {
		return false // Not asked then: spare the decoding.
	}
	var cmd raftlogv1.Command
	return proto.Unmarshal(command, &cmd) == nil && frees(&cmd)
}

// Feed is the current State and the events that lead to it.
func (n *Node) Feed() *feed.Feed { return n.feed }

// Info is who a node is and what it knows of its cluster.
type Info struct {
	// ClusterID is the UUID of the cluster. Empty: none yet.
	ClusterID string
	// NodeID and Name are this node's.
	NodeID, Name string
	// LeaderID, LeaderName and LeaderAddress (host:port for clients) are empty when unknown.
	LeaderID, LeaderName, LeaderAddress string
	// Leading: this node leads and is ready to.
	Leading bool
	// Removed: this node is no member any more.
	Removed bool
	// Stopping: this node is on its way out.
	Stopping bool
}

// Info tells who this node is.
func (n *Node) Info() Info {
	info := Info{
		ClusterID: n.store.Identity().ClusterID, NodeID: n.id, Name: n.cfg.Name,
		Leading: n.leads(), Removed: n.removed.Load(), Stopping: n.stopping.Load(),
	}
	if r := n.raft.Load(); r != nil {
		_, id := r.LeaderWithID()
		info.LeaderID = string(id)
	}
	if info.LeaderID == n.id {
		info.LeaderName, info.LeaderAddress = n.cfg.Name, n.cfg.GRPCAdvertise
	} else if m := n.feed.State().Member(info.LeaderID); m != nil {
		info.LeaderName, info.LeaderAddress = m.GetName(), m.GetGrpcAddress()
	}
	return info
}

// Collectors returns the node's metrics, to be registered once.
func (n *Node) Collectors() []prometheus.Collector {
	return []prometheus.Collector{n.fsm.took, n.proposer.took, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "regd_snapshot_index",
		Help: "Raft index up to which the newest snapshot of this node reaches. 0: it has none.",
	}, n.snapshotIndex)}
}

// serving returns nil when the node can take part in reads and writes: else ErrClosed, ErrRemoved or ErrStarting.
func (n *Node) serving() error {
	switch {
	case n.removed.Load():
		return fmt.Errorf("node %s: %w", n.cfg.Name, ErrRemoved)
	case n.stopping.Load():
		return fmt.Errorf("node %s: %w", n.cfg.Name, ErrClosed)
	case n.raft.Load() == nil:
		if w := n.waiting.Load(); w != nil {
			return fmt.Errorf("node %s: %w: %s", n.cfg.Name, ErrStarting, *w)
		}
		return fmt.Errorf("node %s: %w", n.cfg.Name, ErrStarting)
	}
	return nil
}

// readyStaleness is how old the State of a ready node may be, in heartbeats.
const readyStaleness = 6

// Ready returns nil when the node serves well: it has a cluster, which has a record of it, a leader is known, its State is recent
// and it is not stopping. Else why not.
func (n *Node) Ready() error {
	if err := n.serving(); err != nil {
		return err
	}
	if n.Info().LeaderID == "" {
		return fmt.Errorf("node %s: %w", n.cfg.Name, ErrNoLeader)
	}
	age := n.Staleness()
	if limit := readyStaleness * n.cfg.HeartbeatTimeout; age < 0 || age > limit {
		return fmt.Errorf("node %s: %w: it has not caught up with the leader within %v", n.cfg.Name, ErrTooStale, limit)
	}
	if n.feed.State().Member(n.id) == nil {
		return fmt.Errorf("node %s: %w: %w", n.cfg.Name, ErrStarting, errUnrecorded)
	}
	return nil
}

// errUnrecorded says that a member has not told the cluster yet where it is reached and what it can do. Of a new cluster it is not
// known what that can do before.
var errUnrecorded = errors.New("the cluster has no record of it yet")

// applyStuck is how long one entry may take to apply before the node is called dead.
const applyStuck = 30 * time.Second

// Live returns nil unless only a restart can help: the state machine is stuck or broken. It never depends on a leader, a
// quorum, the disk's room or load: restarting a healthy node in an outage would prolong it.
func (n *Node) Live() error {
	if d := n.fsm.stuck(); d > applyStuck {
		return fmt.Errorf("node %s: the state machine has been applying one entry for %v", n.cfg.Name, d)
	}
	return nil
}

// Drain marks the node as stopping and hands leadership over if it leads, within ctx. Reads and writes are refused from
// then on. Close must follow.
func (n *Node) Drain(ctx context.Context) {
	n.handOver(ctx)
	n.stopping.Store(true)
}

// handOver gives leadership to another voter, best effort.
func (n *Node) handOver(ctx context.Context) {
	r := n.raft.Load()
	if r == nil || r.State() != raft.Leader || len(n.voters()) < 2 {
		return
	}
	if err := await(ctx, r.LeadershipTransfer()); err != nil {
		n.log.Warn("handing leadership over", "err", err)
	}
}

// Close stops the node and waits for everything it started. It does not hand leadership over: see Drain. Calling it
// again returns the same error.
func (n *Node) Close() error {
	n.lifecycle.close.Do(func() { n.closed = n.shutdown() })
	return n.closed
}

func (n *Node) shutdown() error {
	n.stopping.Store(true)
	n.proposer.finish()
	n.cancel()
	<-n.formed // It is either forming, which ends with the context, or starting Raft, which has to be stopped then.
	var errs []error
	if r := n.raft.Load(); r != nil {
		errs = append(errs, r.Shutdown().Error())
	}
	n.port.peers.close()
	n.port.server.Stop()
	if t := n.port.transport.Load(); t != nil {
		errs = append(errs, t.Close())
	}
	errs = append(errs, n.port.mux.Close())
	n.proposer.close()
	n.forwards.close()
	n.asks.wg.Wait()
	n.renewals.wg.Wait()
	n.wg.Wait()
	n.feed.Close()
	return errors.Join(append(errs, n.store.Close())...)
}
