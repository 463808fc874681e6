package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// fakeCluster is a registry with scripted nodes: one shared, naive state behind any number of gRPC servers, each of which
// can be stopped, cut off or made to fail.
type fakeCluster struct {
	t     *testing.T
	nodes []*fakeNode

	mu          sync.Mutex // guards the fields below
	epoch       uint64
	revision    uint64
	number      uint64 // incarnations and tokens
	opened      int
	sessions    map[string]bool
	instances   map[string]*registryv1.Instance
	locks       map[string]*fakeLock
	answered    map[string]map[uint64]proto.Message // by client id and sequence
	outcomes    map[string]error
	floor       map[string]uint64
	log         []call
	lockChanged chan struct{}
}

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

// call is a request that a node got.
type call struct {
	node, method string
	req          proto.Message
	at           time.Time
}

// fakeNode is one node.
type fakeNode struct {
	apiv1.UnimplementedRegistryServiceServer
	apiv1.UnimplementedSessionServiceServer
	apiv1.UnimplementedLeaseServiceServer
	apiv1.UnimplementedLockServiceServer
	apiv1.UnimplementedClusterServiceServer

	*fakeCluster
	address string
	lis     *bufconn.Listener
	srv     *grpc.Server
	served  chan struct{}

	script sync.Mutex // guards the fields below
	down   bool
	hole   bool
	dials  int
	leader string // hint in headers
	// before is called with each request; its error is the answer. after is called once the request has been carried out.
	before, after func(method string, req proto.Message) error
	// attach decides what becomes of a renewal: nil acknowledges it.
	attach func(ctx context.Context, req *apiv1.AttachRequest) (*apiv1.AttachResponse, error)
	watch  func(s *fakeStream) error
	// watchLock takes the place of a watch of a lock.
	watchLock func(grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error
	// deliver answers AwaitDelivery. Nil: the node does not know that.
	deliver func(context.Context, *apiv1.AwaitDeliveryRequest) (*apiv1.AwaitDeliveryResponse, error)
	saved   func(grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error
}

// newFakeCluster starts nodes n1, n2, ... that end with the test.
func newFakeCluster(t *testing.T, n int) *fakeCluster {
	t.Helper()
	f := &fakeCluster{
		t: t, epoch: 1, revision: 100,
		sessions:    make(map[string]bool),
		instances:   make(map[string]*registryv1.Instance),
		locks:       make(map[string]*fakeLock),
		answered:    make(map[string]map[uint64]proto.Message),
		outcomes:    make(map[string]error),
		floor:       make(map[string]uint64),
		lockChanged: make(chan struct{}),
	}
	for i := range n {
		node := &fakeNode{fakeCluster: f, address: fmt.Sprintf("n%d:7400", i+1)}
		f.nodes = append(f.nodes, node)
		node.start()
	}
	t.Cleanup(func() {
		for _, node := range f.nodes {
			node.stop()
		}
	})
	return f
}

// client makes a client of all nodes, or of those given, that is closed with the test.
func (f *fakeCluster) client(nodes []*fakeNode, opts ...client.Option) *client.Client {
	f.t.Helper()
	if nodes == nil {
		nodes = f.nodes
	}
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.address)
	}
	c, err := client.New(endpoints, append([]client.Option{
		client.WithName("test"), client.WithDialOptions(grpc.WithContextDialer(f.dial)),
	}, opts...)...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (f *fakeCluster) dial(ctx context.Context, address string) (net.Conn, error) {
	i := slices.IndexFunc(f.nodes, func(n *fakeNode) bool { return n.address == address })
	if i < 0 {
		return nil, errors.New("no such host")
	}
	n := f.nodes[i]
	n.script.Lock()
	n.dials++
	down, hole, lis := n.down, n.hole, n.lis
	n.script.Unlock()
	switch {
	case down:
		return nil, errors.New("connection refused")
	case hole:
		conn, _ := net.Pipe() // nobody reads at the other end
		return conn, nil
	default:
		return lis.DialContext(ctx)
	}
}

// start serves until stop.
func (n *fakeNode) start() {
	n.script.Lock()
	defer n.script.Unlock()
	n.down = false
	n.lis = bufconn.Listen(1 << 20)
	n.srv = grpc.NewServer(grpc.UnaryInterceptor(n.intercept), grpc.WaitForHandlers(true))
	apiv1.RegisterRegistryServiceServer(n.srv, n)
	apiv1.RegisterSessionServiceServer(n.srv, n)
	apiv1.RegisterLeaseServiceServer(n.srv, n)
	apiv1.RegisterLockServiceServer(n.srv, n)
	apiv1.RegisterClusterServiceServer(n.srv, n)
	n.served = make(chan struct{})
	srv, lis, served := n.srv, n.lis, n.served
	go func() {
		defer close(served)
		_ = srv.Serve(lis)
	}()
}

// stop kills the node: its connections break, new ones are refused.
func (n *fakeNode) stop() {
	n.script.Lock()
	n.down = true
	srv, served := n.srv, n.served
	n.script.Unlock()
	srv.Stop()
	<-served
}

// set changes the script.
func (n *fakeNode) set(change func(n *fakeNode)) {
	n.script.Lock()
	defer n.script.Unlock()
	change(n)
}

// dialled returns how often the node was dialled.
func (n *fakeNode) dialled() int {
	n.script.Lock()
	defer n.script.Unlock()
	return n.dials
}

func (n *fakeNode) note(method string, req proto.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, call{node: n.address, method: method, req: proto.Clone(req), at: time.Now()})
}

// calls returns what was asked by a method, on all nodes, in order.
func (f *fakeCluster) calls(method string) []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	var calls []call
	for _, c := range f.log {
		if c.method == method {
			calls = append(calls, c)
		}
	}
	return calls
}

// opens tells whether a request opens a session.
func opens(req proto.Message) bool {
	switch req := req.(type) {
	case *apiv1.OpenRequest:
		return true
	case *apiv1.RegisterRequest:
		return req.GetOpenSession() != nil
	default:
		return false
	}
}

// openings returns how often a session was asked for.
func (f *fakeCluster) openings() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.log {
		if opens(c.req) {
			n++
		}
	}
	return n
}

// intercept runs the script around a handler, and remembers outcomes by request id as the registry does.
func (n *fakeNode) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
	message, _ := req.(proto.Message)
	n.note(method, message)
	n.script.Lock()
	before, after := n.before, n.after
	n.script.Unlock()
	if before != nil {
		if err := before(method, message); err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	resp, err := n.once(ctx, message, handler)
	if after != nil {
		if lost := after(method, message); lost != nil {
			return nil, lost
		}
	}
	return resp, err
}

// once runs a handler unless the request was handled before. Waiting acquisitions are not remembered.
func (n *fakeNode) once(ctx context.Context, req proto.Message, handler grpc.UnaryHandler) (any, error) {
	withID, ok := req.(interface{ GetRequestId() *apiv1.RequestID })
	if _, acquire := req.(*apiv1.AcquireRequest); !ok || acquire {
		return handler(ctx, req)
	}
	id := withID.GetRequestId()
	key := fmt.Sprintf("%s/%d", id.GetClientId(), id.GetSequence())
	n.mu.Lock()
	if id.GetSequence() < n.floor[id.GetClientId()] {
		n.mu.Unlock()
		return nil, reason(apiv1.Reason_REASON_REQUEST_TOO_OLD)
	}
	n.floor[id.GetClientId()] = max(n.floor[id.GetClientId()], id.GetAnsweredBelow())
	if resp, done := n.answered[id.GetClientId()][id.GetSequence()]; done {
		err := n.outcomes[key]
		n.mu.Unlock()
		return resp, err
	}
	n.mu.Unlock()
	resp, err := handler(ctx, req)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.answered[id.GetClientId()] == nil {
		n.answered[id.GetClientId()] = make(map[uint64]proto.Message)
	}
	message, _ := resp.(proto.Message)
	n.answered[id.GetClientId()][id.GetSequence()] = message
	n.outcomes[key] = err
	return resp, err
}

// reason makes the error of a reason, with metadata as key, value, ...
func reason(r apiv1.Reason, metadata ...string) error {
	return reasonAs(codes.FailedPrecondition, r, metadata...)
}

func reasonAs(code codes.Code, r apiv1.Reason, metadata ...string) error {
	info := &errdetails.ErrorInfo{
		Reason: strings.TrimPrefix(r.String(), "REASON_"), Domain: "regd.io", Metadata: make(map[string]string),
	}
	for i := 0; i+1 < len(metadata); i += 2 {
		info.Metadata[metadata[i]] = metadata[i+1]
	}
	st, err := status.New(code, strings.ToLower(info.Reason)).WithDetails(info)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// header is of the present revision. The caller holds mu.
func (n *fakeNode) header() *apiv1.ResponseHeader {
	n.script.Lock()
	defer n.script.Unlock()
	return &apiv1.ResponseHeader{
		ClusterId: "cluster", Epoch: n.epoch, Revision: n.revision, Node: strings.TrimSuffix(n.address, ":7400"),
		Leader: n.leader, Staleness: durationpb.New(0),
	}
}

func (n *fakeNode) Open(_ context.Context, req *apiv1.OpenRequest) (*apiv1.OpenResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.revision++
	session := n.openSession(req.GetTtl())
	return &apiv1.OpenResponse{Header: n.header(), Session: session}, nil
}

// openSession opens a session. The caller holds mu.
func (f *fakeCluster) openSession(ttl *durationpb.Duration) *registryv1.Session {
	f.opened++
	id := fmt.Sprintf("s%d", f.opened)
	f.sessions[id] = true
	return &registryv1.Session{Id: id, Ttl: ttl}
}

// endSession ends a session with all that hangs on it.
func (f *fakeCluster) endSession(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision++
	delete(f.sessions, id)
	for key, i := range f.instances {
		if i.GetSessionId() == id {
			delete(f.instances, key)
		}
	}
	for _, l := range f.locks {
		f.pass(l, id)
	}
}

func (n *fakeNode) Close(_ context.Context, req *apiv1.CloseRequest) (*apiv1.CloseResponse, error) {
	n.endSession(req.GetSessionId())
	n.mu.Lock()
	defer n.mu.Unlock()
	return &apiv1.CloseResponse{Header: n.header(), Changed: true}, nil
}

func (n *fakeNode) Renew(_ context.Context, req *apiv1.RenewRequest) (*apiv1.RenewResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &apiv1.RenewResponse{Header: n.header(), Ended: n.ended(req.GetSessionIds())}, nil
}

// ended returns which sessions are none. The caller holds mu.
func (f *fakeCluster) ended(ids []string) []string {
	var ended []string
	for _, id := range ids {
		if !f.sessions[id] {
			ended = append(ended, id)
		}
	}
	return ended
}

func (n *fakeNode) Attach(stream grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		n.note("Attach", req)
		n.script.Lock()
		script := n.attach
		n.script.Unlock()
		var resp *apiv1.AttachResponse
		if script != nil {
			if resp, err = script(stream.Context(), req); err != nil {
				return err
			}
		}
		if resp == nil {
			n.mu.Lock()
			resp = &apiv1.AttachResponse{Sequence: req.GetSequence(), Ended: n.ended(req.GetSessionIds()), Epoch: n.epoch}
			n.mu.Unlock()
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// silent is an attach script that never answers.
func silent(ctx context.Context, _ *apiv1.AttachRequest) (*apiv1.AttachResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func keyOf(i interface {
	GetNamespace() string
	GetService() string
	GetId() string
},
) string {
	return i.GetNamespace() + "/" + i.GetService() + "/" + i.GetId()
}

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

// fakeStream is a Watch stream with words for a script.
type fakeStream struct {
	grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]
	n *fakeNode
}

func (n *fakeNode) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	n.script.Lock()
	script := n.watch
	n.script.Unlock()
	if script == nil {
		return status.Error(codes.Unavailable, "no script")
	}
	return script(&fakeStream{BidiStreamingServer: stream, n: n})
}

// subscribe waits for a subscription.
func (s *fakeStream) subscribe() (*apiv1.Subscribe, error) {
	req, err := s.Recv()
	if err != nil {
		return nil, err
	}
	s.n.note("Watch", req)
	if req.GetSubscribe() == nil {
		return nil, fmt.Errorf("want a subscription, got %v", req)
	}
	return req.GetSubscribe(), nil
}

// head is a header at a revision of an epoch.
func (s *fakeStream) head(epoch, revision uint64) *apiv1.ResponseHeader {
	return &apiv1.ResponseHeader{
		ClusterId: "cluster", Epoch: epoch, Revision: revision, Node: strings.TrimSuffix(s.n.address, ":7400"),
		Staleness: durationpb.New(10 * time.Millisecond),
	}
}

// cut sends a cut and its end.
func (s *fakeStream) cut(cut *apiv1.Cut, epoch, revision uint64) error {
	return errors.Join(
		s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Cut{Cut: cut}}),
		s.synced(cut.GetSubscriptionId(), epoch, revision),
	)
}

func (s *fakeStream) synced(id uint32, epoch, revision uint64) error {
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Synced{
		Synced: &apiv1.Synced{SubscriptionId: id, Header: s.head(epoch, revision)},
	}})
}

func (s *fakeStream) events(revision uint64, events ...*apiv1.SubscribedEvent) error {
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Events{
		Events: &apiv1.Events{Events: events, Revision: revision},
	}})
}

func (s *fakeStream) progress(revision uint64, staleness time.Duration) error {
	header := s.head(1, revision)
	header.Staleness = durationpb.New(staleness)
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Progress{Progress: &apiv1.Progress{Header: header}}})
}

// mark asks for an acknowledgement.
func (s *fakeStream) mark(number uint64, ids ...uint32) error {
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Marker{
		Marker: &apiv1.Marker{Number: number, SubscriptionIds: ids},
	}})
}

// idle reads, so that requests are logged, until the stream ends.
func (s *fakeStream) idle() error {
	for {
		req, err := s.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.n.note("Watch", req)
	}
}

// inst is an instance of service web as it is at a revision.
func inst(id string, revision uint64) *registryv1.Instance {
	return &registryv1.Instance{Namespace: "default", Service: "web", Id: id, ModifyRevision: revision}
}

func put(id string, revision uint64, subscriptions ...uint32) *apiv1.SubscribedEvent {
	return &apiv1.SubscribedEvent{SubscriptionIds: subscriptions, Event: &registryv1.Event{
		Type: registryv1.EventType_EVENT_TYPE_PUT, Revision: revision, Instance: inst(id, revision),
		Cause: registryv1.Cause_CAUSE_REGISTERED,
	}}
}

func del(id string, revision uint64, subscriptions ...uint32) *apiv1.SubscribedEvent {
	return &apiv1.SubscribedEvent{SubscriptionIds: subscriptions, Event: &registryv1.Event{
		Type: registryv1.EventType_EVENT_TYPE_DELETE, Revision: revision, Instance: inst(id, 0),
		Cause: registryv1.Cause_CAUSE_DEREGISTERED,
	}}
}

// web is the specification of an instance of service web.
func web(id string) *registryv1.Instance {
	return &registryv1.Instance{Service: "web", Id: id, Address: "10.0.0.1"}
}
