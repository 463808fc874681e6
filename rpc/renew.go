package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// renewStream is a stream of renewals of one kind.
type renewStream struct {
	kind  peerv1.RenewKind
	field string // of the ids, for errors
	recv  func() (ids []string, sequence uint64, err error)
	send  func(renewed) error
}

// renewed is an answer on such a stream, to all messages up to that of the sequence.
type renewed struct {
	sequence    uint64
	ended       []string
	goElsewhere bool
	leader      string
}

// renewStream answers renewals until the client ends the stream or this node leaves.
//
// Those that come while some are under way are renewed together next and have one answer, so that a client that sends
// single ids, many at a time, waits for few rounds and reads few messages. What goes wrong on the way to the leader (there
// is none, it is overloaded) does not end the stream: the renewals are tried again until they are answered. That costs
// nothing while there is no leader, and spares all clients a reconnection just when there is one again. A client that would
// rather try another node ends the stream; it has a third of the TTL for each answer.
func (c *core) renewStream(ctx context.Context, s renewStream) error {
	pending := newPendingRenewals()
	defer close(pending.done)
	// It ends with the stream, which ends after this function: only Shutdown can wait for it.
	c.tasks.Go(func() { pending.gather(s) })
	for {
		select {
		case <-c.leaving:
			return s.send(c.farewell())
		case <-pending.come:
		}
		batch, end := pending.take()
		if batch.messages > 0 {
			ended, err := c.renewUntilAnswered(ctx, s.kind, batch.ids)
			if errors.Is(err, cluster.ErrClosed) || errors.Is(err, cluster.ErrRemoved) {
				return s.send(c.farewell())
			}
			if err == nil {
				err = s.send(renewed{sequence: batch.sequence, ended: ended})
			}
			if err != nil {
				return err
			}
		}
		if errors.Is(end, io.EOF) {
			return nil
		}
		if end != nil {
			return end
		}
	}
}

// renewalBatch is what some messages of a client renew together.
type renewalBatch struct {
	messages int
	ids      []string
	sequence uint64 // of the last message
}

// pendingRenewals are those of a stream that have come and were not yet renewed.
type pendingRenewals struct {
	come chan struct{} // holds a token when there is something to take
	room chan struct{} // holds a token when there may be room again
	done chan struct{} // closed when nobody takes any more

	mu    sync.Mutex // guards the next two
	batch renewalBatch
	end   error // why no more come
}

// maxPending bounds the ids of a stream that wait to be renewed together. The last message may exceed it.
const maxPending = 512

func newPendingRenewals() *pendingRenewals {
	return &pendingRenewals{come: make(chan struct{}, 1), room: make(chan struct{}, 1), done: make(chan struct{})}
}

// gather receives until the stream breaks, a message is malformed, or nobody takes any more.
func (p *pendingRenewals) gather(s renewStream) {
	for {
		ids, sequence, err := s.recv()
		if err == nil {
			var f faults
			f.ids(s.field, ids)
			err = f.err()
		}
		full := p.put(ids, sequence, err)
		signal(p.come)
		if err != nil {
			return
		}
		for full {
			select {
			case <-p.room:
			case <-p.done:
				return
			}
			full = p.full()
		}
	}
}

// put adds a message, or why there are no more, and tells whether there is no room for the next one.
func (p *pendingRenewals) put(ids []string, sequence uint64, end error) (full bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end = end; end != nil {
		return true
	}
	b := &p.batch
	b.messages++
	b.ids = append(b.ids, ids...)
	b.sequence = sequence
	return len(b.ids) >= maxPending
}

func (p *pendingRenewals) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.batch.ids) >= maxPending
}

// take returns what has come, and why no more will, if so.
func (p *pendingRenewals) take() (batch renewalBatch, end error) {
	p.mu.Lock()
	batch, end = p.batch, p.end
	// The next is often as large.
	p.batch = renewalBatch{ids: make([]string, 0, min(len(batch.ids), maxPending))}
	p.mu.Unlock()
	signal(p.room)
	return batch, end
}

// signal puts a token into a channel of one, unless there is one.
func signal(tokens chan<- struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
	}
}

func (c *core) farewell() renewed {
	return renewed{goElsewhere: true, leader: c.node.Info().LeaderAddress}
}

// final tells whether no later try would go better: this node will never answer, or the caller may not renew that.
func final(err error) bool {
	return errors.Is(err, cluster.ErrClosed) || errors.Is(err, cluster.ErrRemoved) ||
		errors.Is(err, fsm.ErrDenied) || errors.Is(err, ErrUnauthenticated)
}

// renewUntilAnswered renews, again and again if it must. Its errors are that of ctx, and final ones.
func (c *core) renewUntilAnswered(ctx context.Context, kind peerv1.RenewKind, ids []string) ([]string, error) {
	for pause := renewPause; ; pause = min(2*pause, maxRenewPause) {
		ended, err := c.renewOnce(ctx, kind, ids)
		if err == nil || final(err) {
			return ended, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-c.leaving:
			timer.Stop()
			return nil, cluster.ErrClosed
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

func (c *core) renewOnce(ctx context.Context, kind peerv1.RenewKind, ids []string) ([]string, error) {
	if err := c.admission.enter(classRenew); err != nil {
		return nil, err
	}
	defer c.admission.leave()
	if err := c.mayRenew(ctx, kind, ids); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	return c.node.Renew(ctx, kind, ids)
}
