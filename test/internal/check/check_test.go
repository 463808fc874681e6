package check_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

func key(service, id string) *apiv1.InstanceKey {
	return &apiv1.InstanceKey{Namespace: "default", Service: service, Id: id}
}

func mode(m apiv1.Mode) *apiv1.Freshness { return &apiv1.Freshness{Mode: m} }

// Short forms of the calls that most stories make.

func (w *world) register(client, id, v string) *history.Call {
	w.t.Helper()
	return w.call(client, &apiv1.RegisterRequest{RequestId: w.id(client), Instance: instance("web", id, v)})
}

func (w *world) deregister(client, id string) *history.Call {
	w.t.Helper()
	return w.call(client, &apiv1.DeregisterRequest{RequestId: w.id(client), Key: key("web", id)})
}

func (w *world) get(client, id string) *history.Call {
	w.t.Helper()
	return w.call(client, &apiv1.GetRequest{Key: key("web", id)})
}

// session opens one with a TTL of 2 s.
func (w *world) session(client string) string {
	w.t.Helper()
	c := w.call(client, &apiv1.OpenRequest{RequestId: w.id(client), Ttl: durationpb.New(2 * time.Second)})
	return c.Response.(*apiv1.OpenResponse).GetSession().GetId()
}

func (w *world) acquire(client, session string, wait bool) *history.Call {
	w.t.Helper()
	return w.call(client, &apiv1.AcquireRequest{RequestId: w.id(client), Name: "l", SessionId: session, Wait: wait})
}

func (w *world) release(client, session string, token uint64) *history.Call {
	w.t.Helper()
	return w.call(client, &apiv1.ReleaseRequest{RequestId: w.id(client), Name: "l", SessionId: session, Token: token})
}

// rules are the rules that were broken, each once.
func rules(found []check.Violation) []string {
	var names []string
	for _, v := range found {
		names = append(names, v.Rule)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// expect fails unless exactly these rules were broken.
func expect(t *testing.T, found []check.Violation, want ...string) {
	t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, rules(found)); diff != "" {
		t.Errorf("broken rules (-want +got):\n%s", diff)
		for _, v := range found {
			t.Log(v)
		}
	}
}

// story is a run in which something of everything happens and all promises are kept.
func story(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	web := &apiv1.Filter{Service: "web"}
	live := w.watch("watcher", web, 0)
	live.full(apiv1.CutReason_CUT_REASON_INITIAL)
	w.tellOfInstances(live)
	w.tellOfOwners(live)
	w.tellOfLocks()
	// A fault, a client that tries again, and one that never hears of what it did.
	w.run.Recovery = time.Second
	from := w.now
	w.retried("d", &apiv1.RegisterRequest{RequestId: w.id("d"), Instance: instance("web", "retried", "3")})
	w.lost("e", &apiv1.RegisterRequest{RequestId: w.id("e"), Instance: instance("web", "lost", "4")})
	w.get("d", "lost")
	w.h.Faults = append(w.h.Faults, history.Fault{
		Kind: "kill", Nodes: []string{"n1"}, From: from, To: w.tick(), Recovered: w.tick(), Evidence: "exit status 9",
	})
	live.deliver()
	late := w.watch("watcher2", web, live.at-1)
	late.deliver()
	late.synced()
	w.pass(time.Second)
	w.run.Settled = w.tick()
	w.call("d", &apiv1.ListInstancesRequest{Filter: web})
	w.call("d", &apiv1.VerifyRequest{})
	live.progress()
	return w
}

func (w *world) tellOfInstances(live *stream) {
	w.t.Helper()
	w.register("a", "1", "1")
	w.register("a", "1", "1") // The same again.
	w.register("b", "2", "1")
	live.deliver()
	w.register("b", "1", "2")
	w.get("a", "1")
	w.get("a", "none")
	w.call("a", &apiv1.SetMaintenanceRequest{RequestId: w.id("a"), Key: key("web", "2"), Maintenance: true})
	first := w.call("b", &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web"}, PageSize: 1})
	w.call("b", &apiv1.ListInstancesRequest{
		Filter: &apiv1.Filter{Service: "web"}, PageSize: 1, PageToken: first.Response.(*apiv1.ListInstancesResponse).GetNextPageToken(),
	})
	w.call("b", &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web", MinHealth: registryv1.Health_HEALTH_PASSING}})
	w.call("b", &apiv1.ListServicesRequest{})
	w.call("a", &apiv1.RegisterRequest{RequestId: w.id("a"), Instance: instance("web", "2", "9"), IfAbsent: true}) // Refused.
	w.deregister("a", "2")
	w.deregister("a", "2") // Gone already.
	live.difference(apiv1.CutReason_CUT_REASON_SLOW_READER)
	w.call("b", &apiv1.RegisterBatchRequest{
		RequestId: w.id("b"), Register: []*registryv1.Instance{instance("web", "3", "1"), instance("web", "4", "1")},
		Deregister: []*apiv1.InstanceKey{key("web", "1")},
	})
	live.deliver()
	w.call("a", &apiv1.GetRequest{Key: key("web", "3"), Freshness: mode(apiv1.Mode_MODE_STALE)})
	w.call("a", &apiv1.GetRequest{Key: key("web", "3"), Freshness: &apiv1.Freshness{
		Mode: apiv1.Mode_MODE_AT_LEAST, MinRevision: w.state().Revision(),
	}})
	w.call("a", &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web"}, Freshness: &apiv1.Freshness{
		Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(20 * time.Millisecond),
	}})
}

func (w *world) tellOfOwners(live *stream) {
	w.t.Helper()
	kept, dying := w.session("a"), w.session("b")
	hung := instance("web", "hung", "1")
	hung.SessionId = dying
	w.call("b", &apiv1.RegisterRequest{RequestId: w.id("b"), Instance: hung})
	grant := w.call("a", &apiv1.GrantRequest{RequestId: w.id("a"), Ttl: durationpb.New(3 * time.Second)})
	lease := grant.Response.(*apiv1.GrantResponse).GetLease().GetId()
	w.call("a", &apiv1.ListRequest{})
	w.call("a", &apiv1.ListLeasesRequest{})
	w.call("a", &apiv1.GetLeaseRequest{LeaseId: lease})
	attached, alive := w.attach("a"), w.keepAlive("a")
	w.pass(time.Second)
	attached.renew(1, kept)
	alive.renewLease(1, lease)
	w.call("b", &apiv1.RenewRequest{SessionIds: []string{dying}})
	w.pass(1500 * time.Millisecond)
	attached.renew(2, kept)
	w.get("b", "hung")
	w.pass(700 * time.Millisecond) // Its TTL is over.
	w.expire([]string{dying}, nil)
	w.get("b", "hung")
	live.deliver()
	w.call("b", &apiv1.RenewRequest{SessionIds: []string{dying}})
	w.call("b", &apiv1.RegisterRequest{RequestId: w.id("b"), Instance: hung}) // Refused.
	w.call("a", &apiv1.RevokeRequest{RequestId: w.id("a"), LeaseId: lease})
	w.call("a", &apiv1.GetLeaseRequest{LeaseId: lease})
	w.call("a", &apiv1.CloseRequest{RequestId: w.id("a"), SessionId: kept})
}

func (w *world) tellOfLocks() {
	w.t.Helper()
	one, two := w.session("a"), w.session("b")
	token := w.acquire("a", one, false).Response.(*apiv1.AcquireResponse).GetToken()
	w.acquire("a", one, false) // Its own already.
	w.acquire("b", two, false) // Refused.
	w.call("b", &apiv1.GetLockRequest{Name: "l"})
	w.call("b", &apiv1.ListLocksRequest{})
	w.release("a", one, token)
	w.call("b", &apiv1.GetLockRequest{Name: "l"})
	w.acquire("b", two, false)
	w.call("a", &apiv1.CloseRequest{RequestId: w.id("a"), SessionId: one})
	w.call("b", &apiv1.CloseRequest{RequestId: w.id("b"), SessionId: two})
}

// lost makes a call that is done, and whose answer is lost.
func (w *world) lost(client string, req proto.Message) *history.Call {
	w.t.Helper()
	c := w.call(client, req)
	c.Outcome, c.Response, c.Err = history.Unknown, nil, "connection lost"
	return c
}

// retried makes a call whose first answer is lost.
func (w *world) retried(client string, req proto.Message) *history.Call {
	w.t.Helper()
	w.lost(client, req)
	return w.call(client, req)
}

// nth is the n-th call of a method, from 0.
func (w *world) nth(method string, n int) *history.Call {
	w.t.Helper()
	for i := range w.h.Calls {
		c := &w.h.Calls[i]
		if c.Method[len(c.Method)-len(method):] == method && c.Method[len(c.Method)-len(method)-1] == '/' {
			if n == 0 {
				return c
			}
			n--
		}
	}
	w.t.Fatalf("no call of %s", method)
	return nil
}

func TestARunThatKeepsAllPromisesHasNoViolation(t *testing.T) {
	found, figures := check.Judge(story(t).judged())
	expect(t, found)
	want := check.Figures{
		Linear:  check.LinearFigures{Keys: 7, Accesses: 15, Excluded: 1},
		Watch:   check.WatchFigures{Streams: 2, Subscriptions: 2, Resumed: 1, Events: 10, Cuts: map[string]int{"INITIAL": 1, "SLOW_READER": 1}},
		Lock:    check.LockFigures{Acquired: 3, Handovers: 1},
		Once:    check.OnceFigures{Requests: 27, Repeated: 1},
		Replica: check.ReplicaFigures{Hashes: 3, Indexes: 1, Lists: 1},
		Gaps:    map[string]check.Gap{"kill": {Times: 1, Median: 8 * time.Millisecond, Longest: 8 * time.Millisecond}},
		Lease:   check.LeaseFigures{Renewals: 9, Expired: 1},
	}
	figures.Lease.Margin, figures.Lease.Lateness = 0, 0
	if diff := cmp.Diff(want, figures); diff != "" {
		t.Errorf("figures (-want +got):\n%s", diff)
	}
}
