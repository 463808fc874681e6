package rpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// upgraded has all members of the node's cluster know of namespaces and history.
func (n *fakeNode) upgraded(tb testing.TB) {
	tb.Helper()
	n.upgradedTo(tb, fsm.HistoryLevel)
}

// upgradedTo has all members of the node's cluster know of a feature level.
func (n *fakeNode) upgradedTo(tb testing.TB, level uint32) {
	tb.Helper()
	n.mustApply(tb, &raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
		Member: &registryv1.Member{Id: "id1", Name: "n1", FeatureLevel: level},
	}}})
}

func (r *rig) namespaces() apiv1.NamespaceServiceClient {
	return apiv1.NewNamespaceServiceClient(r.conn)
}

// bound gives a namespace a quota.
func (r *rig) bound(tb testing.TB, name string, quota *registryv1.Quota) {
	tb.Helper()
	if r.node.feed.State().FeatureLevel() < fsm.HistoryLevel {
		r.node.upgraded(tb)
	}
	if _, err := r.namespaces().PutNamespace(bg, &apiv1.PutNamespaceRequest{
		Namespace: &registryv1.Namespace{Name: name, Quota: quota},
	}); err != nil {
		tb.Fatal(err)
	}
}

func in(namespace, service, id string) *registryv1.Instance {
	i := instance(service, id)
	i.Namespace = namespace
	return i
}

// factsOfError are the facts of an error that a client gets.
func factsOfError(err error) map[string]string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetMetadata()
		}
	}
	return nil
}

func TestNamespacesArePutListedAndDeleted(t *testing.T) {
	r := newRig(t)
	ns := r.namespaces()
	_, err := ns.PutNamespace(bg, &apiv1.PutNamespaceRequest{Namespace: &registryv1.Namespace{Name: "team-a"}})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_FEATURE_LEVEL)
	r.node.upgraded(t)
	entry := &registryv1.Namespace{Name: "team-a", Description: "ours", Quota: &registryv1.Quota{
		MaxInstances: 5, MaxLocks: 4, MaxWatches: 3, MaxWritesPerSecond: 100,
	}}
	for _, want := range []bool{true, false} {
		put, putErr := ns.PutNamespace(bg, &apiv1.PutNamespaceRequest{Namespace: entry})
		if putErr != nil || put.GetChanged() != want {
			t.Fatalf("put: changed %t, %v; want %t", put.GetChanged(), putErr, want)
		}
	}
	session := r.openSession(t)
	r.register(t, in("team-a", "web", "1"))
	r.register(t, in("team-b", "web", "1"))
	if _, err = r.locks.Acquire(bg, &apiv1.AcquireRequest{Namespace: "team-a", Name: "l", SessionId: session}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for token := ""; ; { // Page by page.
		list, listErr := ns.ListNamespaces(bg, &apiv1.ListNamespacesRequest{PageSize: 1, PageToken: token})
		if listErr != nil {
			t.Fatal(listErr)
		}
		for _, n := range list.GetNamespaces() {
			got = append(got, fmt.Sprintf("%s %d %d", n.GetNamespace().GetName(), n.GetInstances(), n.GetLocks()))
		}
		if token = list.GetNextPageToken(); token == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"team-a 1 1", "team-b 1 0"}, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	found, err := ns.GetNamespace(bg, &apiv1.GetNamespaceRequest{Name: "team-a"})
	entry.ModifyRevision = found.GetNamespace().GetNamespace().GetModifyRevision()
	if diff := cmp.Diff(entry, found.GetNamespace().GetNamespace(), protocmp.Transform()); err != nil || diff != "" || entry.GetModifyRevision() == 0 {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, want := range []bool{true, false} {
		deleted, deleteErr := ns.DeleteNamespace(bg, &apiv1.DeleteNamespaceRequest{Name: "team-a"})
		if deleteErr != nil || deleted.GetChanged() != want {
			t.Errorf("delete: changed %t, %v; want %t", deleted.GetChanged(), deleteErr, want)
		}
	}
	found, err = ns.GetNamespace(bg, &apiv1.GetNamespaceRequest{Name: "team-a"})
	if n := found.GetNamespace(); err != nil || n.GetNamespace().GetModifyRevision() != 0 || n.GetInstances() != 1 || n.GetLocks() != 1 {
		t.Errorf("after it was deleted: %v, %v", n, err)
	}
	for name, req := range map[string]*registryv1.Namespace{
		"namespace":                     nil,
		"namespace.name":                {Name: "Team"},
		"namespace.description":         {Name: "a", Description: strings.Repeat("x", 257)},
		"namespace.quota.max_instances": {Name: "a", Quota: &registryv1.Quota{MaxInstances: MaxQuota + 1}},
	} {
		_, err = ns.PutNamespace(bg, &apiv1.PutNamespaceRequest{Namespace: req})
		wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %s", err, name)
		}
	}
}

// Whoever is refused by a quota learns what is full and what to do, and nothing of it was done.
func TestQuotasOfInstancesAndLocksAreTold(t *testing.T) {
	r := newRig(t)
	r.bound(t, "team-a", &registryv1.Quota{MaxInstances: 1, MaxLocks: 1})
	session := r.openSession(t)
	r.register(t, in("team-a", "web", "1"))
	r.register(t, in("team-a", "web", "1"))
	r.register(t, in("other", "web", "1"))
	_, err := r.registry.Register(bg, &apiv1.RegisterRequest{Instance: in("team-a", "db", "1")})
	wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_QUOTA_EXCEEDED)
	want := map[string]string{
		"namespace": "team-a", "resource": "instances", "used": "1", "limit": "1", "retryable": "false", "service": "db", "id": "1",
	}
	facts := factsOfError(err)
	for key, value := range want {
		if facts[key] != value {
			t.Errorf("%s is %q, want %q", key, facts[key], value)
		}
	}
	if !strings.Contains(facts["hint"], "regd namespaces put") || !strings.Contains(err.Error(), "namespace team-a may have 1 instances, and has 1") {
		t.Errorf("%v, hint %q", err, facts["hint"])
	}
	_, err = r.registry.RegisterBatch(bg, &apiv1.RegisterBatchRequest{
		Register: []*registryv1.Instance{in("other", "web", "2"), in("team-a", "db", "1")},
	})
	wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_QUOTA_EXCEEDED)
	if r.node.feed.State().Instance("other", "web", "2") != nil {
		t.Error("half of the batch was done")
	}
	acquire := &apiv1.AcquireRequest{Namespace: "team-a", Name: "l", SessionId: session}
	if _, err = r.locks.Acquire(bg, acquire); err != nil {
		t.Fatal(err)
	}
	acquire.Name = "m"
	_, err = r.locks.Acquire(bg, acquire)
	wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_QUOTA_EXCEEDED)
	if got := factsOfError(err)["resource"]; got != "locks" {
		t.Errorf("resource %q", got)
	}
}

func TestWritesOfANamespaceArePaced(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.bound(t, "team-a", &registryv1.Quota{MaxWritesPerSecond: 10})
		write := func(id string) error {
			_, err := r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: in("team-a", "web", id)})
			return err
		}
		for i := range 10 {
			if err := write(fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		err := write("more")
		wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_RATE_LIMITED)
		delay := time.Duration(0)
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				delay = info.GetRetryDelay().AsDuration()
			}
		}
		if delay <= 0 || delay > 100*time.Millisecond || factsOfError(err)["limit"] != "10" {
			t.Fatalf("come back after %v, %v", delay, factsOfError(err))
		}
		// What frees is let in, and so is what is elsewhere.
		key := &apiv1.InstanceKey{Namespace: "team-a", Service: "web", Id: "1"}
		if _, err = r.registry.Deregister(ctx, &apiv1.DeregisterRequest{Key: key}); err != nil {
			t.Error(err)
		}
		r.register(t, instance("web", "1"))
		for what, err := range map[string]error{
			"drain":       drop(r.registry.Drain(ctx, &apiv1.DrainRequest{Key: key})),
			"maintenance": drop(r.registry.SetMaintenance(ctx, &apiv1.SetMaintenanceRequest{Key: key, Maintenance: true})),
			"acquire":     drop(r.locks.Acquire(ctx, &apiv1.AcquireRequest{Namespace: "team-a", Name: "l", SessionId: r.openSession(t)})),
		} {
			if reasonOfError(err) != "RATE_LIMITED" {
				t.Errorf("%s: %v", what, err)
			}
		}
		time.Sleep(delay)
		if err = write("more"); err != nil {
			t.Errorf("after the delay: %v", err)
		}
		// A batch beyond the rate is taken at once, and the next write waits for it.
		time.Sleep(time.Second)
		batch := &apiv1.RegisterBatchRequest{}
		for i := range 25 {
			batch.Register = append(batch.Register, in("team-a", "batch", fmt.Sprint(i)))
		}
		if _, err = r.registry.RegisterBatch(ctx, batch); err != nil {
			t.Error(err)
		}
		time.Sleep(1500 * time.Millisecond)
		if err = write("after"); reasonOfError(err) != "RATE_LIMITED" {
			t.Errorf("1.5 s after a batch of 2.5 s: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
		if err = write("after"); err != nil {
			t.Errorf("1.7 s after a batch of 2.5 s: %v", err)
		}
		// Without the limit nobody is held back.
		r.bound(t, "team-a", nil)
		for i := range 20 {
			if err = write(fmt.Sprint("free", i)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func drop(_ any, err error) error { return err }

func TestMetersAreBounded(t *testing.T) {
	var q quotas
	st := fsm.New()
	put := func(n int, limit uint64) {
		data, err := encodeCommand(&raftlogv1.Command{Level: fsm.HistoryLevel, Kind: &raftlogv1.Command_PutNamespace{
			PutNamespace: &raftlogv1.PutNamespace{Namespace: &registryv1.Namespace{
				Name: fmt.Sprint(n % fsm.MaxNamespaces), Quota: &registryv1.Quota{MaxWritesPerSecond: limit},
			}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if st, _, err = st.Apply(fsm.Entry{Index: st.Index() + 1, Term: 1, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	q.meters = map[string]*meter{}
	for n := range fsm.MaxNamespaces {
		q.meters[fmt.Sprint("gone", n)] = new(meter)
	}
	put(7, 1)
	if err := q.writeOne(st, "7", 1); err != nil || len(q.meters) != 1 {
		t.Errorf("%v, %d meters", err, len(q.meters))
	}
	if err := q.writeOne(st, "7", 1); !errors.Is(err, ErrRateLimited) {
		t.Errorf("%v, want it limited", err)
	}
}

func TestWatchesOfANamespaceAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.bound(t, "team-a", &registryv1.Quota{MaxWatches: 2})
		one, cancel := context.WithCancel(ctx)
		first := newFollower(one, t, r.registry)
		watch := func(id uint32, namespace string) *apiv1.Subscribe {
			return &apiv1.Subscribe{SubscriptionId: id, Filter: &apiv1.Filter{Namespace: namespace, Service: "web"}}
		}
		first.subscribe(watch(1, "team-a"))
		locked, unlock := context.WithCancel(ctx)
		lock, err := r.locks.WatchLock(locked, &apiv1.WatchLockRequest{Namespace: "team-a", Name: "l"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = lock.Recv(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		stream, err := r.registry.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(s *apiv1.Subscribe) *apiv1.WatchResponse {
			t.Helper()
			if sendErr := stream.Send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: s}}); sendErr != nil {
				t.Fatal(sendErr)
			}
			m, recvErr := stream.Recv()
			if recvErr != nil {
				t.Fatal(recvErr)
			}
			return m
		}
		if e := ask(watch(1, "team-a")).GetEnded(); e.GetReason() != "QUOTA_EXCEEDED" || !strings.Contains(e.GetMessage(), "2 watches at each node") {
			t.Errorf("ended %v", e)
		}
		refused, err := r.locks.WatchLock(ctx, &apiv1.WatchLockRequest{Namespace: "team-a", Name: "l"})
		if err == nil {
			_, err = refused.Recv()
		}
		wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_QUOTA_EXCEEDED)
		// Others, and watches of all namespaces, are not concerned.
		if m := ask(watch(2, "team-b")); m.GetCut() == nil {
			t.Errorf("elsewhere: %v", m)
		}
		if got := metricsOf(t, r.server); !strings.Contains(got, `regd_namespace_used{namespace="team-a",resource="watches"} 2`+"\n") ||
			!strings.Contains(got, `regd_namespace_limit{namespace="team-a",resource="watches"} 2`+"\n") ||
			strings.Contains(got, `regd_namespace_limit{namespace="team-a",resource="locks"}`) || strings.Contains(got, "team-b") {
			t.Errorf("metrics:\n%s", got)
		}
		// What ends makes room, however it ends.
		cancel()
		unlock()
		synctest.Wait()
		if n := r.server.core.quotas.watching("team-a"); n != 0 {
			t.Fatalf("%d watches are counted, none is open", n)
		}
		second := newFollower(ctx, t, r.registry)
		second.subscribe(watch(1, "team-a"))
		second.subscribe(watch(2, "team-a"))
		synctest.Wait()
		if n := r.server.core.quotas.watching("team-a"); n != 2 {
			t.Errorf("%d watches are counted, 2 are open", n)
		}
		second.unsubscribe(1)
		synctest.Wait()
		if n := r.server.core.quotas.watching("team-a"); n != 1 {
			t.Errorf("%d watches are counted, 1 is open", n)
		}
	})
}

// metricsOf are the metrics of namespaces as Prometheus reads them.
func metricsOf(t *testing.T, s *Server) string {
	t.Helper()
	reg, page := prometheus.NewRegistry(), httptest.NewRecorder()
	reg.MustRegister(quotaMetrics{s.core})
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	return page.Body.String()
}
