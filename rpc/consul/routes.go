package consul

import (
	"net/http"
	"slices"
	"strings"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// route is what answers the requests for a path.
type route struct {
	path    string // without /v1/; with a slash at the end: all below it
	methods []string
	does    call
	serve   func(w *answer, a *request) error
	large   bool // its body has a bound of its own
}

// call is the call of the registry's own API that does what requests of a route do: under load they are let in or refused as it is.
type call struct {
	method string
	renews bool // TTL checks, mostly: to refuse it would take down what is well
	reads  bool // and may wait a moment
}

func reads(method string) call  { return call{method: method, reads: true} }
func writes(method string) call { return call{method: method} }

// routes finds a route by its path. The routes of one path differ by their methods.
type routes struct {
	exact  map[string][]*route
	prefix [][]*route // the longest first
	none   route
}

// newRoutes finds all that there is.
func newRoutes(s *Server) routes {
	all := slices.Concat(supportedRoutes(s), unsupportedRoutes())
	found := routes{exact: map[string][]*route{}, none: route{path: "none"}}
	for i := range all {
		found.exact[all[i].path] = append(found.exact[all[i].path], &all[i])
	}
	for path, of := range found.exact {
		if strings.HasSuffix(path, "/") {
			found.prefix = append(found.prefix, of)
			delete(found.exact, path)
		}
	}
	slices.SortFunc(found.prefix, func(a, b []*route) int { return len(b[0].path) - len(a[0].path) })
	return found
}

// supportedRoutes lists what is answered. P (python-consul) writes by GET where GET stands beside PUT.
func supportedRoutes(s *Server) []route {
	get, put, either := []string{"GET"}, []string{"PUT"}, []string{"GET", "PUT"}
	list, status := reads(apiv1.RegistryService_ListInstances_FullMethodName), call{method: apiv1.ClusterService_Status_FullMethodName}
	reports := call{method: apiv1.RegistryService_SetHealth_FullMethodName, renews: true}
	return []route{
		{path: "agent/service/register", methods: put, does: writes(apiv1.RegistryService_Register_FullMethodName), serve: s.registerService},
		{path: "agent/service/deregister/", methods: either, does: writes(apiv1.RegistryService_Deregister_FullMethodName), serve: s.deregisterService},
		{path: "agent/service/maintenance/", methods: put, does: writes(apiv1.RegistryService_SetMaintenance_FullMethodName), serve: s.serviceMaintenance},
		{path: "agent/service/", methods: get, does: list, serve: s.agentService},
		{path: "agent/services", methods: get, does: list, serve: s.agentServices},
		{path: "agent/check/register", methods: put, does: writes(apiv1.RegistryService_Register_FullMethodName), serve: s.registerCheck},
		{path: "agent/check/deregister/", methods: either, does: writes(apiv1.RegistryService_Register_FullMethodName), serve: s.deregisterCheck},
		{path: "agent/check/pass/", methods: either, does: reports, serve: s.reportCheck(passing)},
		{path: "agent/check/warn/", methods: either, does: reports, serve: s.reportCheck(warning)},
		{path: "agent/check/fail/", methods: either, does: reports, serve: s.reportCheck(critical)},
		{path: "agent/check/update/", methods: put, does: reports, serve: s.updateCheck},
		{path: "agent/checks", methods: get, does: list, serve: s.agentChecks},
		{path: "agent/maintenance", methods: put, does: writes(apiv1.RegistryService_SetMaintenance_FullMethodName), serve: s.nodeMaintenance},
		{path: "agent/health/service/id/", methods: get, does: list, serve: s.agentHealthByID},
		{path: "agent/health/service/name/", methods: get, does: list, serve: s.agentHealthByName},
		{path: "agent/self", methods: get, does: status, serve: s.self},
		{path: "agent/members", methods: get, does: status, serve: s.members},
		{path: "agent/metrics", methods: get, does: status, serve: s.showMetrics},
		{path: "agent/version", methods: get, does: status, serve: s.version},
		{path: "agent/host", methods: get, does: status, serve: refuse("the host's state")},

		{path: "health/service/", methods: get, does: list, serve: s.healthService},
		{path: "health/checks/", methods: get, does: list, serve: s.healthChecks},
		{path: "health/node/", methods: get, does: list, serve: s.healthNode},
		{path: "health/state/", methods: get, does: list, serve: s.healthState},

		{path: "catalog/register", methods: put, does: writes(apiv1.RegistryService_Register_FullMethodName), serve: s.catalogRegister},
		{path: "catalog/deregister", methods: put, does: writes(apiv1.RegistryService_Deregister_FullMethodName), serve: s.catalogDeregister},
		{path: "catalog/services", methods: get, does: reads(apiv1.RegistryService_ListServices_FullMethodName), serve: s.catalogServices},
		{path: "catalog/service/", methods: get, does: list, serve: s.catalogService},
		{path: "catalog/nodes", methods: get, does: list, serve: s.catalogNodes},
		{path: "catalog/node/", methods: get, does: list, serve: s.catalogNode},
		{path: "catalog/node-services/", methods: get, does: list, serve: s.catalogNodeServices},
		{path: "catalog/datacenters", methods: get, does: status, serve: s.datacenters},

		{path: "kv/", methods: get, does: reads(apiv1.KVService_GetKey_FullMethodName), serve: s.getKeys},
		{path: "kv/", methods: put, does: writes(apiv1.KVService_PutKey_FullMethodName), serve: s.putKey},
		{path: "kv/", methods: []string{"DELETE"}, does: writes(apiv1.KVService_DeleteKey_FullMethodName), serve: s.deleteKeys},
		{path: "txn", methods: put, does: writes(apiv1.KVService_Transact_FullMethodName), serve: s.transact},
		{path: "session/create", methods: put, does: writes(apiv1.SessionService_Open_FullMethodName), serve: s.createSession},
		{path: "session/destroy/", methods: put, does: writes(apiv1.SessionService_Close_FullMethodName), serve: s.destroySession},
		{path: "session/renew/", methods: put, does: writes(apiv1.SessionService_Renew_FullMethodName), serve: s.renewSession},
		{path: "session/info/", methods: get, does: reads(apiv1.SessionService_List_FullMethodName), serve: s.sessionInfo},
		{path: "session/node/", methods: get, does: reads(apiv1.SessionService_List_FullMethodName), serve: s.nodeSessions},
		{path: "session/list", methods: get, does: reads(apiv1.SessionService_List_FullMethodName), serve: s.listSessions},

		{path: "status/leader", methods: get, does: status, serve: s.statusLeader},
		{path: "status/peers", methods: get, does: status, serve: s.statusPeers},
		{path: "operator/raft/configuration", methods: get, does: status, serve: s.raftConfiguration},
		{path: "operator/raft/peer", methods: []string{"DELETE"}, does: writes(apiv1.ClusterService_Remove_FullMethodName), serve: s.removePeer},
		{path: "operator/raft/transfer-leader", methods: []string{"POST", "PUT"}, does: writes(apiv1.ClusterService_TransferLeadership_FullMethodName), serve: s.transferLeader},
		{path: "operator/autopilot/configuration", methods: get, does: status, serve: s.autopilotConfiguration},
		{path: "operator/autopilot/health", methods: get, does: status, serve: s.autopilotHealth},
		{path: "snapshot", methods: get, does: writes(apiv1.ClusterService_SaveSnapshot_FullMethodName), serve: s.snapshot},
		{path: "snapshot", methods: put, does: writes(apiv1.ClusterService_RestoreSnapshot_FullMethodName), serve: s.snapshot, large: true},
	}
}

// unsupportedRoutes are those that Consul has and the registry does not. They say so: what a tool takes for an empty answer, or
// for a server that is too old, costs its user hours.
func unsupportedRoutes() []route {
	var all []route
	for path, what := range map[string]string{
		"event/": "events", "query": "prepared queries", "query/": "prepared queries", "coordinate/": "network coordinates",
		"connect/": "service mesh", "agent/connect/": "service mesh", "health/connect/": "service mesh", "catalog/connect/": "service mesh",
		"health/ingress/": "service mesh", "catalog/gateway-services/": "service mesh", "discovery-chain/": "service mesh",
		"config": "configuration entries", "config/": "configuration entries", "exported-services": "peering", "imported-services": "peering",
		"peering": "peering", "peering/": "peering", "peerings": "peering",
		"acl/": "Consul's ACL system; access is managed by  regd access", "namespaces": "namespaces by this API", "namespace": "namespaces by this API",
		"namespace/": "namespaces by this API", "partitions": "partitions", "partition/": "partitions", "internal/": "the API of Consul's UI",
		"agent/join/": "joining by gossip; nodes join by  regd serve --join", "agent/leave": "leaving by gossip; nodes leave by  regd members remove",
		"agent/force-leave/": "leaving by gossip; nodes leave by  regd members remove", "agent/reload": "reloading", "agent/monitor": "streaming logs",
		"agent/token/": "tokens of agents", "operator/keyring": "keys of gossip", "operator/license": "licences", "operator/usage": "usage",
		"operator/utilization": "utilization", "operator/segment": "segments", "operator/area": "areas", "operator/area/": "areas",
		"operator/autopilot/state": "autopilot's own state", "operator/": "this part of the operator's API",
	} {
		all = append(all, route{path: path, does: reads(apiv1.RegistryService_ListInstances_FullMethodName), serve: refuse(what)})
	}
	return all
}

// refuse answers that there is no such thing.
func refuse(what string) func(*answer, *request) error {
	return func(*answer, *request) error { return unsupported(what) }
}

// find returns the route of a request and the rest of its path. The route is never nil.
func (r *routes) find(req *http.Request) (rt *route, rest string, err error) {
	path, ok := strings.CutPrefix(req.URL.Path, "/v1/")
	if !ok {
		return &r.none, "", notFound("404 page not found: Consul's API is below /v1/")
	}
	of, rest := r.lookup(path)
	if of == nil {
		return &r.none, "", notFound("404 page not found: there is no /v1/%s", cut(path))
	}
	method := req.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var others []string
	for _, rt := range of {
		if rt.methods == nil || slices.Contains(rt.methods, method) {
			return rt, rest, nil
		}
		others = append(others, rt.methods...)
	}
	return of[0], "", &methodError{others, req.Method}
}

func (r *routes) lookup(path string) (of []*route, rest string) {
	if of = r.exact[path]; of != nil {
		return of, ""
	}
	for _, of = range r.prefix {
		if rest, ok := strings.CutPrefix(path, of[0].path); ok {
			return of, rest
		}
	}
	return nil, ""
}

// methodError is the error of a method that a route does not have. To OPTIONS it is the answer.
type methodError struct {
	methods []string
	asked   string
}

// Error says what there is.
func (e *methodError) Error() string {
	return "method " + e.asked + " not allowed: there is " + strings.Join(e.methods, ", ")
}
