package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/regd-io/regd/cluster"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// renewStream is a stream of renewals of one kind.
type renewStream struct {
	kind  peerv1.RenewKind
	field string // of the ids, for errors
	recv  func() (ids []string, sequence uint64, err error)
	send  func(renewed) error
}

// renewed is an answer on such a stream.
type renewed struct {
	sequence    uint64
	ended       []string
	goElsewhere bool
	leader      string
}

// renewStream answers renewals one after the other until the client ends the stream or this node leaves.
//
// One renewal is under way at a time. What goes wrong on the way to the leader (there is none, it is overloaded) does
// not end the stream: the renewal is tried again until it is answered. That costs nothing while there is no leader, and
// spares all clients a reconnection just when there is one again. A client that would rather try another node ends the
// stream; it has a third of the TTL for each answer.
func (c *core) renewStream(ctx context.Context, s renewStream) error {
	type request struct {
		ids      []string
		sequence uint64
	}
	requests, broken, done := make(chan request), make(chan error, 1), make(chan struct{})
	defer close(done)
	// It ends with the stream, which ends after this function: only Shutdown can wait for it.
	c.tasks.Go(func() {
		for {
			ids, sequence, err := s.recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case requests <- request{ids, sequence}:
			case <-done:
				return
			}
		}
	})
	for {
		select {
		case <-c.leaving:
			return s.send(c.farewell())
		case err := <-broken:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case r := <-requests:
			var f faults
			f.ids(s.field, r.ids)
			if err := f.err(); err != nil {
				return err
			}
			ended, err := c.renewUntilAnswered(ctx, s.kind, r.ids)
			if errors.Is(err, cluster.ErrClosed) || errors.Is(err, cluster.ErrRemoved) {
				return s.send(c.farewell())
			}
			if err != nil {
				return err
			}
			if err := s.send(renewed{sequence: r.sequence, ended: ended}); err != nil {
				return err
			}
		}
	}
}

func (c *core) farewell() renewed {
	return renewed{goElsewhere: true, leader: c.node.Info().LeaderAddress}
}

// renewUntilAnswered renews, again and again if it must. Its errors are that of ctx, and cluster.ErrClosed and
// cluster.ErrRemoved when this node will never answer.
func (c *core) renewUntilAnswered(ctx context.Context, kind peerv1.RenewKind, ids []string) ([]string, error) {
	for pause := renewPause; ; pause = min(2*pause, maxRenewPause) {
		ended, err := c.renewOnce(ctx, kind, ids)
		if err == nil || errors.Is(err, cluster.ErrClosed) || errors.Is(err, cluster.ErrRemoved) {
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
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	return c.node.Renew(ctx, kind, ids)
}
