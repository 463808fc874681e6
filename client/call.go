package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
)

// repeat says when a call may be sent again.
type repeat int

const (
	// always: a read, or a call that changes nothing when repeated.
	always repeat = iota
	// sameID: a write under a request id. It is applied once however often it is sent.
	sameID
	// ifUndone: only when it surely was not carried out.
	ifUndone
)

// method describes a call to the loop that sends it.
type method struct {
	op      string // what is attempted, for errors
	repeat  repeat
	patient bool // an attempt takes as long as the context allows
}

// write tells whether the leader serves the call best.
func (m method) write() bool { return m.repeat != always }

// answer is what all answers have in common.
type answer interface {
	GetHeader() *apiv1.ResponseHeader
}

// send sends one attempt over one connection.
type send[R answer] func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (R, error)

// invoke sends a call to one node after the other, pauses, and starts again, until there is an answer that counts or the
// context ends.
func invoke[R answer](ctx context.Context, c *Client, m method, do send[R]) (R, error) {
	var resp R
	err := c.try(ctx, m, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		var err error
		if resp, err = do(ctx, conn, opts...); err == nil {
			c.observe(resp.GetHeader())
		}
		return err
	})
	if err != nil {
		var none R
		return none, err
	}
	return resp, nil
}

// read is invoke for a public call that changes nothing, or may be repeated as it is.
func read[R answer](ctx context.Context, c *Client, op string, do send[R]) (R, error) {
	return public(ctx, c, method{op: op, repeat: always}, do)
}

// write is invoke for a public call under a request id.
func write[R answer](ctx context.Context, c *Client, op string, do func(*apiv1.RequestID) send[R]) (R, error) {
	var none R
	ctx, cancel, err := c.begin(ctx)
	if err != nil {
		return none, fmt.Errorf("%s: %w", op, err)
	}
	defer cancel()
	id, done, err := c.requests.begin(ctx)
	if err != nil {
		return none, fmt.Errorf("%s: %w", op, err)
	}
	defer done()
	return invoke(ctx, c, method{op: op, repeat: sameID}, do(id))
}

// public is invoke under the rules of public calls: a default deadline, and an end with Close.
func public[R answer](ctx context.Context, c *Client, m method, do send[R]) (R, error) {
	ctx, cancel, err := c.begin(ctx)
	if err != nil {
		var none R
		return none, fmt.Errorf("%s: %w", m.op, err)
	}
	defer cancel()
	return invoke(ctx, c, m, do)
}

// begin bounds the context of a public call: by the client's request timeout when it has no deadline, and by Close.
func (c *Client) begin(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if c.life.Err() != nil {
		return nil, nil, ErrClosed
	}
	release := func() {}
	if _, ok := ctx.Deadline(); !ok {
		ctx, release = context.WithTimeout(ctx, c.cfg.requestTimeout)
	}
	ctx, unbind := c.bind(ctx)
	return ctx, func() { unbind(); release() }, nil
}

// bind makes a context that ends with Close too.
func (c *Client) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.life, func() { cancel(ErrClosed) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

// trial is the state of one call over all its attempts.
type trial struct {
	attempts []Attempt
	tried    map[*endpoint]bool // in this round
	pause    pause
	unknown  bool // an attempt may have been carried out
}

// try is the loop of invoke.
func (c *Client) try(ctx context.Context, m method, do func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) error) error {
	c.counts.calls.Add(1)
	t := trial{tried: make(map[*endpoint]bool)}
	for {
		if ctx.Err() != nil {
			return t.ended(ctx, m)
		}
		ep := c.pool.take(m.write(), t.tried)
		if ep == nil { // all have been asked
			clear(t.tried)
			t.pause.wait(ctx, 0)
			continue
		}
		e, sent := c.attempt(ctx, m, ep, do)
		c.pool.release(ep)
		if e == nil {
			return nil
		}
		t.note(ep, e)
		if sent && e.ambiguous() && m.repeat != always {
			t.unknown = true
		}
		switch {
		case ctx.Err() != nil:
			continue
		case t.unknown && (m.repeat == ifUndone || e.leavesOpen()):
			return fmt.Errorf("%s: %w: %w", m.op, ErrOutcomeUnknown, e)
		case e.verdict() == giveUp:
			return fmt.Errorf("%s: %w", m.op, e)
		case e.verdict() == later:
			clear(t.tried)
			t.pause.wait(ctx, e.RetryAfter)
		}
	}
}

// attempt sends a call once. It tells whether the request may have left this process.
func (c *Client) attempt(ctx context.Context, m method, ep *endpoint, do func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) error) (*Error, bool) {
	attemptCtx, cancel := ctx, func() {}
	if !m.patient {
		attemptCtx, cancel = context.WithTimeout(ctx, c.cfg.attemptTimeout)
	}
	defer cancel()
	c.counts.attempts.Add(1)
	var to peer.Peer
	err := do(attemptCtx, ep.conn, grpc.Peer(&to))
	if err == nil {
		c.pool.succeeded(ep)
		return nil, true
	}
	e := fromStatus(err)
	if e.Reason == apiv1.Reason_REASON_UNSPECIFIED && attemptCtx.Err() != nil {
		e.Message = "no answer in time"
	}
	if e.verdict() != giveUp {
		c.counts.failedAttempts.Add(1)
	}
	if e.shuns() && ctx.Err() == nil {
		c.pool.failed(ep)
	}
	c.pool.learn(e.Metadata[leaderKey])
	return e, to.Addr != nil
}

// note keeps an endpoint's last word.
func (t *trial) note(ep *endpoint, err error) {
	t.tried[ep] = true
	for i := range t.attempts {
		if t.attempts[i].Address == ep.address {
			t.attempts[i].Err = err
			return
		}
	}
	t.attempts = append(t.attempts, Attempt{Address: ep.address, Err: err})
}

// ended is the error of a call whose context ended.
func (t *trial) ended(ctx context.Context, m method) error {
	cause := ctx.Err()
	if errors.Is(context.Cause(ctx), ErrClosed) {
		cause = ErrClosed
	}
	if len(t.attempts) == 0 {
		return fmt.Errorf("%s: %w", m.op, cause)
	}
	return &UnreachableError{Op: m.op, Attempts: t.attempts, Cause: cause, OutcomeUnknown: t.unknown}
}

// pause is an exponential backoff with full jitter. The zero value is ready.
type pause struct {
	limit time.Duration // largest wait; 0: maxPause
	next  time.Duration
}

// wait sleeps for a random time up to the current bound, which doubles, but at least for the given time. It returns early
// when the context ends.
func (p *pause) wait(ctx context.Context, atLeast time.Duration) {
	limit := p.limit
	if limit == 0 {
		limit = maxPause
	}
	p.next = min(max(2*p.next, minPause), limit)
	timer := time.NewTimer(atLeast + rand.N(p.next))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// reset starts again from the shortest wait.
func (p *pause) reset() { p.next = 0 }
