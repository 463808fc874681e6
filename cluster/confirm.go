package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// rounds proves, again and again, that this node still leads in one term.
//
// A round is confirmed once a majority of the voters (this node among them) has answered a question that was sent after
// the round began, each saying that it never asked for or granted a vote in a later term. A later leader needs the votes
// of a majority, the two majorities share a voter, and that voter answered before it voted: so when the round began no
// later leader existed, and no write that this node doesn't know had been acknowledged. No clock is involved.
// raft.VerifyLeader does not give this: it counts answers to heartbeats that were sent before the question.
//
// One round serves all who came before it began, and at most one question is under way to each peer. A round asks as many
// voters as make a majority, of those that have answered what they were asked before, and after patience all.
type rounds struct {
	term   uint64
	self   raft.ServerID
	index  func() uint64          // state index
	voters func() []raft.ServerID // of the latest configuration
	others func() []raft.ServerID // all members but this node: non-voters too learn how old their State is
	still  func() bool            // this node has seen no later term and leads
	open   func(context.Context, raft.ServerID) (peerv1.PeerService_ConfirmClient, error)
	tick   time.Duration
	// patience is how long the peers that a round asks first may take.
	patience time.Duration
	late     *time.Timer // fires patience after a round began

	mu        sync.Mutex
	begun     uint64                   // number of the last round that began
	confirmed uint64                   // number of the last round that was confirmed
	began     time.Time                // when round begun began
	proven    time.Time                // when round confirmed began
	waiting   []chan error             // for the round after begun
	riding    []ride                   // for rounds that have begun
	answered  map[raft.ServerID]uint64 // round that a peer has confirmed
	peers     map[raft.ServerID]*asker
	closed    bool
	wg        sync.WaitGroup
}

type ride struct {
	round uint64
	done  chan error
}

// asker asks one peer, one question at a time.
type asker struct {
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1
	// wanted is the last round that it shall answer, asking whether it owes an answer. Both under mu of its rounds.
	wanted uint64
	asking bool
}

// run proves the leadership until ctx ends, at least once a tick, so that the age of every node's state is known.
func (r *rounds) run(ctx context.Context) {
	ticker := time.NewTicker(r.tick)
	defer ticker.Stop()
	defer r.late.Stop()
	for {
		r.mu.Lock()
		r.follow(ctx)
		if r.confirmed == r.begun {
			r.begin()
		}
		r.askAll()
		r.mu.Unlock()
		if !r.await(ctx, ticker) {
			r.close()
			return
		}
	}
}

// await waits for the next tick, and hurries rounds that are late. False: ctx has ended.
func (r *rounds) await(ctx context.Context, ticker *time.Ticker) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
			return true
		case <-r.late.C:
			r.mu.Lock()
			if r.confirmed < r.begun {
				r.askAll()
			}
			r.mu.Unlock()
		}
	}
}

// ride waits until a round that began after the call is confirmed. It returns ErrNotLeader when this node has stopped
// to lead.
func (r *rounds) ride(ctx context.Context) error {
	done := make(chan error, 1)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrNotLeader
	}
	r.waiting = append(r.waiting, done)
	if r.confirmed == r.begun {
		r.begin()
	}
	r.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("prove the leadership of term %d: %w", r.term, ctx.Err())
	}
}

// age tells since when this node was last known to lead.
func (r *rounds) age() (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proven.IsZero() {
		return 0, false
	}
	return time.Since(r.proven), true
}

// begin starts the next round for all who wait. Called with mu held.
func (r *rounds) begin() {
	r.begun++
	r.began = time.Now()
	for _, done := range r.waiting {
		r.riding = append(r.riding, ride{r.begun, done})
	}
	r.waiting = r.waiting[:0]
	r.askMajority()
	r.late.Reset(r.patience)
	r.settle()
}

// askMajority asks as many voters as are needed, or all if too many owe an answer. Called with mu held.
func (r *rounds) askMajority() {
	voters := r.voters()
	need := len(voters)/2 + 1
	if slices.Contains(voters, r.self) {
		need--
	}
	for id, p := range r.peers { // In any order, so that all have their share.
		if need == 0 {
			return
		}
		if !p.asking && slices.Contains(voters, id) {
			r.want(p)
			need--
		}
	}
	if need > 0 {
		r.askAll()
	}
}

// askAll has all peers answer the round that began last. Called with mu held.
func (r *rounds) askAll() {
	for _, p := range r.peers {
		r.want(p)
	}
}

// want is called with mu held.
func (r *rounds) want(p *asker) {
	p.wanted = r.begun
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// settle confirms the round under way if a majority has answered it. Called with mu held.
func (r *rounds) settle() {
	if r.confirmed == r.begun {
		return
	}
	voters, yes := r.voters(), 0
	for _, v := range voters {
		if v == r.self || r.answered[v] >= r.begun {
			yes++
		}
	}
	if yes < len(voters)/2+1 {
		return
	}
	if !r.still() {
		r.fail()
		return
	}
	r.confirmed, r.proven = r.begun, r.began
	for _, w := range r.riding {
		w.done <- nil
	}
	r.riding = r.riding[:0]
	if len(r.waiting) > 0 {
		r.begin()
	}
}

// fail tells all who wait that this node leads no more. Called with mu held.
func (r *rounds) fail() {
	for _, done := range r.waiting {
		done <- ErrNotLeader
	}
	for _, w := range r.riding {
		w.done <- ErrNotLeader
	}
	r.waiting, r.riding = nil, nil
}

// follow keeps one asker for each other member. Called with mu held.
func (r *rounds) follow(ctx context.Context) {
	members := map[raft.ServerID]bool{}
	for _, id := range r.others() {
		members[id] = true
		if r.peers[id] != nil {
			continue
		}
		peerCtx, cancel := context.WithCancel(ctx)
		p := &asker{cancel: cancel, wake: make(chan struct{}, 1)}
		r.peers[id] = p
		r.wg.Go(func() { r.ask(peerCtx, id, p) })
	}
	for id, p := range r.peers {
		if !members[id] {
			p.cancel()
			delete(r.peers, id)
			delete(r.answered, id)
		}
	}
}

// ask asks one peer over one stream after another until ctx ends.
func (r *rounds) ask(ctx context.Context, id raft.ServerID, p *asker) {
	for ctx.Err() == nil {
		r.askStream(ctx, id, p)
		select {
		case <-ctx.Done():
		case <-time.After(r.tick):
		}
	}
}

// question is one that was sent: its number, and the last round that had begun before.
type question struct{ number, round uint64 }

func (r *rounds) askStream(ctx context.Context, id raft.ServerID, p *asker) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.open(ctx, id)
	if err != nil {
		return
	}
	var number, proven uint64
	var sent []question // not yet known to be proven; stays short as the proof follows within two rounds
	for {
		r.mu.Lock()
		round, confirmed := r.begun, r.confirmed
		p.asking = r.answered[id] < p.wanted
		idle := !p.asking
		r.mu.Unlock()
		if idle {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				continue
			}
		}
		for len(sent) > 0 && confirmed > sent[0].round {
			proven, sent = sent[0].number, sent[1:]
		}
		number++
		sent = append(sent, question{number, round})
		err := stream.Send(&peerv1.ConfirmRequest{
			Term: r.term, Question: number, Index: r.index(), ConfirmedQuestion: proven, LeaderId: string(r.self),
		})
		if err != nil {
			return
		}
		reply, err := stream.Recv()
		if err != nil {
			return
		}
		if !reply.GetOk() || reply.GetQuestion() != number {
			return // A later term exists, or the peer is confused: ask again over a new stream, a tick later.
		}
		r.mu.Lock()
		r.answered[id] = round
		r.settle()
		r.mu.Unlock()
	}
}

// close ends all who wait.
func (r *rounds) close() {
	r.mu.Lock()
	r.closed = true
	r.fail()
	for _, p := range r.peers {
		p.cancel()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
