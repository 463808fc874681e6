package check_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/check"
)

// spoiled is a rule, and a way to break it alone.
type spoiled struct {
	name, rule string
	spoil      func(*world)
}

func TestOrderSeesEachBrokenRule(t *testing.T) {
	bounded := func(w *world) *apiv1.ResponseHeader { return w.nth("ListInstances", 3).Header() }
	for _, tt := range []spoiled{
		{"a write before one that was acknowledged", "order-write", func(w *world) {
			w.nth("Register", 2).Header().Revision--
			w.nth("Register", 0).Header().Revision++ // It is last seen by the write.
			w.nth("Register", 1).Header().Revision++
		}},
		{"a write that changes nothing, of the past", "order-write", func(w *world) { w.nth("Deregister", 1).Header().Revision-- }},
		{"one revision for two writes", "order-shared", func(w *world) {
			one, two := w.nth("Register", 2), w.nth("SetMaintenance", 0)
			two.Begun, two.Header().Revision = one.Begun, one.Header().GetRevision()
		}},
		{"a stale read for a linearizable one", "order-read", func(w *world) {
			c := w.nth("ListServices", 0)
			c.Header().Revision--
			c.Header().Staleness = nil
		}},
		{"reads that go backwards", "order-read", func(w *world) {
			// Nobody has been told of a write in between, but a reader has seen one.
			w.nth("Deregister", 0).Ended += time.Hour
			w.nth("Deregister", 1).Ended += time.Hour
			for n := range 2 {
				c := w.call("x", &apiv1.GetRequest{Key: key("web", "3")})
				c.Header().Revision += uint64(1 - n)
			}
		}},
		{"an age beyond the bound", "order-bounded", func(w *world) { bounded(w).Staleness = durationpb.New(21 * time.Millisecond) }},
		{"no age for a bound", "order-bounded", func(w *world) { bounded(w).Staleness = nil }},
		{"below the revision that was asked for", "order-at-least", func(w *world) {
			w.nth("Get", 3).Request.(*apiv1.GetRequest).Freshness.MinRevision++
		}},
		{"older than it says", "order-staleness", func(w *world) { w.nth("Get", 2).Header().Revision -= 2 }},
		{"another mode", "order-mode", func(w *world) { w.nth("Get", 2).Header().Mode = apiv1.Mode_MODE_BOUNDED }},
		{"another epoch", "order-epoch", func(w *world) { w.nth("Get", 0).Header().Epoch++ }},
		{"another cluster", "order-epoch", func(w *world) { w.nth("Register", 0).Header().ClusterId = "c2" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := story(t)
			tt.spoil(w)
			expect(t, check.Order(w.judged()), tt.rule)
		})
	}
}

// An answer that is too old for its bound can only hide it by claiming an age that is too small as well.
func TestOrderSeesAnAnswerOlderThanItsBound(t *testing.T) {
	w := story(t)
	c := w.nth("ListInstances", 3)
	c.Begun, c.Header().Revision = c.Ended, 3
	expect(t, check.Order(w.judged()), "order-bounded", "order-staleness")
}

// Calls that overlap a write, and those that begin at the very moment of its answer, may come before it.
func TestOrderAsksNothingOfWhatHappensAtOnce(t *testing.T) {
	w := newWorld(t)
	w.register("a", "1", "1")
	write := w.register("b", "1", "2").Ended
	c := w.call("c", &apiv1.GetRequest{Key: key("web", "1")})
	c.Begun, c.Header().Revision = write, c.Header().GetRevision()-1
	expect(t, check.Order(w.judged()))
	c.Begun++
	expect(t, check.Order(w.judged()), "order-read", "order-staleness")
}
