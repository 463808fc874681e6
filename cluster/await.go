package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// await waits for a future of Raft, or the end of ctx: then it returns ErrUnknownOutcome. Every future is waited for
// so: a Raft that is shut down answers neither what it had committed and not yet handed to the state machine, nor a
// transfer of leadership that it had not yet begun. Then the goroutine that asks for it is left behind.
func await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: wait for raft: %w", ErrUnknownOutcome, ctx.Err())
	}
}

// awaited is Raft as raft-autopilot sees it: the changes that autopilot makes, and waits for itself, end with the
// leadership. It makes no others.
type awaited struct {
	*raft.Raft

	pilot   *pilot
	leading context.Context //nolint:containedctx // Replaced at the start of each leadership, when autopilot does not run.
}

// AddVoter implements autopilot.Raft. It makes a member a voter if it is one still: autopilot decides by what it saw a while
// ago, and Raft would add again, for good, who was removed since.
func (r *awaited) AddVoter(id raft.ServerID, at raft.ServerAddress, prev uint64, timeout time.Duration) raft.IndexFuture {
	return change{make: func() error {
		if err := r.pilot.lock(r.leading); err != nil {
			return err
		}
		defer r.pilot.unlock()
		if _, is := r.pilot.node.server(string(id)); !is {
			return fmt.Errorf("%w: %s was removed before it became a voter", ErrMemberNotFound, id)
		}
		return await(r.leading, begin(func() raft.Future { return r.Raft.AddVoter(id, at, prev, timeout) }))
	}}
}

// RemoveServer implements autopilot.Raft.
func (r *awaited) RemoveServer(id raft.ServerID, prev uint64, timeout time.Duration) raft.IndexFuture {
	return change{make: func() error {
		return await(r.leading, begin(func() raft.Future { return r.Raft.RemoveServer(id, prev, timeout) }))
	}}
}

// change is a change of the membership that is made when it is waited for: handing it to Raft may take as long.
type change struct {
	raft.IndexFuture // nil: autopilot does not ask for the index

	make func() error
}

// Error implements raft.Future.
func (c change) Error() error { return c.make() }

// begin is a future that begins when it is waited for.
type begin func() raft.Future

// Error implements raft.Future.
func (b begin) Error() error { return b().Error() }
