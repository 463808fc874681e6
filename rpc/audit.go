package rpc

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc/peer"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
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
	refused := errors.Is(err, fsm.ErrDenied) || errors.Is(err, ErrUnauthenticated)
	if !refused && !audited(method) {
		return
	}
	credential := credentialOf(ctx)
	identity, _ := a.node.Feed().State().Identity(credential)
	attrs := make([]slog.Attr, 0, 8)
	attrs = append(attrs, slog.String("method", method), slog.String("identity", identity), slog.String("credential", credential))
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		attrs = append(attrs, slog.String("client", p.Addr.String()))
	}
	attrs = append(attrs, slog.Attr{Key: "on", Value: slog.GroupValue(auditedObject(req)...)})
	if err != nil {
		attrs = append(attrs, slog.String("err", err.Error()))
	} else if answered, ok := resp.(interface{ GetHeader() *apiv1.ResponseHeader }); ok {
		attrs = append(attrs, slog.Uint64("revision", answered.GetHeader().GetRevision()))
	}
	switch {
	case refused:
		a.log.LogAttrs(ctx, slog.LevelWarn, "refused", attrs...)
	case err != nil:
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
