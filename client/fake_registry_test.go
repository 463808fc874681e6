package client_test

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func (n *fakeNode) Register(_ context.Context, req *apiv1.RegisterRequest) (*apiv1.RegisterResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := proto.CloneOf(req.GetInstance())
	old, wish := n.instances[keyOf(i)], req.GetOpenSession()
	switch {
	case wish != nil && i.GetSessionId() != "":
		return nil, reasonAs(codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	case i.GetSessionId() != "" && !n.sessions[i.GetSessionId()]:
		return nil, reason(apiv1.Reason_REASON_SESSION_NOT_FOUND)
	case req.GetIfAbsent() && old != nil && (wish != nil || old.GetSessionId() != i.GetSessionId()):
		return nil, reason(apiv1.Reason_REASON_ALREADY_EXISTS)
	case req.GetExpectedRevision() != 0 && old.GetModifyRevision() != req.GetExpectedRevision():
		return nil, reason(apiv1.Reason_REASON_REVISION_MISMATCH)
	}
	var session *registryv1.Session
	if wish != nil {
		session = n.openSession(wish.GetTtl())
		i.SessionId = session.GetId()
	}
	if old != nil {
		spec := proto.CloneOf(old)
		spec.Incarnation, spec.ModifyRevision, spec.Draining, spec.CheckStates = 0, 0, false, nil
		if proto.Equal(spec, i) {
			return &apiv1.RegisterResponse{Header: n.header(), Incarnation: old.GetIncarnation()}, nil
		}
	}
	n.revision++
	n.number++
	i.Incarnation, i.ModifyRevision = n.number, n.revision
	n.instances[keyOf(i)] = i
	return &apiv1.RegisterResponse{
		Header: n.header(), Incarnation: i.GetIncarnation(), Changed: true, Session: session,
	}, nil
}

// change finds an instance for an order. The caller holds mu.
func (f *fakeCluster) change(key *apiv1.InstanceKey, incarnation uint64) (*registryv1.Instance, error) {
	i := f.instances[keyOf(key)]
	if i == nil {
		return nil, reason(apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
	}
	if incarnation != 0 && i.GetIncarnation() != incarnation {
		return nil, reason(apiv1.Reason_REASON_STALE_INCARNATION)
	}
	f.revision++
	i = proto.CloneOf(i)
	i.ModifyRevision = f.revision
	f.instances[keyOf(key)] = i
	return i, nil
}

func (n *fakeNode) Deregister(_ context.Context, req *apiv1.DeregisterRequest) (*apiv1.DeregisterResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, err := n.change(req.GetKey(), req.GetIncarnation())
	if status.Code(err) != codes.OK && !strings.Contains(err.Error(), "not_found") {
		return nil, err
	}
	delete(n.instances, keyOf(req.GetKey()))
	return &apiv1.DeregisterResponse{Header: n.header(), Changed: err == nil}, nil
}

func (n *fakeNode) Drain(_ context.Context, req *apiv1.DrainRequest) (*apiv1.DrainResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, err := n.change(req.GetKey(), req.GetIncarnation())
	if err != nil {
		return nil, err
	}
	changed := i.GetDraining() == req.GetCancel()
	i.Draining = !req.GetCancel()
	return &apiv1.DrainResponse{Header: n.header(), Changed: changed}, nil
}

func (n *fakeNode) AwaitDelivery(ctx context.Context, req *apiv1.AwaitDeliveryRequest) (*apiv1.AwaitDeliveryResponse, error) {
	n.script.Lock()
	deliver := n.deliver
	n.script.Unlock()
	if deliver == nil {
		return n.UnimplementedRegistryServiceServer.AwaitDelivery(ctx, req)
	}
	return deliver(ctx, req)
}

func (n *fakeNode) SetHealth(_ context.Context, req *apiv1.SetHealthRequest) (*apiv1.SetHealthResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, err := n.change(req.GetKey(), req.GetIncarnation())
	if err != nil {
		return nil, err
	}
	i.CheckStates = []*registryv1.CheckState{{Name: req.GetCheck(), Status: req.GetStatus(), Output: req.GetOutput()}}
	return &apiv1.SetHealthResponse{Header: n.header(), Changed: true}, nil
}

func (n *fakeNode) Get(_ context.Context, req *apiv1.GetRequest) (*apiv1.GetResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := n.instances[keyOf(req.GetKey())]
	if i == nil {
		return nil, reasonAs(codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
	}
	return &apiv1.GetResponse{Header: n.header(), Instance: i}, nil
}

// instance returns what is registered, or nil.
func (f *fakeCluster) instance(key string) *registryv1.Instance {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.instances[key]
}

// list cuts a sorted list of names into pages of two.
func list(names []string, token string) (page []string, next string) {
	slices.Sort(names)
	from, _ := slices.BinarySearch(names, token)
	to := min(from+2, len(names))
	if to < len(names) {
		next = names[to]
	}
	return names[from:to], next
}

func (n *fakeNode) ListInstances(_ context.Context, req *apiv1.ListInstancesRequest) (*apiv1.ListInstancesResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	resp := &apiv1.ListInstancesResponse{Header: n.header(), ServiceRevision: n.revision}
	resp.Header.Mode = req.GetFreshness().GetMode()
	var keys []string
	for key, i := range n.instances {
		if i.GetService() == req.GetFilter().GetService() {
			keys = append(keys, key)
		}
	}
	var page []string
	page, resp.NextPageToken = list(keys, req.GetPageToken())
	for _, key := range page {
		resp.Instances = append(resp.Instances, n.instances[key])
	}
	return resp, nil
}
