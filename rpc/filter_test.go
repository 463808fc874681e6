package rpc

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestFilterChoosesWhatMatches(t *testing.T) {
	n := newFakeNode(t)
	for _, in := range []*registryv1.Instance{
		{Service: "web", Id: "1", Tags: []string{"a", "b"}, Zone: "z1", Metadata: map[string]string{"k": "v", "l": ""}},
		{Service: "web", Id: "2", Tags: []string{"b"}, Zone: "z2", Metadata: map[string]string{"k": "w"}},
		{Service: "db", Id: "1", Tags: []string{"a"}},
		{Namespace: "other", Service: "web", Id: "1", Tags: []string{"a"}},
		{Namespace: "z", Service: "web", Id: "1"},
	} {
		in.Address = "10.0.0.1"
		n.put(t, in)
	}
	n.mustApply(t, maintenance("web", "2", true))
	for _, tc := range []struct {
		name   string
		filter *apiv1.Filter
		want   []string
	}{
		{"none", nil, []string{"default/db/1", "default/web/1", "default/web/2"}},
		{"namespace", &apiv1.Filter{Namespace: "other"}, []string{"other/web/1"}},
		{"a namespace that is not there", &apiv1.Filter{Namespace: "nowhere"}, nil},
		{"all namespaces", &apiv1.Filter{Namespace: "*"}, []string{"default/db/1", "default/web/1", "default/web/2", "other/web/1", "z/web/1"}},
		{"service", &apiv1.Filter{Service: "web"}, []string{"default/web/1", "default/web/2"}},
		{"a service in all namespaces", &apiv1.Filter{Namespace: "*", Service: "web"}, []string{"default/web/1", "default/web/2", "other/web/1", "z/web/1"}},
		{"a service that is not there", &apiv1.Filter{Service: "nothing"}, nil},
		{"tag", &apiv1.Filter{Namespace: "*", Tags: []string{"a"}}, []string{"default/db/1", "default/web/1", "other/web/1"}},
		{"tags", &apiv1.Filter{Tags: []string{"b", "a"}}, []string{"default/web/1"}},
		{"zone", &apiv1.Filter{Zone: "z2"}, []string{"default/web/2"}},
		{"metadata", &apiv1.Filter{Metadata: map[string]string{"k": "v"}}, []string{"default/web/1"}},
		{"empty metadata", &apiv1.Filter{Metadata: map[string]string{"l": ""}}, []string{"default/web/1"}},
		{"health", &apiv1.Filter{Service: "web", MinHealth: registryv1.Health_HEALTH_WARNING}, []string{"default/web/1"}},
		{"all", &apiv1.Filter{Service: "web", Zone: "z1", Tags: []string{"a"}, Metadata: map[string]string{"k": "w"}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var faulty faults
			f := compileFilter(faulty.filter(tc.filter))
			if err := faulty.err(); err != nil {
				t.Fatal(err)
			}
			var got []string
			f.each(n.feed.State(), func(r *fsm.Record) bool {
				got = append(got, r.Namespace()+"/"+r.Service()+"/"+r.ID())
				return true
			})
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(tc.want) > 1 {
				count := 0
				f.each(n.feed.State(), func(*fsm.Record) bool { count++; return false })
				if count != 1 {
					t.Errorf("%d instances after the first one was enough", count)
				}
			}
			for key := range matching(t, n.feed.State(), tc.filter) {
				if !slices.Contains(tc.want, key) {
					t.Errorf("the tests' own idea of a filter chooses %s", key)
				}
			}
		})
	}
}

func TestBadFilterIsRefused(t *testing.T) {
	for _, in := range []*apiv1.Filter{
		{Namespace: "A"}, {Service: "/"}, {Tags: make([]string, 17)}, {Zone: "\x00"}, {MinHealth: 99},
	} {
		var f faults
		if f.filter(in); !errors.Is(f.err(), ErrInvalid) {
			t.Errorf("filter %v: %v", in, f.err())
		}
	}
}
