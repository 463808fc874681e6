package client_test

import (
	"context"
	"errors"
	"fmt"
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
	apiv1.UnimplementedKVServiceServer
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
	// watchKeys serves a watch of keys. Nil: the node does not know that.
	watchKeys func(grpc.ServerStreamingServer[apiv1.WatchKeysResponse]) error
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
	apiv1.RegisterKVServiceServer(n.srv, n)
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
