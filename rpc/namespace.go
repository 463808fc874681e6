package rpc

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// namespaceServer serves NamespaceService.
type namespaceServer struct {
	apiv1.UnimplementedNamespaceServiceServer
	*core
}

// MaxQuota is the largest limit of a quota.
const MaxQuota = 1_000_000_000

// PutNamespace says something about a namespace.
func (s *namespaceServer) PutNamespace(ctx context.Context, req *apiv1.PutNamespaceRequest) (*apiv1.PutNamespaceResponse, error) {
	var f faults
	id := f.request(req)
	entry := f.namespaceEntry("namespace", req.GetNamespace())
	if err := f.err(); err != nil {
		return nil, err
	}
	level := uint32(fsm.HistoryLevel)
	if q := entry.GetQuota(); q.GetMaxKeys()+q.GetMaxKvBytes() > 0 {
		level = fsm.KVLevel
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Level: level, Request: id, Kind: &raftlogv1.Command_PutNamespace{
		PutNamespace: &raftlogv1.PutNamespace{Namespace: entry},
	}})
	if err != nil {
		return nil, explain(err, "put namespace "+entry.GetName(), "namespace", entry.GetName())
	}
	return &apiv1.PutNamespaceResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// GetNamespace returns a namespace and what is in it.
func (s *namespaceServer) GetNamespace(ctx context.Context, req *apiv1.GetNamespaceRequest) (*apiv1.GetNamespaceResponse, error) {
	var f faults
	name, fresh := f.namespace("name", req.GetName()), f.freshness(req.GetFreshness())
	if err := f.err(); err != nil {
		return nil, err
	}
	st, header, err := s.view(ctx, fresh)
	if err != nil {
		return nil, explain(err, "get namespace "+name, "namespace", name)
	}
	return &apiv1.GetNamespaceResponse{Header: header, Namespace: s.info(st, name)}, nil
}

// ListNamespaces lists namespaces by name.
func (s *namespaceServer) ListNamespaces(ctx context.Context, req *apiv1.ListNamespacesRequest) (*apiv1.ListNamespacesResponse, error) {
	var f faults
	p, err := s.openPage(ctx, &f, &apiv1.ListNamespacesRequest{}, req)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListNamespacesResponse{Header: p.header}
	last := p.last(0)
	for {
		name, ok := p.state.NextNamespace(last)
		if !ok {
			return resp, nil
		}
		item := s.info(p.state, name)
		if !p.take(proto.Size(item)) {
			resp.NextPageToken = p.next(last)
			return resp, nil
		}
		resp.Namespaces, last = append(resp.Namespaces, item), name
	}
}

// info is a namespace and what is in it.
func (s *namespaceServer) info(st *fsm.State, name string) *apiv1.NamespaceInfo {
	entry := &registryv1.Namespace{Name: name}
	if n := st.Namespace(name); n != nil {
		entry = n.Proto()
	}
	use := st.NamespaceUse(name)
	return &apiv1.NamespaceInfo{
		Namespace: entry, Instances: use.Instances, Locks: use.Locks, Watches: s.quotas.watching(name),
		Keys: use.Keys, KvBytes: use.KVBytes,
	}
}

// DeleteNamespace deletes the entry of a namespace.
func (s *namespaceServer) DeleteNamespace(
	ctx context.Context, req *apiv1.DeleteNamespaceRequest,
) (*apiv1.DeleteNamespaceResponse, error) {
	var f faults
	id := f.request(req)
	f.word("name", req.GetName(), MaxNamespaceLen, lowerChars)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Level: fsm.HistoryLevel, Request: id, Kind: &raftlogv1.Command_DeleteNamespace{
		DeleteNamespace: &raftlogv1.DeleteNamespace{Name: req.GetName()},
	}})
	if err != nil {
		return nil, explain(err, "delete namespace "+req.GetName(), "namespace", req.GetName())
	}
	return &apiv1.DeleteNamespaceResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// namespaceEntry checks the entry of a namespace and returns what the registry keeps of it.
func (f *faults) namespaceEntry(field string, in *registryv1.Namespace) *registryv1.Namespace {
	if in == nil {
		f.add(field, "is required")
		return nil
	}
	f.place.enter(field)
	defer f.place.leave()
	f.word("name", in.GetName(), MaxNamespaceLen, lowerChars)
	f.text("description", in.GetDescription(), MaxDescriptionLen)
	out := &registryv1.Namespace{Name: in.GetName(), Description: in.GetDescription()}
	if in.GetQuota() != nil {
		f.place.enter("quota")
		out.Quota = f.quota(in.GetQuota())
		f.place.leave()
	}
	return out
}
