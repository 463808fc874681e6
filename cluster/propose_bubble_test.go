package cluster

import (
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
		p := newProposer(1, func([]byte) raft.ApplyFuture { return forgotten{answer: never} })
		proposed, closed := make(chan error, 1), make(chan struct{})
		go func() {
			_, err := p.propose(t.Context(), []byte("command"))
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
