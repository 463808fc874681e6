package check_test

import (
	"testing"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/check"
)

func TestLockSeesEachBrokenRule(t *testing.T) {
	acquired := func(w *world, n int) *apiv1.AcquireResponse {
		return w.nth("Acquire", n).Response.(*apiv1.AcquireResponse)
	}
	for _, tt := range []struct {
		name  string
		rules []string
		spoil func(*world)
	}{
		{"a token that nobody had", []string{"lock-owner"}, func(w *world) { acquired(w, 3).Token += 100 }},
		{"another session's", []string{"lock-owner"}, func(w *world) {
			w.nth("Acquire", 0).Request.(*apiv1.AcquireRequest).SessionId = "x"
			w.h.Calls = append(w.h.Calls[:0], *w.nth("Acquire", 0))
		}},
		{"another lock's", []string{"lock-owner"}, func(w *world) { w.nth("Acquire", 3).Request.(*apiv1.AcquireRequest).Name = "m" }},
		{"told before it was the owner", []string{"lock-owner"}, func(w *world) { acquired(w, 3).Header.Revision-- }},
		{"one token for two sessions", []string{"lock-owner", "lock-order", "lock-shared"}, func(w *world) {
			acquired(w, 3).Token = acquired(w, 0).Token
		}},
		{"a token that was given back", []string{"lock-order"}, func(w *world) {
			again := *w.nth("Acquire", 1)
			again.Begun, again.Ended = w.tick(), w.tick()
			w.h.Calls = append(w.h.Calls[:0], again, *w.nth("Release", 0))
		}},
		{"a token of the past", []string{"lock-order"}, func(w *world) {
			again := *w.nth("Acquire", 1)
			again.Begun, again.Ended = w.tick(), w.tick()
			w.h.Calls = append(w.h.Calls[:0], again, *w.nth("Acquire", 3))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.tellOfLocks()
			tt.spoil(w)
			found, _ := check.Lock(w.judged())
			expect(t, found, tt.rules...)
		})
	}
}

// The owner changes between two commands of one entry: nobody can read that, but the session was told.
func TestLockKnowsOwnersWithinAnEntry(t *testing.T) {
	w := newWorld(t)
	one := w.session("a")
	c := w.acquire("a", one, false)
	token := c.Response.(*apiv1.AcquireResponse).GetToken()
	w.release("a", one, token)
	again := w.call("a", &apiv1.GetLockRequest{Name: "l"})
	acquire := &apiv1.AcquireRequest{RequestId: w.id("a"), Name: "l", SessionId: one}
	out := w.apply(w.command(acquire), w.command(&apiv1.ReleaseRequest{Name: "l", SessionId: one}))[0]
	again.Method, again.Request, again.Outcome, again.Reason = methodOf(acquire), acquire, "ok", 0
	again.Response = respond(acquire, out, w.state())
	found, figures := check.Lock(w.judged())
	expect(t, found)
	if figures.Acquired != 2 {
		t.Errorf("figures %+v", figures)
	}
}

// Whoever waits is told the token that the lock had when it came to be its own.
func TestLockTellsWaitersTheirToken(t *testing.T) {
	w := newWorld(t)
	one, two := w.session("a"), w.session("b")
	token := w.acquire("a", one, false).Response.(*apiv1.AcquireResponse).GetToken()
	w.acquire("b", two, true)
	waits := &w.h.Calls[len(w.h.Calls)-1]
	*waits.Response.(*apiv1.AcquireResponse) = apiv1.AcquireResponse{}
	at := len(w.h.Calls) - 1
	w.release("a", one, token)
	lock := w.state().Lock("default", "l")
	w.h.Calls[at].Ended = w.tick()
	w.h.Calls[at].Response = &apiv1.AcquireResponse{Header: w.header(lock.AcquireRevision), Token: lock.Token}
	run := w.judged()
	found, figures := check.Lock(run)
	expect(t, found)
	expect(t, check.All(run))
	if figures.Handovers != 1 {
		t.Errorf("figures %+v, want a handover", figures)
	}
}

// The owners of a semaphore do not follow one another: an older one is told its token again, until it gave it back.
func TestLockKnowsSemaphores(t *testing.T) {
	w := newWorld(t)
	one, two := w.session("a"), w.session("b")
	slot := func(client, session string) *apiv1.AcquireResponse {
		call := w.call(client, &apiv1.AcquireRequest{RequestId: w.id(client), Name: "l", SessionId: session, Slots: 2})
		return call.Response.(*apiv1.AcquireResponse)
	}
	first := slot("a", one).GetToken()
	slot("b", two)
	if again := slot("a", one).GetToken(); again != first {
		t.Fatalf("token %d, then %d", first, again)
	}
	w.release("a", one, first)
	run := w.judged()
	found, figures := check.Lock(run)
	expect(t, found)
	expect(t, check.Model(run))
	if figures.Acquired != 3 {
		t.Errorf("figures %+v, want three acquisitions", figures)
	}
	late := *w.nth("Acquire", 0)
	late.Request = &apiv1.AcquireRequest{RequestId: w.id("a"), Name: "l", SessionId: one, Slots: 2}
	late.Begun, late.Ended = w.tick(), w.tick()
	w.h.Calls = append(w.h.Calls, late)
	found, _ = check.Lock(w.judged())
	expect(t, found, "lock-order")
}
