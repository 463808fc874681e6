package rpc

import (
	"cmp"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// accessRule tells what permissions a call takes. nil: none.
type accessRule func(req any) []need

// accessRules has a rule for every method; a call of any other is denied. Names are taken as they come: what is malformed is
// refused later, and none of it is allowed to anybody who may not do all.
//
//nolint:gochecknoglobals // A table that nobody changes.
var accessRules = map[string]accessRule{
	apiv1.RegistryService_Register_FullMethodName: func(req any) []need {
		return []need{on(registryv1.Action_ACTION_REGISTER, req.(*apiv1.RegisterRequest).GetInstance())}
	},
	apiv1.RegistryService_Deregister_FullMethodName:     registerKey[*apiv1.DeregisterRequest],
	apiv1.RegistryService_SetHealth_FullMethodName:      registerKey[*apiv1.SetHealthRequest],
	apiv1.RegistryService_Drain_FullMethodName:          registerKey[*apiv1.DrainRequest],
	apiv1.RegistryService_SetMaintenance_FullMethodName: registerKey[*apiv1.SetMaintenanceRequest],
	apiv1.RegistryService_RegisterBatch_FullMethodName: func(req any) []need {
		batch := req.(*apiv1.RegisterBatchRequest)
		needs := []need{somewhere(registryv1.Action_ACTION_REGISTER)} // Also for an empty one.
		for _, in := range batch.GetRegister() {
			needs = addNeed(needs, on(registryv1.Action_ACTION_REGISTER, in))
		}
		for _, key := range batch.GetDeregister() {
			needs = addNeed(needs, on(registryv1.Action_ACTION_REGISTER, key))
		}
		return needs
	},
	apiv1.RegistryService_AwaitDelivery_FullMethodName: func(req any) []need {
		return []need{on(registryv1.Action_ACTION_REGISTER, req.(*apiv1.AwaitDeliveryRequest))}
	},
	apiv1.RegistryService_Get_FullMethodName: func(req any) []need {
		return []need{on(registryv1.Action_ACTION_DISCOVER, req.(*apiv1.GetRequest).GetKey())}
	},
	apiv1.RegistryService_Explain_FullMethodName: func(req any) []need {
		return []need{on(registryv1.Action_ACTION_DISCOVER, req.(*apiv1.ExplainRequest).GetKey())}
	},
	apiv1.RegistryService_ListInstances_FullMethodName: func(req any) []need {
		return discover(req.(*apiv1.ListInstancesRequest).GetFilter())
	},
	// What may be seen is chosen by the handler, and by the subscriptions.
	apiv1.RegistryService_ListServices_FullMethodName: always(somewhere(registryv1.Action_ACTION_DISCOVER)),
	apiv1.RegistryService_Watch_FullMethodName:        always(somewhere(registryv1.Action_ACTION_DISCOVER)),
	apiv1.RegistryService_WatchService_FullMethodName: always(somewhere(registryv1.Action_ACTION_DISCOVER)),

	// Whose session or lease it is, is judged by the handlers of renewals and by the state machine.
	apiv1.SessionService_Open_FullMethodName:     always(keepAlive()),
	apiv1.SessionService_Attach_FullMethodName:   always(keepAlive()),
	apiv1.SessionService_Renew_FullMethodName:    always(keepAlive()),
	apiv1.SessionService_Close_FullMethodName:    always(keepAlive()),
	apiv1.SessionService_List_FullMethodName:     always(onCluster(registryv1.Action_ACTION_OBSERVE)),
	apiv1.LeaseService_Grant_FullMethodName:      always(keepAlive()),
	apiv1.LeaseService_KeepAlive_FullMethodName:  always(keepAlive()),
	apiv1.LeaseService_Revoke_FullMethodName:     always(keepAlive()),
	apiv1.LeaseService_GetLease_FullMethodName:   always(keepAlive()),
	apiv1.LeaseService_ListLeases_FullMethodName: always(onCluster(registryv1.Action_ACTION_OBSERVE)),

	apiv1.LockService_Acquire_FullMethodName: func(req any) []need {
		return []need{onLock(registryv1.Action_ACTION_LOCK, req.(*apiv1.AcquireRequest))}
	},
	apiv1.LockService_Release_FullMethodName: func(req any) []need {
		return []need{onLock(registryv1.Action_ACTION_LOCK, req.(*apiv1.ReleaseRequest))}
	},
	apiv1.LockService_GetLock_FullMethodName: func(req any) []need {
		return []need{onLock(registryv1.Action_ACTION_SEE_LOCK, req.(*apiv1.GetLockRequest))}
	},
	apiv1.LockService_ListLocks_FullMethodName: always(somewhere(registryv1.Action_ACTION_SEE_LOCK)),
	apiv1.LockService_WatchLock_FullMethodName: always(somewhere(registryv1.Action_ACTION_SEE_LOCK)),

	apiv1.KVService_GetKey_FullMethodName: func(req any) []need {
		return []need{onKey(registryv1.Action_ACTION_KV_READ, req.(*apiv1.GetKeyRequest))}
	},
	// What may be seen is chosen by the handlers.
	apiv1.KVService_ListKeys_FullMethodName:  always(somewhere(registryv1.Action_ACTION_KV_READ)),
	apiv1.KVService_WatchKeys_FullMethodName: always(somewhere(registryv1.Action_ACTION_KV_READ)),
	apiv1.KVService_PutKey_FullMethodName: func(req any) []need {
		return []need{onKey(registryv1.Action_ACTION_KV_WRITE, req.(*apiv1.PutKeyRequest))}
	},
	apiv1.KVService_DeleteKey_FullMethodName: func(req any) []need {
		order := req.(*apiv1.DeleteKeyRequest)
		n := onKey(registryv1.Action_ACTION_KV_WRITE, order)
		n.prefix = order.GetPrefix()
		return []need{n}
	},
	apiv1.KVService_Transact_FullMethodName: func(req any) []need {
		order := req.(*apiv1.TransactRequest)
		needs := []need{somewhere(registryv1.Action_ACTION_KV_READ)} // Also for an empty one.
		for _, op := range order.GetOps() {
			n := need{
				action:    registryv1.Action_ACTION_KV_WRITE,
				namespace: cmp.Or(order.GetNamespace(), DefaultNamespace), name: op.GetKey(),
				prefix: op.GetKind() == apiv1.KeyOpKind_KEY_OP_KIND_DELETE_PREFIX,
			}
			if op.GetKind() >= apiv1.KeyOpKind_KEY_OP_KIND_CHECK_REVISION {
				n.action = registryv1.Action_ACTION_KV_READ
			}
			needs = addNeed(needs, n)
		}
		return needs
	},

	apiv1.ClusterService_Status_FullMethodName:             always(onCluster(registryv1.Action_ACTION_OBSERVE)),
	apiv1.ClusterService_Members_FullMethodName:            always(onCluster(registryv1.Action_ACTION_OBSERVE)),
	apiv1.ClusterService_Verify_FullMethodName:             always(onCluster(registryv1.Action_ACTION_OBSERVE)),
	apiv1.ClusterService_Join_FullMethodName:               always(onCluster(registryv1.Action_ACTION_OPERATE)),
	apiv1.ClusterService_Remove_FullMethodName:             always(onCluster(registryv1.Action_ACTION_OPERATE)),
	apiv1.ClusterService_Promote_FullMethodName:            always(onCluster(registryv1.Action_ACTION_OPERATE)),
	apiv1.ClusterService_Demote_FullMethodName:             always(onCluster(registryv1.Action_ACTION_OPERATE)),
	apiv1.ClusterService_TransferLeadership_FullMethodName: always(onCluster(registryv1.Action_ACTION_OPERATE)),
	apiv1.ClusterService_SaveSnapshot_FullMethodName:       always(onCluster(registryv1.Action_ACTION_OPERATE)),
	// A snapshot brings its own policies and tokens.
	apiv1.ClusterService_RestoreSnapshot_FullMethodName: always(
		onCluster(registryv1.Action_ACTION_OPERATE), onCluster(registryv1.Action_ACTION_ADMINISTER)),

	apiv1.AccessService_Bootstrap_FullMethodName:      nil, // It works once.
	apiv1.AccessService_WhoAmI_FullMethodName:         nil,
	apiv1.AccessService_SetEnforcement_FullMethodName: always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_PutPolicy_FullMethodName:      always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_DeletePolicy_FullMethodName:   always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_ListPolicies_FullMethodName:   always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_CreateToken_FullMethodName:    always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_DeleteToken_FullMethodName:    always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_ListTokens_FullMethodName:     always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_PutGrant_FullMethodName:       always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_DeleteGrant_FullMethodName:    always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.AccessService_ListGrants_FullMethodName:     always(onCluster(registryv1.Action_ACTION_ADMINISTER)),

	apiv1.NamespaceService_PutNamespace_FullMethodName:    always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.NamespaceService_DeleteNamespace_FullMethodName: always(onCluster(registryv1.Action_ACTION_ADMINISTER)),
	apiv1.NamespaceService_GetNamespace_FullMethodName:    always(onCluster(registryv1.Action_ACTION_OBSERVE)),
	apiv1.NamespaceService_ListNamespaces_FullMethodName:  always(onCluster(registryv1.Action_ACTION_OBSERVE)),

	// Probes have no tokens, and the API is no secret.
	healthpb.Health_Check_FullMethodName:                              nil,
	healthpb.Health_List_FullMethodName:                               nil,
	healthpb.Health_Watch_FullMethodName:                              nil,
	reflectionpb.ServerReflection_ServerReflectionInfo_FullMethodName: nil,
}

// always is the rule of a method that takes the same whatever it is asked.
func always(needs ...need) accessRule { return func(any) []need { return needs } }

func somewhere(a registryv1.Action) need { return need{action: a, somewhere: true} }

// keepAlive is what it takes to have sessions and leases: there is no other use of them.
func keepAlive() need {
	return need{
		action: registryv1.Action_ACTION_REGISTER, somewhere: true,
		or: [2]registryv1.Action{registryv1.Action_ACTION_LOCK, registryv1.Action_ACTION_KV_WRITE},
	}
}

func onCluster(a registryv1.Action) need { return need{action: a} }

// placed is what names a service.
type placed interface {
	GetNamespace() string
	GetService() string
}

func on(a registryv1.Action, at placed) need {
	return need{action: a, namespace: cmp.Or(at.GetNamespace(), DefaultNamespace), name: at.GetService()}
}

// named is what names a lock.
type named interface {
	GetNamespace() string
	GetName() string
}

func onLock(a registryv1.Action, at named) need {
	return need{action: a, namespace: cmp.Or(at.GetNamespace(), DefaultNamespace), name: at.GetName()}
}

// keyed is what names a key.
type keyed interface {
	GetNamespace() string
	GetKey() string
}

func onKey(a registryv1.Action, at keyed) need {
	return need{action: a, namespace: cmp.Or(at.GetNamespace(), DefaultNamespace), name: at.GetKey()}
}

func registerKey[R interface{ GetKey() *apiv1.InstanceKey }](req any) []need {
	return []need{on(registryv1.Action_ACTION_REGISTER, req.(R).GetKey())}
}

// discover is what a filter takes: that of the one service that it names. Of several those are left out that may not be seen.
func discover(f *apiv1.Filter) []need {
	if f.GetService() == "" || f.GetNamespace() == allNamespaces {
		return []need{somewhere(registryv1.Action_ACTION_DISCOVER)}
	}
	return []need{on(registryv1.Action_ACTION_DISCOVER, f)}
}

// addNeed adds one, unless it is what the last one was, as most of a batch are of one service.
func addNeed(needs []need, n need) []need {
	if needs[len(needs)-1] == n {
		return needs
	}
	return append(needs, n)
}
