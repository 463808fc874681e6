package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// leadership is one term in which this node leads and is ready: everything committed in earlier terms is applied here.
type leadership struct {
	term   uint64
	rounds *rounds
	// abdicate ends it although Raft has not: it may be stuck itself.
	abdicate context.CancelFunc
}

// leads tells whether this node leads and is ready.
func (n *Node) leads() bool { return n.leadership.Load() != nil }

// watchLeadership runs one lead after the other, as Raft gives and takes leadership, until ctx ends.
func (n *Node) watchLeadership(ctx context.Context, notify <-chan bool) {
	// Raft blocks on an unread notice, and ending a lead takes time: so what is read is only the newest one.
	newest := make(chan bool, 1)
	n.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case lead := <-notify:
				select {
				case <-newest:
				default:
				}
				newest <- lead
			}
		}
	})
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case lead := <-newest:
			stop()
			stop = func() {}
			if lead {
				stop = n.startLead(ctx)
			}
		}
	}
}

// startLead leads in the background; the returned function ends that and waits.
func (n *Node) startLead(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			n.leadOnce(ctx)
			sleep(ctx, n.cfg.HeartbeatTimeout/10)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// leadOnce leads if Raft says so and the disk works. Config.Lead runs at most once a term: what it decided before it ended
// may still be under way, and a second run would not know. So a node that abdicated, and is still the leader to Raft when
// its disk works again, gives leadership away: to lead again it must be elected anew.
func (n *Node) leadOnce(ctx context.Context) {
	r := n.raft.Load()
	if n.gate() != nil || r.State() != raft.Leader {
		return
	}
	if n.led.Load() < r.CurrentTerm() {
		if err := n.lead(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("leading ended early", "err", err)
		}
		return
	}
	if err := await(ctx, r.LeadershipTransfer()); err != nil {
		n.log.Warn("handing leadership over after a disk stall", "err", err)
	}
}

// lead makes this node ready to lead, leads until ctx ends, and hands nothing over: what it knew is void after.
func (n *Node) lead(ctx context.Context) error {
	r := n.raft.Load()
	term := r.CurrentTerm()
	// After the barrier everything that any earlier leader acknowledged is applied here.
	if err := await(ctx, r.Barrier(barrierTimeout)); err != nil {
		return fmt.Errorf("apply the log of earlier terms: %w", err)
	}
	if r.State() != raft.Leader || r.CurrentTerm() != term {
		return fmt.Errorf("term %d ended while its log was applied", term)
	}
	ctx, abdicate := context.WithCancel(ctx)
	l := &leadership{term: term, rounds: n.newRounds(term), abdicate: abdicate}
	roundsDone := make(chan struct{})
	go func() {
		defer close(roundsDone)
		l.rounds.run(ctx)
	}()
	n.leadership.Store(l)
	n.log.Info("leading", "term", term, "index", n.feed.State().Index())
	defer func() {
		n.leadership.Store(nil)
		abdicate()
		<-roundsDone
		n.log.Info("no longer leading", "term", term)
	}()
	if err := n.nameCluster(ctx); err != nil {
		return err
	}
	defer n.pilot.lead(ctx)()
	n.led.Store(term)
	n.cfg.Lead(ctx, term)
	<-ctx.Done()
	return nil
}

const barrierTimeout = 10 * time.Second

// newRounds makes the prover of the leadership in a term.
func (n *Node) newRounds(term uint64) *rounds {
	r := n.raft.Load()
	self := raft.ServerID(n.id)
	return &rounds{
		term:   term,
		self:   self,
		index:  func() uint64 { return n.feed.State().Index() },
		voters: n.voters,
		others: func() []raft.ServerID {
			var ids []raft.ServerID
			for _, s := range n.servers() {
				if s.ID != self {
					ids = append(ids, s.ID)
				}
			}
			return ids
		},
		still:    func() bool { return r.State() == raft.Leader && n.highestTerm() == term },
		open:     n.openConfirm,
		tick:     n.cfg.HeartbeatTimeout / 5,
		patience: n.cfg.HeartbeatTimeout / 50,
		late:     time.NewTimer(n.cfg.HeartbeatTimeout),

		peers: map[raft.ServerID]*asker{}, answered: map[raft.ServerID]uint64{},
	}
}

// nameCluster writes the cluster's UUID into the log when it is new, so that every copy and backup carries it.
func (n *Node) nameCluster(ctx context.Context) error {
	if n.feed.State().ClusterID() != "" {
		return nil
	}
	id := n.store.Identity().ClusterID
	if id == "" {
		id = uuid.NewString()
	}
	_, err := n.Propose(ctx, &raftlogv1.Command{
		Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{ClusterId: id}},
	})
	if err != nil {
		return fmt.Errorf("name the cluster: %w", err)
	}
	return nil
}

// announce keeps the cluster's record of this node true: where it is reached and what it can do. It runs until ctx ends.
func (n *Node) announce(ctx context.Context) {
	for ctx.Err() == nil {
		if n.announced() {
			sleep(ctx, announceEvery)
			continue
		}
		if _, is := n.server(n.id); !is || n.feed.State().ClusterID() == "" {
			sleep(ctx, n.cfg.HeartbeatTimeout/10) // Not a member yet, or the first to be one.
			continue
		}
		callCtx, cancel := context.WithTimeout(ctx, announceEvery)
		err := n.announceOnce(callCtx)
		cancel()
		if errors.Is(err, ErrTooOld) {
			n.fatal(err)
			return
		}
		if err != nil && ctx.Err() == nil {
			n.log.Debug("announcing this node waits", "err", err)
		}
		sleep(ctx, n.cfg.HeartbeatTimeout/10)
	}
}

func (n *Node) announceOnce(ctx context.Context) error {
	v, err := n.View(ctx, Freshness{}) // What the cluster has reached, not what this node has heard of.
	if err != nil {
		return err
	}
	if err = tooOldToStay(v.State, n.cfg.level); err != nil {
		return err
	}
	want := n.member()
	if have := v.State.Member(n.id); have != nil {
		want.NonVoter = have.GetNonVoter() // The operator's to change.
	}
	return n.setMember(ctx, want)
}

// announced tells whether the cluster's record of this node is true.
func (n *Node) announced() bool {
	want, have := n.member(), n.feed.State().Member(n.id)
	want.NonVoter = have.GetNonVoter()
	return proto.Equal(have, want)
}

const announceEvery = time.Second

func (n *Node) setMember(ctx context.Context, m *registryv1.Member) error {
	outcome, err := n.Propose(ctx, &raftlogv1.Command{
		Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: m}},
	})
	if err != nil {
		return err
	}
	return outcome.Err()
}

// member describes this node.
func (n *Node) member() *registryv1.Member {
	return &registryv1.Member{
		Id: n.id, Name: n.cfg.Name, Version: n.cfg.Version, FeatureLevel: n.cfg.level,
		PeerAddress: n.cfg.PeerAdvertise, GrpcAddress: n.cfg.GRPCAdvertise, HttpAddress: n.cfg.HTTPAdvertise,
		NonVoter: n.cfg.NonVoter,
	}
}

// guardDisk keeps a leader with a bad disk from harming the cluster, until ctx ends. One whose disk is nearly full hands
// leadership over: another node's may not be. One whose disk has stalled stops to serve as leader: Raft itself is stuck
// in the append, but its heartbeats fail (see gate), so that another is elected.
func (n *Node) guardDisk(ctx context.Context) {
	const fullEvery = time.Second
	var lastFull time.Time
	for ; ctx.Err() == nil; sleep(ctx, n.cfg.HeartbeatTimeout/10) {
		l := n.leadership.Load()
		if l == nil {
			continue
		}
		if err := n.gate(); err != nil && len(n.voters()) > 1 {
			n.log.Error("disk stalled, no longer serving as leader", "err", err)
			l.abdicate()
			continue
		}
		if n.store.Full() && len(n.voters()) > 1 && time.Since(lastFull) > fullEvery {
			lastFull = time.Now()
			n.log.Warn("disk nearly full, handing leadership over", "free_bytes", n.store.DiskFree())
			if err := await(ctx, n.raft.Load().LeadershipTransfer()); err != nil {
				n.log.Warn("handing leadership over", "err", err)
			}
		}
	}
}

// untilLed makes a call that needs a leader, again and again while its error is one to try again after, for at most
// Config.LeaderWait.
func (n *Node) untilLed(ctx context.Context, again func(error) bool, call func() error) error {
	until, pause := time.Now().Add(n.cfg.LeaderWait), n.cfg.HeartbeatTimeout/20
	for {
		if err := n.serving(); err != nil {
			return err
		}
		err := call()
		if err == nil || !again(err) || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
		sleep(ctx, pause)
		pause = min(2*pause, 200*time.Millisecond)
	}
}

// leaderless tells whether a call failed as nobody leads, or somebody else does by now.
func leaderless(err error) bool { return errors.Is(err, ErrNotLeader) || errors.Is(err, ErrNoLeader) }

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
