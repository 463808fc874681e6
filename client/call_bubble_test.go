package client_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// failing makes a script that fails the first calls of a method with the given errors.
func failing(method string, errs ...error) func(string, proto.Message) error {
	var mu sync.Mutex
	return func(m string, _ proto.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if m != method || len(errs) == 0 {
			return nil
		}
		err := errs[0]
		errs = errs[1:]
		return err
	}
}

func TestWriteIsRetriedUnderOneRequestID(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer error
	}{
		{"no leader", reasonAs(codes.Unavailable, apiv1.Reason_REASON_NO_LEADER)},
		{"outcome unknown", reasonAs(codes.Aborted, apiv1.Reason_REASON_OUTCOME_UNKNOWN)},
		{"overloaded", reasonAs(codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED)},
		{"disk full", reasonAs(codes.ResourceExhausted, apiv1.Reason_REASON_DISK_FULL)},
		{"starting", reasonAs(codes.Unavailable, apiv1.Reason_REASON_STARTING)},
		{"connection lost", status.Error(codes.Unavailable, "connection reset")},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				f.nodes[0].after = failing("Register", test.answer, test.answer)
				c := f.client(nil)
				got, err := c.RegisterDetached(t.Context(), web("a"))
				if err != nil {
					t.Fatal(err)
				}
				calls := f.calls("Register")
				if len(calls) != 3 {
					t.Fatalf("%d attempts, want 3", len(calls))
				}
				id := calls[0].req.(*apiv1.RegisterRequest).GetRequestId()
				for _, call := range calls {
					if !proto.Equal(call.req, calls[0].req) {
						t.Errorf("attempt %v differs from %v", call.req, calls[0].req)
					}
				}
				if id.GetSequence() != 1 || len(id.GetClientId()) != 36 {
					t.Errorf("request id %v, want sequence 1 and a UUID", id)
				}
				if !got.Changed || got.Incarnation != 1 {
					t.Errorf("got %+v, want the first outcome", got)
				}
			})
		})
	}
}

func TestFinalReasonIsNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		for _, n := range f.nodes {
			n.before = failing("Register", reasonAs(codes.ResourceExhausted, apiv1.Reason_REASON_LIMIT_REACHED, "limit", "instances"))
		}
		_, err := f.client(nil).RegisterDetached(t.Context(), web("a"))
		var said *client.Error
		if !errors.Is(err, client.ErrLimitReached) || !errors.As(err, &said) || said.Metadata["limit"] != "instances" {
			t.Errorf("error %v, want ErrLimitReached with its facts", err)
		}
		if calls := f.calls("Register"); len(calls) != 1 {
			t.Errorf("%d attempts, want 1", len(calls))
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].before = failing("Register", overloadedFor(t, 4*time.Second))
		begin := time.Now()
		if _, err := f.client(nil).RegisterDetached(t.Context(), web("a")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 4*time.Second {
			t.Errorf("retried after %s, want at least 4s", took)
		}
	})
}

func TestWriteGoesToTheLeaderThatWasHinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		leader := f.nodes[2]
		for _, n := range f.nodes[:2] {
			n.before = func(method string, _ proto.Message) error {
				if method == "Register" {
					return reasonAs(codes.Unavailable, apiv1.Reason_REASON_NOT_LEADER, "leader", leader.address)
				}
				return nil
			}
		}
		c := f.client(nil)
		for range 5 {
			if _, err := c.RegisterDetached(t.Context(), web("a")); err != nil {
				t.Fatal(err)
			}
		}
		calls := f.calls("Register")
		if len(calls) > 6 {
			t.Errorf("%d attempts for 5 writes, want at most one detour", len(calls))
		}
		for _, call := range calls[1:] {
			if call.node != leader.address {
				t.Errorf("later write went to %s, want the leader", call.node)
			}
		}
	})
}

func TestLearnedLeaderIsUsedOnceItIsProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		known, leader := f.nodes[0], f.nodes[1]
		known.leader = leader.address
		c := f.client(f.nodes[:1])
		for range 3 {
			if _, err := c.RegisterDetached(t.Context(), web("a")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the leader is dialled in the background
		}
		calls := f.calls("Register")
		if got := calls[len(calls)-1].node; got != leader.address {
			t.Errorf("third write went to %s, want %s", got, leader.address)
		}
	})
}

func TestLearnedLeaderThatIsUnreachableDelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		known, leader := f.nodes[0], f.nodes[1]
		known.leader = leader.address
		leader.set(func(n *fakeNode) { n.hole = true })
		c := f.client(f.nodes[:1])
		begin := time.Now()
		for range 5 {
			if _, err := c.RegisterDetached(t.Context(), web("a")); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("5 writes took %s beside an unreachable leader", took)
		}
	})
}

func TestCallFailsOverToAnotherEndpoint(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(*fakeNode)
		within time.Duration
	}{
		{"refused", func(n *fakeNode) { n.down = true }, time.Second},
		{"black hole", func(n *fakeNode) { n.hole = true }, 8 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 3)
				for _, n := range f.nodes[:2] {
					n.set(test.script)
				}
				c := f.client(nil)
				begin := time.Now()
				if _, err := c.Instances(t.Context(), client.Filter{Service: "web"}); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took > test.within {
					t.Errorf("took %s, want at most %s", took, test.within)
				}
				dials := f.nodes[0].dialled() + f.nodes[1].dialled()
				if _, err := c.Instances(t.Context(), client.Filter{Service: "web"}); err != nil {
					t.Fatal(err)
				}
				if again := f.nodes[0].dialled() + f.nodes[1].dialled(); again > dials+1 {
					t.Errorf("the second call dialled dead nodes again: %d dials, then %d", dials, again)
				}
			})
		})
	}
}

func TestNodeThatDiesUnderACallIsFollowedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		c := f.client(nil)
		for i := range 10 {
			dead := f.nodes[i%2]
			dead.stop()
			if _, err := c.RegisterDetached(t.Context(), web("a")); err != nil {
				t.Fatal(err)
			}
			dead.start()
			time.Sleep(10 * time.Second)
		}
	})
}

func TestUnreachableErrorListsEachAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		f.nodes[0].set(func(n *fakeNode) { n.down = true })
		f.nodes[1].set(func(n *fakeNode) { n.hole = true })
		f.nodes[2].before = func(string, proto.Message) error {
			return reasonAs(codes.Unavailable, apiv1.Reason_REASON_NO_LEADER)
		}
		_, err := f.client(nil).Instances(t.Context(), client.Filter{Service: "web"})
		var unreachable *client.UnreachableError
		if !errors.As(err, &unreachable) {
			t.Fatalf("error %v, want an UnreachableError", err)
		}
		for _, want := range []string{"list instances", "n1:7400: connection refused", "n2:7400: ", "n3:7400: no_leader"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not say %q", err, want)
			}
		}
		if strings.Contains(err.Error(), "rpc error") {
			t.Errorf("error %q has gRPC's wrapping", err)
		}
		if len(unreachable.Attempts) != 3 || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, client.ErrNoLeader) {
			t.Errorf("error %v, want 3 attempts, the deadline and ErrNoLeader", err)
		}
		if errors.Is(err, client.ErrOutcomeUnknown) {
			t.Error("a read has no unknown outcome")
		}
	})
}

func TestWriteThatNobodyConfirmedHasUnknownOutcome(t *testing.T) {
	for _, test := range []struct {
		name    string
		script  func(*fakeNode)
		unknown bool
	}{
		{"applied, answer lost", func(n *fakeNode) {
			n.after = func(string, proto.Message) error { return status.Error(codes.Unavailable, "reset") }
		}, true},
		{"never sent", func(n *fakeNode) { n.down = true }, false},
		{"refused", func(n *fakeNode) {
			n.before = func(string, proto.Message) error { return reason(apiv1.Reason_REASON_NO_LEADER) }
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				f.nodes[0].set(test.script)
				_, err := f.client(nil).RegisterDetached(t.Context(), web("a"))
				if got := errors.Is(err, client.ErrOutcomeUnknown); got != test.unknown {
					t.Errorf("outcome unknown = %v for %v, want %v", got, err, test.unknown)
				}
			})
		})
	}
}

func TestRequestTooOldAfterALostAnswerIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].before = failing("Register",
			status.Error(codes.Unavailable, "reset"), reason(apiv1.Reason_REASON_REQUEST_TOO_OLD))
		_, err := f.client(nil).RegisterDetached(t.Context(), web("a"))
		if !errors.Is(err, client.ErrRequestTooOld) || !errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("error %v, want ErrRequestTooOld and ErrOutcomeUnknown", err)
		}
	})
}

func TestCallsWithoutDeadlineEndByTheRequestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].set(func(n *fakeNode) { n.down = true })
		c := f.client(nil, client.WithRequestTimeout(7*time.Second))
		begin := time.Now()
		_, err := c.Instances(t.Context(), client.Filter{})
		if took := time.Since(begin); err == nil || took != 7*time.Second {
			t.Errorf("ended after %s with %v, want 7s", took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin = time.Now()
		_, err = c.Instances(ctx, client.Filter{})
		if took := time.Since(begin); err == nil || took != time.Minute {
			t.Errorf("ended after %s with %v, want the context's 1m", took, err)
		}
	})
}

func TestAtMost64RequestsAreOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		gate := make(chan struct{})
		f.nodes[0].before = func(_ string, req proto.Message) error {
			if req.(*apiv1.RegisterRequest).GetRequestId().GetSequence() == 1 {
				<-gate
			}
			return nil
		}
		c := f.client(nil, client.WithAttemptTimeout(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var writes sync.WaitGroup
		write := func() {
			if _, err := c.RegisterDetached(ctx, web("a")); err != nil {
				t.Error(err)
			}
		}
		writes.Go(write)
		synctest.Wait()
		for range 100 {
			writes.Go(write)
		}
		synctest.Wait()
		calls := f.calls("Register")
		if len(calls) != 64 {
			t.Errorf("%d requests sent while the first is open, want 64", len(calls))
		}
		for _, call := range calls {
			if id := call.req.(*apiv1.RegisterRequest).GetRequestId(); id.GetAnsweredBelow() != 1 {
				t.Errorf("request %v claims that the first has been answered", id)
			}
		}
		close(gate)
		writes.Wait()
		calls = f.calls("Register")
		last := calls[len(calls)-1].req.(*apiv1.RegisterRequest).GetRequestId()
		if len(calls) != 101 || last.GetAnsweredBelow() <= 1 {
			t.Errorf("%d requests, last %v: want 101, and old ones given up", len(calls), last)
		}
	})
}

func TestCloseEndsCallsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].set(func(n *fakeNode) { n.hole = true })
		c := f.client(nil)
		done := make(chan error)
		go func() {
			_, err := c.Instances(t.Context(), client.Filter{})
			done <- err
		}()
		time.Sleep(time.Second)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, client.ErrClosed) {
			t.Errorf("error %v, want ErrClosed", err)
		}
		if _, err := c.Instances(t.Context(), client.Filter{}); !errors.Is(err, client.ErrClosed) {
			t.Errorf("error %v after Close, want ErrClosed", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestListHasOneRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		for _, id := range []string{"a", "b", "c", "d", "e"} {
			f.instances["default/web/"+id] = inst(id, 100)
		}
		n := f.nodes[0]
		pages := 0
		n.before = func(string, proto.Message) error {
			pages++
			switch pages {
			case 2: // the list has changed, and the second page shows it
				n.mu.Lock()
				n.revision++
				delete(n.instances, "default/web/a")
				n.mu.Unlock()
			case 4:
				return reasonAs(codes.OutOfRange, apiv1.Reason_REASON_PAGE_EXPIRED)
			}
			return nil
		}
		result, err := f.client(nil).Instances(t.Context(), client.Filter{Service: "web"}, client.Bounded(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, i := range result.Instances {
			ids = append(ids, i.GetId())
		}
		if got := strings.Join(ids, ""); got != "bcde" || result.Revision != 101 || pages != 6 {
			t.Errorf("got %s at %d after %d pages, want bcde at 101 after 6", got, result.Revision, pages)
		}
		if result.Mode != apiv1.Mode_MODE_BOUNDED || result.Node != "n1" || result.Staleness != 0 {
			t.Errorf("info %+v", result.ReadInfo)
		}
	})
}
