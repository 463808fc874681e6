package rpc

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// world registers three services in two namespaces.
func (r *rig) world(tb testing.TB) {
	tb.Helper()
	for _, service := range []string{"api", "web", "web-admin"} {
		many(3, func(i int) {
			in := instance(service, fmt.Sprint(i))
			in.Tags = []string{fmt.Sprint("t", i)}
			in.Zone = fmt.Sprint("z", i%2)
			in.Metadata = map[string]string{"n": fmt.Sprint(i)}
			r.register(tb, in)
		})
	}
	other := instance("web", "other")
	other.Namespace = "prod"
	r.register(tb, other)
}

func names(instances []*registryv1.Instance) []string {
	var out []string
	for _, in := range instances {
		out = append(out, in.GetNamespace()+"/"+in.GetService()+"/"+in.GetId())
	}
	return out
}

func TestListInstancesFilters(t *testing.T) {
	r := newRig(t)
	r.world(t)
	if _, err := r.registry.Drain(bg, &apiv1.DrainRequest{Key: webKey("2")}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		filter *apiv1.Filter
		want   []string
	}{
		{"service", &apiv1.Filter{Service: "web"}, []string{"default/web/0", "default/web/1", "default/web/2"}},
		{"service of a namespace", &apiv1.Filter{Namespace: "prod", Service: "web"}, []string{"prod/web/other"}},
		{"service of all namespaces", &apiv1.Filter{Namespace: "*", Service: "web"}, []string{"default/web/0", "default/web/1", "default/web/2", "prod/web/other"}},
		{"namespace", &apiv1.Filter{Namespace: "prod"}, []string{"prod/web/other"}},
		{"tag", &apiv1.Filter{Tags: []string{"t1"}}, []string{"default/api/1", "default/web/1", "default/web-admin/1"}},
		{"two tags", &apiv1.Filter{Tags: []string{"t1", "t2"}}, nil},
		{"zone", &apiv1.Filter{Service: "api", Zone: "z0"}, []string{"default/api/0", "default/api/2"}},
		{"metadata", &apiv1.Filter{Service: "api", Metadata: map[string]string{"n": "2"}}, []string{"default/api/2"}},
		{"health", &apiv1.Filter{Service: "web", MinHealth: registryv1.Health_HEALTH_PASSING}, []string{"default/web/0", "default/web/1"}},
		{"nothing of that name", &apiv1.Filter{Service: "nope"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{Filter: tt.filter})
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(tt.want, names(resp.GetInstances())); diff != "" {
				t.Errorf("instances (-want +got):\n%s", diff)
			}
			if resp.GetNextPageToken() != "" {
				t.Error("there is another page of a list that fits on one")
			}
		})
	}
}

func TestListInstancesIsWhatGetSays(t *testing.T) {
	r := newRig(t)
	r.registerChecked(t, "beat")
	resp, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]*registryv1.Instance{r.get(t, "1")}, resp.GetInstances(), protocmp.Transform()); diff != "" {
		t.Errorf("instances (-get +list):\n%s", diff)
	}
}

func TestServiceRevisionIsOfTheServiceAlone(t *testing.T) {
	r := newRig(t)
	want := r.register(t, instance("web", "1")).GetHeader().GetRevision()
	last := r.register(t, instance("api", "1")).GetHeader().GetRevision()
	for filter, revision := range map[*apiv1.Filter]uint64{{Service: "web"}: want, {}: last, {Service: "nope"}: last} {
		resp, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{Filter: filter})
		if err != nil || resp.GetServiceRevision() != revision {
			t.Errorf("filter %v: service revision %d (%v), want %d", filter, resp.GetServiceRevision(), err, revision)
		}
	}
}

// pages lists everything, n at a time, and calls between after each page.
func (r *rig) pages(tb testing.TB, filter *apiv1.Filter, n int32, between func()) (all []*registryv1.Instance, revisions []uint64) {
	tb.Helper()
	req := &apiv1.ListInstancesRequest{Filter: filter, PageSize: n}
	for {
		resp, err := r.registry.ListInstances(bg, req)
		if err != nil {
			tb.Fatalf("page %q: %v", req.GetPageToken(), err)
		}
		if len(resp.GetInstances()) > int(n) {
			tb.Fatalf("a page has %d instances, want at most %d", len(resp.GetInstances()), n)
		}
		all, revisions = append(all, resp.GetInstances()...), append(revisions, resp.GetHeader().GetRevision())
		if resp.GetNextPageToken() == "" {
			return all, revisions
		}
		req.PageToken = resp.GetNextPageToken()
		between()
	}
}

func TestPagesOfOneListShowOneRevision(t *testing.T) {
	for _, filter := range []*apiv1.Filter{{}, {Service: "web"}, {Namespace: "*", Service: "web"}, {Namespace: "*"}} {
		for n := int32(1); n <= 4; n++ {
			t.Run(fmt.Sprint(filter, " by ", n), func(t *testing.T) {
				r := newRig(t)
				r.world(t)
				whole, _ := r.pages(t, filter, MaxPageSize, func() {})
				writes := 0
				got, revisions := r.pages(t, filter, n, func() {
					// What comes before, after and at the place where the list goes on.
					writes++
					r.register(t, instance("api", fmt.Sprint("new", writes)))
					r.register(t, instance("web", fmt.Sprint("new", writes)))
					if _, err := r.registry.Deregister(bg, &apiv1.DeregisterRequest{Key: webKey("1")}); err != nil {
						t.Fatal(err)
					}
				})
				if diff := gocmp.Diff(whole, got, protocmp.Transform()); diff != "" {
					t.Errorf("pages differ from the whole (-whole +pages):\n%s", diff)
				}
				if len(slices.Compact(revisions)) != 1 {
					t.Errorf("pages are of the revisions %v", revisions)
				}
			})
		}
	}
}

func TestPageTokenIsOfOneRequest(t *testing.T) {
	r := newRig(t)
	r.world(t)
	first, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Tags: []string{"t1"}}, PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	token := first.GetNextPageToken()
	// Another size and the same filter said otherwise go on.
	_, err = r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{
		Filter: &apiv1.Filter{Namespace: "default", Tags: []string{"t1"}}, PageSize: 7, PageToken: token,
	})
	if err != nil {
		t.Errorf("the same list with another page size: %v", err)
	}
	for name, req := range map[string]*apiv1.ListInstancesRequest{
		"another filter": {PageToken: token},
		"garbage":        {PageToken: "%%%"},
		"cut":            {Filter: &apiv1.Filter{Tags: []string{"t1"}}, PageToken: token[:len(token)-4]},
		"endless":        {PageToken: long(MaxPageTokenLen + 1)},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := r.registry.ListInstances(bg, req)
			wantReason(t, got, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		})
	}
	_, err = r.registry.ListServices(bg, &apiv1.ListServicesRequest{PageToken: token})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
}

func TestPageExpiresWithItsState(t *testing.T) {
	r := newRig(t)
	r.world(t)
	var tokens []string
	// Each list that goes on keeps a State, and the node keeps only so many.
	many(200, func(i int) {
		resp, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{PageSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, resp.GetNextPageToken())
		r.register(t, instance("new", fmt.Sprint(i)))
	})
	_, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{PageSize: 1, PageToken: tokens[0]})
	wantReason(t, err, codes.OutOfRange, apiv1.Reason_REASON_PAGE_EXPIRED)
	if _, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{PageSize: 1, PageToken: tokens[len(tokens)-1]}); err != nil {
		t.Errorf("the last list doesn't go on: %v", err)
	}
}

func TestPageSizeIsValidated(t *testing.T) {
	r := newRig(t)
	_, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{PageSize: -1})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	var f faults
	for asked, want := range map[int32]int{0: MaxPageSize, 1: 1, MaxPageSize: MaxPageSize, MaxPageSize + 1: MaxPageSize} {
		if got := f.pageSize(asked); got != want {
			t.Errorf("page size %d becomes %d, want %d", asked, got, want)
		}
	}
}

func TestPagesAreBoundedInBytes(t *testing.T) {
	r := newRig(t)
	big := map[string]string{}
	many(7, func(i int) { big[fmt.Sprint(i)] = long(MaxMetadataValueLen) })
	for b := range 2 {
		req := &apiv1.RegisterBatchRequest{}
		many(250, func(i int) {
			in := instance("web", fmt.Sprint(b, "-", i))
			in.Metadata = big
			req.Register = append(req.Register, in)
		})
		if _, err := r.registry.RegisterBatch(bg, req); err != nil {
			t.Fatal(err)
		}
	}
	// 500 instances of 3.6 KiB fit; a thousand do not.
	if _, revisions := r.pages(t, nil, MaxPageSize, func() {}); len(revisions) != 1 {
		t.Errorf("%d pages for 1.8 MiB, want 1", len(revisions))
	}
	for b := 2; b < 4; b++ {
		req := &apiv1.RegisterBatchRequest{}
		many(250, func(i int) {
			in := instance("web", fmt.Sprint(b, "-", i))
			in.Metadata = big
			req.Register = append(req.Register, in)
		})
		if _, err := r.registry.RegisterBatch(bg, req); err != nil {
			t.Fatal(err)
		}
	}
	if all, revisions := r.pages(t, nil, MaxPageSize, func() {}); len(revisions) != 2 || len(all) != 1000 {
		t.Errorf("%d instances on %d pages for 3.6 MiB, want 1000 on 2", len(all), len(revisions))
	}
}

func TestListServices(t *testing.T) {
	r := newRig(t)
	r.world(t)
	if _, err := r.registry.Drain(bg, &apiv1.DrainRequest{Key: webKey("2")}); err != nil {
		t.Fatal(err)
	}
	list := func(req *apiv1.ListServicesRequest) []string {
		t.Helper()
		var out []string
		for {
			resp, err := r.registry.ListServices(bg, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range resp.GetServices() {
				out = append(out, fmt.Sprintf("%s/%s %d=%d+%d", s.GetNamespace(), s.GetName(), s.GetInstances(), s.GetPassing(), s.GetOther()))
			}
			if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
				return out
			}
		}
	}
	for _, tt := range []struct {
		name string
		req  *apiv1.ListServicesRequest
		want []string
	}{
		{"default namespace", &apiv1.ListServicesRequest{}, []string{"default/api 3=3+0", "default/web 3=2+1", "default/web-admin 3=3+0"}},
		{"prefix", &apiv1.ListServicesRequest{Prefix: "web"}, []string{"default/web 3=2+1", "default/web-admin 3=3+0"}},
		{"prefix of all namespaces", &apiv1.ListServicesRequest{Namespace: "*", Prefix: "web"}, []string{"default/web 3=2+1", "default/web-admin 3=3+0", "prod/web 1=1+0"}},
		{"one at a time", &apiv1.ListServicesRequest{Namespace: "*", PageSize: 1}, []string{"default/api 3=3+0", "default/web 3=2+1", "default/web-admin 3=3+0", "prod/web 1=1+0"}},
		{"namespace that is empty", &apiv1.ListServicesRequest{Namespace: "nope"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := gocmp.Diff(tt.want, list(tt.req)); diff != "" {
				t.Errorf("services (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPageTokenRoundTrip(t *testing.T) {
	for _, want := range []pageToken{
		{1, 2, 3, []string{"a"}},
		{1 << 60, 1 << 61, 1 << 62, []string{"default", "web", "id/with:odd@signs"}},
		{0, 0, 0, []string{""}},
	} {
		got, ok := decodePageToken(want.encode())
		if !ok || got.epoch != want.epoch || got.revision != want.revision || got.request != want.request || !slices.Equal(got.after, want.after) {
			t.Errorf("token %v becomes %v, %v", want, got, ok)
		}
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add("")
	f.Add("\n")
	f.Add(pageToken{1, 2, 3, []string{"a", "b"}}.encode())
	f.Add(base64.RawURLEncoding.EncodeToString([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, s string) {
		token, ok := decodePageToken(s)
		if !ok {
			return
		}
		again, ok := decodePageToken(token.encode())
		if !ok || cmp.Compare(again.revision, token.revision) != 0 || !slices.Equal(again.after, token.after) {
			t.Fatalf("token %v becomes %v, %v", token, again, ok)
		}
	})
}

// BenchmarkListInstances lists 1,000 instances over an in-memory connection.
func BenchmarkListInstances(b *testing.B) {
	r := newRig(b)
	req := &apiv1.RegisterBatchRequest{}
	many(MaxBatch, func(i int) {
		in := instance("web", fmt.Sprint(i))
		in.Tags = []string{"a", "b", "c"}
		in.Metadata = map[string]string{"version": "1.2.3", "commit": "abcdef"}
		req.Register = append(req.Register, in)
	})
	if _, err := r.registry.RegisterBatch(bg, req); err != nil {
		b.Fatal(err)
	}
	server := &registryServer{core: r.server.core}
	b.Run("handler and encoding", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			resp, err := server.ListInstances(bg, &apiv1.ListInstancesRequest{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := proto.Marshal(resp); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decoded and encoded again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			resp := &apiv1.ListInstancesResponse{}
			r.node.feed.State().Service("default", "web").Ascend("", func(record *fsm.Record) bool {
				in, err := record.Proto()
				if err != nil {
					b.Fatal(err)
				}
				resp.Instances = append(resp.Instances, in)
				return true
			})
			if _, err := proto.Marshal(resp); err != nil {
				b.Fatal(err)
			}
		}
	})
}
