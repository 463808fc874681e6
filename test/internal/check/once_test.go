package check_test

import (
	"strconv"
	"testing"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

func TestOnceSeesEachBrokenRule(t *testing.T) {
	for _, tt := range []spoiled{
		{"acknowledged and not in the log", "lost-write", func(w *world) {
			c := w.nth("Register", 0)
			c.Request.(*apiv1.RegisterRequest).RequestId.Sequence = 99
		}},
		{"another revision", "once-answer", func(w *world) { w.nth("Deregister", 0).Header().Revision++ }},
		{"another incarnation", "once-answer", func(w *world) {
			w.nth("Register", 0).Response.(*apiv1.RegisterResponse).Incarnation++
		}},
		{"another incarnation of a batch", "once-answer", func(w *world) {
			w.nth("RegisterBatch", 0).Response.(*apiv1.RegisterBatchResponse).Incarnation++
		}},
		{"nothing changed, they say", "once-answer", func(w *world) {
			w.nth("Register", 0).Response.(*apiv1.RegisterResponse).Changed = false
		}},
		{"another session", "once-answer", func(w *world) { w.nth("Open", 0).Response.(*apiv1.OpenResponse).Session.Id = "x" }},
		{"another lease", "once-answer", func(w *world) { w.nth("Grant", 0).Response.(*apiv1.GrantResponse).Lease.Id = "x" }},
		{"another token", "once-answer", func(w *world) { w.nth("Acquire", 0).Response.(*apiv1.AcquireResponse).Token++ }},
		{"acknowledged though it was refused", "once-answer", func(w *world) {
			c := w.nth("Acquire", 2)
			c.Outcome, c.Reason, c.Response = history.OK, 0, &apiv1.AcquireResponse{Header: w.header(9), Token: 9}
		}},
		{"refused for what the log does not say", "once-answer", func(w *world) {
			w.nth("Acquire", 2).Reason = apiv1.Reason_REASON_SESSION_NOT_FOUND
		}},
		{"refused for what is not in the log", "once-answer", func(w *world) {
			c := w.nth("Acquire", 2)
			c.Request.(*apiv1.AcquireRequest).RequestId.Sequence = 99
		}},
		{"applied, and refused when it was tried again", "once-answer", func(w *world) {
			c := w.nth("Register", 6) // The second attempt.
			c.Outcome, c.Response, c.Reason = history.Failed, nil, apiv1.Reason_REASON_REVISION_MISMATCH
		}},
		{"refused, and done", "failed-but-done", func(w *world) {
			c := w.nth("Register", 0)
			c.Outcome, c.Response, c.Reason = history.Failed, nil, apiv1.Reason_REASON_NO_LEADER
		}},
		{"done twice", "once-log", func(w *world) {
			req := &apiv1.DeregisterRequest{RequestId: &apiv1.RequestID{ClientId: "z", Sequence: 1}, Key: key("web", "3")}
			w.call("z", req)
			for sequence := range fsm.ClientIdleMs/fsm.MaxStepMs + 2 { // It is forgotten.
				w.pass(fsm.MaxStepMs * 1e6)
				w.register("y", strconv.Itoa(5+sequence), "1")
			}
			w.lost("z", req)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := story(t)
			tt.spoil(w)
			found, _ := check.Once(w.judged())
			expect(t, found, tt.rule)
		})
	}
}

func TestOnceAllowsWhatIsPromised(t *testing.T) {
	w := newWorld(t)
	// A refusal of one attempt says nothing of the others.
	c := w.lost("a", &apiv1.RegisterRequest{RequestId: w.id("a"), Instance: instance("web", "1", "1")})
	refused := *c
	refused.Outcome, refused.Reason, refused.Begun, refused.Ended = history.Failed, apiv1.Reason_REASON_NO_LEADER, w.tick(), w.tick()
	w.h.Calls = append(w.h.Calls, refused)
	// A status that stands needs no entry.
	w.h.Calls = append(w.h.Calls, history.Call{
		Client: "b", Outcome: history.OK, Begun: w.tick(), Ended: w.tick(),
		Request:  &apiv1.SetHealthRequest{RequestId: w.id("b"), Status: registryv1.CheckStatus_CHECK_STATUS_PASSING},
		Response: &apiv1.SetHealthResponse{Header: w.header(1)},
	})
	// Whoever waits for a lock in vain was in its queue.
	one, two := w.session("a"), w.session("b")
	w.acquire("a", one, false)
	waits := w.acquire("b", two, true)
	waits.Outcome, waits.Response, waits.Reason = history.Failed, nil, apiv1.Reason_REASON_LOCK_HELD
	found, figures := check.Once(w.judged())
	expect(t, found)
	if figures.Requests != 6 || figures.Repeated != 0 {
		t.Errorf("figures %+v", figures)
	}
}
