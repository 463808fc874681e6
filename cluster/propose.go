package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

const (
	// maxEntryBytes bounds one log entry: what waits beyond it goes into the next one.
	maxEntryBytes = 256 << 10
	// maxEntryCommands bounds the commands of one log entry.
	maxEntryCommands = 512
	// pauseAfter is how long no entry follows another in a pause: longer than a client takes that writes one after the other.
	pauseAfter = time.Millisecond
	// enqueueTimeout is how long raft may take to accept an entry.
	enqueueTimeout = 2 * time.Second
)

// proposer turns the proposals that wait into one log entry at a time: one append, one fsync and one transaction serve
// them all. While an entry is under way the next one gathers.
type proposer struct {
	queue chan *proposal
	apply func(data []byte) raft.ApplyFuture
	// paused is called with the index of the last entry that was committed when none has followed it for a while.
	paused func(index uint64)
	done   chan struct{} // closed when no proposal will be taken any more
	// underway is closed when the entry that was begun last is applied here, or failed.
	underway atomic.Pointer[chan struct{}]
	ended    chan struct{} // closed when run has ended
	// abandoned ends when the entry under way is not waited for any more.
	abandoned context.Context //nolint:containedctx // Lives as long as the proposer.
	abandon   context.CancelFunc
	// took is how long each entry was under way.
	took prometheus.Histogram
	// tracing is told of entries with commands of traced calls; nil: nobody traces.
	tracing *tracing
}

// proposal is one command on its way into the log.
type proposal struct {
	command []byte
	taken   atomic.Bool     // by the proposer, or by the caller who gave up first
	deliver func(answer)    // called once if the proposer took it, and must not block
	trace   *TracedProposal // nil: of a call that nobody traces
}

type answer struct {
	outcome fsm.Outcome
	index   uint64
	err     error
}

func newProposer(maxPending int, tracing *tracing, apply func([]byte) raft.ApplyFuture, paused func(index uint64)) *proposer {
	p := &proposer{
		queue: make(chan *proposal, maxPending), apply: apply, paused: paused, tracing: tracing,
		done: make(chan struct{}), ended: make(chan struct{}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "regd_commit_seconds",
			Help:    "Time from when this node, as the leader, gave an entry to Raft until it had applied it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
	}
	p.abandoned, p.abandon = context.WithCancel(context.Background()) // Until close.
	go p.run()
	return p
}

// finish takes no more proposals and gives the entry under way some time to be applied. Raft must still run.
func (p *proposer) finish() {
	close(p.done)
	p.wait(finishTimeout)
}

// close ends the proposer after finish, and after Raft was shut down, which answers what it had not committed.
func (p *proposer) close() {
	p.wait(finishTimeout)
	p.abandon()
	<-p.ended
}

// wait waits until run has ended, for at most d.
func (p *proposer) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
	}
}

// finishTimeout is how long a stopping node waits for the entry under way.
const finishTimeout = time.Second

// propose puts a command into the log and waits for its outcome. It returns ErrUnknownOutcome when ctx ends after the
// command was taken; before that, ctx's own error: then nothing was done.
func (p *proposer) propose(ctx context.Context, command []byte, trace *TracedProposal) (answer, error) {
	answered := make(chan answer, 1)
	q := &proposal{command: command, deliver: func(a answer) { answered <- a }, trace: trace}
	if err := p.submit(q); err != nil {
		return answer{}, err
	}
	select {
	case a := <-answered:
		return a, a.err
	case <-p.done:
	case <-ctx.Done():
	}
	if q.taken.CompareAndSwap(false, true) {
		return answer{}, errors.Join(ctx.Err(), p.closedErr())
	}
	select {
	case a := <-answered: // Both happened at once: the answer is the truth.
		return a, a.err
	default:
		return answer{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, errors.Join(ctx.Err(), p.closedErr()))
	}
}

// submit lets a proposal wait. Its answer is delivered, unless the proposer is closed meanwhile.
func (p *proposer) submit(q *proposal) error {
	if err := p.closedErr(); err != nil {
		return err
	}
	select {
	case p.queue <- q:
		return nil
	default:
		return ErrOverloaded
	}
}

func (p *proposer) closedErr() error {
	select {
	case <-p.done:
		return ErrClosed
	default:
		return nil
	}
}

// settle waits until the entry that is under way now, if any, is applied here or has failed.
func (p *proposer) settle(ctx context.Context) error {
	done := p.underway.Load()
	if done == nil {
		return nil
	}
	select {
	case <-*done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *proposer) run() {
	defer close(p.ended)
	var held *proposal // did not fit into the last entry
	var last uint64    // index of the last entry
	pause := stopped()
	defer pause.Stop()
	next := gathering{queue: p.queue, late: stopped()}
	defer next.late.Stop()
	for {
		first := held
		for first == nil {
			select {
			case <-p.done:
				p.refuse()
				return
			case first = <-p.queue:
				if !first.taken.CompareAndSwap(false, true) {
					first = nil // Its caller has given up.
				}
			case <-pause.C:
				p.paused(last)
			}
		}
		var batch []*proposal
		batch, held = next.gather(first)
		begun := time.Now()
		if last = p.commit(batch); last > 0 {
			pause.Reset(pauseAfter)
		}
		next.expect(len(batch)+len(p.queue), time.Since(begun))
	}
}

// refuse answers what waits: nothing was done.
func (p *proposer) refuse() {
	for {
		select {
		case q := <-p.queue:
			if q.taken.CompareAndSwap(false, true) {
				q.deliver(answer{err: ErrClosed})
			}
		default:
			return
		}
	}
}

// commit puts a batch into the log as one entry, hands out its outcomes, and returns its index, 0 when it failed.
func (p *proposer) commit(batch []*proposal) (index uint64) {
	commands := make([][]byte, len(batch))
	for i, q := range batch {
		commands[i] = q.command
	}
	done := make(chan struct{})
	p.underway.Store(&done)
	defer close(done)
	begun := time.Now()
	future := p.apply(fsm.AppendEntry(nil, begun.UnixMilli(), commands))
	err := await(p.abandoned, future)
	var result applied
	if err == nil {
		p.took.Observe(time.Since(begun).Seconds())
		switch r := future.Response().(type) {
		case applied:
			result = r
		case error:
			err = fmt.Errorf("%w: %w", ErrUnknownOutcome, r)
		}
	} else {
		err = applyError(err)
	}
	if err == nil && len(result.Outcomes) != len(batch) {
		err = fmt.Errorf("%w: %d commands had %d outcomes", ErrUnknownOutcome, len(batch), len(result.Outcomes))
	}
	for i, q := range batch {
		if err != nil {
			q.deliver(answer{err: err})
			continue
		}
		index = future.Index()
		q.deliver(answer{outcome: result.Outcomes[i], index: index})
	}
	p.tracing.entry(batch, TracedEntry{Index: index, Taken: begun, Committed: result.began, Applied: result.ended, Err: err})
	return index
}

// Propose puts a command into the log of the cluster, through this node if it leads, else through the node that does,
// and returns its outcome once it is applied. A refusal by the state machine is in Outcome.Err.
//
// While there is no leader it waits, up to Config.LeaderWait. ErrUnknownOutcome means that the command may have been
// applied; all other errors mean that it was not. ErrFeatureLevel means that it must not be, as a member could not follow. A
// command with a request id is safe to repeat, so Propose repeats it
// itself while ctx allows.
func (n *Node) Propose(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	if err := levelError(n.feed.State(), cmd.GetLevel()); err != nil {
		return fsm.Outcome{}, err
	}
	data, err := proto.Marshal(cmd)
	if err != nil {
		return fsm.Outcome{}, fmt.Errorf("encode command: %w", err)
	}
	urgent := frees(cmd)
	again := leaderless
	if cmd.GetRequest() != nil {
		again = func(err error) bool { return leaderless(err) || errors.Is(err, ErrUnknownOutcome) }
	}
	var a answer
	var unknown error // of an attempt: whatever the next ones meet, the command may have been applied
	err = n.untilLed(ctx, again, func() (err error) {
		if a, err = n.proposeOnce(ctx, data, urgent); errors.Is(err, ErrUnknownOutcome) {
			unknown = err
		}
		return err
	})
	if err != nil && unknown != nil && !errors.Is(err, ErrUnknownOutcome) {
		err = fmt.Errorf("%w; trying again: %w", unknown, err)
	}
	return a.outcome, err
}

// proposeOnce tries the leader once.
func (n *Node) proposeOnce(ctx context.Context, data []byte, urgent bool) (answer, error) {
	if n.leads() {
		return n.proposeHere(ctx, data, urgent)
	}
	return n.forwardProposal(ctx, data)
}

// proposeHere proposes on the leader itself.
func (n *Node) proposeHere(ctx context.Context, data []byte, urgent bool) (answer, error) {
	if err := n.roomFor(urgent); err != nil {
		return answer{}, err
	}
	return n.proposer.propose(ctx, data, n.tracing.proposal(ctx))
}

// submitHere is proposeHere for a follower's command: it does not wait.
func (n *Node) submitHere(p *peerv1.Proposal, urgent bool, deliver func(answer)) error {
	if err := n.roomFor(urgent); err != nil {
		return err
	}
	return n.proposer.submit(&proposal{command: p.GetCommand(), deliver: deliver, trace: n.tracing.remote(p.GetTrace())})
}

// roomFor returns ErrDiskFull when a command may not be written.
func (n *Node) roomFor(urgent bool) error {
	if !urgent && n.store.Full() {
		return fmt.Errorf("%w: %d bytes are free on node %s", ErrDiskFull, n.store.DiskFree(), n.cfg.Name)
	}
	return nil
}

// frees tells whether a command takes away rather than adds: those go on when the disk is full.
func frees(cmd *raftlogv1.Command) bool {
	switch kind := cmd.GetKind().(type) {
	case *raftlogv1.Command_Deregister, *raftlogv1.Command_CloseSession, *raftlogv1.Command_RevokeLease,
		*raftlogv1.Command_Expire, *raftlogv1.Command_ReleaseLock, *raftlogv1.Command_RemoveMember:
		return true
	case *raftlogv1.Command_KvTransaction:
		return !slices.ContainsFunc(kind.KvTransaction.GetOps(), puts)
	default:
		return false
	}
}

// puts tells whether an operation on a key writes a value.
func puts(op *raftlogv1.KVOp) bool {
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_SET, raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE,
		raftlogv1.KVOpKind_KV_OP_KIND_RELEASE:
		return true
	default:
		return false
	}
}
