package cluster

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// forwards hands the proposals of this node to the leader: over one stream, as many in a message as wait when the one
// before has been sent, and without waiting for answers. A call for each would cost several times as much.
type forwards struct {
	dial func(leaderAt) (peerv1.PeerServiceClient, error)
	most int // that are under way to one leader

	mu   sync.Mutex
	line *line // to the leader that was known last; nil: none yet
	wg   sync.WaitGroup
}

// line is one stream to a leader. A line that broke is replaced, and one to a leader of before ends once nothing is under
// way on it.
type line struct {
	to     leaderAt
	most   int
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1

	mu      sync.Mutex
	number  uint64
	waiting []*forwarded
	sent    map[uint64]*forwarded
	retired bool
	broken  bool
}

// forwarded is a proposal on its way to the leader.
type forwarded struct {
	command []byte
	answer  chan answer          // capacity 1
	trace   *peerv1.TraceContext // nil: of a call that nobody traces
}

// propose has the leader apply a command. It returns ErrUnknownOutcome when it can't tell whether the leader did; with all
// other errors nothing was done.
func (f *forwards) propose(ctx context.Context, to leaderAt, command []byte, trace *peerv1.TraceContext) (answer, error) {
	l := f.lineTo(to) //nolint:contextcheck // A line outlives the call that opens it.
	q := &forwarded{command: command, answer: make(chan answer, 1), trace: trace}
	if err := l.add(q); err != nil {
		return answer{}, err
	}
	select {
	case a := <-q.answer:
		return a, a.err
	case <-ctx.Done():
	}
	if l.withdraw(q) {
		return answer{}, fmt.Errorf("forward to the leader: %w", ctx.Err())
	}
	select {
	case a := <-q.answer: // Both happened at once: the answer is the truth.
		return a, a.err
	default:
		return answer{}, fmt.Errorf("%w: forward to the leader: %w", ErrUnknownOutcome, ctx.Err())
	}
}

func (f *forwards) lineTo(to leaderAt) *line {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.line != nil && f.line.to == to && !f.line.isBroken() {
		return f.line
	}
	if f.line != nil {
		f.line.retire()
	}
	ctx, cancel := context.WithCancel(context.Background()) // Ends with the line.
	f.line = &line{to: to, most: f.most, cancel: cancel, wake: make(chan struct{}, 1), sent: map[uint64]*forwarded{}}
	l := f.line
	f.wg.Go(func() {
		defer cancel()
		l.fail(l.run(ctx, f.dial))
	})
	return l
}

// close ends all lines. The connections to peers must be closed already.
func (f *forwards) close() {
	f.mu.Lock()
	if f.line != nil {
		f.line.cancel()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

func (l *line) isBroken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

func (l *line) add(q *forwarded) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.broken:
		return fmt.Errorf("%w: the stream to it has just ended", ErrNotLeader)
	case len(l.waiting)+len(l.sent) >= l.most:
		return ErrOverloaded
	}
	l.waiting = append(l.waiting, q)
	l.nudge()
	return nil
}

func (l *line) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// withdraw takes back what was not sent.
func (l *line) withdraw(q *forwarded) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == q {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// retire ends the line when nothing is under way on it any more.
func (l *line) retire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retired = true
	l.endIfDone()
}

// endIfDone is called with mu held.
func (l *line) endIfDone() {
	if l.retired && len(l.waiting) == 0 && len(l.sent) == 0 {
		l.cancel()
	}
}

// run sends what waits until the stream ends, and returns why it did.
func (l *line) run(ctx context.Context, dial func(leaderAt) (peerv1.PeerServiceClient, error)) error {
	leader, err := dial(l.to)
	if err != nil {
		return err
	}
	stream, err := leader.Propose(ctx)
	if err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() { received <- l.receive(stream) }()
	for {
		select {
		case err := <-received:
			return err
		case <-l.wake:
		}
		for batch := l.take(); len(batch) > 0; batch = l.take() {
			if stream.Send(&peerv1.ProposeRequest{Proposals: batch}) != nil {
				return <-received // It says why.
			}
		}
	}
}

// take moves what waits, up to the bounds of an entry of the log, to what was sent.
func (l *line) take() []*peerv1.Proposal {
	l.mu.Lock()
	defer l.mu.Unlock()
	size, k := 0, 0
	for k < len(l.waiting) && k < maxEntryCommands && (k == 0 || size+len(l.waiting[k].command) <= maxEntryBytes) {
		size += len(l.waiting[k].command)
		k++
	}
	batch := make([]*peerv1.Proposal, k)
	for i, q := range l.waiting[:k] {
		l.number++
		l.sent[l.number] = q
		batch[i] = &peerv1.Proposal{Number: l.number, Command: q.command, Trace: q.trace}
	}
	rest := copy(l.waiting, l.waiting[k:])
	clear(l.waiting[rest:])
	l.waiting = l.waiting[:rest]
	return batch
}

// receive hands answers out until the stream ends, and returns why it did.
func (l *line) receive(stream peerv1.PeerService_ProposeClient) error {
	for {
		reply, err := stream.Recv()
		if err != nil {
			return err
		}
		l.mu.Lock()
		for _, a := range reply.GetAnswers() {
			if q := l.sent[a.GetNumber()]; q != nil {
				delete(l.sent, a.GetNumber())
				q.answer <- answer{fsm.OutcomeFromProto(a.GetOutcome()), a.GetIndex(), fromFault(a.GetFault())}
			}
		}
		l.endIfDone()
		l.mu.Unlock()
	}
}

// fail answers all that is under way when the stream has ended: what was not sent, or was not let in, was not done.
func (l *line) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = true
	notDone := fmt.Errorf("%w: forward to the leader: %w", ErrNotLeader, err)
	for _, q := range l.waiting {
		q.answer <- answer{err: notDone}
	}
	unknown := notDone
	if status.Code(err) != codes.PermissionDenied {
		unknown = fmt.Errorf("%w: forward to the leader: %w", ErrUnknownOutcome, err)
	}
	for _, q := range l.sent {
		q.answer <- answer{err: unknown}
	}
	l.waiting, l.sent = nil, nil
}

// Propose proposes the commands of a follower.
func (s *peerServer) Propose(stream peerv1.PeerService_ProposeServer) error {
	n := s.node
	out := &outbox{most: n.cfg.MaxPending, wake: make(chan struct{}, 1)}
	received := make(chan error, 1)
	go func() {
		for {
			req, err := stream.Recv()
			if err == nil {
				err = s.take(stream.Context(), req.GetProposals(), out)
			}
			if err != nil {
				received <- err
				return
			}
		}
	}()
	for {
		select {
		case err := <-received:
			return ignoreEOF(err)
		case <-out.wake:
		}
		if err := stream.Send(&peerv1.ProposeResponse{Answers: out.take()}); err != nil {
			return err
		}
	}
}

// take proposes what came in one message. It fails when the follower does not take its answers.
func (s *peerServer) take(ctx context.Context, proposals []*peerv1.Proposal, out *outbox) error {
	n := s.node
	refused := s.answers(ctx)
	for _, p := range proposals {
		err := refused
		if err == nil {
			err = n.submitHere(p, n.isUrgent(p.GetCommand()), func(a answer) { out.put(p.GetNumber(), a) })
		}
		if err != nil {
			out.put(p.GetNumber(), answer{err: err})
		}
	}
	if out.full() {
		return status.Error(codes.ResourceExhausted, "too many answers wait to be taken")
	}
	return nil
}

// outbox gathers answers to one follower while others are sent.
type outbox struct {
	most int
	wake chan struct{} // capacity 1

	mu   sync.Mutex
	list []*peerv1.ProposalAnswer
}

func (o *outbox) put(number uint64, a answer) {
	m := &peerv1.ProposalAnswer{Number: number, Index: a.index, Fault: toFault(a.err)}
	if a.err == nil {
		m.Outcome = a.outcome.Proto()
	}
	o.mu.Lock()
	o.list = append(o.list, m)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) take() []*peerv1.ProposalAnswer {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.list
	o.list = nil
	return list
}

func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.list) > o.most
}

// forwardProposal hands a command to the leader.
func (n *Node) forwardProposal(ctx context.Context, command []byte) (answer, error) {
	to, err := n.leaderAt()
	if err != nil {
		return answer{}, err
	}
	if n.tracing == nil {
		return n.forwards.propose(ctx, to, command, nil)
	}
	trace, end := n.tracing.Forward(ctx, cmp.Or(n.feed.State().Member(to.id).GetName(), to.id))
	a, err := n.forwards.propose(ctx, to, command, trace)
	end(err)
	return a, err
}
