package consul

import (
	"net/http"
	"slices"
	"strings"
)

// route is what answers the requests for a path.
type route struct {
	path    string // without /v1/; with a slash at the end: all below it
	methods []string
	serve   func(w *answer, a *request) error
	large   bool // its body has a bound of its own
}

// routes finds a route by its path.
type routes struct {
	exact  map[string]*route
	prefix []*route // the longest first
	none   route
}

// newRoutes lists all that there is. P (python-consul) writes by GET where GET stands beside PUT.
func newRoutes(s *Server) routes {
	get, put, either := []string{"GET"}, []string{"PUT"}, []string{"GET", "PUT"}
	all := slices.Concat([]route{
		{path: "agent/service/register", methods: put, serve: s.registerService},
		{path: "agent/service/deregister/", methods: either, serve: s.deregisterService},
		{path: "agent/service/maintenance/", methods: put, serve: s.serviceMaintenance},
		{path: "agent/service/", methods: get, serve: s.agentService},
		{path: "agent/services", methods: get, serve: s.agentServices},
		{path: "agent/check/register", methods: put, serve: s.registerCheck},
		{path: "agent/check/deregister/", methods: either, serve: s.deregisterCheck},
		{path: "agent/check/pass/", methods: either, serve: s.reportCheck(passing)},
		{path: "agent/check/warn/", methods: either, serve: s.reportCheck(warning)},
		{path: "agent/check/fail/", methods: either, serve: s.reportCheck(critical)},
		{path: "agent/check/update/", methods: put, serve: s.updateCheck},
		{path: "agent/checks", methods: get, serve: s.agentChecks},
		{path: "agent/maintenance", methods: put, serve: s.nodeMaintenance},
		{path: "agent/health/service/id/", methods: get, serve: s.agentHealthByID},
		{path: "agent/health/service/name/", methods: get, serve: s.agentHealthByName},
		{path: "agent/self", methods: get, serve: s.self},
		{path: "agent/members", methods: get, serve: s.members},
		{path: "agent/metrics", methods: get, serve: s.showMetrics},
		{path: "agent/version", methods: get, serve: s.version},
		{path: "agent/host", methods: get, serve: refuse("the host's state")},

		{path: "health/service/", methods: get, serve: s.healthService},
		{path: "health/checks/", methods: get, serve: s.healthChecks},
		{path: "health/node/", methods: get, serve: s.healthNode},
		{path: "health/state/", methods: get, serve: s.healthState},

		{path: "catalog/register", methods: put, serve: s.catalogRegister},
		{path: "catalog/deregister", methods: put, serve: s.catalogDeregister},
		{path: "catalog/services", methods: get, serve: s.catalogServices},
		{path: "catalog/service/", methods: get, serve: s.catalogService},
		{path: "catalog/nodes", methods: get, serve: s.catalogNodes},
		{path: "catalog/node/", methods: get, serve: s.catalogNode},
		{path: "catalog/node-services/", methods: get, serve: s.catalogNodeServices},
		{path: "catalog/datacenters", methods: get, serve: s.datacenters},

		{path: "status/leader", methods: get, serve: s.statusLeader},
		{path: "status/peers", methods: get, serve: s.statusPeers},
		{path: "operator/raft/configuration", methods: get, serve: s.raftConfiguration},
		{path: "operator/raft/peer", methods: []string{"DELETE"}, serve: s.removePeer},
		{path: "operator/raft/transfer-leader", methods: []string{"POST", "PUT"}, serve: s.transferLeader},
		{path: "operator/autopilot/configuration", methods: get, serve: s.autopilotConfiguration},
		{path: "operator/autopilot/health", methods: get, serve: s.autopilotHealth},
		{path: "snapshot", methods: either, serve: s.snapshot, large: true},
	}, unsupportedRoutes())
	found := routes{exact: map[string]*route{}, none: route{path: "none"}}
	for i := range all {
		rt := &all[i]
		if strings.HasSuffix(rt.path, "/") {
			found.prefix = append(found.prefix, rt)
		} else {
			found.exact[rt.path] = rt
		}
	}
	slices.SortStableFunc(found.prefix, func(a, b *route) int { return len(b.path) - len(a.path) })
	return found
}

// unsupportedRoutes are those that Consul has and the registry does not. They say so: what a tool takes for an empty answer, or
// for a server that is too old, costs its user hours.
func unsupportedRoutes() []route {
	var all []route
	for path, what := range map[string]string{
		"kv/": "KV", "txn": "transactions", "session/": "sessions",
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
		all = append(all, route{path: path, serve: refuse(what)})
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
	rt, rest = r.lookup(path)
	if rt == nil {
		return &r.none, "", notFound("404 page not found: there is no /v1/%s", cut(path))
	}
	method := req.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if rt.methods != nil && !slices.Contains(rt.methods, method) {
		return rt, "", &methodError{rt.methods, req.Method}
	}
	return rt, rest, nil
}

func (r *routes) lookup(path string) (*route, string) {
	if rt := r.exact[path]; rt != nil {
		return rt, ""
	}
	for _, rt := range r.prefix {
		if rest, ok := strings.CutPrefix(path, rt.path); ok {
			return rt, rest
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
