package rpc

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// audit writes down who did what, or tried to: every write, everything that an operator does, and whatever was denied. The
// record is structured, so that no name in it can look like another field or another record. Renewals and reads are left out:
// they are many, and change nothing.
type audit struct {
	log *slog.Logger // nil: nothing is written
	guard
}

// audited tells whether a method is written down also when it succeeds.
func audited(method string) bool {
	switch method {
	case apiv1.RegistryService_Register_FullMethodName, apiv1.RegistryService_Deregister_FullMethodName,
		apiv1.RegistryService_RegisterBatch_FullMethodName, apiv1.RegistryService_SetHealth_FullMethodName,
		apiv1.RegistryService_Drain_FullMethodName, apiv1.RegistryService_SetMaintenance_FullMethodName,
		apiv1.SessionService_Open_FullMethodName, apiv1.SessionService_Close_FullMethodName,
		apiv1.LeaseService_Grant_FullMethodName, apiv1.LeaseService_Revoke_FullMethodName,
		apiv1.LockService_Acquire_FullMethodName, apiv1.LockService_Release_FullMethodName,
		apiv1.KVService_PutKey_FullMethodName, apiv1.KVService_DeleteKey_FullMethodName, apiv1.KVService_Transact_FullMethodName,
		apiv1.ClusterService_Join_FullMethodName, apiv1.ClusterService_Remove_FullMethodName,
		apiv1.ClusterService_Promote_FullMethodName, apiv1.ClusterService_Demote_FullMethodName,
		apiv1.ClusterService_TransferLeadership_FullMethodName, apiv1.ClusterService_SaveSnapshot_FullMethodName,
		apiv1.ClusterService_RestoreSnapshot_FullMethodName,
		apiv1.AccessService_Bootstrap_FullMethodName, apiv1.AccessService_SetEnforcement_FullMethodName,
		apiv1.AccessService_PutPolicy_FullMethodName, apiv1.AccessService_DeletePolicy_FullMethodName,
		apiv1.AccessService_CreateToken_FullMethodName, apiv1.AccessService_DeleteToken_FullMethodName,
		apiv1.NamespaceService_PutNamespace_FullMethodName, apiv1.NamespaceService_DeleteNamespace_FullMethodName,
		apiv1.AccessService_PutGrant_FullMethodName, apiv1.AccessService_DeleteGrant_FullMethodName:
		return true
	}
	return false
}

// note writes a call down once it has ended. req is nil for a stream, resp for a stream or a failure.
func (a *audit) note(ctx context.Context, method string, req, resp any, err error) {
	if a.log == nil {
		return
	}
	e := event{method: method, err: err, on: func() []slog.Attr { return auditedObject(req) }}
	if answered, ok := resp.(interface{ GetHeader() *apiv1.ResponseHeader }); ok {
		e.revision = answered.GetHeader().GetRevision()
	}
	a.write(ctx, e)
}

// event is what a record of the audit log is made of.
type event struct {
	method   string
	on       func() []slog.Attr // what it was about
	more     []slog.Attr
	revision uint64 // of what was done; 0: none is known
	err      error
}

func (a *audit) write(ctx context.Context, e event) {
	if a.log == nil {
		return
	}
	refused := errors.Is(e.err, fsm.ErrDenied) || errors.Is(e.err, ErrUnauthenticated)
	if !refused && !audited(e.method) {
		return
	}
	credential := credentialOf(ctx)
	identity, _ := a.node.Feed().State().Identity(credential)
	attrs := make([]slog.Attr, 0, 8)
	attrs = append(attrs, slog.String("method", e.method), slog.String("identity", identity), slog.String("credential", credential))
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		attrs = append(attrs, slog.String("client", p.Addr.String()))
	}
	attrs = append(attrs, slog.Attr{Key: "on", Value: slog.GroupValue(e.on()...)})
	attrs = append(attrs, e.more...)
	if e.err != nil {
		attrs = append(attrs, slog.String("err", e.err.Error()))
	} else if e.revision > 0 {
		attrs = append(attrs, slog.Uint64("revision", e.revision))
	}
	switch {
	case refused:
		a.log.LogAttrs(ctx, slog.LevelWarn, "refused", attrs...)
	case e.err != nil:
		a.log.LogAttrs(ctx, slog.LevelInfo, "failed", attrs...)
	default:
		a.log.LogAttrs(ctx, slog.LevelInfo, "done", attrs...)
	}
}

// auditedObject is what a request is about, without what it says of it: that may be large, or a secret.
//
//nolint:gocyclo // A table of the kinds.
func auditedObject(req any) []slog.Attr {
	var attrs []slog.Attr
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	place := func(p placed) {
		add("namespace", p.GetNamespace())
		add("service", p.GetService())
	}
	switch r := req.(type) {
	case *apiv1.RegisterRequest:
		place(r.GetInstance())
		add("id", r.GetInstance().GetId())
	case interface{ GetKey() *apiv1.InstanceKey }:
		place(r.GetKey())
		add("id", r.GetKey().GetId())
	case *apiv1.RegisterBatchRequest:
		attrs = append(attrs, slog.Int("register", len(r.GetRegister())), slog.Int("deregister", len(r.GetDeregister())))
		for _, in := range r.GetRegister()[:min(1, len(r.GetRegister()))] {
			place(in)
		}
	case *apiv1.PutPolicyRequest:
		add("policy", r.GetPolicy().GetName())
		add("rules", rulesText(r.GetPolicy()))
	case *apiv1.PutNamespaceRequest:
		add("namespace", r.GetNamespace().GetName())
		q := r.GetNamespace().GetQuota()
		attrs = append(attrs, slog.Uint64("max_instances", q.GetMaxInstances()), slog.Uint64("max_locks", q.GetMaxLocks()),
			slog.Uint64("max_watches", q.GetMaxWatches()), slog.Uint64("max_writes_per_second", q.GetMaxWritesPerSecond()))
	case *apiv1.DeleteNamespaceRequest:
		add("namespace", r.GetName())
	case *apiv1.DeletePolicyRequest:
		add("policy", r.GetName())
	case *apiv1.CreateTokenRequest:
		add("identity", r.GetIdentity())
	case *apiv1.DeleteTokenRequest:
		add("token", r.GetId())
	case *apiv1.PutGrantRequest:
		add("identity", r.GetGrant().GetIdentity())
		attrs = append(attrs, slog.Any("policies", r.GetGrant().GetPolicies()))
	case *apiv1.DeleteGrantRequest:
		add("identity", r.GetIdentity())
	case *apiv1.SetEnforcementRequest:
		attrs = append(attrs, slog.Bool("enforced", r.GetEnforced()))
	case interface{ GetNode() string }:
		add("node", r.GetNode())
	case *apiv1.JoinRequest:
		add("peer_address", r.GetPeerAddress())
	case named:
		add("namespace", r.GetNamespace())
		add("name", r.GetName())
	}
	if owned, ok := req.(interface{ GetSessionId() string }); ok {
		add("session", owned.GetSessionId())
	}
	if leased, ok := req.(interface{ GetLeaseId() string }); ok {
		add("lease", leased.GetLeaseId())
	}
	return attrs
}

// auditedCommand is auditedObject for what came through a door.
func auditedCommand(cmd *raftlogv1.Command) []slog.Attr {
	batch := func(register []*raftlogv1.Register, gone int) []slog.Attr {
		attrs := []slog.Attr{slog.Int("register", len(register)), slog.Int("deregister", gone)}
		return append(attrs, auditedInstance(register[0].GetInstance())...)
	}
	switch kind := cmd.GetKind().(type) {
	case *raftlogv1.Command_Register:
		return auditedInstance(kind.Register.GetInstance())
	case *raftlogv1.Command_Deregister:
		return auditedKey(kind.Deregister.GetKey())
	case *raftlogv1.Command_SetCheck:
		return append(auditedKey(kind.SetCheck.GetKey()), slog.String("check", kind.SetCheck.GetCheck()))
	case *raftlogv1.Command_SetMaintenance:
		return auditedKey(kind.SetMaintenance.GetKey())
	case *raftlogv1.Command_Batch:
		if len(kind.Batch.GetRegister()) > 0 {
			return batch(kind.Batch.GetRegister(), len(kind.Batch.GetDeregister()))
		}
	case *raftlogv1.Command_KvTransaction:
		ops := kind.KvTransaction.GetOps()
		attrs := []slog.Attr{slog.String("namespace", kind.KvTransaction.GetNamespace())}
		if len(ops) != 1 {
			return append(attrs, slog.Int("ops", len(ops)))
		}
		attrs = append(attrs, slog.String("key", ops[0].GetKey()))
		if ops[0].GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX {
			attrs = append(attrs, slog.Bool("prefix", true))
		}
		if ops[0].GetSessionId() != "" {
			attrs = append(attrs, slog.String("session", ops[0].GetSessionId()))
		}
		return attrs
	case *raftlogv1.Command_OpenSession:
		return []slog.Attr{slog.String("session", kind.OpenSession.GetId())}
	case *raftlogv1.Command_CloseSession:
		return []slog.Attr{slog.String("session", kind.CloseSession.GetId())}
	}
	return nil
}

func auditedKey(key *raftlogv1.Key) []slog.Attr {
	return []slog.Attr{slog.String("namespace", key.GetNamespace()), slog.String("service", key.GetService()), slog.String("id", key.GetId())}
}

// auditedInstance is which one an encoded specification is about.
func auditedInstance(spec []byte) []slog.Attr {
	var in registryv1.Instance
	if err := proto.Unmarshal(spec, &in); err != nil {
		return nil // It was encoded a moment ago.
	}
	return auditedKey(&raftlogv1.Key{Namespace: in.GetNamespace(), Service: in.GetService(), Id: in.GetId()})
}

// rulesText is what a policy allows, in a line.
func rulesText(p *registryv1.Policy) string {
	text := ""
	for i, r := range p.GetRules() {
		if i > 0 {
			text += "; "
		}
		for j, action := range r.GetActions() {
			if j > 0 {
				text += ","
			}
			text += actionName(action)
		}
		if r.GetNamespace() != "" {
			text += " " + r.GetNamespace() + "/" + r.GetName()
		}
	}
	return text
}
