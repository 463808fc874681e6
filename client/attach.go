package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

const (
	// minStall and maxStall bound how long a renewal may go without an acknowledgement before another node is asked.
	minStall = 300 * time.Millisecond
	maxStall = 5 * time.Second
)

var (
	errStalled     = errors.New("no answer in time")
	errGoElsewhere = errors.New("the node is leaving")
)

// attach renews a session over one stream after the other until it is over.
func (k *keeper) attach(s *session) {
	stall := min(max(s.ttl/4, minStall), maxStall)
	p := pause{limit: stall}
	for s.ctx.Err() == nil {
		ep := k.c.pool.take(false, nil)
		if ep == nil {
			return // closed
		}
		beats := &beats{k: k, s: s, ep: ep, stall: stall}
		err := beats.run(&p)
		k.c.pool.release(ep)
		if s.ctx.Err() != nil {
			return
		}
		if errors.Is(err, errGoElsewhere) {
			k.c.pool.leaving(ep)
		} else {
			k.c.pool.failed(ep)
		}
		err = fmt.Errorf("renew at %s: %w", ep.address, err)
		k.troubled(s, err)
		k.c.cfg.log.Debug("session stream ended", "session_id", s.id, "endpoint", ep.address, "err", err)
		p.wait(s.ctx, 0)
	}
}

// beats renews one session over one stream: one renewal under way at a time, acknowledged before the next is due.
type beats struct {
	k     *keeper
	s     *session
	ep    *endpoint
	stall time.Duration

	watchdog *time.Timer // runs while a renewal is under way

	mu       sync.Mutex // guards the fields below
	sequence uint64
	sent     time.Time // when the renewal of that sequence was sent
}

// run renews until the stream fails or the session is over. It resets the backoff at each acknowledgement.
func (b *beats) run(p *pause) error {
	ctx, cancel := context.WithCancelCause(b.s.ctx)
	b.watchdog = time.AfterFunc(b.stall, func() { cancel(errStalled) })
	defer b.watchdog.Stop()
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel(context.Canceled)
	stream, err := apiv1.NewSessionServiceClient(b.ep.conn).Attach(ctx)
	if err != nil {
		return streamError(ctx, err)
	}
	sending.Go(func() { b.send(ctx, stream) })
	for {
		resp, err := stream.Recv()
		if err != nil {
			err = streamError(ctx, err)
			if errors.Is(err, ErrSessionNotFound) {
				b.k.over(b.s.id)
			}
			return err
		}
		b.k.c.pool.learn(resp.GetLeader())
		b.k.c.observeEpoch(resp.GetEpoch())
		if slices.Contains(resp.GetEnded(), b.s.id) {
			b.k.over(b.s.id)
			return ErrSessionNotFound
		}
		if sent, ok := b.acknowledge(resp.GetSequence()); ok {
			b.k.acknowledged(b.s, sent)
			b.k.c.pool.succeeded(b.ep)
			p.reset()
		}
		if resp.GetGoElsewhere() {
			return errGoElsewhere
		}
	}
}

// send sends a renewal at once and then every third of the TTL, or a little earlier so that clients spread.
func (b *beats) send(ctx context.Context, stream grpc.BidiStreamingClient[apiv1.AttachRequest, apiv1.AttachResponse]) {
	interval := b.s.ttl / 3
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		b.mu.Lock()
		b.sequence++
		b.sent = time.Now()
		req := &apiv1.AttachRequest{SessionIds: []string{b.s.id}, Sequence: b.sequence}
		b.watchdog.Reset(b.stall)
		b.mu.Unlock()
		if stream.Send(req) != nil {
			return // receiving tells why
		}
		timer.Reset(interval - rand.N(interval/10))
	}
}

// acknowledge returns when the renewal with this sequence was sent. False: it is not the one under way.
func (b *beats) acknowledge(sequence uint64) (sent time.Time, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if sequence == 0 || sequence != b.sequence {
		return time.Time{}, false
	}
	b.watchdog.Stop()
	return b.sent, true
}

// streamError is why a stream ended: the cause of its context, or what the node said.
func streamError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fromStatus(err)
}
