package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// pilot promotes new members that are stable, and removes those that have long been dead, while this node leads. The
// rules are raft-autopilot's; this type tells it who there is and how they are.
type pilot struct {
	*autopilot.Autopilot

	node *Node
	raft *awaited
	turn chan struct{} // capacity 1: one operator's change at a time
	// refused is the node that was told last that it can't join: it asks again and again. Who has the turn uses it.
	refused string

	mu   sync.Mutex
	seen map[raft.ServerID]time.Time // when a member last answered, since this node leads
}

func newPilot(n *Node, r *raft.Raft) *pilot {
	p := &pilot{node: n, raft: &awaited{Raft: r}, turn: make(chan struct{}, 1), seen: map[raft.ServerID]time.Time{}}
	p.raft.pilot = p
	p.Autopilot = autopilot.New(p.raft, p,
		autopilot.WithLogger(newRaftLogger(n.log.With("component", "autopilot"))),
		autopilot.WithPromoter(promoter{StablePromoter: &autopilot.StablePromoter{}, node: n}),
		autopilot.WithUpdateInterval(n.cfg.HeartbeatTimeout),
		autopilot.WithReconcileInterval(n.cfg.HeartbeatTimeout),
	)
	return p
}

// lead runs autopilot until stop is called, which waits for its end. What it waits for by then is left behind.
func (p *pilot) lead(ctx context.Context) (stop func()) {
	p.forget()
	p.raft.leading = ctx
	p.Start(ctx)
	return func() { <-p.Stop() }
}

// lock takes the turn to change the membership.
func (p *pilot) lock(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pilot) unlock() { <-p.turn }

// refuses tells the operator, once, that a node can't join.
func (p *pilot) refuses(node string, err error) {
	if p.refused != node {
		p.refused = node
		p.node.log.Warn("a node was not taken in", "id", node, "err", err)
	}
}

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (p *pilot) AutopilotConfig() *autopilot.Config {
	c := p.node.cfg
	return &autopilot.Config{
		CleanupDeadServers:      c.DeadAfter > 0,
		LastContactThreshold:    2 * c.HeartbeatTimeout,
		MaxTrailingLogs:         maxPromotionLag,
		MinQuorum:               c.MinQuorum,
		ServerStabilizationTime: c.PromoteAfter,
	}
}

// maxPromotionLag is how many entries a new voter may be behind: few, as a majority may depend on it at once.
const maxPromotionLag = 64

// NotifyState implements autopilot.ApplicationIntegration.
func (p *pilot) NotifyState(*autopilot.State) {}

// RemoveFailedServer implements autopilot.ApplicationIntegration.
func (p *pilot) RemoveFailedServer(s *autopilot.Server) {
	n, leading := p.node, p.raft.leading
	n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(leading, changeTimeout) // It may outlive the round that found it dead.
		defer cancel()
		if err := n.Remove(ctx, string(s.ID), false); err != nil {
			n.log.Warn("removing a dead member", "member", s.Name, "id", s.ID, "err", err)
		}
	})
}

// KnownServers implements autopilot.ApplicationIntegration. It names everyone in Raft's configuration: whom it left out
// would be removed as a stranger.
func (p *pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	n := p.node
	st, now := n.feed.State(), time.Now()
	known := map[raft.ServerID]*autopilot.Server{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range n.servers() {
		seen, ok := p.seen[s.ID]
		if !ok || string(s.ID) == n.id {
			p.seen[s.ID], seen = now, now // A new leader gives everybody the whole time.
		}
		nodeStatus := autopilot.NodeAlive
		if n.cfg.DeadAfter > 0 && now.Sub(seen) > n.cfg.DeadAfter {
			nodeStatus = autopilot.NodeFailed
		}
		m := st.Member(string(s.ID))
		known[s.ID] = &autopilot.Server{
			ID: s.ID, Name: m.GetName(), Address: s.Address, NodeStatus: nodeStatus, Version: m.GetVersion(),
			RaftVersion: raft.ProtocolVersionMax, IsLeader: string(s.ID) == n.id, NodeType: autopilot.NodeVoter,
		}
	}
	for id := range p.seen {
		if known[id] == nil {
			delete(p.seen, id)
		}
	}
	return known
}

// FetchServerStats implements autopilot.ApplicationIntegration.
func (p *pilot) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	ids := make([]raft.ServerID, 0, len(servers))
	for id := range servers {
		ids = append(ids, id)
	}
	stats := map[raft.ServerID]*autopilot.ServerStats{}
	for id, s := range p.node.statusOf(ctx, ids) {
		if s.err != nil {
			continue
		}
		contact := time.Duration(s.GetLastContactMs()) * time.Millisecond
		if string(id) == p.node.id {
			contact = 0
		}
		stats[id] = &autopilot.ServerStats{LastContact: contact, LastTerm: s.GetLastTerm(), LastIndex: s.GetLastIndex()}
		p.mu.Lock()
		p.seen[id] = time.Now()
		p.mu.Unlock()
	}
	return stats
}

// forget starts the time of all members afresh, for a new term.
func (p *pilot) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.seen)
}

// promoter is autopilot's stable promoter, but for members that are to stay non-voters.
type promoter struct {
	*autopilot.StablePromoter

	node *Node
}

// CalculatePromotionsAndDemotions implements autopilot.Promoter.
func (p promoter) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	changes := p.StablePromoter.CalculatePromotionsAndDemotions(c, s)
	var promotions []raft.ServerID
	for _, id := range changes.Promotions {
		if m := p.node.feed.State().Member(string(id)); m != nil && !m.GetNonVoter() {
			promotions = append(promotions, id)
		}
	}
	changes.Promotions = promotions
	return changes
}

// statusReply is what a member says of itself, or why it says nothing.
type statusReply struct {
	*peerv1.NodeStatusResponse

	err error
}

// statusOf asks members how they are, all at once, within two heartbeats.
func (n *Node) statusOf(ctx context.Context, ids []raft.ServerID) map[raft.ServerID]statusReply {
	ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.HeartbeatTimeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	replies := make(map[raft.ServerID]statusReply, len(ids))
	for _, id := range ids {
		wg.Go(func() {
			reply, err := n.nodeStatus(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			replies[id] = statusReply{reply, err}
		})
	}
	wg.Wait()
	return replies
}

func (n *Node) nodeStatus(ctx context.Context, id raft.ServerID) (*peerv1.NodeStatusResponse, error) {
	if string(id) == n.id {
		return n.localStatus(), nil
	}
	client, err := n.peerByID(id)
	if err != nil {
		return nil, err
	}
	return client.NodeStatus(ctx, &peerv1.NodeStatusRequest{})
}
