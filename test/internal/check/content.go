package check

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// Content holds what every answer shows against the registry at its revision.
//
//   - content-revision: nobody can have read the registry at that revision, or there never was one.
//   - content: it shows something else.
//   - content-page: a page is of the same revision as the one before, and goes on where that ended.
//   - content-absent: what was said not to exist existed in every state that the read can have seen.
func Content(r *Run) []Violation {
	c := &contents{facts: r.facts(), pages: map[string]*history.Call{}}
	for i := range r.History.Calls {
		c.call(&r.History.Calls[i])
	}
	return c.list
}

type contents struct {
	*facts
	verdict
	pages map[string]*history.Call // the page that a token goes on from
}

func (c *contents) call(call *history.Call) {
	fresh, later, isRead := freshnessOf(call)
	if !isRead {
		return
	}
	if call.Outcome != history.OK {
		c.absent(call, fresh)
		return
	}
	revision, ok := c.revision(call.Header())
	if !ok {
		return // Told by Order.
	}
	st := c.run.Timeline.AtRevision(revision)
	if st == nil {
		c.fault("content-revision", "%s shows revision %d", describeCall(call), revision)
		return
	}
	token := ""
	if later {
		token = pageToken(call.Request)
		before := c.pages[token]
		if before == nil {
			c.fault("content-page", "%s goes on from a page that nobody got", describeCall(call))
			return
		}
		if was := before.Header().GetRevision(); was != revision {
			c.fault("content-page", "%s has revision %d, the page before had %d", describeCall(call), revision, was)
			return
		}
	}
	if next := nextPage(call.Response); next != "" {
		c.pages[next] = call
	}
	c.compare(call, st, c.pages[token])
}

func pageToken(m proto.Message) string {
	if p, ok := m.(interface{ GetPageToken() string }); ok {
		return p.GetPageToken()
	}
	return ""
}

func nextPage(m proto.Message) string {
	if p, ok := m.(interface{ GetNextPageToken() string }); ok {
		return p.GetNextPageToken()
	}
	return ""
}

// compare holds an answer against a state. before is the page before, nil for none.
func (c *contents) compare(call *history.Call, st *fsm.State, before *history.Call) {
	switch req := call.Request.(type) {
	case *apiv1.GetRequest:
		k, got := keyOf(req.GetKey()), call.Response.(*apiv1.GetResponse).GetInstance() //nolint:forcetypeassert // Answers Get.
		if r := st.Instance(k.namespace, k.service, k.id); r == nil || !c.same(r, got) {
			c.fault("content", "%s at revision %d: got %v", describeCall(call), st.Revision(), got)
		}
	case *apiv1.GetLeaseRequest:
		c.single(call, st, leaseOf(st, req.GetLeaseId()), call.Response.(*apiv1.GetLeaseResponse).GetLease()) //nolint:forcetypeassert // As above.
	case *apiv1.GetLockRequest:
		c.single(call, st, lockOf(st, req), call.Response.(*apiv1.GetLockResponse).GetLock()) //nolint:forcetypeassert // As above.
	case *apiv1.ListInstancesRequest:
		c.instances(call, req, st, before)
	case *apiv1.ListServicesRequest:
		c.page(call, before, summaries(st, req))
	case *apiv1.ListRequest:
		c.page(call, before, sessions(st))
	case *apiv1.ListLeasesRequest:
		c.page(call, before, leases(st))
	case *apiv1.ListLocksRequest:
		c.page(call, before, locks(st, req))
	}
}

func (c *contents) single(call *history.Call, st *fsm.State, want, got proto.Message) {
	if want == nil || !proto.Equal(want, got) {
		c.fault("content", "%s at revision %d: got %v, want %v", describeCall(call), st.Revision(), got, want)
	}
}

func (c *contents) instances(call *history.Call, req *apiv1.ListInstancesRequest, st *fsm.State, before *history.Call) {
	resp, _ := call.Response.(*apiv1.ListInstancesResponse)
	want := c.matching(req.GetFilter(), st)
	if before != nil {
		last := before.Response.(*apiv1.ListInstancesResponse).GetInstances() //nolint:forcetypeassert // Its token was of this method.
		for len(last) > 0 && len(want) > 0 && compareKeys(keyOf(last[len(last)-1]), keyOfRecord(want[0])) >= 0 {
			want = want[1:]
		}
	}
	got := resp.GetInstances()
	if !c.sized(call, len(got), len(want)) {
		return
	}
	for i := range got {
		if !c.same(want[i], got[i]) {
			c.fault("content", "%s at revision %d: item %d is %v, want %v",
				describeCall(call), st.Revision(), i, got[i], c.instance(want[i]))
			return
		}
	}
	revision := st.Revision()
	if name := req.GetFilter().GetService(); name != "" {
		svc := st.Service(namespaceOf(req.GetFilter()), name)
		if svc == nil {
			return // When a service went is not kept, so the answer can't say.
		}
		revision = svc.Revision()
	}
	if resp.GetServiceRevision() != revision {
		c.fault("content", "%s at revision %d: service revision %d, want %d",
			describeCall(call), st.Revision(), resp.GetServiceRevision(), revision)
	}
}

// sized tells whether a page with this number of items can be of a list with so many left.
func (c *contents) sized(call *history.Call, got, left int) bool {
	size := 1000
	if asked := int(call.Request.(interface{ GetPageSize() int32 }).GetPageSize()); asked > 0 { //nolint:forcetypeassert // All lists have it.
		size = min(asked, size)
	}
	isLast := nextPage(call.Response) == ""
	if got > min(size, left) || isLast && got < left {
		c.fault("content", "%s has %d items, the list has %d (more), the page %d; last page: %v", describeCall(call), got, left, size, isLast)
		return false
	}
	return true
}

// page holds a page of any other list against the whole list.
func (c *contents) page(call *history.Call, before *history.Call, want []proto.Message) {
	if before != nil {
		last := itemsOf(before.Response)
		for i := range want {
			if len(last) > 0 && proto.Equal(want[i], last[len(last)-1]) {
				want = want[i+1:]
				break
			}
		}
	}
	got := itemsOf(call.Response)
	if !c.sized(call, len(got), len(want)) {
		return
	}
	for i := range got {
		if !proto.Equal(got[i], want[i]) {
			c.fault("content", "%s at revision %d: item %d is %v, want %v",
				describeCall(call), call.Header().GetRevision(), i, got[i], want[i])
			return
		}
	}
}

func itemsOf(m proto.Message) []proto.Message {
	switch resp := m.(type) {
	case *apiv1.ListServicesResponse:
		return messages(resp.GetServices())
	case *apiv1.ListResponse:
		return messages(resp.GetSessions())
	case *apiv1.ListLeasesResponse:
		return messages(resp.GetLeases())
	case *apiv1.ListLocksResponse:
		return messages(resp.GetLocks())
	default:
		return nil
	}
}

func messages[M proto.Message](in []M) []proto.Message {
	out := make([]proto.Message, len(in))
	for i := range in {
		out[i] = in[i]
	}
	return out
}

// summaries counts the services anew, instance by instance.
func summaries(st *fsm.State, req *apiv1.ListServicesRequest) []proto.Message {
	namespace := namespaceOf(req)
	var list []proto.Message
	st.Services("", "", func(svc *fsm.Service) bool {
		if namespace != "*" && namespace != svc.Namespace() || !strings.HasPrefix(svc.Name(), req.GetPrefix()) {
			return true
		}
		s := &apiv1.ServiceSummary{Namespace: svc.Namespace(), Name: svc.Name(), Revision: svc.Revision()}
		svc.Ascend("", func(r *fsm.Record) bool {
			s.Instances++
			switch r.Health() {
			case registryv1.Health_HEALTH_PASSING:
				s.Passing++
			case registryv1.Health_HEALTH_WARNING:
				s.Warning++
			case registryv1.Health_HEALTH_CRITICAL:
				s.Critical++
			default:
				s.Other++
			}
			return true
		})
		list = append(list, s)
		return true
	})
	return list
}

func sessions(st *fsm.State) []proto.Message {
	var list []proto.Message
	st.Sessions("", func(s *fsm.Session) bool {
		list = append(list, s.Proto(st))
		return true
	})
	return list
}

func leases(st *fsm.State) []proto.Message {
	var list []proto.Message
	st.Leases("", func(l *fsm.Lease) bool {
		list = append(list, l.Proto(st))
		return true
	})
	return list
}

func locks(st *fsm.State, req *apiv1.ListLocksRequest) []proto.Message {
	namespace := namespaceOf(req)
	var list []proto.Message
	st.Locks("", "", func(l *fsm.Lock) bool {
		if namespace == "*" || namespace == l.Namespace {
			list = append(list, l.Proto())
		}
		return true
	})
	return list
}

func leaseOf(st *fsm.State, id string) proto.Message {
	if l := st.Lease(id); l != nil {
		return l.Proto(st)
	}
	return nil
}

func lockOf(st *fsm.State, req *apiv1.GetLockRequest) proto.Message {
	namespace := namespaceOf(req)
	if l := st.Lock(namespace, req.GetName()); l != nil {
		return l.Proto()
	}
	return nil
}

// absent checks a read that says that something does not exist. Such an answer has no revision: there must be one, of
// those that it can have been read at, where it is true.
func (c *contents) absent(call *history.Call, fresh *apiv1.Freshness) {
	var there func(*fsm.State) bool
	switch req := call.Request.(type) {
	case *apiv1.GetRequest:
		k := keyOf(req.GetKey())
		there = func(st *fsm.State) bool { return st.Instance(k.namespace, k.service, k.id) != nil }
	case *apiv1.GetLeaseRequest:
		there = func(st *fsm.State) bool { return st.Lease(req.GetLeaseId()) != nil }
	case *apiv1.GetLockRequest:
		there = func(st *fsm.State) bool { return lockOf(st, req) != nil }
	}
	if there == nil || !saysAbsent(call.Reason) {
		return
	}
	from, to := c.leastAsked(call, fresh), c.mostAt(call.Ended)
	for at := from; ; {
		st := c.upTo(at)
		if !there(st) {
			return
		}
		if at = c.next(at); at > to {
			break
		}
	}
	c.fault("content-absent", "%s says %v, and revisions %d to %d all have it", describeCall(call), call.Reason, from, to)
}

func saysAbsent(reason apiv1.Reason) bool {
	return reason == apiv1.Reason_REASON_INSTANCE_NOT_FOUND || reason == apiv1.Reason_REASON_LEASE_NOT_FOUND ||
		reason == apiv1.Reason_REASON_LOCK_NOT_FOUND
}
