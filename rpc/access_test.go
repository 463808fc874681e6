package rpc

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// secretOf is the secret of the test token of that id.
func secretOf(id string) string { return "secret-of-" + id }

// showing is a context of a caller with the token of that id.
func showing(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer regd_"+id+"_"+secretOf(id))
}

// createToken is a command that creates the token of that id.
func createToken(id, identity string, expires time.Time) *raftlogv1.CreateToken {
	hash := sha256.Sum256([]byte(secretOf(id)))
	token := &registryv1.Token{Id: id, Identity: identity}
	if !expires.IsZero() {
		token.ExpiresUnixMs = expires.UnixMilli()
	}
	return &raftlogv1.CreateToken{Token: token, SecretHash: hash[:]}
}

// enforce has the node's cluster upgraded and bootstrapped: the token "root" may do everything.
func (n *fakeNode) enforce(tb testing.TB) {
	tb.Helper()
	n.mustApply(tb, &raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
		Member: &registryv1.Member{Id: "id1", Name: "n1", FeatureLevel: fsm.AccessLevel},
	}}})
	n.mustApply(tb, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_BootstrapAccess{
		BootstrapAccess: &raftlogv1.BootstrapAccess{Token: createToken("root", bootstrapIdentity, time.Time{})},
	}})
}

// identity gives the token of that name an identity of its own, which has a policy with these rules.
func (n *fakeNode) identity(tb testing.TB, name string, rules ...*registryv1.Rule) {
	tb.Helper()
	for _, cmd := range []*raftlogv1.Command{
		{Kind: &raftlogv1.Command_PutPolicy{PutPolicy: &raftlogv1.PutPolicy{Policy: &registryv1.Policy{Name: name, Rules: rules}}}},
		{Kind: &raftlogv1.Command_PutGrant{PutGrant: &raftlogv1.PutGrant{
			Grant: &registryv1.Grant{Identity: name, Policies: []string{name}},
		}}},
	} {
		cmd.Level = max(fsm.AccessLevel, n.feed.State().FeatureLevel())
		n.mustApply(tb, cmd)
	}
	if _, ok := n.feed.State().Token(name); !ok {
		n.mustApply(tb, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_CreateToken{
			CreateToken: createToken(name, name, time.Time{}),
		}})
	}
}

// rule allows actions on a place, "namespace/name".
func rule(place string, actions ...registryv1.Action) *registryv1.Rule {
	namespace, name, _ := strings.Cut(place, "/")
	return &registryv1.Rule{Actions: actions, Namespace: namespace, Name: name}
}

const (
	discoverIt = registryv1.Action_ACTION_DISCOVER
	registerIt = registryv1.Action_ACTION_REGISTER
	seeLock    = registryv1.Action_ACTION_SEE_LOCK
	takeLock   = registryv1.Action_ACTION_LOCK
	observeIt  = registryv1.Action_ACTION_OBSERVE
	operateIt  = registryv1.Action_ACTION_OPERATE
)

// methodsOf returns all methods of a server.
func methodsOf(s *Server) []string {
	var methods []string
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			methods = append(methods, "/"+service+"/"+m.Name)
		}
	}
	slices.Sort(methods)
	return methods
}

// public are the methods that are for everybody.
func public() []string {
	var methods []string
	for method, r := range accessRules {
		if r == nil {
			methods = append(methods, method)
		}
	}
	slices.Sort(methods)
	return methods
}

func TestEveryMethodHasAnAccessRule(t *testing.T) {
	methods := methodsOf(newRig(t).server)
	for _, method := range methods {
		if _, ok := accessRules[method]; !ok {
			t.Errorf("%s has no rule", method)
		}
	}
	for method := range accessRules {
		if !slices.Contains(methods, method) {
			t.Errorf("there is a rule for %s, which is no method", method)
		}
	}
	want := []string{
		"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
		"/regd.api.v1.AccessService/Bootstrap", "/regd.api.v1.AccessService/WhoAmI",
	}
	if diff := cmp.Diff(want, public()); diff != "" {
		t.Errorf("for everybody are (-want +got):\n%s", diff)
	}
}

// call calls any method with an empty message and returns its error, nil if it was answered.
func call(tb testing.TB, ctx context.Context, conn *grpc.ClientConn, method string) error {
	tb.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		tb.Fatal(err)
	}
	desc := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name))
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	if err = stream.SendMsg(dynamicpb.NewMessage(desc.Input())); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err = stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(dynamicpb.NewMessage(desc.Output()))
}

func TestEveryMethodRefusesWhoMayNot(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.identity(t, "elsewhere", rule("team-b/*", discoverIt, registerIt, seeLock, takeLock))
	r.node.mustApply(t, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_CreateToken{
		CreateToken: createToken("late", bootstrapIdentity, time.Now().Add(-time.Minute)),
	}})
	r.node.mustApply(t, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_CreateToken{
		CreateToken: createToken("gone", bootstrapIdentity, time.Time{}),
	}})
	r.node.mustApply(t, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_DeleteToken{
		DeleteToken: &raftlogv1.DeleteToken{Id: "gone"},
	}})
	ctx := t.Context()
	with := func(authorization string) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "authorization", authorization)
	}
	// What the owner of names elsewhere may begin: it is about no name, or what he may not see is left out.
	begins := []string{
		"/regd.api.v1.RegistryService/ListServices", "/regd.api.v1.RegistryService/ListInstances", "/regd.api.v1.RegistryService/RegisterBatch",
		"/regd.api.v1.RegistryService/Watch", "/regd.api.v1.RegistryService/WatchService",
		"/regd.api.v1.SessionService/Open", "/regd.api.v1.SessionService/Attach", "/regd.api.v1.SessionService/Renew",
		"/regd.api.v1.SessionService/Close", "/regd.api.v1.LeaseService/Grant", "/regd.api.v1.LeaseService/KeepAlive",
		"/regd.api.v1.LeaseService/Revoke", "/regd.api.v1.LeaseService/GetLease", "/regd.api.v1.LockService/ListLocks",
		"/regd.api.v1.LockService/WatchLock",
	}
	for _, tt := range []struct {
		name string
		ctx  context.Context
		want codes.Code
		says string
		may  []string
	}{
		{"nothing", ctx, codes.PermissionDenied, "anonymous may not", public()},
		{"unknown token", showing(ctx, "nobody"), codes.Unauthenticated, "nobody has this token", nil},
		{"wrong secret", with("Bearer regd_root_wrong"), codes.Unauthenticated, "nobody has this token", nil},
		{"secret of another", with("Bearer regd_root_" + secretOf("elsewhere")), codes.Unauthenticated, "nobody has this token", nil},
		{"no secret", with("Bearer regd_root"), codes.Unauthenticated, "looks like regd_ID_SECRET", nil},
		{"another kind of token", with("Bearer eyJhbGciOi"), codes.Unauthenticated, "looks like regd_ID_SECRET", nil},
		{"another scheme", with("Basic cm9vdDpyb290"), codes.Unauthenticated, "looks like regd_ID_SECRET", nil},
		{"empty", with(""), codes.Unauthenticated, "looks like regd_ID_SECRET", nil},
		{"expired", showing(ctx, "late"), codes.Unauthenticated, "expired", nil},
		{"deleted", showing(ctx, "gone"), codes.Unauthenticated, "nobody has this token", nil},
		{"names elsewhere", showing(ctx, "elsewhere"), codes.PermissionDenied, "identity elsewhere may not", slices.Concat(public(), begins)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, method := range methodsOf(r.server) {
				err := call(t, tt.ctx, r.conn, method)
				denied := status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unauthenticated
				if may := slices.Contains(tt.may, method); may && denied {
					t.Errorf("%s: %v, want it allowed", method, err)
				} else if !may && (status.Code(err) != tt.want || !strings.Contains(err.Error(), tt.says)) {
					t.Errorf("%s: %v, want %v that says %q", method, err, tt.want, tt.says)
				}
				if err != nil && strings.Contains(err.Error(), "secret-of") {
					t.Errorf("%s repeats a secret: %v", method, err)
				}
			}
		})
	}
}

func TestWhoMayDoEverythingMayCallEverything(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	for _, method := range methodsOf(r.server) {
		if err := call(t, showing(t.Context(), "root"), r.conn, method); status.Code(err) == codes.PermissionDenied ||
			status.Code(err) == codes.Unauthenticated {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestNothingIsDeniedWhileAccessControlIsOff(t *testing.T) {
	r := newRig(t)
	for _, ctx := range []context.Context{t.Context(), showing(t.Context(), "nobody")} {
		for _, method := range methodsOf(r.server) {
			if err := call(t, ctx, r.conn, method); status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unauthenticated {
				t.Errorf("%s: %v", method, err)
			}
		}
	}
}

// reasonOf is the reason of an error, without prefix; empty for none.
func reasonOfError(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(interface{ GetReason() string }); ok {
			return info.GetReason()
		}
	}
	return ""
}

func TestRulesOfNames(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.identity(t, "pay", rule("default/pay-*", registerIt), rule("default/web", discoverIt), rule("default/job", takeLock))
	ctx, root := showing(t.Context(), "pay"), showing(t.Context(), "root")
	for _, service := range []string{"pay-a", "web", "secret"} {
		if _, err := r.registry.Register(root, &apiv1.RegisterRequest{Instance: instance(service, "i")}); err != nil {
			t.Fatal(err)
		}
	}
	opened, err := r.sessions.Open(ctx, &apiv1.OpenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	session := opened.GetSession()
	if session.GetOwner() != "pay" {
		t.Errorf("the session belongs to %q, want pay", session.GetOwner())
	}
	others, err := r.sessions.Open(root, &apiv1.OpenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	in := func(service, session string) *registryv1.Instance {
		i := instance(service, "mine")
		i.SessionId = session
		return i
	}
	key := func(service string) *apiv1.InstanceKey { return &apiv1.InstanceKey{Service: service, Id: "i"} }
	try := func(_ any, err error) error { return err }
	for _, tt := range []struct {
		what    string
		err     error
		missing string // "" when allowed
	}{
		{"register", try(r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: in("pay-a", session.GetId())})), ""},
		{"register another", try(r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: in("web", "")})), "register default/web"},
		{"register elsewhere", try(r.registry.Register(ctx, &apiv1.RegisterRequest{
			Instance: &registryv1.Instance{Namespace: "other", Service: "pay-a", Id: "i", Address: "10.0.0.1"},
		})), "register other/pay-a"},
		{"register on the session of another", try(r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: in("pay-a", others.GetSession().GetId())})), "session"},
		{"get", try(r.registry.Get(ctx, &apiv1.GetRequest{Key: key("web")})), ""},
		{"get what it registers", try(r.registry.Get(ctx, &apiv1.GetRequest{Key: key("pay-a")})), ""},
		{"get another", try(r.registry.Get(ctx, &apiv1.GetRequest{Key: key("secret")})), "discover default/secret"},
		{"get what is not there", try(r.registry.Get(ctx, &apiv1.GetRequest{Key: key("none")})), "discover default/none"},
		{"list another", try(r.registry.ListInstances(ctx, &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "secret"}})), "discover default/secret"},
		{"deregister another", try(r.registry.Deregister(ctx, &apiv1.DeregisterRequest{Key: key("web")})), "register default/web"},
		{"one of a batch", try(r.registry.RegisterBatch(ctx, &apiv1.RegisterBatchRequest{
			Register: []*registryv1.Instance{instance("pay-a", "b1"), instance("secret", "b2")},
		})), "register default/secret"},
		{"drain another", try(r.registry.Drain(ctx, &apiv1.DrainRequest{Key: key("web")})), "register default/web"},
		{"maintenance of another", try(r.registry.SetMaintenance(ctx, &apiv1.SetMaintenanceRequest{Key: key("web"), Maintenance: true})), "register default/web"},
		{"health of another", try(r.registry.SetHealth(ctx, &apiv1.SetHealthRequest{Key: key("web"), Status: registryv1.CheckStatus_CHECK_STATUS_PASSING})), "register default/web"},
		{"delivery of another", try(r.registry.AwaitDelivery(ctx, &apiv1.AwaitDeliveryRequest{Service: "secret", Revision: 1})), "register default/secret"},
		{"lock", try(r.locks.Acquire(ctx, &apiv1.AcquireRequest{Name: "job", SessionId: session.GetId()})), ""},
		{"see the lock", try(r.locks.GetLock(ctx, &apiv1.GetLockRequest{Name: "job"})), ""},
		{"another lock", try(r.locks.Acquire(ctx, &apiv1.AcquireRequest{Name: "other", SessionId: session.GetId()})), "lock default/other"},
		{"see another lock", try(r.locks.GetLock(ctx, &apiv1.GetLockRequest{Name: "other"})), "see lock default/other"},
		{"lock with the session of another", try(r.locks.Acquire(ctx, &apiv1.AcquireRequest{Name: "job", SessionId: others.GetSession().GetId()})), "session"},
		{"renew the session of another", try(r.sessions.Renew(ctx, &apiv1.RenewRequest{SessionIds: []string{others.GetSession().GetId()}})), "belongs to operator"},
		{"close the session of another", try(r.sessions.Close(ctx, &apiv1.CloseRequest{SessionId: others.GetSession().GetId()})), "session"},
		{"renew", try(r.sessions.Renew(ctx, &apiv1.RenewRequest{SessionIds: []string{session.GetId()}})), ""},
		{"an operator renews", try(r.sessions.Renew(root, &apiv1.RenewRequest{SessionIds: []string{session.GetId()}})), ""},
		{"close", try(r.sessions.Close(ctx, &apiv1.CloseRequest{SessionId: session.GetId()})), ""},
		{"see the sessions", try(r.sessions.List(ctx, &apiv1.ListRequest{})), "observe"},
		{"restore", func() error {
			stream, err := r.cluster.RestoreSnapshot(ctx)
			if err == nil {
				_, err = stream.CloseAndRecv()
			}
			return err
		}(), "operate"},
	} {
		switch {
		case tt.missing == "" && tt.err != nil:
			t.Errorf("%s: %v, want it allowed", tt.what, tt.err)
		case tt.missing != "" && (reasonOfError(tt.err) != "PERMISSION_DENIED" || !strings.Contains(tt.err.Error(), tt.missing)):
			t.Errorf("%s: %v, want it denied for lack of %q", tt.what, tt.err, tt.missing)
		}
	}
}

func TestListsShowOnlyWhatTheCallerMaySee(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.identity(t, "reads", rule("*/pay-*", discoverIt), rule("default/job-*", seeLock))
	root := showing(t.Context(), "root")
	opened, err := r.sessions.Open(root, &apiv1.OpenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "pay-a", "pay-b", "z"} {
		if _, err = r.registry.Register(root, &apiv1.RegisterRequest{Instance: instance(name, "i")}); err != nil {
			t.Fatal(err)
		}
		if _, err = r.locks.Acquire(root, &apiv1.AcquireRequest{Name: "job-" + name, SessionId: opened.GetSession().GetId()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = r.locks.Acquire(root, &apiv1.AcquireRequest{Name: "other", SessionId: opened.GetSession().GetId()}); err != nil {
		t.Fatal(err)
	}
	ctx := showing(t.Context(), "reads")
	services, err := r.registry.ListServices(ctx, &apiv1.ListServicesRequest{Namespace: "*"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range services.GetServices() {
		names = append(names, s.GetName())
	}
	// Page by page, so that what is left out does not end a list.
	for page := ""; ; {
		list, listErr := r.registry.ListInstances(ctx, &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Namespace: "*"}, PageSize: 1, PageToken: page})
		if listErr != nil {
			t.Fatal(listErr)
		}
		for _, i := range list.GetInstances() {
			names = append(names, "instance of "+i.GetService())
		}
		if page = list.GetNextPageToken(); page == "" {
			break
		}
	}
	locks, err := r.locks.ListLocks(ctx, &apiv1.ListLocksRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range locks.GetLocks() {
		names = append(names, l.GetName())
	}
	want := []string{"pay-a", "pay-b", "instance of pay-a", "instance of pay-b", "job-a", "job-pay-a", "job-pay-b", "job-z"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("shown (-want +got):\n%s", diff)
	}
}

func TestANodeThatIsBehindAsksBeforeItDenies(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	ctx := showing(t.Context(), "new")
	asked := 0
	r.node.set(func() {
		r.node.onView = func(_ context.Context, fresh cluster.Freshness) error {
			if fresh.Mode == cluster.ModeLinearizable && asked == 0 {
				r.node.identity(t, "new", rule("default/web", registerIt))
			}
			asked++
			return nil
		}
	})
	if _, err := r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: instance("web", "i")}); err != nil {
		t.Errorf("with a token that this node has not heard of: %v", err)
	}
	if asked != 1 {
		t.Errorf("a current State was asked for %d times, want once", asked)
	}
	r.node.set(func() { r.node.onView = func(context.Context, cluster.Freshness) error { return cluster.ErrNoLeader } })
	_, err := r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: instance("other", "i")})
	if reasonOfError(err) != "NO_LEADER" {
		t.Errorf("denied by what may be old: %v, want NO_LEADER", err)
	}
	if _, err = r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: instance("web", "i2")}); err != nil {
		t.Errorf("what is known to be allowed, without a leader: %v", err)
	}
}

func TestRequestIDsAreTheIdentitysOwn(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.identity(t, "a", rule("*/*", registerIt))
	r.node.identity(t, "b", rule("*/*", registerIt))
	r.node.mustApply(t, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_CreateToken{CreateToken: createToken("a2", "a", time.Time{})}})
	req := &apiv1.OpenRequest{RequestId: &apiv1.RequestID{ClientId: "c", Sequence: 1}}
	first, err := r.sessions.Open(showing(t.Context(), "a"), req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.sessions.Open(showing(t.Context(), "a2"), req)
	if err != nil || again.GetSession().GetId() != first.GetSession().GetId() {
		t.Errorf("with another token of the same identity: %v, %v, want the session %s", again, err, first.GetSession().GetId())
	}
	if _, err := r.sessions.Open(showing(t.Context(), "b"), req); reasonOfError(err) != "REQUEST_REUSED" {
		t.Errorf("by another identity: %v, want REQUEST_REUSED", err)
	}
}

func TestTheActorGoesIntoTheLogOnceAllMembersKnowIt(t *testing.T) {
	r := newRig(t)
	last := func() *raftlogv1.Command {
		r.node.mu.Lock()
		defer r.node.mu.Unlock()
		return r.node.proposed[len(r.node.proposed)-1]
	}
	if _, err := r.registry.Register(t.Context(), &apiv1.RegisterRequest{Instance: instance("web", "i")}); err != nil {
		t.Fatal(err)
	}
	if cmd := last(); cmd.GetLevel() != 0 || cmd.GetActor() != "" {
		t.Errorf("in a cluster of an older level: level %d, actor %q, want none", cmd.GetLevel(), cmd.GetActor())
	}
	r.node.enforce(t)
	if _, err := r.registry.Register(showing(t.Context(), "root"), &apiv1.RegisterRequest{Instance: instance("web", "i2")}); err != nil {
		t.Fatal(err)
	}
	if cmd := last(); cmd.GetLevel() != fsm.AccessLevel || cmd.GetActor() != fsm.TokenCredential("root") {
		t.Errorf("level %d, actor %q, want %d and the token", cmd.GetLevel(), cmd.GetActor(), fsm.AccessLevel)
	}
}

func TestRenewalsOfOthersEndTheStream(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.identity(t, "a", rule("*/*", registerIt))
	opened, err := r.sessions.Open(showing(t.Context(), "root"), &apiv1.OpenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := r.sessions.Attach(showing(t.Context(), "a"))
	if err != nil {
		t.Fatal(err)
	}
	if err = stream.Send(&apiv1.AttachRequest{SessionIds: []string{opened.GetSession().GetId()}, Sequence: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); reasonOfError(err) != "PERMISSION_DENIED" {
		t.Errorf("renewal of the session of another: %v", err)
	}
	if ids := r.node.renewed(peerv1.RenewKind_RENEW_KIND_SESSION); len(ids) > 0 {
		t.Errorf("renewed: %v", ids)
	}
}
