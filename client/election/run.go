package election

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/regd-io/regd/client"
)

const (
	// minPause bounds the first pause before the next campaign. The bound doubles with each one.
	minPause = 100 * time.Millisecond
	// maxPause is the largest bound. A leadership that lasted as long begins again with minPause.
	maxPause = 10 * time.Second
	// resignTimeout bounds how long Run waits for a resignation to be confirmed.
	resignTimeout = 5 * time.Second
)

// Run does work while this process leads: it campaigns, calls work once elected, and campaigns again when leadership was
// lost, after a pause with full jitter. It returns nil when ctx ends, and resigns before, so that the next in line leads
// at once.
//
// The context of work ends with ctx and the moment leadership can no longer be proved. Work must return then: nothing
// is done in the meantime, so it never runs twice in this process. What it returns after leadership was lost is of no
// account. When it returns otherwise, of its own will, Run resigns and returns the same.
//
// An error of Campaign ends Run, except that a line that is full is tried again.
func (e *Election) Run(ctx context.Context, value []byte, work func(ctx context.Context, l *Leadership) error) error {
	bound := minPause
	for {
		l, err := e.Campaign(ctx, value)
		began := time.Now()
		again := errors.Is(err, client.ErrLimitReached)
		if err == nil {
			again, err = lead(ctx, l, work)
		}
		if ctx.Err() != nil {
			if again || l == nil || errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx)) {
				return nil
			}
			return err
		}
		if !again {
			return err
		}
		if time.Since(began) >= maxPause {
			bound = minPause
		}
		wait(ctx, rand.N(bound))
		bound = min(2*bound, maxPause)
	}
}

// lead does work until it returns, and resigns. It tells whether leadership was lost meanwhile, and what work returned.
//
//nolint:contextcheck // The leadership's context is that of the campaign, which had ctx.
func lead(ctx context.Context, l *Leadership, work func(context.Context, *Leadership) error) (lost bool, err error) {
	working, cancel := context.WithCancelCause(l.Context())
	defer cancel(context.Canceled)
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	defer stop()
	defer func() { // Also when work panics: the session lives on, and would lead for ever.
		why := context.Cause(l.Context())
		lost = errors.Is(why, client.ErrLockLost) || errors.Is(why, client.ErrClosed)
		bounded, release := context.WithTimeout(context.WithoutCancel(ctx), resignTimeout)
		defer release()
		_ = l.Resign(bounded) // The client goes on trying; nobody needs to wait for that.
	}()
	err = work(working, l)
	return false, err
}

// wait sleeps, and returns early when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
