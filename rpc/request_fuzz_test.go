package rpc

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// maxAnswer is the largest message that a gRPC client takes by default.
const maxAnswer = 4 << 20

// trailerBytes is what an error takes in the trailers of a call, as gRPC writes it: the message with everything but
// printable ASCII as three bytes, and the status in base64.
func trailerBytes(tb testing.TB, st *status.Status) int {
	tb.Helper()
	details, err := proto.Marshal(st.Proto())
	if err != nil {
		tb.Fatalf("the status can't be sent: %v", err)
	}
	n := base64.RawStdEncoding.EncodedLen(len(details)) + len(st.Message())
	for _, c := range []byte(st.Message()) {
		if c < ' ' || c > '~' || c == '%' {
			n += 2
		}
	}
	return n
}

// maxTrailers is how many bytes of trailers any client takes, less what gRPC itself says in them.
const maxTrailers = 8<<10 - 256

// bare is a server without a listener, for one node, inside a bubble.
type bare struct {
	node *fakeNode
	core *core
	impl map[*grpc.ServiceDesc]any
}

func newBare(node *fakeNode) *bare {
	c := &core{
		guard: guard{node}, log: slog.New(slog.DiscardHandler), admission: newAdmission(100),
		lockWaiters: make(chan struct{}, 100), watches: make(chan struct{}, 100), leaving: make(chan struct{}),
		workers: workers{most: 2},
	}
	if node != nil {
		node.ServeDelivery(c.delivered)
	}
	return &bare{node, c, map[*grpc.ServiceDesc]any{
		registryService:                   &registryServer{core: c},
		&apiv1.SessionService_ServiceDesc: &sessionServer{core: c},
		&apiv1.LeaseService_ServiceDesc:   &leaseServer{core: c},
		&apiv1.LockService_ServiceDesc:    &lockServer{core: c},
		&apiv1.ClusterService_ServiceDesc: &clusterServer{core: c, restoring: make(chan struct{}, 1)},
		&apiv1.AccessService_ServiceDesc:  &accessServer{core: c},

		&apiv1.NamespaceService_ServiceDesc: &namespaceServer{core: c},
		&apiv1.KVService_ServiceDesc:        &kvServer{core: c},
	}}
}

func (b *bare) close() {
	b.core.tasks.Wait()
	b.core.workers.ended.Wait()
	b.node.feed.Close()
}

// nodeAt is a node whose registry is in the State.
func nodeAt(st *fsm.State) *fakeNode {
	return &fakeNode{feed: feed.New(st, feed.Limits{}), info: cluster.Info{ClusterID: "c1", NodeID: "id1", Name: "n1"}}
}

// inhabited is a State with something of everything, under the ids that the seeds of the fuzz tests use.
func inhabited(tb testing.TB) *fsm.State {
	tb.Helper()
	checked := instance("web", "1")
	checked.Namespace, checked.SessionId, checked.Checks = DefaultNamespace, "s1", []*registryv1.Check{ttlCheck("beat", time.Minute)}
	st := fsm.New()
	for _, cmd := range []*raftlogv1.Command{
		{Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{ClusterId: "c1"}}},
		{Kind: &raftlogv1.Command_OpenSession{OpenSession: &raftlogv1.OpenSession{Id: "s1", TtlMs: 15_000}}},
		{Kind: &raftlogv1.Command_OpenSession{OpenSession: &raftlogv1.OpenSession{Id: "s2", TtlMs: 15_000}}},
		{Kind: &raftlogv1.Command_GrantLease{GrantLease: &raftlogv1.GrantLease{Id: "l1", TtlMs: 15_000, SessionId: "s1"}}},
		registration(tb, checked),
		registration(tb, instance("web", "2")),
		{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
			Member: &registryv1.Member{Id: "id1", Name: "n1", FeatureLevel: fsm.KVLevel},
		}}},
		{Level: fsm.KVLevel, Kind: &raftlogv1.Command_KvTransaction{KvTransaction: &raftlogv1.KVTransaction{
			Namespace: DefaultNamespace, Ops: []*raftlogv1.KVOp{
				{Kind: raftlogv1.KVOpKind_KV_OP_KIND_SET, Key: "a/b", Value: []byte("v")},
				{Kind: raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, Key: "k", SessionId: "s1"},
			},
		}}},
		{Level: fsm.HistoryLevel, Kind: &raftlogv1.Command_PutNamespace{PutNamespace: &raftlogv1.PutNamespace{
			Namespace: &registryv1.Namespace{Name: DefaultNamespace, Quota: &registryv1.Quota{MaxInstances: 4, MaxWritesPerSecond: 100}},
		}}},
		{Kind: &raftlogv1.Command_AcquireLock{AcquireLock: &raftlogv1.AcquireLock{Namespace: DefaultNamespace, Name: "l", SessionId: "s1"}}},
	} {
		st = after(tb, st, cmd)
	}
	return st
}

// after is the State after a command that is not refused.
func after(tb testing.TB, st *fsm.State, cmd *raftlogv1.Command) *fsm.State {
	tb.Helper()
	data, err := proto.Marshal(cmd)
	if err != nil {
		tb.Fatal(err)
	}
	next, result, err := st.Apply(fsm.Entry{
		Index: st.Index() + 1, Term: 1, Data: fsm.AppendEntry(nil, 1_700_000_000_000, [][]byte{data}),
	})
	if err == nil {
		err = result.Outcomes[0].Err()
	}
	if err != nil {
		tb.Fatalf("%v: %v", cmd, err)
	}
	return next
}

// wantServed holds that an error is one of the table, and no sign of a bug, and that its status reaches any client.
func wantServed(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	fault, known := faultOf(Faults(), err)
	switch {
	case !known:
		t.Fatalf("error %v is not in the table", err)
	case fault.Reason == apiv1.Reason_REASON_INTERNAL:
		t.Fatalf("a bug: %v", err)
	case errors.Is(err, fsm.ErrInvalid):
		t.Fatalf("what the door let in makes no sense to the state machine: %v", err)
	}
	if n := trailerBytes(t, toStatus(fault, err, "n1:7400")); n > maxTrailers {
		t.Fatalf("%d bytes of trailers for error %v", n, err)
	}
}

// wantSound holds that what was proposed fits the log, and left a State that a snapshot carries on.
func (b *bare) wantSound(t *testing.T) {
	t.Helper()
	for _, cmd := range b.node.proposed {
		if n := proto.Size(cmd); n > DefaultMaxReceive+(64<<10) {
			t.Fatalf("a command of %d bytes: %v", n, cmd)
		}
	}
	if len(b.node.proposed) == 0 {
		return
	}
	st := b.node.feed.State()
	var snapshot bytes.Buffer
	if err := st.WriteSnapshot(&snapshot, nil); err != nil {
		t.Fatal(err)
	}
	restored, err := fsm.ReadSnapshot(&snapshot)
	if err != nil || restored.Hash() != st.Hash() {
		t.Fatalf("the State is not read as it was written: %v", err)
	}
}

// answerOf encodes an answer as the server does and reads it as a client does.
func answerOf(t *testing.T, answer any) {
	t.Helper()
	data, err := newCodec().Marshal(answer)
	if err != nil {
		t.Fatalf("the answer can't be sent: %v", err)
	}
	defer data.Free()
	if data.Len() > maxAnswer {
		t.Fatalf("an answer of %d bytes", data.Len())
	}
	if _, raw := answer.(*encoded); raw {
		return // The follower reads those.
	}
	read := answer.(proto.Message).ProtoReflect().New().Interface()
	if err = proto.Unmarshal(data.Materialize(), read); err != nil || len(read.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("the answer reads as %v, %v", read, err)
	}
}

// unary is a method of the API.
type unary struct {
	service *grpc.ServiceDesc
	method  grpc.MethodDesc
}

// unaries are all of them, in an order that stays.
func unaries() []unary {
	var all []unary
	for service := range newBare(nil).impl {
		for _, m := range service.Methods {
			all = append(all, unary{service, m})
		}
	}
	slices.SortFunc(all, func(a, b unary) int {
		return strings.Compare(a.service.ServiceName+a.method.MethodName, b.service.ServiceName+b.method.MethodName)
	})
	return all
}

// TestFuzzedServicesAreAllOfTheAPI holds that no service is left out below.
func TestFuzzedServicesAreAllOfTheAPI(t *testing.T) {
	fuzzed := map[string]bool{}
	for service := range newBare(nil).impl {
		fuzzed[service.ServiceName] = true
	}
	for service := range newRig(t).server.grpc.GetServiceInfo() {
		if strings.HasPrefix(service, "regd.") && !fuzzed[service] {
			t.Errorf("%s is not fuzzed", service)
		}
	}
}

// seedRequests are requests that do something in an inhabited registry.
func seedRequests() []proto.Message {
	id := &apiv1.RequestID{ClientId: "c", Sequence: 2, AnsweredBelow: 1}
	full := instance("web", "3")
	full.Ports, full.Tags, full.Metadata = []*registryv1.Port{{Name: "main", Number: 80}}, []string{"b", "a"}, map[string]string{"k": "v"}
	full.SessionId, full.LeaseId = "s1", "l1"
	full.Checks = []*registryv1.Check{
		ttlCheck("beat", time.Minute),
		{Name: "h", Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{Path: "/up", Headers: map[string]string{"A": "b"}}}},
		{Name: "g", Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Tls: &registryv1.CheckTLS{}}}, Interval: durationpb.New(time.Second)},
	}
	bounded := &apiv1.Freshness{Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(time.Second)}
	return []proto.Message{
		&apiv1.RegisterRequest{RequestId: id, Instance: full}, &apiv1.RegisterRequest{Instance: instance("web", "1"), IfAbsent: true},
		&apiv1.RegisterBatchRequest{RequestId: id, Register: []*registryv1.Instance{full, instance("a", "b")}, Deregister: []*apiv1.InstanceKey{webKey("2")}},
		&apiv1.RegisterRequest{RequestId: id, Instance: instance("web", "4"), OpenSession: &apiv1.NewSession{ClientName: "me"}},
		&apiv1.RegisterBatchRequest{Register: []*registryv1.Instance{instance("a", "b")}, OpenSession: &apiv1.NewSession{Ttl: durationpb.New(2 * time.Second)}},
		&apiv1.DeregisterRequest{RequestId: id, Key: webKey("1")}, &apiv1.DrainRequest{RequestId: id, Key: webKey("1")},
		&apiv1.SetHealthRequest{RequestId: id, Key: webKey("1"), Check: "beat", Status: registryv1.CheckStatus_CHECK_STATUS_CRITICAL, Output: "no\nway"},
		&apiv1.SetMaintenanceRequest{RequestId: id, Key: webKey("1"), Maintenance: true},
		&apiv1.AwaitDeliveryRequest{Service: "web", Revision: 1}, &apiv1.AwaitDeliveryRequest{Namespace: "a", Service: "web", Revision: 1 << 60},
		&apiv1.GetRequest{Key: webKey("1"), Freshness: &apiv1.Freshness{Mode: apiv1.Mode_MODE_AT_LEAST, MinRevision: 1 << 60}},
		&apiv1.ListServicesRequest{Namespace: "*", Prefix: "w", PageSize: 1}, &apiv1.ListInstancesRequest{PageSize: 1, Freshness: bounded},
		&apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Namespace: "*", Tags: []string{"a", "a"}}, PageToken: "AQ"},
		&apiv1.OpenRequest{RequestId: id, ClientName: "me"}, &apiv1.RenewRequest{SessionIds: []string{"s1", "gone"}},
		&apiv1.CloseRequest{RequestId: id, SessionId: "s1"}, &apiv1.ListRequest{PageSize: 1},
		&apiv1.GrantRequest{RequestId: id, SessionId: "s2", Ttl: durationpb.New(2 * time.Second)},
		&apiv1.RevokeRequest{RequestId: id, LeaseId: "l1"}, &apiv1.GetLeaseRequest{LeaseId: "l1"}, &apiv1.ListLeasesRequest{},
		&apiv1.AcquireRequest{RequestId: id, Name: "l", SessionId: "s2", Wait: true}, &apiv1.AcquireRequest{Name: "free", SessionId: "s1", Value: []byte{0xff}},
		&apiv1.ReleaseRequest{RequestId: id, Name: "l", SessionId: "s1"}, &apiv1.GetLockRequest{Name: "l"}, &apiv1.ListLocksRequest{Namespace: "*"},
		&apiv1.StatusRequest{}, &apiv1.MembersRequest{}, &apiv1.JoinRequest{PeerAddress: "[::1]:7401"}, &apiv1.RemoveRequest{Node: "n2"},
		&apiv1.PromoteRequest{Node: "n2"}, &apiv1.DemoteRequest{Node: "n2"}, &apiv1.TransferLeadershipRequest{}, &apiv1.VerifyRequest{},
		&apiv1.BootstrapRequest{RequestId: id, SecretHash: make([]byte, 32)}, &apiv1.BootstrapRequest{SecretHash: make([]byte, 32), Resets: 1},
		&apiv1.SetEnforcementRequest{Enforced: true}, &apiv1.PutPolicyRequest{Policy: &registryv1.Policy{
			Name: "p", Rules: []*registryv1.Rule{rule("a*/b", registerIt), rule("", observeIt)},
		}},
		&apiv1.DeletePolicyRequest{Name: "p"}, &apiv1.ListPoliciesRequest{}, &apiv1.DeleteTokenRequest{Id: "t"},
		&apiv1.CreateTokenRequest{RequestId: id, Identity: "i", Description: "d", ExpiresUnixMs: 1 << 50, SecretHash: make([]byte, 32)},
		&apiv1.ListTokensRequest{PageSize: 1}, &apiv1.PutGrantRequest{Grant: &registryv1.Grant{Identity: "i", Policies: []string{"p"}}},
		&apiv1.DeleteGrantRequest{Identity: "i"}, &apiv1.ListGrantsRequest{}, &apiv1.WhoAmIRequest{},
		&apiv1.ExplainRequest{Key: webKey("1"), Limit: 3}, &apiv1.GetNamespaceRequest{}, &apiv1.ListNamespacesRequest{PageSize: 1},
		&apiv1.PutNamespaceRequest{RequestId: id, Namespace: &registryv1.Namespace{Name: "a", Quota: &registryv1.Quota{MaxLocks: 1}}},
		&apiv1.DeleteNamespaceRequest{RequestId: id, Name: DefaultNamespace},
		&apiv1.GetKeyRequest{Key: "a/b"}, &apiv1.ListKeysRequest{Prefix: "a/", PageSize: 1},
		&apiv1.PutKeyRequest{RequestId: id, Key: "a/b", Value: []byte{0xff}, Flags: 1, ExpectedRevision: 7},
		&apiv1.PutKeyRequest{RequestId: id, Key: "k", MustBeAbsent: true, SessionId: "s2"},
		&apiv1.DeleteKeyRequest{RequestId: id, Key: "a", Prefix: true}, &apiv1.DeleteKeyRequest{Key: "a/b", ExpectedRevision: 7},
		&apiv1.TransactRequest{RequestId: id, Ops: []*apiv1.KeyOp{
			{Kind: apiv1.KeyOpKind_KEY_OP_KIND_CHECK_SESSION, Key: "k", SessionId: "s1"},
			{Kind: apiv1.KeyOpKind_KEY_OP_KIND_RELEASE, Key: "k", SessionId: "s1"},
			{Kind: apiv1.KeyOpKind_KEY_OP_KIND_DELETE_PREFIX, Key: "a/"},
		}},
		&apiv1.OpenRequest{LockDelay: durationpb.New(time.Second), Behavior: registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE},
	}
}

// requestOf is the message that a method takes.
func (u unary) requestOf(data []byte) (proto.Message, error) {
	var asked proto.Message
	var err error
	_, _ = u.method.Handler(newBare(nil).impl[u.service], bg, func(m any) error {
		asked = m.(proto.Message)
		err = proto.Unmarshal(data, asked)
		return errors.New("only asked what it takes")
	}, nil)
	return asked, err
}

// read is a method's answer as a message, when it was encoded already.
func (u unary) read(t *testing.T, answer any) any {
	t.Helper()
	if _, raw := answer.(*encoded); !raw {
		return answer
	}
	data, err := newCodec().Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Free()
	method, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(u.service.ServiceName + "." + u.method.MethodName))
	if err != nil {
		t.Fatal(err)
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.(protoreflect.MethodDescriptor).Output().FullName())
	if err != nil {
		t.Fatal(err)
	}
	m := kind.New().Interface()
	if err := proto.Unmarshal(data.Materialize(), m); err != nil {
		t.Fatalf("the answer can't be read: %v", err)
	}
	return m
}

// FuzzRequest sends arbitrary messages to every unary method. What is refused is refused by the table of errors; what is
// let in makes sense to the state machine, leaves a State that can be carried on, is answered by what any client can
// read, and changes nothing when it comes again under its request id.
func FuzzRequest(f *testing.F) {
	methods := unaries()
	seeds := seedRequests()
	for i, u := range methods {
		takes, _ := u.requestOf(nil)
		seeded := false
		for _, m := range seeds {
			if m.ProtoReflect().Descriptor() != takes.ProtoReflect().Descriptor() {
				continue
			}
			data, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), data)
			seeded = true
		}
		if !seeded {
			f.Errorf("%s/%s has no seed", u.service.ServiceName, u.method.MethodName)
		}
		f.Add(uint8(i), []byte{})
	}
	base := inhabited(f)
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		u := methods[int(method)%len(methods)]
		if _, err := u.requestOf(data); err != nil {
			return // gRPC refuses it.
		}
		synctest.Test(t, func(t *testing.T) {
			b := newBare(nodeAt(base))
			defer b.close()
			call := func() (request proto.Message, err error) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				answer, err := u.method.Handler(b.impl[u.service], ctx, func(m any) error {
					request = m.(proto.Message)
					return proto.Unmarshal(data, request)
				}, nil)
				wantServed(t, err)
				if err == nil {
					answerOf(t, u.read(t, answer))
				}
				return request, err
			}
			request, err := call()
			b.wantSound(t)
			if once, ok := request.(identified); !ok || once.GetRequestId() == nil || err != nil {
				return
			}
			before := b.node.feed.State().ContentHash()
			if _, err = call(); err != nil || b.node.feed.State().ContentHash() != before {
				t.Fatalf("%v had an effect when it came again: %v", request, err)
			}
		})
	})
}

// script is a stream whose client has said everything already: frames, each with its length before it.
type script struct {
	grpc.ServerStream
	t   *testing.T
	ctx context.Context

	mu   sync.Mutex // guards what is below
	rest []byte
}

func (s *script) Context() context.Context     { return s.ctx }
func (s *script) SetHeader(metadata.MD) error  { return nil }
func (s *script) SendHeader(metadata.MD) error { return nil }
func (s *script) SetTrailer(metadata.MD)       {}

// RecvMsg reads the next frame that is a message.
func (s *script) RecvMsg(m any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		frame, n := protowire.ConsumeBytes(s.rest)
		if n < 0 {
			return io.EOF
		}
		s.rest = s.rest[n:]
		if u, ok := m.(*undecoded); ok {
			*u = frame
			return nil
		}
		if proto.Unmarshal(frame, m.(proto.Message)) == nil {
			return nil
		}
	}
}

// SendMsg takes an answer.
func (s *script) SendMsg(m any) error {
	answerOf(s.t, m)
	return s.ctx.Err()
}

// framed puts messages in a row, each with its length before it.
func framed(tb testing.TB, all ...proto.Message) []byte {
	tb.Helper()
	var data []byte
	for _, m := range all {
		b, err := proto.Marshal(m)
		if err != nil {
			tb.Fatal(err)
		}
		data = protowire.AppendBytes(data, b)
	}
	return data
}

// FuzzStream opens every stream of the API and sends arbitrary messages on it. It ends by the table of errors or with its
// client, leaves nothing running, and what it says any client can read.
func FuzzStream(f *testing.F) {
	type stream struct {
		service *grpc.ServiceDesc
		desc    grpc.StreamDesc
	}
	var streams []stream
	for service := range newBare(nil).impl {
		for _, d := range service.Streams {
			streams = append(streams, stream{service, d})
		}
	}
	slices.SortFunc(streams, func(a, b stream) int { return strings.Compare(a.desc.StreamName, b.desc.StreamName) })
	seeds := map[string][]byte{
		"Attach":    framed(f, &apiv1.AttachRequest{SessionIds: []string{"s1", "gone"}, Sequence: 1}, &apiv1.AttachRequest{Sequence: 2}),
		"KeepAlive": framed(f, &apiv1.KeepAliveRequest{LeaseIds: []string{"l1"}, Sequence: 1}, &apiv1.KeepAliveRequest{LeaseIds: []string{"/"}}),
		"Watch": framed(f, &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: subscribe(1, "web")}},
			&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Unsubscribe{Unsubscribe: &apiv1.Unsubscribe{SubscriptionId: 1}}}),
		"WatchService":    framed(f, &apiv1.WatchServiceRequest{Resume: &apiv1.ResumePoint{ClusterId: "c1", Epoch: 1, Revision: 1 << 62}}),
		"WatchLock":       framed(f, &apiv1.WatchLockRequest{Name: "l", ProgressInterval: durationpb.New(time.Second)}),
		"WatchKeys":       framed(f, &apiv1.WatchKeysRequest{Prefix: true, ProgressInterval: durationpb.New(time.Second)}),
		"SaveSnapshot":    framed(f, &apiv1.SaveSnapshotRequest{}),
		"RestoreSnapshot": framed(f, &apiv1.RestoreSnapshotRequest{Chunk: []byte("regd snapshot\n")}, &apiv1.RestoreSnapshotRequest{}),
	}
	for i, s := range streams {
		if seeds[s.desc.StreamName] == nil {
			f.Errorf("%s has no seed", s.desc.StreamName)
		}
		f.Add(uint8(i), seeds[s.desc.StreamName])
		f.Add(uint8(i), []byte{})
	}
	base := inhabited(f)
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		s := streams[int(which)%len(streams)]
		synctest.Test(t, func(t *testing.T) {
			b := newBare(nodeAt(base))
			defer b.close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := s.desc.Handler(b.impl[s.service], &script{t: t, ctx: ctx, rest: data})
			if !errors.Is(err, io.EOF) { // Nothing was asked at all.
				wantServed(t, err)
			}
			b.wantSound(t)
		})
	})
}

// FuzzRestore uploads arbitrary bytes as a snapshot, in parts of arbitrary sizes: the registry is what ReadSnapshot makes
// of the bytes, or nothing has changed and the error says where they are wrong. It takes no memory for what is only
// claimed.
func FuzzRestore(f *testing.F) {
	var snapshot bytes.Buffer
	if err := inhabited(f).WriteSnapshot(&snapshot, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(snapshot.Bytes(), []byte{1, 0, 255, 7})
	f.Add(snapshot.Bytes()[:snapshot.Len()-3], []byte{})
	f.Add([]byte{0xff, 0xff, 0x1f, 0, 0, 0, 0, 0, 'x'}, []byte{9})
	f.Add(append(snapshot.Bytes(), 1), []byte{200})
	base := after(f, inhabited(f), removal("web", "2"))
	f.Fuzz(func(t *testing.T, data, sizes []byte) {
		want, wantErr := fsm.ReadSnapshot(bytes.NewReader(data))
		var parts []proto.Message
		for rest := data; len(rest) > 0; {
			n := len(rest)
			if len(sizes) > 0 {
				n, sizes = min(n, int(sizes[0])), sizes[1:]
			}
			parts, rest = append(parts, &apiv1.RestoreSnapshotRequest{Chunk: rest[:n]}), rest[n:]
		}
		upload := framed(t, parts...)
		synctest.Test(t, func(t *testing.T) {
			b := newBare(nodeAt(base))
			defer b.close()
			var before, later runtime.MemStats
			runtime.ReadMemStats(&before)
			err := clusterRestore(b, &script{t: t, ctx: t.Context(), rest: upload})
			runtime.ReadMemStats(&later)
			if used, limit := later.TotalAlloc-before.TotalAlloc, uint64(8<<20+64*len(data)); used > limit {
				t.Fatalf("%d bytes of memory for %d", used, len(data))
			}
			wantServed(t, err)
			st := b.node.feed.State()
			switch {
			case (err == nil) != (wantErr == nil):
				t.Fatalf("uploaded: %v, read: %v", err, wantErr)
			case err == nil && (st.ContentHash() != want.ContentHash() || st.Epoch() <= base.Epoch()):
				t.Fatal("the registry is not what was uploaded")
			case err != nil && st != base:
				t.Fatal("the registry has changed")
			case err != nil && !errors.Is(err, fsm.ErrBadSnapshot):
				t.Fatalf("error %v", err)
			}
		})
	})
}

// clusterRestore calls RestoreSnapshot.
func clusterRestore(b *bare, s *script) error {
	desc := &apiv1.ClusterService_ServiceDesc
	i := slices.IndexFunc(desc.Streams, func(d grpc.StreamDesc) bool { return d.StreamName == "RestoreSnapshot" })
	return desc.Streams[i].Handler(b.impl[desc], s)
}
