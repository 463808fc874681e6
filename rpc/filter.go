package rpc

import (
	"slices"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// filter is a compiled apiv1.Filter. It is immutable.
type filter struct {
	namespace  string      // allNamespaces for all
	service    string      // empty for all
	conditions *conditions // nil for none, as most have it
	// visible says which services the caller may see, where the filter is about several. nil: all.
	visible func(namespace, service string) bool
}

// conditions are what more has to hold.
type conditions struct {
	minHealth registryv1.Health
	tags      []string
	zone      string
	metadata  []metadataPair
}

type metadataPair struct{ key, value string }

// compileFilter makes a canonical filter fast.
func compileFilter(in *apiv1.Filter) filter {
	out := filter{namespace: in.GetNamespace(), service: in.GetService()}
	if in.GetMinHealth() == 0 && len(in.GetTags()) == 0 && in.GetZone() == "" && len(in.GetMetadata()) == 0 {
		return out
	}
	out.conditions = &conditions{minHealth: in.GetMinHealth(), tags: in.GetTags(), zone: in.GetZone()}
	for key, value := range in.GetMetadata() {
		out.conditions.metadata = append(out.conditions.metadata, metadataPair{key, value})
	}
	return out
}

// match tells whether all that is set holds for the instance.
func (f *filter) match(r *fsm.Record) bool {
	return (f.service == "" || f.service == r.Service()) &&
		(f.namespace == allNamespaces || f.namespace == r.Namespace()) &&
		(f.conditions == nil || f.conditions.hold(r)) && f.shows(r.Namespace(), r.Service())
}

// shows tells whether the caller may see the service.
func (f *filter) shows(namespace, service string) bool {
	return f.visible == nil || f.visible(namespace, service)
}

// wide tells whether the filter is about several services.
func (f *filter) wide() bool { return f.service == "" || f.namespace == allNamespaces }

func (c *conditions) hold(r *fsm.Record) bool {
	if r.Health() < c.minHealth || c.zone != "" && c.zone != r.Zone() {
		return false
	}
	for _, tag := range c.tags {
		if !slices.Contains(r.Tags(), tag) {
			return false
		}
	}
	for _, pair := range c.metadata {
		if value, ok := r.Metadata(pair.key); !ok || value != pair.value {
			return false
		}
	}
	return true
}

// topic covers all events that can concern the filter.
func (f *filter) topic() feed.Topic {
	return feed.Topic{Kind: fsm.EventInstance, Namespace: f.namespace, Name: f.service}
}

// each calls fn for the matching instances, sorted by namespace, service and id, until it returns false.
func (f *filter) each(st *fsm.State, fn func(*fsm.Record) bool) {
	goOn := true
	visit := func(svc *fsm.Service) bool {
		if !f.shows(svc.Namespace(), svc.Name()) {
			return true
		}
		svc.Ascend("", func(r *fsm.Record) bool {
			goOn = !f.match(r) || fn(r)
			return goOn
		})
		return goOn
	}
	if f.namespace != allNamespaces && f.service != "" {
		if svc := st.Service(f.namespace, f.service); svc != nil {
			visit(svc)
		}
		return
	}
	after := ""
	if f.namespace != allNamespaces {
		after = f.namespace
	}
	st.Services(after, "", func(svc *fsm.Service) bool {
		if f.namespace != allNamespaces && svc.Namespace() != f.namespace {
			return false // Sorted: there are no more.
		}
		return f.service != "" && svc.Name() != f.service || visit(svc)
	})
}
