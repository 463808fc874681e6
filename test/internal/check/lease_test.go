package check_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

func leases(w *world) []check.Violation {
	found, _ := check.Lease(w.judged())
	return found
}

// grant grants a lease with a TTL of 2 s.
func (w *world) grant(client, session string) string {
	w.t.Helper()
	c := w.call(client, &apiv1.GrantRequest{RequestId: w.id(client), Ttl: durationpb.New(2 * time.Second), SessionId: session})
	return c.Response.(*apiv1.GrantResponse).GetLease().GetId()
}

// upTo lets time go by, and has somebody look at that moment.
func (w *world) upTo(at time.Duration) *history.Call {
	w.t.Helper()
	w.now = at - time.Millisecond
	return w.call("x", &apiv1.ListRequest{})
}

const ttl = 2 * time.Second

func TestLeaseSeesAnEndThatComesTooEarly(t *testing.T) {
	for _, tt := range []struct {
		name string
		tell func(*world)
	}{
		{"after a session was opened", func(w *world) {
			id := w.session("a")
			w.pass(ttl - 100*time.Millisecond)
			w.expire([]string{id}, nil)
			w.call("b", &apiv1.ListRequest{})
		}},
		{"after a single renewal", func(w *world) {
			id := w.session("a")
			w.pass(time.Second)
			w.call("a", &apiv1.RenewRequest{SessionIds: []string{id}})
			w.pass(ttl - 100*time.Millisecond)
			w.expire([]string{id}, nil)
			w.call("b", &apiv1.ListRequest{})
		}},
		{"after a renewal on a stream", func(w *world) {
			id, s := w.session("a"), w.attach("a")
			w.pass(time.Second)
			s.renew(1, id)
			w.pass(ttl - 100*time.Millisecond)
			w.expire([]string{id}, nil)
			w.call("b", &apiv1.ListRequest{})
		}},
		{"after a renewal of a lease", func(w *world) {
			id, s := w.grant("a", ""), w.keepAlive("a")
			w.pass(time.Second)
			s.renewLease(1, id)
			w.pass(ttl - 100*time.Millisecond)
			w.expire(nil, []string{id})
			w.call("b", &apiv1.ListLeasesRequest{})
		}},
		{"seen on a watch", func(w *world) {
			s := w.watch("w", &apiv1.Filter{Service: "web"}, 0)
			s.full(initial)
			id := w.session("a")
			w.pass(ttl - 100*time.Millisecond)
			w.expire([]string{id}, nil)
			s.progress()
		}},
		{"told before it is in the log", func(w *world) {
			id, s := w.session("a"), w.attach("a")
			w.pass(ttl - 100*time.Millisecond)
			s.sent(&apiv1.AttachRequest{Sequence: 1, SessionIds: []string{id}})
			s.received(&apiv1.AttachResponse{Sequence: 1, Ended: []string{id}})
			w.pass(time.Second)
			w.expire([]string{id}, nil)
		}},
		{"acknowledged only after the end", func(w *world) {
			id, s := w.session("a"), w.attach("a")
			w.pass(ttl)
			s.sent(&apiv1.AttachRequest{Sequence: 1, SessionIds: []string{id}})
			w.expire([]string{id}, nil)
			w.call("b", &apiv1.ListRequest{})
			s.received(&apiv1.AttachResponse{Sequence: 1})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.tell(w)
			expect(t, leases(w), "lease-early")
		})
	}
}

func TestLeaseSeesOneThatLivesOn(t *testing.T) {
	w := newWorld(t)
	id := w.session("a")
	opened := w.now
	w.upTo(opened + ttl + w.run.Grace)
	expect(t, leases(w))
	w.upTo(opened + ttl + w.run.Grace + 10*time.Millisecond)
	expect(t, leases(w), "lease-late")
	w.expire([]string{id}, nil)
	w.call("b", &apiv1.ListRequest{})
	expect(t, leases(w), "lease-late")
}

func TestWhatExcusesALateEnd(t *testing.T) {
	late := ttl + 1500*time.Millisecond // one second too late
	for _, tt := range []struct {
		name   string
		excuse func(w *world, opened time.Duration)
		broken bool
	}{
		{"nothing", func(*world, time.Duration) {}, true},
		{"a fault of that length", func(w *world, opened time.Duration) {
			w.h.Faults = []history.Fault{{From: opened + time.Second, To: opened + 1800*time.Millisecond, Recovered: opened + 2*time.Second}}
		}, false},
		{"a fault that was shorter", func(w *world, opened time.Duration) {
			w.h.Faults = []history.Fault{{From: opened + time.Second, To: opened + 1800*time.Millisecond}}
		}, true},
		{"a renewal", func(w *world, opened time.Duration) {
			w.h.Calls[0].Ended = opened + time.Second
		}, false},
		{"a renewal that may have been taken", func(w *world, opened time.Duration) {
			w.h.Calls = append(w.h.Calls, history.Call{
				Client: "a", Outcome: history.Failed, Begun: opened + time.Second, Ended: opened + 1100*time.Millisecond,
				Request: &apiv1.RenewRequest{SessionIds: []string{"id0001"}},
			})
		}, false},
		{"a renewal that a fault may have held up", func(w *world, opened time.Duration) {
			w.h.Calls = append(w.h.Calls, history.Call{
				Client: "a", Outcome: history.Unknown, Begun: opened + 10*time.Millisecond, Ended: opened + 20*time.Millisecond,
				Request: &apiv1.RenewRequest{SessionIds: []string{"id0001"}},
			})
			w.h.Faults = []history.Fault{{From: opened + 15*time.Millisecond, To: opened + time.Second}}
		}, false},
		{"a read that began before", func(w *world, opened time.Duration) {
			w.h.Calls[len(w.h.Calls)-1].Begun = opened + ttl
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.session("a")
			opened := w.now
			w.upTo(opened + late)
			tt.excuse(w, opened)
			if tt.broken {
				expect(t, leases(w), "lease-late")
			} else {
				expect(t, leases(w))
			}
		})
	}
}

func TestANewLeaderExcusesALateEnd(t *testing.T) {
	for _, tt := range []struct {
		name      string
		led       time.Duration // after this time another leader writes
		expiredBy uint64        // term; 0: never
		broken    bool
	}{
		{"in between", time.Second, 0, false},
		{"long ago", 2 * time.Millisecond, 0, true},
		{"first seen by the end that it made", time.Hour, 2, false},
		{"after the end", time.Hour, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const late = ttl + 1500*time.Millisecond // one second too late
			w := newWorld(t)
			id := w.session("a")
			opened := w.now
			if tt.led < late {
				w.upTo(opened + tt.led)
				w.term = 2
				w.register("b", "1", "1")
			}
			w.upTo(opened + late)
			if tt.expiredBy != 0 {
				w.term = tt.expiredBy
				w.expire([]string{id}, nil)
				w.call("b", &apiv1.ListRequest{})
				w.term = 2
				w.register("b", "1", "1")
			}
			if tt.broken {
				expect(t, leases(w), "lease-late")
			} else {
				expect(t, leases(w))
			}
		})
	}
}

func TestLeaseSeesLifeAfterTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		tell func(w *world, session, lease string)
	}{
		{"renewed", func(w *world, session, _ string) {
			w.call("a", &apiv1.RenewRequest{SessionIds: []string{session}}).Response.(*apiv1.RenewResponse).Ended = nil
		}},
		{"renewed on a stream", func(w *world, _, lease string) {
			s := w.keepAlive("a")
			s.sent(&apiv1.KeepAliveRequest{Sequence: 4, LeaseIds: []string{lease}})
			s.received(&apiv1.KeepAliveResponse{Sequence: 4})
		}},
		{"registered with the session", func(w *world, session, _ string) {
			i := w.register("a", "1", "1").Request.(*apiv1.RegisterRequest).Instance
			i.SessionId = session
		}},
		{"registered with the lease, in a batch", func(w *world, _, lease string) {
			c := w.call("a", &apiv1.RegisterBatchRequest{RequestId: w.id("a"), Deregister: []*apiv1.InstanceKey{key("web", "1")}})
			i := instance("web", "1", "1")
			i.LeaseId = lease
			c.Request.(*apiv1.RegisterBatchRequest).Register = append(c.Request.(*apiv1.RegisterBatchRequest).Register, i)
		}},
		{"a lease granted", func(w *world, session, _ string) {
			w.call("a", &apiv1.GrantRequest{RequestId: w.id("a"), Ttl: durationpb.New(ttl)}).Request.(*apiv1.GrantRequest).SessionId = session
		}},
		{"a lock acquired", func(w *world, session, _ string) {
			other := w.session("b")
			w.acquire("b", other, false).Request.(*apiv1.AcquireRequest).SessionId = session
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			session := w.session("a")
			lease := w.grant("a", "")
			w.pass(ttl)
			w.expire([]string{session}, []string{lease})
			w.call("b", &apiv1.ListRequest{})
			tt.tell(w, session, lease)
			expect(t, leases(w), "lease-resurrection")
		})
	}
}

func TestLeaseSeesAnEndThatWasToldAndNeverCame(t *testing.T) {
	w := newWorld(t)
	id := w.session("a")
	c := w.call("a", &apiv1.RenewRequest{SessionIds: []string{id, "unknown"}})
	c.Response.(*apiv1.RenewResponse).Ended = []string{id, "unknown"}
	expect(t, leases(w)) // It may yet come.
	w.run.Settled = w.tick()
	expect(t, leases(w), "lease-told-ended")
	w.call("a", &apiv1.CloseRequest{RequestId: w.id("a"), SessionId: id})
	expect(t, leases(w))
}

func TestLeaseAllowsWhatIsPromised(t *testing.T) {
	for _, tt := range []struct {
		name string
		tell func(*world)
	}{
		{"an end at the last moment", func(w *world) {
			id := w.session("a")
			w.now = 1*time.Millisecond + ttl // The Open was sent at 1 ms.
			w.expire([]string{id}, nil)
			w.call("b", &apiv1.ListRequest{})
		}},
		{"an early end by request", func(w *world) {
			w.call("a", &apiv1.CloseRequest{RequestId: w.id("a"), SessionId: w.session("a")})
			w.call("a", &apiv1.RevokeRequest{RequestId: w.id("a"), LeaseId: w.grant("a", "")})
			w.call("b", &apiv1.ListRequest{})
		}},
		{"a lease that goes with its session", func(w *world) {
			session := w.session("a")
			w.pass(ttl - 100*time.Millisecond)
			w.grant("a", session)
			w.pass(100 * time.Millisecond)
			w.expire([]string{session}, nil)
			w.call("b", &apiv1.ListRequest{})
		}},
		{"a renewal that was not answered", func(w *world) {
			id, s := w.session("a"), w.attach("a")
			w.pass(ttl - time.Millisecond)
			s.sent(&apiv1.AttachRequest{Sequence: 1, SessionIds: []string{id}})
			s.received(&apiv1.AttachResponse{GoElsewhere: true})
			s.end()
			w.expire([]string{id}, nil)
			w.call("b", &apiv1.ListRequest{})
		}},
		{"a renewal under way when the end is seen", func(w *world) {
			id := w.session("a")
			w.pass(ttl)
			w.expire([]string{id}, nil)
			w.call("b", &apiv1.ListRequest{})
			c := w.call("a", &apiv1.RenewRequest{SessionIds: []string{id}})
			c.Outcome, c.Response = history.Unknown, nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.tell(w)
			expect(t, leases(w))
		})
	}
}

func TestLeaseMeasuresMarginAndLateness(t *testing.T) {
	w := newWorld(t)
	id := w.session("a")
	w.upTo(w.now + ttl + 100*time.Millisecond)
	w.expire([]string{id}, nil)
	w.call("b", &apiv1.ListRequest{})
	_, got := check.Lease(w.judged())
	// The Open was sent at 1 ms and answered at 3 ms; the last look began at 2,103 ms, the first after it ended at 2,108.
	want := check.LeaseFigures{Renewals: 1, Expired: 1, Margin: 107 * time.Millisecond, Lateness: 100 * time.Millisecond}
	if got != want {
		t.Errorf("figures %+v, want %+v", got, want)
	}
}
