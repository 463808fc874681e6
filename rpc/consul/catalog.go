package consul

import (
	"cmp"
	"net/http"
	"slices"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// catalogServices is GET catalog/services.
func (s *Server) catalogServices(w *answer, a *request) error {
	whole := len(a.nodeMeta) > 0 || a.filter != nil
	return s.ask(w, a, read{whole: whole, topics: []topic{{ofServices, a.namespace, ""}}, body: func(st *fsm.State) (any, bool, error) {
		if whole {
			return s.filteredNames(a, st)
		}
		all := s.ledger.names(a.namespace)
		if !st.Enforced() {
			return all, false, nil
		}
		seen := make(map[string][]string, len(all))
		for name, tags := range all {
			if a.sees(st, a.namespace, name) {
				seen[name] = tags
			}
		}
		return seen, len(seen) < len(all), nil
	}})
}

// filteredNames are the names and tags of the instances that a filter keeps.
func (s *Server) filteredNames(a *request, st *fsm.State) (any, bool, error) {
	names := map[string][]string{}
	var fault error
	hidden, err := s.each(a, st, func(i instance) {
		if i.GetService() == nodeService || fault != nil {
			return
		}
		r := s.shapes.row(i)
		ok, err := a.filter.keeps(r)
		if fault = err; !ok {
			return
		}
		tags := append(names[r.ServiceName], r.ServiceTags...)
		slices.Sort(tags)
		if names[r.ServiceName] = slices.Compact(tags); tags == nil {
			names[r.ServiceName] = []string{}
		}
	})
	return names, hidden, cmp.Or(err, fault)
}

// catalogService is GET catalog/service/NAME.
func (s *Server) catalogService(w *answer, a *request) error {
	if a.rest == "" {
		return badRequest("Missing service name")
	}
	return s.ask(w, a, read{topics: about(a.namespace, a.rest), body: func(st *fsm.State) (any, bool, error) {
		found, hidden, err := s.instances(a, st, a.rest)
		if err != nil {
			return nil, false, err
		}
		rows := make([]row, 0, len(found))
		for _, i := range found {
			rows = append(rows, s.shapes.row(i))
		}
		rows, err = kept(a.filter, rows)
		return rows, hidden, err
	}})
}

// catalogNodes is GET catalog/nodes: the nodes of the cluster, and those of instances.
func (s *Server) catalogNodes(w *answer, a *request) error {
	return s.ask(w, a, read{whole: true, topics: []topic{{ofNodes, a.namespace, ""}}, body: func(st *fsm.State) (any, bool, error) {
		var nodes []node
		var hidden bool
		taken := map[string]bool{}
		for _, name := range s.ledger.nodes(a.namespace) {
			on, some, err := s.onNode(a, st, name)
			if err != nil {
				return nil, false, err
			}
			hidden = hidden || some
			if len(on) == 0 {
				continue
			}
			if first := spokesman(on); hasMeta(first.texts(factNodeMeta), a.nodeMeta) {
				taken[name] = true
				nodes = append(nodes, s.shapes.node(first))
			}
		}
		if a.observes(st) && len(a.nodeMeta) == 0 {
			for _, m := range st.Members() {
				if !taken[m.GetName()] {
					nodes = append(nodes, s.shapes.member(m))
				}
			}
		}
		nodes, err := kept(a.filter, nodes)
		slices.SortStableFunc(nodes, func(x, y node) int {
			return cmp.Or(cmp.Compare(s.far(a, x), s.far(a, y)), cmp.Compare(x.Node, y.Node))
		})
		return nodes, hidden, err
	}})
}

// spokesman returns the instance that is asked what its node is. They may differ: any will do, but always the same.
func spokesman(on []instance) instance {
	key := func(i instance) string {
		return nodeKey(func(name string) (string, bool) {
			value, ok := i.GetMetadata()[name]
			return value, ok
		})
	}
	return slices.MaxFunc(on, func(a, b instance) int { return cmp.Compare(key(a), key(b)) })
}

// far is 0 for the node that the client wants to be near, else 1.
func (s *Server) far(a *request, n node) int {
	if a.near != "" && (n.Node == a.near || a.near == "_agent" && n.Node == a.agent.node) {
		return 0
	}
	return 1
}

// nodeAt returns a node and its services. ok: there is one.
func (s *Server) nodeAt(a *request, st *fsm.State, name string) (n node, services []instance, hidden, ok bool, err error) {
	on, hidden, err := s.onNode(a, st, name)
	if err != nil {
		return n, nil, false, false, err
	}
	if len(on) > 0 {
		n, ok = s.shapes.node(spokesman(on)), true
	}
	for _, i := range on {
		if i.GetService() != nodeService {
			services = append(services, i)
		}
	}
	if ok || !a.observes(st) {
		return n, services, hidden, ok, nil
	}
	for _, m := range st.Members() {
		if m.GetName() == name {
			return s.shapes.member(m), nil, hidden, true, nil
		}
	}
	return n, nil, hidden, false, nil
}

// catalogNode is GET catalog/node/NODE. A node that is not there is null, as in Consul.
func (s *Server) catalogNode(w *answer, a *request) error {
	return s.askNode(w, a, func(n node, services []service) any {
		all := map[string]service{}
		for _, sv := range services {
			key := sv.ID
			if _, taken := all[key]; taken {
				key = sv.Service + "/" + sv.ID
			}
			all[key] = sv
		}
		return nodeServices{n, all}
	})
}

// catalogNodeServices is GET catalog/node-services/NODE.
func (s *Server) catalogNodeServices(w *answer, a *request) error {
	return s.askNode(w, a, func(n node, services []service) any { return nodeServiceList{n, services} })
}

func (s *Server) askNode(w *answer, a *request, body func(node, []service) any) error {
	if a.rest == "" {
		return badRequest("Missing node name")
	}
	return s.ask(w, a, read{topics: []topic{{ofNode, a.namespace, a.rest}}, body: func(st *fsm.State) (any, bool, error) {
		n, on, hidden, ok, err := s.nodeAt(a, st, a.rest)
		if err != nil || !ok {
			return nil, hidden, err
		}
		services := make([]service, 0, len(on))
		for _, i := range on {
			services = append(services, s.shapes.service(i))
		}
		if services, err = kept(a.filter, services); err != nil {
			return nil, false, err
		}
		return body(n, services), hidden, nil
	}})
}

// datacenters is GET catalog/datacenters.
func (s *Server) datacenters(w *answer, _ *request) error {
	return reply(w, http.StatusOK, []string{s.cfg.Datacenter})
}

// catalogRegister is PUT catalog/register: a node, a service on it, checks of either.
func (s *Server) catalogRegister(w *answer, a *request) error {
	var reg catalogRegistration
	if err := readBody(w, a, "", &reg); err != nil {
		return err
	}
	if err := s.rightDatacenter(reg.Datacenter); err != nil {
		return err
	}
	if reg.Node == "" || reg.Address == "" {
		return badRequest("Must provide node and address: Node is %q, Address is %q", cut(reg.Node), cut(reg.Address))
	}
	if err := validNode("Node", reg.Node); err != nil {
		return err
	}
	ofService, ofNode := reg.sortChecks()
	if reg.Service == nil || len(ofNode) > 0 {
		if err := s.putNode(a, &reg, ofNode, true); err != nil {
			return err
		}
	}
	if err := s.catalogPut(a, &reg, ofService); err != nil {
		return err
	}
	return reply(w, http.StatusOK, true)
}

// sortChecks tells which checks are of a service, and which of the node. A single one without a word about it is of the service that comes
// with it.
func (reg *catalogRegistration) sortChecks() (ofService, ofNode []checkDefinition) {
	all := reg.Checks
	if reg.Check != nil {
		all = append([]checkDefinition{*reg.Check}, all...)
	}
	for _, c := range all {
		c.merge()
		if c.ServiceID != "" || reg.Service != nil && c.Node == "" && len(all) == 1 {
			ofService = append(ofService, c)
		} else {
			ofNode = append(ofNode, c)
		}
	}
	return ofService, ofNode
}

// merge takes in how a check is made, where the catalog has it apart.
func (c *checkDefinition) merge() {
	d := c.Definition
	if d == nil {
		return
	}
	c.HTTP, c.Method, c.Header = cmp.Or(c.HTTP, d.HTTP), cmp.Or(c.Method, d.Method), d.Header
	c.TCP, c.GRPC = cmp.Or(c.TCP, d.TCP), cmp.Or(c.GRPC, d.GRPC)
	c.TLSServerName, c.TLSSkipVerify, c.GRPCUseTLS = d.TLSServerName, d.TLSSkipVerify, d.GRPCUseTLS
	c.Interval, c.Timeout, c.DeregisterCriticalServiceAfter = d.Interval, d.Timeout, d.DeregisterCriticalServiceAfter
	if c.Interval.Duration == 0 { // The catalog is told of results: somebody else makes the check.
		c.HTTP, c.TCP, c.GRPC = "", "", ""
	}
}

// catalogPut registers the service of a catalog's registration, or adds checks to one that is there.
func (s *Server) catalogPut(a *request, reg *catalogRegistration, checks []checkDefinition) error {
	at := agent{reg.Node, reg.Address}
	if reg.Service == nil {
		for n := range checks {
			if err := s.addTo(a, at, &checks[n]); err != nil {
				return err
			}
		}
		return nil
	}
	var f faults
	in := f.instanceOf(a, reg.Service, at)
	addNodeFacts(in, reg)
	f.checks(in, in.GetId(), nil, checks, true)
	if err := f.err(); err != nil {
		return err
	}
	return s.put(a, in, false)
}

// addTo adds a check to a service of a node, or replaces its state.
func (s *Server) addTo(a *request, at agent, def *checkDefinition) error {
	return s.settle(a, func(st *fsm.State) error {
		caller := a.agent
		a.agent = at
		r, err := s.resolve(a, st, def.ServiceID)
		a.agent = caller
		if err != nil {
			return err
		}
		p := placeOf(r)
		return s.change(a, r, func(in *registryv1.Instance) error {
			var f faults
			f.addCheck(in, "Check", p.id, cmp.Or(def.CheckID, def.ID, serviceCheck+p.id), def, true)
			return f.err()
		})
	})
}

func (s *Server) rightDatacenter(dc string) error {
	if dc != "" && dc != s.cfg.Datacenter {
		return &failure{http.StatusInternalServerError, "No path to datacenter: Datacenter " + cut(dc) + " is not " + s.cfg.Datacenter}
	}
	return nil
}

// catalogDeregister is PUT catalog/deregister: a service or a check of a node, or all of it. What is not there is gone already.
func (s *Server) catalogDeregister(w *answer, a *request) error {
	var dereg catalogDeregistration
	if err := readBody(w, a, "", &dereg); err != nil {
		return err
	}
	if err := s.rightDatacenter(dereg.Datacenter); err != nil {
		return err
	}
	if dereg.Node == "" {
		return badRequest("Must provide node")
	}
	a.namespace = cmp.Or(dereg.Namespace, a.namespace)
	err := s.settle(a, func(st *fsm.State) error {
		if err := s.ledger.reach(a.Context(), st.Revision()); err != nil {
			return err
		}
		on := s.ledger.find(st, locator{byNode, a.namespace, dereg.Node})
		if len(on) == 0 && !a.sure {
			return errRetry
		}
		for _, r := range on {
			if err := s.deregisterOn(a, r, dereg); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, true)
}

// deregisterOn removes of an instance of a node what is meant.
func (s *Server) deregisterOn(a *request, r *fsm.Record, dereg catalogDeregistration) error {
	p := placeOf(r)
	switch {
	case dereg.ServiceID != "" && (p.id != dereg.ServiceID || r.Service() == nodeService):
		return nil
	case dereg.CheckID != "":
		c, err := s.checkIn(r, dereg.CheckID, func() error { return fsm.ErrCheckNotFound })
		if err != nil {
			return nil //nolint:nilerr // Not there: gone already.
		}
		return s.dropCheck(a, c)
	default:
		return s.deregister(a, r)
	}
}
