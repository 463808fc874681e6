package check_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

func linear(w *world) []check.Violation {
	found, _ := check.Linear(w.judged())
	return found
}

func TestLinearSeesWhatNoOrderExplains(t *testing.T) {
	for _, tt := range []struct {
		name string
		tell func(*world)
	}{
		{"an old value", func(w *world) {
			w.register("a", "1", "1")
			w.register("b", "1", "2")
			w.get("a", "1").Response.(*apiv1.GetResponse).Instance.Metadata["v"] = "1"
		}},
		{"a value that nobody wrote", func(w *world) {
			w.register("a", "1", "1")
			w.get("a", "1").Response.(*apiv1.GetResponse).Instance.Metadata["v"] = "9"
		}},
		{"nothing after a registration", func(w *world) {
			w.register("a", "1", "1")
			c := w.get("a", "1")
			c.Outcome, c.Response, c.Reason = history.Failed, nil, apiv1.Reason_REASON_INSTANCE_NOT_FOUND
		}},
		{"something after a deregistration", func(w *world) {
			w.register("a", "1", "1")
			read := *w.get("a", "1")
			w.deregister("a", "1")
			read.Begun, read.Ended = w.tick(), w.tick()
			w.h.Calls = append(w.h.Calls, read)
		}},
		{"readers that disagree on the order", func(w *world) {
			one := w.register("a", "1", "1")
			first := *w.get("x", "1")
			two := w.register("b", "1", "2")
			second := *w.get("x", "1")
			two.Begun, w.h.Calls[0].Ended = one.Begun, two.Ended // The writes overlap all reads.
			w.h.Calls = append(w.h.Calls[:0], *one, *two)
			for i, c := range []history.Call{second, first} {
				c.Begun, c.Ended = first.Begun+time.Duration(2*i), first.Begun+time.Duration(2*i+1)
				w.h.Calls = append(w.h.Calls, c)
				c.Client, c.Begun, c.Ended = "y", c.Begun+4, c.Ended+4
				w.h.Calls = append(w.h.Calls, c)
			}
		}},
		{"if_absent where it was", func(w *world) {
			w.register("a", "1", "1")
			c := w.register("b", "1", "2")
			c.Request.(*apiv1.RegisterRequest).IfAbsent = true
		}},
		{"a refusal of if_absent where it was not", func(w *world) {
			c := w.register("b", "1", "2")
			c.Request.(*apiv1.RegisterRequest).IfAbsent = true
			c.Outcome, c.Response, c.Reason = history.Failed, nil, apiv1.Reason_REASON_ALREADY_EXISTS
		}},
		{"an expected revision where nothing was", func(w *world) {
			w.register("b", "1", "2").Request.(*apiv1.RegisterRequest).ExpectedRevision = 7
		}},
		{"the same again, where it was not", func(w *world) {
			w.register("a", "1", "1").Response.(*apiv1.RegisterResponse).Changed = false
		}},
		{"nothing to remove, where it was", func(w *world) {
			w.register("a", "1", "1")
			w.deregister("b", "1").Response.(*apiv1.DeregisterResponse).Changed = false
		}},
		{"removed, where nothing was", func(w *world) {
			w.deregister("b", "1").Response.(*apiv1.DeregisterResponse).Changed = true
		}},
		{"a part of a batch", func(w *world) {
			w.register("a", "1", "1")
			w.call("b", &apiv1.RegisterBatchRequest{RequestId: w.id("b"), Deregister: []*apiv1.InstanceKey{key("web", "1")}})
			w.register("c", "1", "1").Response.(*apiv1.RegisterResponse).Changed = false
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.tell(w)
			expect(t, linear(w), "linear")
		})
	}
}

func TestLinearAsksTheLogWhatBecameOfWritesWithoutAnswer(t *testing.T) {
	w := newWorld(t)
	w.register("a", "1", "1")
	w.lost("b", &apiv1.RegisterRequest{RequestId: w.id("b"), Instance: instance("web", "1", "2")})
	done := w.get("c", "1")
	w.h.Calls = append(w.h.Calls, history.Call{ // Never done: it is not in the log.
		Client: "d", Method: done.Method, Outcome: history.Unknown, Begun: w.tick(), Ended: w.tick(),
		Request: &apiv1.DeregisterRequest{RequestId: w.id("d"), Key: key("web", "1")},
	})
	w.get("c", "1")
	expect(t, linear(w))
	gone := w.get("c", "1")
	gone.Outcome, gone.Response, gone.Reason = history.Failed, nil, apiv1.Reason_REASON_INSTANCE_NOT_FOUND
	expect(t, linear(w), "linear")
}

// What was lost on the way may be done long after its client gave up.
func TestLinearLetsAWriteWithoutAnswerBeDoneLate(t *testing.T) {
	w := newWorld(t)
	w.register("a", "1", "1")
	late := *w.lost("b", &apiv1.RegisterRequest{RequestId: w.id("b"), Instance: instance("web", "1", "2")})
	late.Ended = late.Begun + 1
	w.h.Calls[1] = late
	before := w.get("c", "1")
	before.Response.(*apiv1.GetResponse).Instance.Metadata["v"] = "1"
	w.get("c", "1")
	expect(t, linear(w))
}

func TestLinearLeavesOutWhatOthersHaveChanged(t *testing.T) {
	w := newWorld(t)
	session := w.session("a")
	hung := instance("web", "hung", "1")
	hung.SessionId = session
	w.call("a", &apiv1.RegisterRequest{RequestId: w.id("a"), Instance: hung})
	w.expire([]string{session}, nil)
	w.get("a", "hung")
	w.register("a", "own", "1")
	w.apply(w.command(&apiv1.RegisterRequest{Instance: instance("web", "own", "2")})) // By nobody who was recorded.
	w.get("a", "own")
	w.call("a", &apiv1.RegisterRequest{Instance: instance("web", "noid", "2")}) // Could not be found in the log.
	found, figures := check.Linear(w.judged())
	expect(t, found)
	if figures.Excluded != 3 || figures.Keys != 0 {
		t.Errorf("figures %+v, want 3 instances left out", figures)
	}
}

func TestLinearRefusesWhatItCannotJudge(t *testing.T) {
	t.Run("too many accesses", func(t *testing.T) {
		w := newWorld(t)
		for range 4001 {
			w.get("a", "1")
		}
		expect(t, linear(w), "linear-size")
	})
	t.Run("too many at once", func(t *testing.T) {
		w := newWorld(t)
		for i := range 11 {
			w.get(fmt.Sprint(i), "1").Begun = 0
		}
		expect(t, linear(w), "linear-size")
	})
	t.Run("too hard", func(t *testing.T) {
		w := newWorld(t)
		// Many removals that nobody heard of, each of which could be the one, and a reader who was told nonsense.
		for i := range 25 {
			client := fmt.Sprint("c", i)
			w.register(client, "1", client)
			w.lost(client, &apiv1.DeregisterRequest{RequestId: w.id(client), Key: key("web", "1")}).Begun = 0
		}
		w.register("a", "1", "end")
		w.get("a", "1").Response.(*apiv1.GetResponse).Instance.Metadata["v"] = "nonsense"
		expect(t, linear(w), "linear-unknown")
	})
}

// The cost must not explode with what a run under faults has: now and then a write whose end nobody saw.
func TestLinearCopesWithManyWritesWithoutAnswer(t *testing.T) {
	w := newWorld(t)
	for i := range 190 {
		client := fmt.Sprint("c", i%5)
		switch {
		case i%19 == 3:
			w.lost(client, &apiv1.DeregisterRequest{RequestId: w.id(client), Key: key("web", "1")})
		case i%7 == 0:
			w.lost(client, &apiv1.RegisterRequest{RequestId: w.id(client), Instance: instance("web", "1", fmt.Sprint(i))})
		case i%3 == 0:
			w.deregister(client, "1")
		default:
			w.register(client, "1", fmt.Sprint(i))
		}
		for range 4 {
			w.get("r", "1")
		}
	}
	expect(t, linear(w))
}

func TestLinearReadsOnlyWhatClaimsToBe(t *testing.T) {
	w := newWorld(t)
	w.register("a", "1", "1")
	w.register("a", "1", "2")
	for _, fresh := range []*apiv1.Freshness{
		mode(apiv1.Mode_MODE_STALE), mode(apiv1.Mode_MODE_AT_LEAST),
		{Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(time.Millisecond)},
	} {
		c := w.call("b", &apiv1.GetRequest{Key: key("web", "1"), Freshness: fresh})
		c.Response.(*apiv1.GetResponse).Instance.Metadata["v"] = "1"
	}
	expect(t, linear(w))
	w.call("b", &apiv1.GetRequest{Key: key("web", "1"), Freshness: mode(apiv1.Mode_MODE_LINEARIZABLE)}).
		Response.(*apiv1.GetResponse).Instance.Metadata["v"] = "1"
	expect(t, linear(w), "linear")
}
