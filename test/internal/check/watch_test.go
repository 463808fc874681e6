package check_test

import (
	"slices"
	"testing"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/check"
)

const (
	initial   = apiv1.CutReason_CUT_REASON_INITIAL
	gone      = apiv1.CutReason_CUT_REASON_HISTORY_GONE
	slow      = apiv1.CutReason_CUT_REASON_SLOW_READER
	installed = apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED
	large     = apiv1.CutReason_CUT_REASON_LARGE_REVISION
)

// last is the n-th last message that was received.
func (w *world) last(n int) *apiv1.WatchResponse {
	return w.h.Messages[len(w.h.Messages)-1-n].Body.(*apiv1.WatchResponse)
}

// watched has a watch that saw one registration, and one more of which it has not been told.
func watched(t *testing.T) (*world, *stream) {
	t.Helper()
	w := newWorld(t)
	w.register("a", "0", "1")
	s := w.watch("w", &apiv1.Filter{Service: "web"}, 0)
	s.full(initial)
	w.register("a", "1", "1")
	s.deliver()
	w.register("a", "2", "1")
	return w, s
}

// resumed has a watch that went on after the first of three registrations.
func resumed(t *testing.T) (*world, *stream) {
	t.Helper()
	w := newWorld(t)
	w.register("a", "1", "1")
	point := w.state().Revision()
	w.register("a", "2", "1")
	s := w.watch("w", &apiv1.Filter{Service: "web"}, point)
	s.deliver()
	s.synced()
	w.register("a", "3", "1")
	return w, s
}

func TestWatchSeesEachBrokenRule(t *testing.T) {
	batch := func(w *world) {
		w.call("b", &apiv1.RegisterBatchRequest{RequestId: w.id("b"), Register: []*registryv1.Instance{
			instance("web", "3", "1"), instance("web", "4", "1"),
		}})
	}
	for _, tt := range []struct {
		name, rule string
		tell       func(*testing.T) *world
	}{
		{"events out of order", "W1", func(t *testing.T) *world {
			w, s := watched(t)
			w.register("a", "3", "1")
			s.deliver()
			slices.Reverse(w.last(0).GetEvents().Events)
			return w
		}},
		{"an event beyond what its message names", "W1", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			w.register("a", "3", "1")
			s.deliver()
			w.last(0).GetEvents().Revision--
			s.progress()
			return w
		}},
		{"synced in the past", "W1", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			s.difference(slow)
			w.last(0).GetSynced().Header.Revision--
			return w
		}},
		{"an event twice in one message", "W2", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			m := w.last(0).GetEvents()
			m.Events = append(m.Events, m.Events[0])
			return w
		}},
		{"an event in two messages", "W2", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			s.watched(w.last(0).GetEvents())
			return w
		}},
		{"an instance twice in a cut", "W2", func(t *testing.T) *world {
			w, s := watched(t)
			s.difference(slow)
			m := w.last(1).GetCut()
			m.Instances = append(m.Instances, m.Instances[0])
			return w
		}},
		{"a part of a revision", "W3", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			batch(w)
			s.deliver()
			m := w.last(0).GetEvents()
			m.Events = m.Events[:1] // What comes later comes after it was said to be whole.
			return w
		}},
		{"events in the middle of a cut", "W3", func(t *testing.T) *world {
			w, s := watched(t)
			s.difference(slow)
			w.register("a", "3", "1")
			s.deliver()
			n := len(w.h.Messages)
			m := w.h.Messages
			m[n-1].At, m[n-2].At = m[n-2].At, m[n-1].At // The events overtake the Synced.
			return w
		}},
		{"two cuts in one", "W3", func(t *testing.T) *world {
			w, s := watched(t)
			s.difference(slow)
			w.h.Messages = w.h.Messages[:len(w.h.Messages)-1] // Its Synced is missing.
			s.watched(&apiv1.Cut{SubscriptionId: 1, Reason: large})
			s.synced()
			return w
		}},
		{"a change that is missing", "W4", func(t *testing.T) *world {
			w, s := watched(t)
			w.register("a", "3", "1")
			s.deliver()
			m := w.last(0).GetEvents()
			m.Events = m.Events[1:]
			return w
		}},
		{"a deletion that is missing", "W4", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			w.deregister("a", "1")
			s.deliver()
			w.last(0).GetEvents().Events = nil
			return w
		}},
		{"an instance that no longer matches, and is not said to be gone", "W4", func(t *testing.T) *world {
			w := newWorld(t)
			w.register("a", "1", "1")
			s := w.watch("w", &apiv1.Filter{Service: "web", MinHealth: registryv1.Health_HEALTH_PASSING}, 0)
			s.full(initial)
			w.call("a", &apiv1.SetMaintenanceRequest{RequestId: w.id("a"), Key: key("web", "1"), Maintenance: true})
			s.deliver()
			w.last(0).GetEvents().Events = nil
			return w
		}},
		{"a change that does not match", "W4", func(t *testing.T) *world {
			w, s := watched(t)
			w.call("a", &apiv1.RegisterRequest{RequestId: w.id("a"), Instance: instance("db", "1", "1")})
			s.deliver()
			m := w.last(0).GetEvents()
			e := w.events[len(w.events)-1]
			m.Events = append(m.Events, &apiv1.SubscribedEvent{SubscriptionIds: []uint32{1}, Event: &registryv1.Event{
				Type: registryv1.EventType_EVENT_TYPE_PUT, Revision: e.Revision, Instance: decode(t, e.New), Cause: e.Cause,
			}})
			return w
		}},
		{"synced again, and a change lost", "W4", func(t *testing.T) *world {
			w, s := watched(t)
			s.synced()
			return w
		}},
		{"a message for nobody", "W4", func(t *testing.T) *world {
			w, s := watched(t)
			s.difference(slow)
			w.last(0).GetSynced().SubscriptionId = 2
			return w
		}},
		{"the first change after the point is missing", "W5", func(t *testing.T) *world {
			w, _ := resumed(t)
			w.h.Messages = append(w.h.Messages[:2], w.h.Messages[3:]...) // Its Synced comes at once.
			return w
		}},
		{"one of the changes after the point is missing", "W5", func(t *testing.T) *world {
			w := newWorld(t)
			for _, id := range []string{"1", "2", "3"} {
				w.register("a", id, "1")
			}
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 1)
			s.deliver()
			m := w.last(0).GetEvents()
			m.Events = m.Events[1:]
			return w
		}},
		{"progress beyond a change", "W6", func(t *testing.T) *world {
			w, s := watched(t)
			s.progress()
			return w
		}},
		{"progress that falls", "W6", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			s.progress()
			s.progress()
			w.last(0).GetProgress().Header.Revision--
			return w
		}},
		{"a cut without a reason", "W7", func(t *testing.T) *world {
			w, s := watched(t)
			s.difference(apiv1.CutReason_CUT_REASON_UNSPECIFIED)
			return w
		}},
		{"history gone for who asked for none", "W7", func(t *testing.T) *world {
			w := newWorld(t)
			w.watch("w", &apiv1.Filter{Service: "web"}, 0).full(gone)
			return w
		}},
		{"a point that is passed over in silence", "W7", func(t *testing.T) *world {
			w := newWorld(t)
			w.register("a", "1", "1")
			w.watch("w", &apiv1.Filter{Service: "web"}, 1).full(initial)
			return w
		}},
		{"a point of another cluster taken for one of this", "W7", func(t *testing.T) *world {
			w := newWorld(t)
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 1)
			sub := w.h.Messages[len(w.h.Messages)-1].Body.(*apiv1.WatchRequest).GetSubscribe()
			sub.Resume.ClusterId = "c2"
			s.synced()
			return w
		}},
		{"a wrong cut where history is gone", "W7", func(t *testing.T) *world {
			w := newWorld(t)
			w.register("a", "1", "1")
			w.register("a", "2", "1")
			w.watch("w", &apiv1.Filter{Service: "web"}, 1).full(gone)
			m := w.last(1).GetCut()
			m.Instances = m.Instances[1:]
			return w
		}},
		{"events from before the point", "W8", func(t *testing.T) *world {
			w, _ := resumed(t)
			sub := w.h.Messages[1].Body.(*apiv1.WatchRequest).GetSubscribe()
			sub.Resume.Revision++
			return w
		}},
		{"synced before the point", "W8", func(t *testing.T) *world {
			w := newWorld(t)
			w.register("a", "1", "1")
			s := w.watch("w", &apiv1.Filter{Service: "web"}, w.state().Revision())
			s.synced()
			w.last(0).GetSynced().Header.Revision--
			return w
		}},
		{"an instance missing at the beginning", "W9", func(t *testing.T) *world {
			w, _ := watched(t)
			w.h.Messages[2].Body.(*apiv1.WatchResponse).GetCut().Instances = nil
			return w
		}},
		{"a wrong instance at the beginning", "W9", func(t *testing.T) *world {
			w, _ := watched(t)
			w.h.Messages[2].Body.(*apiv1.WatchResponse).GetCut().Instances[0].Incarnation++
			return w
		}},
		{"no beginning", "W9", func(t *testing.T) *world {
			w, _ := watched(t)
			w.h.Messages = append(w.h.Messages[:2], w.h.Messages[3:]...) // The Synced stays.
			return w
		}},
		{"events before the beginning", "W9", func(t *testing.T) *world {
			w, _ := watched(t)
			w.h.Messages = append(w.h.Messages[:2], w.h.Messages[4:]...)
			return w
		}},
		{"a beginning within an entry", "W9", func(t *testing.T) *world {
			w := newWorld(t)
			w.apply(
				w.command(&apiv1.RegisterRequest{Instance: instance("web", "1", "1")}),
				w.command(&apiv1.RegisterRequest{Instance: instance("db", "1", "1")}),
			)
			w.watch("w", &apiv1.Filter{Service: "web"}, 0).full(initial)
			w.last(0).GetSynced().Header.Revision--
			return w
		}},
		{"a slow reader who misses a change", "W10", func(t *testing.T) *world {
			w, s := watched(t)
			w.register("a", "3", "1")
			s.difference(slow)
			m := w.last(1).GetCut()
			m.Instances = m.Instances[1:]
			return w
		}},
		{"a slow reader who misses a deletion", "W10", func(t *testing.T) *world {
			w, s := watched(t)
			w.deregister("a", "1")
			s.difference(slow)
			w.last(1).GetCut().Deleted = nil
			return w
		}},
		{"a slow reader who is told of a deletion that was none", "W10", func(t *testing.T) *world {
			w, s := watched(t)
			s.difference(slow)
			w.last(1).GetCut().Deleted = []*apiv1.InstanceKey{key("web", "1")}
			return w
		}},
		{"a large revision that is not whole", "W10", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			batch(w)
			s.difference(large)
			m := w.last(1).GetCut()
			m.Instances = m.Instances[1:]
			return w
		}},
		{"a slow reader with a whole cut that is wrong", "W10", func(t *testing.T) *world {
			w, s := watched(t)
			s.full(slow)
			m := w.last(1).GetCut()
			m.Instances = m.Instances[1:]
			return w
		}},
		{"another value in an event", "W11", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			w.last(0).GetEvents().Events[0].Event.Instance.Metadata["v"] = "9"
			return w
		}},
		{"another cause", "W11", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			w.last(0).GetEvents().Events[0].Event.Cause = registryv1.Cause_CAUSE_CHECK
			return w
		}},
		{"another incarnation deleted", "W11", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			w.deregister("a", "1")
			s.deliver()
			w.last(0).GetEvents().Events[0].Event.Instance.Incarnation++
			return w
		}},
		{"an event that never was", "W12", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			m := w.last(0).GetEvents()
			e := m.Events[0]
			phantom := instance("web", "phantom", "1")
			m.Events = append(m.Events, &apiv1.SubscribedEvent{SubscriptionIds: []uint32{1}, Event: &registryv1.Event{
				Type: e.Event.Type, Revision: e.Event.Revision, Instance: phantom, Cause: e.Event.Cause,
			}})
			return w
		}},
		{"a revision that never was", "W12", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			w.last(0).GetEvents().Revision++
			return w
		}},
		{"another epoch", "W12", func(t *testing.T) *world {
			w, s := watched(t)
			s.deliver()
			s.progress()
			w.last(0).GetProgress().Header.Epoch++
			return w
		}},
		{"the end is never reached", "W13", func(t *testing.T) *world {
			w, _ := watched(t)
			w.run.Settled = w.tick()
			return w
		}},
		{"never synced", "W13", func(t *testing.T) *world {
			w := newWorld(t)
			w.watch("w", &apiv1.Filter{Service: "web"}, 0)
			w.run.Settled = w.tick()
			return w
		}},
		{"a snapshot is installed and a change is lost", "W14", func(t *testing.T) *world {
			w, s := watched(t)
			w.deregister("a", "1")
			s.difference(installed)
			w.last(1).GetCut().Deleted = nil
			return w
		}},
		{"a snapshot is installed and a whole cut is wrong", "W14", func(t *testing.T) *world {
			w, s := watched(t)
			s.full(installed)
			w.last(1).GetCut().Instances[0].Metadata["v"] = "9"
			return w
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, _ := check.Watch(tt.tell(t).judged())
			expect(t, found, tt.rule)
		})
	}
}

func TestWatchAllowsWhatIsPromised(t *testing.T) {
	for _, tt := range []struct {
		name string
		tell func(*world)
	}{
		{"a reader who is behind, and a stream that ends before the run has settled", func(w *world) {
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 0)
			s.full(initial)
			w.register("a", "1", "1")
			s.end()
			w.run.Settled = w.tick()
		}},
		{"nothing matches and no part of a cut is sent", func(w *world) {
			w.watch("w", &apiv1.Filter{Service: "web"}, 0).synced()
		}},
		{"the order within a revision", func(w *world) {
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 0)
			s.full(initial)
			w.call("b", &apiv1.RegisterBatchRequest{RequestId: w.id("b"), Register: []*registryv1.Instance{
				instance("web", "3", "1"), instance("web", "4", "1"),
			}})
			s.deliver()
			slices.Reverse(w.last(0).GetEvents().Events)
		}},
		{"leaving the filter and coming back", func(w *world) {
			w.register("a", "1", "1")
			s := w.watch("w", &apiv1.Filter{Service: "web", MinHealth: registryv1.Health_HEALTH_PASSING}, 0)
			s.full(initial)
			for _, out := range []bool{true, false} {
				w.call("a", &apiv1.SetMaintenanceRequest{RequestId: w.id("a"), Key: key("web", "1"), Maintenance: out})
				s.deliver()
			}
		}},
		{"a cut that names what never matched, and what has not changed", func(w *world) {
			w.register("a", "1", "1")
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 0)
			s.full(initial)
			same := w.last(1).GetCut().Instances
			w.register("a", "2", "1")
			s.difference(slow)
			c := w.last(1).GetCut()
			c.Instances = append(c.Instances, same...)
			c.Deleted = append(c.Deleted, key("web", "never"))
		}},
		{"a large revision within an entry", func(w *world) {
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 0)
			s.full(initial)
			w.apply(
				w.command(&apiv1.RegisterRequest{Instance: instance("web", "1", "1")}),
				w.command(&apiv1.RegisterRequest{Instance: instance("web", "2", "1")}),
			)
			s.difference(large)
			c, end := w.last(1).GetCut(), w.last(0).GetSynced()
			c.Instances = c.Instances[:1]
			end.Header.Revision--
			s.at = end.Header.Revision
			s.deliver()
		}},
		{"a number that is used again", func(w *world) {
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 0)
			s.full(initial)
			s.sent(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Unsubscribe{Unsubscribe: &apiv1.Unsubscribe{SubscriptionId: 1}}})
			s.sent(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: &apiv1.Subscribe{
				SubscriptionId: 1, Filter: &apiv1.Filter{Service: "db"},
			}}})
			w.register("a", "1", "1")
			s.deliver() // The old one has not ended yet.
			s.received(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Ended{Ended: &apiv1.SubscriptionEnded{SubscriptionId: 1}}})
			s.filter = &apiv1.Filter{Service: "db"}
			s.full(initial)
		}},
		{"a point in another history", func(w *world) {
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 1)
			w.h.Messages[1].Body.(*apiv1.WatchRequest).GetSubscribe().Resume.Epoch = 7
			s.full(apiv1.CutReason_CUT_REASON_RESTORED)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.tell(w)
			found, _ := check.Watch(w.judged())
			expect(t, found)
		})
	}
}

// Marks and messages for others say nothing to a subscription that is not synced.
func TestWatchTellsSubscriptionsOfOneStreamApart(t *testing.T) {
	w, s := watched(t)
	s.sent(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: &apiv1.Subscribe{
		SubscriptionId: 2, Filter: &apiv1.Filter{Service: "web"}, Resume: &apiv1.ResumePoint{ClusterId: clusterID, Epoch: 1, Revision: 2},
	}}})
	s.deliver()
	s.progress()
	second := &apiv1.Events{Revision: w.state().Revision()}
	for _, m := range w.h.Messages {
		if r, ok := m.Body.(*apiv1.WatchResponse); ok {
			for _, e := range r.GetEvents().GetEvents() {
				second.Events = append(second.Events, &apiv1.SubscribedEvent{Event: e.GetEvent(), SubscriptionIds: []uint32{2}})
			}
		}
	}
	s.watched(second)
	s.watched(&apiv1.Synced{SubscriptionId: 2, Header: w.header(w.state().Revision())})
	w.run.Settled = w.tick()
	found, figures := check.Watch(w.judged())
	expect(t, found)
	if figures.Subscriptions != 2 || figures.Events != 4 {
		t.Errorf("figures %+v", figures)
	}
	second.Events = second.Events[1:]
	found, _ = check.Watch(w.judged())
	expect(t, found, "W5")
}

// WatchService is Watch with one subscription.
func TestWatchServiceIsJudgedAlike(t *testing.T) {
	w := newWorld(t)
	w.register("a", "1", "1")
	s := w.open("w", apiv1.RegistryService_WatchService_FullMethodName)
	s.sent(&apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: "web"}})
	c := &apiv1.Cut{SubscriptionId: 1, Full: true, Reason: initial}
	c.Instances = append(c.Instances, decode(t, w.state().Instance("default", "web", "1")))
	s.received(&apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Cut{Cut: c}})
	s.received(&apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Synced{
		Synced: &apiv1.Synced{SubscriptionId: 1, Header: w.header(w.state().Revision())},
	}})
	found, _ := check.Watch(w.judged())
	expect(t, found)
	c.Instances = nil
	found, _ = check.Watch(w.judged())
	expect(t, found, "W9")
}
