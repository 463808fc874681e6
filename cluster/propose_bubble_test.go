package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// forgotten is the future of an entry that Raft answers only when the test says so.
type forgotten struct {
	raft.ApplyFuture

	answer chan struct{}
}

// Error implements raft.Future.
func (f forgotten) Error() error {
	<-f.answer
	return raft.ErrRaftShutdown
}

func TestAStoppingProposerWaitsForNoAnswerThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		p := newProposer(1, nil, func([]byte) raft.ApplyFuture { return forgotten{answer: never} }, nil)
		proposed, closed := make(chan error, 1), make(chan struct{})
		go func() {
			_, err := p.propose(t.Context(), []byte("command"), nil)
			proposed <- err
		}()
		synctest.Wait()
		go func() {
			p.finish()
			p.close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(time.Minute):
			t.Error("a proposer is not closed after a minute")
		}
		if err := <-proposed; !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, ErrClosed) {
			t.Errorf("the proposal under way = %v, want ErrUnknownOutcome and ErrClosed", err)
		}
		close(never) // What was left behind must not outlive the bubble.
		<-closed
	})
}

// A read that begins while an entry is committed, and perhaps applied by a follower, waits for it here.
func TestWhoSettlesWaitsForTheEntryUnderWayAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		p := newProposer(1, nil, func([]byte) raft.ApplyFuture { return forgotten{answer: answer} }, nil)
		settle := func(within time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			return p.settle(ctx)
		}
		if err := settle(0); err != nil {
			t.Errorf("nothing is under way, and settle = %v", err)
		}
		go func() { _, _ = p.propose(t.Context(), []byte("command"), nil) }() // Its end is another test's matter.
		synctest.Wait()
		if err := settle(time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an entry is under way, and settle = %v", err)
		}
		settled := make(chan error, 1)
		go func() { settled <- settle(time.Minute) }()
		synctest.Wait()
		answer <- struct{}{}
		if err := <-settled; err != nil {
			t.Errorf("the entry has ended, and settle = %v", err)
		}
		p.finish()
		p.close()
	})
}
