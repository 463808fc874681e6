package client_test

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

type fakeLock struct {
	session string
	token   uint64
	queue   []string
	values  map[string][]byte // by session
}

// proto is the lock as it is told, nil when nobody holds it. The caller holds the cluster's mu.
func (l *fakeLock) proto() *registryv1.Lock {
	if l == nil || l.session == "" {
		return nil
	}
	return &registryv1.Lock{SessionId: l.session, Token: l.token, Value: l.values[l.session], Waiters: slices.Clone(l.queue)}
}

// pass takes a session out of a lock and its queue. The caller holds mu.
func (f *fakeCluster) pass(l *fakeLock, session string) bool {
	held := l.session == session
	before := len(l.queue)
	l.queue = slices.DeleteFunc(l.queue, func(s string) bool { return s == session })
	if held {
		l.session = ""
		if len(l.queue) > 0 {
			f.number++
			l.session, l.token, l.queue = l.queue[0], f.number, l.queue[1:]
		}
	}
	f.lockMoved()
	return held || len(l.queue) != before
}

// lockMoved wakes all who wait for a lock. The caller holds mu.
func (f *fakeCluster) lockMoved() {
	f.revision++
	close(f.lockChanged)
	f.lockChanged = make(chan struct{})
}

func (n *fakeNode) Acquire(ctx context.Context, req *apiv1.AcquireRequest) (*apiv1.AcquireResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.floor[req.GetRequestId().GetClientId()] > req.GetRequestId().GetSequence() {
		return nil, reason(apiv1.Reason_REASON_REQUEST_TOO_OLD)
	}
	n.floor[req.GetRequestId().GetClientId()] = req.GetRequestId().GetAnsweredBelow()
	if !n.sessions[req.GetSessionId()] {
		return nil, reason(apiv1.Reason_REASON_SESSION_NOT_FOUND)
	}
	name := req.GetNamespace() + "/" + req.GetName()
	l := n.locks[name]
	if l == nil {
		l = &fakeLock{values: make(map[string][]byte)}
		n.locks[name] = l
	}
	l.values[req.GetSessionId()] = req.GetValue()
	switch {
	case l.session == "":
		n.number++
		l.session, l.token = req.GetSessionId(), n.number
		n.lockMoved()
	case l.session == req.GetSessionId():
	case !req.GetWait():
		return nil, reason(apiv1.Reason_REASON_LOCK_HELD)
	case !slices.Contains(l.queue, req.GetSessionId()):
		l.queue = append(l.queue, req.GetSessionId())
	}
	for l.session != req.GetSessionId() {
		changed := n.lockChanged
		n.mu.Unlock()
		select {
		case <-changed:
			n.mu.Lock()
		case <-ctx.Done():
			n.mu.Lock()
			return nil, status.FromContextError(ctx.Err()).Err() // a node that dies: the place in the queue stays
		}
	}
	return &apiv1.AcquireResponse{Header: n.header(), Token: l.token}, nil
}

func (n *fakeNode) Release(_ context.Context, req *apiv1.ReleaseRequest) (*apiv1.ReleaseResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.locks[req.GetNamespace()+"/"+req.GetName()]
	if l == nil || req.GetToken() != 0 && (l.session != req.GetSessionId() || l.token != req.GetToken()) || !n.pass(l, req.GetSessionId()) {
		return nil, reason(apiv1.Reason_REASON_LOCK_NOT_HELD)
	}
	return &apiv1.ReleaseResponse{Header: n.header()}, nil
}

func (n *fakeNode) GetLock(_ context.Context, req *apiv1.GetLockRequest) (*apiv1.GetLockResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	lock := n.locks[req.GetNamespace()+"/"+req.GetName()].proto()
	if lock == nil {
		return nil, reasonAs(codes.NotFound, apiv1.Reason_REASON_LOCK_NOT_FOUND)
	}
	return &apiv1.GetLockResponse{Header: n.header(), Lock: lock}, nil
}

func (n *fakeNode) WatchLock(req *apiv1.WatchLockRequest, stream grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error {
	n.note("WatchLock", req)
	n.script.Lock()
	script := n.watchLock
	n.script.Unlock()
	if script != nil {
		return script(stream)
	}
	for {
		n.mu.Lock()
		changed := n.lockChanged
		resp := &apiv1.WatchLockResponse{Header: n.header(), Lock: n.locks[req.GetNamespace()+"/"+req.GetName()].proto()}
		n.mu.Unlock()
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-time.After(req.GetProgressInterval().AsDuration()):
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// owner returns who holds a lock, and who waits.
func (f *fakeCluster) owner(name string) (session string, queue []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.locks["default/"+name]
	if l == nil {
		return "", nil
	}
	return l.session, slices.Clone(l.queue)
}
