package client_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// register registers an instance of service web, and lets the session's first renewal pass.
func register(t *testing.T, c *client.Client, id string, opts ...client.RegisterOption) *client.Registration {
	t.Helper()
	reg, err := c.Register(t.Context(), web(id), opts...)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return reg
}

// wantState fails unless the registration is in a state.
func wantState(t *testing.T, reg *client.Registration, want client.State) {
	t.Helper()
	synctest.Wait()
	if got := reg.State(); got != want {
		t.Fatalf("state %s at %s, want %s", got, time.Now().Format(time.TimeOnly), want)
	}
}

func TestNoSessionIsOpenedUntilItIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		if f.nodes[0].dialled() != 0 {
			t.Error("New dialled")
		}
		if _, err := c.RegisterDetached(t.Context(), web("a")); err != nil {
			t.Fatal(err)
		}
		if _, open := c.Session(); open || f.openings() != 0 {
			t.Error("a session was opened for a detached instance")
		}
		register(t, c, "b")
		register(t, c, "c")
		session, open := c.Session()
		if !open || session.ID != "s1" || session.TTL != 15*time.Second || f.openings() != 1 {
			t.Errorf("session %+v, %d opened: want one for both", session, f.openings())
		}
		if got := f.instance("default/web/b").GetSessionId(); got != "s1" {
			t.Errorf("instance is on session %q", got)
		}
	})
}

// TestFirstRegistrationOpensTheSession holds that a process that begins makes one call, also when several of its services
// register at once, and that nothing is left of one that is refused.
func TestFirstRegistrationOpensTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		if _, err := c.RegisterDetached(t.Context(), web("taken")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Register(t.Context(), web("taken"), client.IfAbsent()); !errors.Is(err, client.ErrAlreadyExists) {
			t.Errorf("register what is taken: %v", err)
		} else if n := strings.Count(err.Error(), "register default/web/taken"); n != 1 {
			t.Errorf("the error names the instance %d times: %v", n, err)
		}
		if session, open := c.Session(); open || f.opened != 0 {
			t.Errorf("a registration that was refused left session %v", session)
		}
		var all sync.WaitGroup
		regs := make([]*client.Registration, 5)
		for i := range regs {
			all.Go(func() {
				var err error
				if regs[i], err = c.Register(t.Context(), web(strconv.Itoa(i))); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if t.Failed() {
			return
		}
		for i, reg := range regs {
			wantState(t, reg, client.StateRegistered)
			got := f.instance("default/web/" + strconv.Itoa(i))
			if got.GetSessionId() != "s1" || got.GetIncarnation() != reg.Incarnation() {
				t.Errorf("instance %v, want it on s1 with incarnation %d", got, reg.Incarnation())
			}
		}
		if calls := len(f.calls("Register")); calls != 2+len(regs) || len(f.calls("Open")) != 0 || f.opened != 1 {
			t.Errorf("%d registrations, %d openings, %d sessions; want one call each and one session", calls, len(f.calls("Open")), f.opened)
		}
	})
}

func TestSessionIsRenewedEveryThirdOfItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		c := f.client(nil, client.WithSessionTTL(30*time.Second))
		reg := register(t, c, "a")
		time.Sleep(10 * time.Minute)
		wantState(t, reg, client.StateRegistered)
		renewals := f.calls("Attach")
		if n := len(renewals); n < 60 || n > 68 {
			t.Errorf("%d renewals in 10 minutes, want about 60", n)
		}
		for i, r := range renewals[1:] {
			gap := r.at.Sub(renewals[i].at)
			if gap > 10*time.Second || gap < 9*time.Second {
				t.Fatalf("renewal %d came after %s, want 9s to 10s", i+1, gap)
			}
			if r.node != renewals[0].node {
				t.Fatalf("renewal %d went to %s, want to stay with %s", i+1, r.node, renewals[0].node)
			}
		}
	})
}

// TestDeadlineIsThatOfTheRenewalsSending checks that the client never believes longer in its session than the registry
// guarantees: however late an acknowledgement comes, it counts from when the renewal was sent.
func TestDeadlineIsThatOfTheRenewalsSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		const delay = 2 * time.Second
		f.nodes[0].attach = func(context.Context, *apiv1.AttachRequest) (*apiv1.AttachResponse, error) {
			time.Sleep(delay)
			return nil, nil
		}
		f.nodes[0].before = func(_ string, req proto.Message) error {
			if opens(req) {
				time.Sleep(delay)
			}
			return nil
		}
		c := f.client(nil, client.WithSessionTTL(15*time.Second))
		begin := time.Now()
		register(t, c, "a")
		for range 20 {
			time.Sleep(time.Second)
			synctest.Wait()
			session, _ := c.Session()
			renewals := f.calls("Attach")
			latest := begin // sent with the opening
			for _, r := range renewals {
				if !r.at.After(time.Now().Add(-delay)) && r.at.After(latest) {
					latest = r.at
				}
			}
			if session.Deadline.After(latest.Add(15 * time.Second)) {
				t.Fatalf("deadline %s is later than the last acknowledged renewal, sent %s, allows",
					session.Deadline.Sub(begin), latest.Sub(begin))
			}
		}
	})
}

func TestAttemptsToOpenCountFromTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		lost := errors.New("answer lost")
		var opened atomic.Int32
		f.nodes[0].after = func(_ string, req proto.Message) error {
			if opens(req) && opened.Add(1) <= 1 {
				time.Sleep(2 * time.Second)
				return reasonOf(lost)
			}
			return nil
		}
		f.nodes[0].attach = silent
		c := f.client(nil)
		begin := time.Now()
		register(t, c, "a")
		session, _ := c.Session()
		if got := session.Deadline.Sub(begin); got > 15*time.Second {
			t.Errorf("deadline %s after the first attempt to open, want at most the TTL", got)
		}
		if n := f.openings(); n != 2 || f.opened != 1 {
			t.Errorf("%d attempts opened %d sessions, want 2 and 1", n, f.opened)
		}
	})
}

// reasonOf is the error of a connection that broke.
func reasonOf(err error) error {
	return reason(apiv1.Reason_REASON_OUTCOME_UNKNOWN, "cause", err.Error())
}

func TestSessionMovesToAnotherNodeInTime(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(*fakeNode)
		within time.Duration // of the last renewal at the old node
	}{
		{"no acknowledgement", func(n *fakeNode) { n.set(func(n *fakeNode) { n.attach = silent }) }, 5 * time.Second},
		{"node dies", func(n *fakeNode) { n.stop() }, 6 * time.Second},
		{"error", func(n *fakeNode) {
			n.set(func(n *fakeNode) {
				n.attach = func(context.Context, *apiv1.AttachRequest) (*apiv1.AttachResponse, error) {
					return nil, reason(apiv1.Reason_REASON_NO_LEADER)
				}
			})
		}, time.Second},
		{"go elsewhere", func(n *fakeNode) {
			n.set(func(n *fakeNode) {
				n.attach = func(context.Context, *apiv1.AttachRequest) (*apiv1.AttachResponse, error) {
					return &apiv1.AttachResponse{GoElsewhere: true}, nil
				}
			})
		}, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 2)
				c := f.client(nil)
				reg := register(t, c, "a")
				time.Sleep(20 * time.Second)
				before := f.calls("Attach")
				old := before[len(before)-1].node
				for _, n := range f.nodes {
					if n.address == old {
						test.script(n)
					}
				}
				for range 30 {
					time.Sleep(time.Second)
					wantState(t, reg, client.StateRegistered)
				}
				after := f.calls("Attach")
				if got := after[len(after)-1].node; got == old {
					t.Errorf("still at %s", got)
				}
				if f.openings() != 1 {
					t.Error("another session was opened")
				}
				if i := slices.IndexFunc(after, func(c call) bool { return c.node != old }); i > 0 {
					if took := after[i].at.Sub(after[i-1].at); took > test.within {
						t.Errorf("moved after %s, want at most %s", took, test.within)
					}
				}
			})
		})
	}
}

func TestEndedSessionIsReplacedAndInstancesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		c := f.client(nil)
		a, b := register(t, c, "a"), register(t, c, "b")
		states := make(chan client.State, 10)
		go func() {
			for state := range a.States(t.Context()) {
				states <- state
			}
			close(states)
		}()
		before := a.Incarnation()
		for _, n := range f.nodes {
			n.set(func(n *fakeNode) {
				n.before = func(method string, _ proto.Message) error {
					if method == "Open" {
						time.Sleep(time.Second) // long enough to be seen as lost
					}
					return nil
				}
			})
		}
		f.endSession("s1")
		time.Sleep(7 * time.Second)
		for _, reg := range []*client.Registration{a, b} {
			wantState(t, reg, client.StateRegistered)
		}
		if got := f.instance("default/web/a"); got.GetSessionId() != "s2" || got.GetIncarnation() <= before {
			t.Errorf("instance %v, want it on s2 with an incarnation above %d", got, before)
		}
		if a.Incarnation() != f.instance("default/web/a").GetIncarnation() {
			t.Errorf("incarnation %d, want the registry's", a.Incarnation())
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		var got []client.State
		for state := range states {
			got = append(got, state)
		}
		want := []client.State{client.StateRegistered, client.StateLost, client.StateRegistered, client.StateEnded}
		if len(got) != len(want) {
			t.Fatalf("states %v, want %v", got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("states %v, want %v", got, want)
			}
		}
	})
}

func TestSessionThatSurvivedAnOutageIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		c := f.client(nil)
		reg := register(t, c, "a")
		time.Sleep(time.Minute)
		for _, n := range f.nodes {
			n.stop()
		}
		session, _ := c.Session()
		time.Sleep(time.Until(session.Deadline) - time.Millisecond)
		wantState(t, reg, client.StateRegistered)
		time.Sleep(time.Millisecond)
		wantState(t, reg, client.StateLost)
		time.Sleep(time.Minute)
		for _, n := range f.nodes {
			n.start()
		}
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		if f.openings() != 1 || len(f.calls("Register")) != 1 {
			t.Error("a session that is still there was replaced")
		}
	})
}

func TestReconnectingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		c := f.client(nil)
		register(t, c, "a")
		w, err := c.Watch(t.Context(), client.Filter{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		for _, n := range f.nodes {
			n.stop()
		}
		before := f.nodes[0].dialled() + f.nodes[1].dialled() + f.nodes[2].dialled()
		time.Sleep(time.Minute)
		dials := f.nodes[0].dialled() + f.nodes[1].dialled() + f.nodes[2].dialled() - before
		if dials > 90 {
			t.Errorf("%d dials in a minute without a registry", dials)
		}
	})
}

func TestRegisterOnASessionThatHasEndedOpensAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		a := register(t, c, "a")
		f.endSession("s1")
		b := register(t, c, "b")
		wantState(t, a, client.StateRegistered)
		wantState(t, b, client.StateRegistered)
		for _, key := range []string{"default/web/a", "default/web/b"} {
			if got := f.instance(key).GetSessionId(); got != "s2" {
				t.Errorf("%s is on session %q, want s2", key, got)
			}
		}
	})
}

func TestRegistrationsSurviveARestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		register(t, c, "a")
		f.mu.Lock() // the snapshot has the session, not the instance
		f.epoch++
		delete(f.instances, "default/web/a")
		f.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if f.instance("default/web/a") == nil {
			t.Error("the instance did not come back")
		}
	})
}

func TestCloseEndsTheSessionAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		c := f.client(nil)
		reg := register(t, c, "a")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if f.instance("default/web/a") != nil {
			t.Error("the instance outlived Close")
		}
		<-reg.Done()
		if !errors.Is(reg.Err(), client.ErrClosed) || reg.State() != client.StateEnded {
			t.Errorf("registration is %s with %v", reg.State(), reg.Err())
		}
		if err := reg.Drain(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Drain after Close: %v", err)
		}
		if _, err := c.Register(t.Context(), web("b")); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Register after Close: %v", err)
		}
	})
}

func TestCloseIsBoundedWithoutARegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		c := f.client(nil, client.WithCloseTimeout(2*time.Second))
		register(t, c, "a")
		for _, n := range f.nodes {
			n.set(func(n *fakeNode) { n.hole = true })
			n.stop()
		}
		begin := time.Now()
		var unreachable *client.UnreachableError
		if err := c.Close(); !errors.As(err, &unreachable) {
			t.Errorf("Close: %v, want an UnreachableError", err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("Close took %s, want at most 2s", took)
		}
	})
}

func TestRegisterSaysWhyThereIsNoSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].set(func(n *fakeNode) { n.down = true })
		_, err := f.client(nil).Register(t.Context(), web("a"))
		var unreachable *client.UnreachableError
		if !errors.As(err, &unreachable) || len(unreachable.Attempts) != 1 {
			t.Errorf("error %v, want an UnreachableError that names the node", err)
		}
	})
}

var checkPassing = registryv1.CheckStatus_CHECK_STATUS_PASSING
