package consul

import (
	"cmp"
	"slices"

	"github.com/regd-io/regd/fsm"
)

// about are the topics of a query about a service: its instances, and the nodes that have checks of their own. Where there are none of
// the latter, nobody can say whether there were before this node started: so a client that comes from another node may be answered
// once for nothing.
func about(namespace, name string) []topic {
	return []topic{{ofService, namespace, name}, {ofService, namespace, nodeService}}
}

// instances returns the instances of a service that a query asks for by tag, node and nearness, in order. hidden: the caller may not
// see them. Both the catalog and health list what this returns: there are clients that match the two by place.
func (s *Server) instances(a *request, st *fsm.State, name string) (found []instance, hidden bool, err error) {
	svc := st.Service(a.namespace, name)
	if svc == nil || name == nodeService {
		return nil, false, nil
	}
	if !a.sees(st, a.namespace, name) {
		return nil, true, nil
	}
	tags := a.query["tag"]
	svc.Ascend("", func(r *fsm.Record) bool {
		if !hasTags(r.Tags(), tags) {
			return true
		}
		var i instance
		if i, err = open(r); err != nil {
			return false
		}
		if len(a.nodeMeta) == 0 || hasMeta(i.texts(factNodeMeta), a.nodeMeta) {
			found = append(found, i)
		}
		return true
	})
	s.sortNear(a, st, found)
	return found, false, err
}

// sortNear puts what is near a node first: what is on it, in its zone, in its region. Nobody measures how near nodes are.
func (s *Server) sortNear(a *request, st *fsm.State, found []instance) {
	if a.near == "" {
		return
	}
	name := a.near
	if name == "_agent" || name == "_ip" {
		name = a.agent.node
	}
	var zone, region string
	for _, r := range s.ledger.find(st, locator{byNode, a.namespace, name}) {
		zone, region = cmp.Or(zone, r.Zone()), cmp.Or(region, r.Region())
	}
	distance := func(i instance) int {
		switch {
		case i.node == name:
			return 0
		case zone != "" && i.GetZone() == zone && i.GetRegion() == region:
			return 1
		case region != "" && i.GetRegion() == region:
			return 2
		default:
			return 3
		}
	}
	slices.SortStableFunc(found, func(a, b instance) int { return cmp.Compare(distance(a), distance(b)) })
}

// healthService is GET health/service/NAME.
func (s *Server) healthService(w *answer, a *request) error {
	if a.rest == "" {
		return badRequest("Missing service name")
	}
	onlyPassing := a.on("passing")
	return s.ask(w, a, read{topics: about(a.namespace, a.rest), body: func(st *fsm.State) (any, bool, error) {
		found, hidden, err := s.instances(a, st, a.rest)
		if err != nil {
			return nil, false, err
		}
		entries := make([]entry, 0, len(found))
		for _, i := range found {
			e := entry{s.shapes.node(i), s.shapes.service(i), s.allChecks(st, i)}
			if !onlyPassing || aggregate(e.Checks) == passing {
				entries = append(entries, e)
			}
		}
		entries, err = kept(a.filter, entries)
		return entries, hidden, err
	}})
}

// healthChecks is GET health/checks/NAME.
func (s *Server) healthChecks(w *answer, a *request) error {
	if a.rest == "" {
		return badRequest("Missing service name")
	}
	return s.ask(w, a, read{topics: about(a.namespace, a.rest), body: func(st *fsm.State) (any, bool, error) {
		found, hidden, err := s.instances(a, st, a.rest)
		if err != nil {
			return nil, false, err
		}
		var checks []check
		for _, i := range found {
			checks = append(checks, s.shapes.checks(i)...)
		}
		checks, err = kept(a.filter, checks)
		return checks, hidden, err
	}})
}

// healthNode is GET health/node/NODE.
func (s *Server) healthNode(w *answer, a *request) error {
	if a.rest == "" {
		return badRequest("Missing node name")
	}
	return s.ask(w, a, read{topics: []topic{{ofNode, a.namespace, a.rest}}, body: func(st *fsm.State) (any, bool, error) {
		on, hidden, err := s.onNode(a, st, a.rest)
		if err != nil {
			return nil, false, err
		}
		var checks []check
		for _, i := range on {
			checks = append(checks, s.shapes.checks(i)...)
		}
		checks, err = kept(a.filter, checks)
		return checks, hidden, err
	}})
}

// healthState is GET health/state/STATE.
func (s *Server) healthState(w *answer, a *request) error {
	want := a.rest
	switch want {
	case "any", passing, warning, critical:
	default:
		return badRequest("Missing check state: %q: must be any, passing, warning or critical", cut(want))
	}
	return s.ask(w, a, read{whole: true, topics: []topic{{ofChecks, a.namespace, ""}}, body: func(st *fsm.State) (any, bool, error) {
		var checks []check
		hidden, err := s.each(a, st, func(i instance) {
			for _, c := range s.shapes.checks(i) {
				if want == "any" || c.Status == want {
					checks = append(checks, c)
				}
			}
		})
		if err != nil {
			return nil, false, err
		}
		checks, err = kept(a.filter, checks)
		return checks, hidden, err
	}})
}

// each calls fn for all instances of the namespace that the caller may see.
func (s *Server) each(a *request, st *fsm.State, fn func(instance)) (hidden bool, err error) {
	eachService(st, a.namespace, func(svc *fsm.Service) bool {
		if !a.sees(st, a.namespace, svc.Name()) {
			hidden = true
			return true
		}
		svc.Ascend("", func(r *fsm.Record) bool {
			var i instance
			if i, err = open(r); err != nil {
				return false
			}
			if len(a.nodeMeta) == 0 || hasMeta(i.texts(factNodeMeta), a.nodeMeta) {
				fn(i)
			}
			return true
		})
		return err == nil
	})
	return hidden, err
}

// onNode returns the instances of a node that the caller may see.
func (s *Server) onNode(a *request, st *fsm.State, node string) (on []instance, hidden bool, err error) {
	for _, r := range s.ledger.find(st, locator{byNode, a.namespace, node}) {
		if !a.sees(st, r.Namespace(), r.Service()) {
			hidden = true
			continue
		}
		i, err := open(r)
		if err != nil {
			return nil, false, err
		}
		on = append(on, i)
	}
	return on, hidden, nil
}
