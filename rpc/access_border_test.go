package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// errEnded says that a subscription was ended because it was denied.
var errEnded = errors.New("denied")

// TestATokenOfAnotherNamespaceReachesNothing calls each method that is about names with a sound request for a namespace, and a
// token that may do everything in another one: it is denied, or sees nothing of it. Both namespaces hold the same names, and
// one is a prefix of the other.
func TestATokenOfAnotherNamespaceReachesNothing(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.upgradedTo(t, fsm.KVLevel)
	all := []registryv1.Action{
		discoverIt, registerIt, seeLock, takeLock, registryv1.Action_ACTION_KV_READ, registryv1.Action_ACTION_KV_WRITE,
	}
	r.node.identity(t, "a", rule("team-a/*", all...))
	r.node.identity(t, "b", rule("team/*", all...))
	ctx, own := showing(t.Context(), "b"), showing(t.Context(), "a")
	opened, err := r.sessions.Open(own, &apiv1.OpenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	theirs := opened.GetSession().GetId()
	granted, err := r.leases.Grant(own, &apiv1.GrantRequest{SessionId: theirs, Ttl: durationpb.New(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	lease := granted.GetLease().GetId()
	inst := in("team-a", "web", "1")
	inst.SessionId = theirs
	if _, err = r.registry.Register(own, &apiv1.RegisterRequest{Instance: inst}); err != nil {
		t.Fatal(err)
	}
	if _, err = r.locks.Acquire(own, &apiv1.AcquireRequest{Namespace: "team-a", Name: "l", SessionId: theirs}); err != nil {
		t.Fatal(err)
	}
	if opened, err = r.sessions.Open(ctx, &apiv1.OpenRequest{}); err != nil {
		t.Fatal(err)
	}
	mine := opened.GetSession().GetId()
	if _, err = r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: in("team", "web", "1")}); err != nil {
		t.Fatal(err)
	}
	if _, err = r.keys.PutKey(own, &apiv1.PutKeyRequest{Namespace: "team-a", Key: "k", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	before := r.node.feed.State().ContentHash()

	key := &apiv1.InstanceKey{Namespace: "team-a", Service: "web", Id: "1"}
	lists := func(m fmt.Stringer, err error) error {
		if err != nil || !strings.Contains(m.String(), "team-a") {
			return err
		}
		return fmt.Errorf("it shows %v", m)
	}
	watches := func(filter *apiv1.Filter) error {
		watching, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := r.registry.WatchService(watching, &apiv1.WatchServiceRequest{Filter: filter})
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			case m.GetEnded() != nil:
				if m.GetEnded().GetReason() == "PERMISSION_DENIED" {
					return errEnded
				}
				return fmt.Errorf("it ended: %v", m.GetEnded())
			case m.GetSynced() != nil:
				return nil
			}
			if err = lists(m, nil); err != nil {
				return err
			}
		}
	}
	const denied, hidden = "denied", "hidden"
	type row struct {
		want string
		err  error
	}
	rows := map[string]row{
		apiv1.RegistryService_Register_FullMethodName: {denied, drop(r.registry.Register(ctx, &apiv1.RegisterRequest{Instance: in("team-a", "web", "2")}))},
		apiv1.RegistryService_RegisterBatch_FullMethodName: {denied, drop(r.registry.RegisterBatch(ctx, &apiv1.RegisterBatchRequest{
			Register: []*registryv1.Instance{in("team", "web", "2")}, Deregister: []*apiv1.InstanceKey{key},
		}))},
		apiv1.RegistryService_Deregister_FullMethodName: {denied, drop(r.registry.Deregister(ctx, &apiv1.DeregisterRequest{Key: key}))},
		apiv1.RegistryService_SetHealth_FullMethodName: {denied, drop(r.registry.SetHealth(ctx, &apiv1.SetHealthRequest{
			Key: key, Status: registryv1.CheckStatus_CHECK_STATUS_PASSING,
		}))},
		apiv1.RegistryService_Drain_FullMethodName:          {denied, drop(r.registry.Drain(ctx, &apiv1.DrainRequest{Key: key}))},
		apiv1.RegistryService_SetMaintenance_FullMethodName: {denied, drop(r.registry.SetMaintenance(ctx, &apiv1.SetMaintenanceRequest{Key: key}))},
		apiv1.RegistryService_AwaitDelivery_FullMethodName: {denied, drop(r.registry.AwaitDelivery(ctx, &apiv1.AwaitDeliveryRequest{
			Namespace: "team-a", Service: "web", Revision: 1,
		}))},
		apiv1.RegistryService_Get_FullMethodName:     {denied, drop(r.registry.Get(ctx, &apiv1.GetRequest{Key: key}))},
		apiv1.RegistryService_Explain_FullMethodName: {denied, drop(r.registry.Explain(ctx, &apiv1.ExplainRequest{Key: key}))},
		apiv1.RegistryService_ListInstances_FullMethodName: {hidden, func() error {
			m, err := r.registry.ListInstances(ctx, &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Namespace: "*"}})
			if err == nil && len(m.GetInstances()) != 1 {
				return fmt.Errorf("it hides what is the caller's own: %v", m)
			}
			return lists(m, err)
		}()},
		apiv1.RegistryService_ListServices_FullMethodName: {hidden, func() error {
			m, err := r.registry.ListServices(ctx, &apiv1.ListServicesRequest{Namespace: "*"})
			return lists(m, err)
		}()},
		apiv1.RegistryService_Watch_FullMethodName:        {hidden, watches(&apiv1.Filter{Namespace: "*"})},
		apiv1.RegistryService_WatchService_FullMethodName: {denied, watches(&apiv1.Filter{Namespace: "team-a", Service: "web"})},
		apiv1.SessionService_Renew_FullMethodName:         {denied, drop(r.sessions.Renew(ctx, &apiv1.RenewRequest{SessionIds: []string{theirs}}))},
		apiv1.SessionService_Close_FullMethodName:         {denied, drop(r.sessions.Close(ctx, &apiv1.CloseRequest{SessionId: theirs}))},
		apiv1.SessionService_List_FullMethodName:          {denied, drop(r.sessions.List(ctx, &apiv1.ListRequest{}))},
		apiv1.LeaseService_Grant_FullMethodName:           {denied, drop(r.leases.Grant(ctx, &apiv1.GrantRequest{SessionId: theirs, Ttl: durationpb.New(time.Minute)}))},
		apiv1.LeaseService_Revoke_FullMethodName:          {denied, drop(r.leases.Revoke(ctx, &apiv1.RevokeRequest{LeaseId: lease}))},
		apiv1.LeaseService_ListLeases_FullMethodName:      {denied, drop(r.leases.ListLeases(ctx, &apiv1.ListLeasesRequest{}))},
		apiv1.LockService_Acquire_FullMethodName: {denied, drop(r.locks.Acquire(ctx, &apiv1.AcquireRequest{
			Namespace: "team-a", Name: "free", SessionId: mine,
		}))},
		apiv1.LockService_Release_FullMethodName: {denied, drop(r.locks.Release(ctx, &apiv1.ReleaseRequest{
			Namespace: "team-a", Name: "l", SessionId: theirs,
		}))},
		apiv1.LockService_GetLock_FullMethodName: {denied, drop(r.locks.GetLock(ctx, &apiv1.GetLockRequest{Namespace: "team-a", Name: "l"}))},
		apiv1.LockService_ListLocks_FullMethodName: {hidden, func() error {
			m, err := r.locks.ListLocks(ctx, &apiv1.ListLocksRequest{Namespace: "*"})
			return lists(m, err)
		}()},
		apiv1.LockService_WatchLock_FullMethodName: {denied, func() error {
			stream, err := r.locks.WatchLock(ctx, &apiv1.WatchLockRequest{Namespace: "team-a", Name: "l"})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}()},
	}
	rows[apiv1.KVService_GetKey_FullMethodName] = row{denied, drop(r.keys.GetKey(ctx, &apiv1.GetKeyRequest{Namespace: "team-a", Key: "k"}))}
	rows[apiv1.KVService_ListKeys_FullMethodName] = row{hidden, func() error {
		m, err := r.keys.ListKeys(ctx, &apiv1.ListKeysRequest{Namespace: "team-a"})
		return lists(m, err)
	}()}
	rows[apiv1.KVService_PutKey_FullMethodName] = row{denied, drop(r.keys.PutKey(ctx, &apiv1.PutKeyRequest{Namespace: "team-a", Key: "k"}))}
	rows[apiv1.KVService_DeleteKey_FullMethodName] = row{denied, drop(r.keys.DeleteKey(ctx, &apiv1.DeleteKeyRequest{Namespace: "team-a", Prefix: true}))}
	rows[apiv1.KVService_Transact_FullMethodName] = row{denied, drop(r.keys.Transact(ctx, &apiv1.TransactRequest{
		Namespace: "team-a", Ops: []*apiv1.KeyOp{{Kind: apiv1.KeyOpKind_KEY_OP_KIND_CHECK_EXISTS, Key: "k"}},
	}))}
	rows[apiv1.KVService_WatchKeys_FullMethodName] = row{hidden, func() error {
		stream, err := r.keys.WatchKeys(ctx, &apiv1.WatchKeysRequest{Namespace: "team-a", Prefix: true})
		if err == nil {
			m, recvErr := stream.Recv()
			return lists(m, recvErr)
		}
		return err
	}()}
	// Of these each has an id of its own to guess at most, and other tests hold whose it must be.
	elsewhere := []string{
		apiv1.SessionService_Open_FullMethodName, apiv1.SessionService_Attach_FullMethodName,
		apiv1.LeaseService_KeepAlive_FullMethodName, apiv1.LeaseService_GetLease_FullMethodName,
	}
	for _, method := range methodsOf(r.server) {
		row, ok := rows[method]
		inNamespaces := strings.Contains(method, "v1.RegistryService/") || strings.Contains(method, "v1.SessionService/") ||
			strings.Contains(method, "v1.LeaseService/") || strings.Contains(method, "v1.LockService/") ||
			strings.Contains(method, "v1.KVService/")
		switch {
		case !ok && inNamespaces && !slices.Contains(elsewhere, method):
			t.Errorf("%s is not tried", method)
		case row.want == denied && reasonOfError(row.err) != "PERMISSION_DENIED" && !errors.Is(row.err, errEnded),
			row.want == hidden && row.err != nil:
			t.Errorf("%s: %v, want it %s", method, row.err, row.want)
		}
	}
	if r.node.feed.State().ContentHash() != before {
		t.Error("something has changed")
	}
}
