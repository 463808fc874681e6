package rpc

import (
	"context"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// get returns one instance, as an encoded GetResponse.
func (s *registryServer) get(ctx context.Context, req *apiv1.GetRequest) (*encoded, error) {
	var f faults
	key, fresh := f.key("key", req.GetKey()), f.freshness(req.GetFreshness())
	if err := f.err(); err != nil {
		return nil, err
	}
	st, header, err := s.view(ctx, fresh)
	if err != nil {
		return nil, aboutInstance(err, "get", key)
	}
	record := st.Instance(key.GetNamespace(), key.GetService(), key.GetId())
	if record == nil {
		return nil, aboutInstance(fsm.ErrNotFound, "get", key)
	}
	return withInstances(&apiv1.GetResponse{Header: header}, []*fsm.Record{record})
}

// ListServices lists services, sorted by namespace and name.
func (s *registryServer) ListServices(
	ctx context.Context, req *apiv1.ListServicesRequest,
) (*apiv1.ListServicesResponse, error) {
	var f faults
	what := &apiv1.ListServicesRequest{
		Namespace: f.anyNamespace("namespace", req.GetNamespace()), Prefix: req.GetPrefix(),
	}
	f.optionalName("prefix", req.GetPrefix(), MaxServiceLen)
	p, err := s.openPage(ctx, &f, what, req)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListServicesResponse{Header: p.header}
	visible := s.visible(ctx, registryv1.Action_ACTION_DISCOVER)
	var last *fsm.Service
	services(p.state, what.GetNamespace(), p.last(0), p.last(1), func(svc *fsm.Service) bool {
		if !strings.HasPrefix(svc.Name(), what.GetPrefix()) || visible != nil && !visible(svc.Namespace(), svc.Name()) {
			return true
		}
		summary := summaryOf(svc)
		if !p.take(proto.Size(summary)) {
			resp.NextPageToken = p.next(last.Namespace(), last.Name())
			return false
		}
		resp.Services, last = append(resp.Services, summary), svc
		return true
	})
	return resp, nil
}

// services visits the services of a namespace ("*": of all) after the given one.
func services(st *fsm.State, namespace, afterNS, afterName string, visit func(*fsm.Service) bool) {
	if namespace == allNamespaces {
		st.Services(afterNS, afterName, visit)
		return
	}
	st.Services(namespace, afterName, func(svc *fsm.Service) bool {
		return svc.Namespace() == namespace && visit(svc)
	})
}

func summaryOf(svc *fsm.Service) *apiv1.ServiceSummary {
	n := svc.Counts()
	return &apiv1.ServiceSummary{
		Namespace: svc.Namespace(),
		Name:      svc.Name(),
		Instances: n.Instances,
		Passing:   n.Passing,
		Warning:   n.Warning,
		Critical:  n.Critical,
		Other:     n.Starting + n.Draining + n.Maintenance,
		Revision:  svc.Revision(),
	}
}

// listInstances lists instances, sorted by namespace, service and id, as an encoded ListInstancesResponse.
func (s *registryServer) listInstances(ctx context.Context, req *apiv1.ListInstancesRequest) (*encoded, error) {
	var f faults
	canonical := f.filter(req.GetFilter())
	p, err := s.openPage(ctx, &f, canonical, req)
	if err != nil {
		return nil, err
	}
	compiled := compileFilter(canonical)
	if compiled.wide() {
		compiled.visible = s.visible(ctx, registryv1.Action_ACTION_DISCOVER)
	}
	resp := &apiv1.ListInstancesResponse{Header: p.header, ServiceRevision: serviceRevision(p.state, canonical)}
	var found []*fsm.Record
	if svc := p.state.Service(canonical.GetNamespace(), canonical.GetService()); svc != nil {
		found = make([]*fsm.Record, 0, min(p.room, int(svc.Counts().Instances)))
	}
	instances(p, canonical, func(record *fsm.Record) bool {
		if !compiled.match(record) {
			return ctx.Err() == nil
		}
		if !p.take(len(record.Encoded())) {
			last := found[len(found)-1]
			resp.NextPageToken = p.next(last.Namespace(), last.Service(), last.ID())
			return false
		}
		found = append(found, record)
		return true
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return withInstances(resp, found)
}

// withInstances encodes a GetResponse or a ListInstancesResponse together with the instances that it lacks. The State has
// them encoded: they are copied into the answer as they are.
func withInstances(resp proto.Message, found []*fsm.Record) (*encoded, error) {
	const field = 2 // of both
	size := proto.Size(resp)
	for _, record := range found {
		size += protowire.SizeTag(field) + protowire.SizeBytes(len(record.Encoded()))
	}
	var err error
	answer := newEncoded(size, func(b []byte) []byte {
		b, err = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, resp)
		for _, record := range found {
			b = protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), record.Encoded())
		}
		return b
	})
	return answer, err
}

// instances visits the instances of the filter's services after the last one of the page before.
func instances(p *page, filter *apiv1.Filter, visit func(*fsm.Record) bool) {
	more := true
	ascend := func(svc *fsm.Service, after string) bool {
		svc.Ascend(after, func(r *fsm.Record) bool {
			more = visit(r)
			return more
		})
		return more
	}
	if filter.GetService() != "" && filter.GetNamespace() != allNamespaces {
		if svc := p.state.Service(filter.GetNamespace(), filter.GetService()); svc != nil {
			ascend(svc, p.last(2))
		}
		return
	}
	// The service in which the page before ended goes on first.
	if svc := p.state.Service(p.last(0), p.last(1)); svc != nil && !ascend(svc, p.last(2)) {
		return
	}
	services(p.state, filter.GetNamespace(), p.last(0), p.last(1), func(svc *fsm.Service) bool {
		if filter.GetService() != "" && filter.GetService() != svc.Name() {
			return true
		}
		return ascend(svc, "")
	})
}

// serviceRevision is the revision of the last change to the filter's service, or of the registry when it names none (or
// one that is not there: when its last instance went is not known).
func serviceRevision(st *fsm.State, filter *apiv1.Filter) uint64 {
	if svc := st.Service(filter.GetNamespace(), filter.GetService()); svc != nil {
		return svc.Revision()
	}
	return st.Revision()
}
