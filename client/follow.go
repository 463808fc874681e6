package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// errStopped says that the reader wants no more.
var errStopped = errors.New("reader has stopped")

// follower has one node after the other serve a stream of its own. Nothing is held for a slow reader: the node keeps what
// there is to say until it is read, and says only the last of it. One goroutine runs it.
type follower[M interface {
	GetHeader() *apiv1.ResponseHeader
}] struct {
	c    *Client
	what string // for the log
	// open starts a stream, and returns what reads it.
	open func(ctx context.Context, conn grpc.ClientConnInterface) (recv func() (M, error), err error)
	// take takes a message to the reader. After an error the stream is left.
	take  func(M) error
	pause pause

	served bool // there was a message
}

// run returns why it ended: errStopped, the end of ctx, or what the registry refused it for at first.
func (f *follower[M]) run(ctx context.Context) error {
	var trouble error
	for {
		if ctx.Err() != nil {
			err := context.Cause(ctx)
			if trouble != nil && !errors.Is(err, ErrClosed) {
				err = fmt.Errorf("%w: %w", err, trouble)
			}
			return err
		}
		ep := f.c.pool.take(false, nil)
		if ep == nil {
			return ErrClosed
		}
		err := f.follow(ctx, ep)
		f.c.pool.release(ep)
		var e *Error
		if errors.Is(err, errStopped) || !f.served && errors.As(err, &e) && e.verdict() == giveUp {
			return err
		}
		if ctx.Err() != nil {
			continue
		}
		f.c.counts.brokenWatchStreams.Add(1)
		trouble = fmt.Errorf("%s: %w", ep.address, err)
		f.c.cfg.log.Debug("watch ended", "of", f.what, "endpoint", ep.address, "err", err)
		f.c.pool.failed(ep)
		f.pause.wait(ctx, 0)
	}
}

// follow reads one stream until it fails.
func (f *follower[M]) follow(ctx context.Context, ep *endpoint) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(context.Canceled)
	watchdog := time.AfterFunc(watchStall, func() { cancel(errStalled) })
	defer watchdog.Stop()
	recv, err := f.open(ctx, ep.conn)
	if err != nil {
		return streamError(ctx, err)
	}
	for {
		resp, err := recv()
		if err != nil {
			return streamError(ctx, err)
		}
		watchdog.Stop() // The reader may take its time.
		f.served = true
		if err := f.take(resp); err != nil {
			return err
		}
		f.c.observe(resp.GetHeader())
		f.c.pool.succeeded(ep)
		f.pause.reset()
		watchdog.Reset(watchStall)
	}
}
