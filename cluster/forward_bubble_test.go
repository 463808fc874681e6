package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// leaderStub is a leader that the test plays.
type leaderStub struct {
	peerv1.PeerServiceClient

	dialErr  error
	requests chan *peerv1.ProposeRequest
	answers  chan any // *peerv1.ProposeResponse or error
}

func newLeaderStub() *leaderStub {
	return &leaderStub{requests: make(chan *peerv1.ProposeRequest), answers: make(chan any)}
}

func (l *leaderStub) Propose(ctx context.Context, _ ...grpc.CallOption) (peerv1.PeerService_ProposeClient, error) {
	return &stubStream{ctx: ctx, leader: l, ended: make(chan struct{})}, l.dialErr
}

type stubStream struct {
	peerv1.PeerService_ProposeClient

	ctx    context.Context //nolint:containedctx // As gRPC's own.
	leader *leaderStub
	ended  chan struct{}
}

func (s *stubStream) Send(m *peerv1.ProposeRequest) error {
	select {
	case s.leader.requests <- m:
		return nil
	case <-s.ended:
		return io.EOF
	}
}

func (s *stubStream) Recv() (*peerv1.ProposeResponse, error) {
	select {
	case a := <-s.leader.answers:
		if err, failed := a.(error); failed {
			close(s.ended)
			return nil, err
		}
		return a.(*peerv1.ProposeResponse), nil
	case <-s.ctx.Done():
		close(s.ended)
		return nil, status.FromContextError(s.ctx.Err()).Err()
	}
}

// answer answers some proposals with a revision that equals their number.
func (l *leaderStub) answer(numbers ...uint64) {
	m := &peerv1.ProposeResponse{}
	for _, k := range numbers {
		m.Answers = append(m.Answers, &peerv1.ProposalAnswer{Number: k, Outcome: fsm.Outcome{Revision: k}.Proto(), Index: k})
	}
	l.answers <- m
}

// forwarding starts n proposals, one after the other, which end within a time, and returns where their answers come.
func forwarding(f *forwards, to leaderAt, n int, within time.Duration) []chan answer {
	all := make([]chan answer, n)
	for i := range all {
		all[i] = make(chan answer, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), within)
			defer cancel()
			a, err := f.propose(ctx, to, fmt.Append(nil, i), nil)
			a.err = err
			all[i] <- a
		}()
		synctest.Wait()
	}
	return all
}

func TestForwardedProposalsShareMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leader := newLeaderStub()
		f := &forwards{dial: func(leaderAt) (peerv1.PeerServiceClient, error) { return leader, nil }, most: 5}
		defer f.close()
		all := forwarding(f, leaderAt{"n1", "n1:7401"}, 6, time.Minute)
		if a := <-all[5]; !errors.Is(a.err, ErrOverloaded) {
			t.Errorf("one too many = %v, want ErrOverloaded", a.err)
		}
		// The first is sent at once, and the others wait together until that is done.
		for _, want := range []int{1, 4} {
			if got := len((<-leader.requests).GetProposals()); got != want {
				t.Errorf("a message has %d proposals, want %d", got, want)
			}
		}
		leader.answer(3, 1)
		leader.answer(5, 4, 2, 4, 99)
		for i := range 5 {
			if a := <-all[i]; a.err != nil || a.outcome.Revision != uint64(i+1) || a.index != uint64(i+1) {
				t.Errorf("proposal %d = %+v", i, a)
			}
		}
	})
}

func TestForwardedProposalIsUnknownOnlyOnceSent(t *testing.T) {
	gone := status.Error(codes.Unavailable, "gone")
	for _, tc := range []struct {
		name string
		// end ends two proposals, of which the first was sent.
		end          func(leader *leaderStub)
		sent, unsent error
	}{
		{"the stream breaks", func(l *leaderStub) { l.answers <- gone }, ErrUnknownOutcome, ErrNotLeader},
		{"the stream is refused", func(l *leaderStub) {
			l.answers <- status.Error(codes.PermissionDenied, "no member")
		}, ErrNotLeader, ErrNotLeader},
		{"nobody answers", func(*leaderStub) {}, ErrUnknownOutcome, context.DeadlineExceeded},
		{"it leads no more", func(l *leaderStub) {
			l.answers <- &peerv1.ProposeResponse{Answers: []*peerv1.ProposalAnswer{{Number: 1, Fault: toFault(ErrNotLeader)}}}
			l.answers <- gone
		}, ErrNotLeader, ErrNotLeader},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				leader := newLeaderStub()
				f := &forwards{dial: func(leaderAt) (peerv1.PeerServiceClient, error) { return leader, nil }, most: 5}
				defer f.close()
				to := leaderAt{"n1", "n1:7401"}
				first := forwarding(f, to, 1, time.Second)
				<-leader.requests
				second := forwarding(f, to, 2, time.Second) // The first of these hangs in Send: it is sent, too.
				tc.end(leader)
				if a := <-first[0]; !errors.Is(a.err, tc.sent) {
					t.Errorf("what was sent = %v, want %v", a.err, tc.sent)
				}
				<-second[0]
				if a := <-second[1]; !errors.Is(a.err, tc.unsent) || errors.Is(a.err, ErrUnknownOutcome) {
					t.Errorf("what was not sent = %v, want %v", a.err, tc.unsent)
				}
			})
		})
	}
}

func TestForwardingFollowsTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leaders := map[leaderAt]*leaderStub{}
		first, second := leaderAt{"n1", "n1:7401"}, leaderAt{"n2", "n2:7401"}
		leaders[first], leaders[second] = newLeaderStub(), newLeaderStub()
		f := &forwards{dial: func(to leaderAt) (peerv1.PeerServiceClient, error) { return leaders[to], nil }, most: 5}
		defer f.close()
		old := forwarding(f, first, 1, time.Minute)
		<-leaders[first].requests
		next := forwarding(f, second, 1, time.Minute)
		<-leaders[second].requests
		leaders[second].answer(1)
		if a := <-next[0]; a.err != nil {
			t.Errorf("at the next leader: %v", a.err)
		}
		// What is under way at the first one is still answered; then its stream ends.
		leaders[first].answer(1)
		if a := <-old[0]; a.err != nil {
			t.Errorf("at the leader of before: %v", a.err)
		}
		synctest.Wait()
		select {
		case leaders[first].answers <- &peerv1.ProposeResponse{}:
			t.Error("the stream to the leader of before is still read")
		default:
		}

		// A leader that can't be reached has done nothing, and is tried again.
		third := leaderAt{"n3", "n3:7401"}
		leaders[third] = newLeaderStub()
		leaders[third].dialErr = status.Error(codes.Unavailable, "refused")
		lost := forwarding(f, third, 1, time.Minute)
		if a := <-lost[0]; !errors.Is(a.err, ErrNotLeader) {
			t.Errorf("a leader that can't be reached = %v, want ErrNotLeader", a.err)
		}
		leaders[third].dialErr = nil
		again := forwarding(f, third, 1, time.Minute)
		<-leaders[third].requests
		leaders[third].answer(1)
		if a := <-again[0]; a.err != nil {
			t.Errorf("the next try: %v", a.err)
		}
	})
}
