package check_test

import (
	"testing"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

func TestContentSeesEachBrokenRule(t *testing.T) {
	instances := func(w *world, n int) *apiv1.ListInstancesResponse {
		return w.nth("ListInstances", n).Response.(*apiv1.ListInstancesResponse)
	}
	absent := func(w *world, method string, n int, reason apiv1.Reason) {
		c := w.nth(method, n)
		c.Outcome, c.Response, c.Reason = history.Failed, nil, reason
	}
	for _, tt := range []spoiled{
		{"an instance that is not so", "content", func(w *world) {
			w.nth("Get", 0).Response.(*apiv1.GetResponse).Instance.Metadata["v"] = "1"
		}},
		{"an instance with another incarnation", "content", func(w *world) {
			w.nth("Get", 0).Response.(*apiv1.GetResponse).Instance.Incarnation++
		}},
		{"a list without its last instance", "content", func(w *world) { instances(w, 2).Instances = nil }},
		{"an instance that does not match", "content", func(w *world) {
			instances(w, 2).Instances = append(instances(w, 2).Instances, instances(w, 1).Instances...)
		}},
		{"a list out of order", "content", func(w *world) {
			list := instances(w, 4).Instances
			list[0], list[1] = list[1], list[0]
		}},
		{"a page that begins again", "content", func(w *world) { instances(w, 1).Instances = instances(w, 0).Instances }},
		{"a page that is too long", "content", func(w *world) {
			w.nth("ListInstances", 4).Request.(*apiv1.ListInstancesRequest).PageSize = 1
		}},
		{"another service revision", "content", func(w *world) { instances(w, 3).ServiceRevision-- }},
		{"a wrong count", "content", func(w *world) {
			w.nth("ListServices", 0).Response.(*apiv1.ListServicesResponse).Services[0].Other++
		}},
		{"a session that is not there", "content", func(w *world) {
			resp := w.nth("List", 0).Response.(*apiv1.ListResponse)
			resp.Sessions = append(resp.Sessions, &registryv1.Session{Id: "x"})
		}},
		{"a lease of another TTL", "content", func(w *world) {
			w.nth("GetLease", 0).Response.(*apiv1.GetLeaseResponse).Lease.Ttl.Seconds++
		}},
		{"leases with one missing", "content", func(w *world) {
			w.nth("ListLeases", 0).Response.(*apiv1.ListLeasesResponse).Leases = nil
		}},
		{"a lock of another owner", "content", func(w *world) {
			w.nth("GetLock", 0).Response.(*apiv1.GetLockResponse).Lock.SessionId = "x"
		}},
		{"locks with a wrong token", "content", func(w *world) {
			w.nth("ListLocks", 0).Response.(*apiv1.ListLocksResponse).Locks[0].Token++
		}},
		{"a revision that never was", "content-revision", func(w *world) { w.nth("Get", 0).Header().Revision = 999 }},
		{"a revision within an entry", "content-revision", func(w *world) {
			var commands []*raftlogv1.Command
			for _, id := range []string{"x", "y"} {
				commands = append(commands, w.command(&apiv1.RegisterRequest{Instance: instance("other", id, "1")}))
			}
			w.apply(commands...)
			w.get("a", "3").Header().Revision--
		}},
		{"a page of another revision", "content-page", func(w *world) { w.nth("ListInstances", 1).Header().Revision-- }},
		{"a token that nobody gave", "content-page", func(w *world) {
			w.nth("ListInstances", 1).Request.(*apiv1.ListInstancesRequest).PageToken = "?"
		}},
		{"an instance that is there", "content-absent", func(w *world) { absent(w, "Get", 0, apiv1.Reason_REASON_INSTANCE_NOT_FOUND) }},
		{"a lease that is there", "content-absent", func(w *world) { absent(w, "GetLease", 0, apiv1.Reason_REASON_LEASE_NOT_FOUND) }},
		{"a lock that is held", "content-absent", func(w *world) { absent(w, "GetLock", 0, apiv1.Reason_REASON_LOCK_NOT_FOUND) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := story(t)
			tt.spoil(w)
			expect(t, check.Content(w.judged()), tt.rule)
		})
	}
}

// A stale read may have seen a time before the instance was there, and one that overlaps its end, the time after it.
func TestContentLetsAReadSeeAnyStateThatItMay(t *testing.T) {
	w := newWorld(t)
	w.register("a", "1", "1")
	stale := w.call("b", &apiv1.GetRequest{Key: key("web", "1"), Freshness: mode(apiv1.Mode_MODE_STALE)})
	stale.Outcome, stale.Response, stale.Reason = history.Failed, nil, apiv1.Reason_REASON_INSTANCE_NOT_FOUND
	read := *w.get("b", "1")
	read.Outcome, read.Response, read.Reason = history.Failed, nil, apiv1.Reason_REASON_INSTANCE_NOT_FOUND
	end := w.deregister("a", "1")
	read.Ended = end.Begun // The read and the write overlap.
	w.h.Calls[2] = read
	expect(t, check.Content(w.judged()))
	read.Ended--
	for i := range w.h.Calls {
		if w.h.Calls[i].Begun == read.Begun {
			w.h.Calls[i] = read
		}
	}
	expect(t, check.Content(w.judged()), "content-absent")
}

func TestAllThatAFilterSetsMustHold(t *testing.T) {
	w := newWorld(t)
	i := instance("web", "1", "1")
	i.Zone, i.Tags = "z1", []string{"blue", "new"}
	w.call("a", &apiv1.RegisterRequest{RequestId: w.id("a"), Instance: i})
	for _, tt := range []struct {
		name   string
		filter *apiv1.Filter
		match  bool
	}{
		{"nothing set", &apiv1.Filter{}, true},
		{"all set", &apiv1.Filter{
			Namespace: "default", Service: "web", MinHealth: registryv1.Health_HEALTH_PASSING, Tags: []string{"new", "blue"}, Zone: "z1",
			Metadata: map[string]string{"v": "1"},
		}, true},
		{"any namespace", &apiv1.Filter{Namespace: "*"}, true},
		{"another namespace", &apiv1.Filter{Namespace: "dev"}, false},
		{"another service", &apiv1.Filter{Service: "db"}, false},
		{"a tag that is missing", &apiv1.Filter{Tags: []string{"blue", "old"}}, false},
		{"another zone", &apiv1.Filter{Zone: "z2"}, false},
		{"another value", &apiv1.Filter{Metadata: map[string]string{"v": "2"}}, false},
		{"a pair that is missing", &apiv1.Filter{Metadata: map[string]string{"w": ""}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := w.call("b", &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web"}})
			defer func() { w.h.Calls = w.h.Calls[:1] }()
			c.Request.(*apiv1.ListInstancesRequest).Filter = tt.filter
			if !tt.match {
				c.Response.(*apiv1.ListInstancesResponse).Instances = nil
			}
			c.Response.(*apiv1.ListInstancesResponse).ServiceRevision = w.state().Revision()
			expect(t, check.Content(w.judged()))
		})
	}
}
