package consul

import (
	"cmp"
	"net/http"
	"strings"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/health"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// registerCheck is PUT agent/check/register: a check of a service, or of the agent's node.
func (s *Server) registerCheck(w *answer, a *request) error {
	var def checkDefinition
	if err := readBody(w, a, "check", &def); err != nil {
		return err
	}
	if def.Name == "" {
		return badRequest("Missing check name")
	}
	id := cmp.Or(def.CheckID, def.ID, def.Name)
	if def.ServiceID == "" {
		return s.done(w, s.putNode(a, nodeOf(a), []checkDefinition{def}, false))
	}
	return s.done(w, s.settle(a, func(st *fsm.State) error {
		r, err := s.resolve(a, st, def.ServiceID)
		if err != nil {
			if code, text := explain(err); code == http.StatusNotFound {
				return badRequest("ServiceID: %s", text)
			}
			return err
		}
		at := placeOf(r)
		return s.change(a, r, func(in *registryv1.Instance) error {
			var f faults
			f.addCheck(in, "", at.id, id, &def, false)
			return f.err()
		})
	}))
}

// nodeOf is the agent's node as the catalog is told of one.
func nodeOf(a *request) *catalogRegistration {
	return &catalogRegistration{Node: a.agent.node, Address: a.agent.address, Namespace: a.namespace}
}

// putNode registers a node by itself, as an instance of the service that stands for nodes. Its checks are added to those it has.
func (s *Server) putNode(a *request, reg *catalogRegistration, checks []checkDefinition, static bool) error {
	var f faults
	in := &registryv1.Instance{
		Namespace: cmp.Or(reg.Namespace, a.namespace), Service: nodeService, Id: reg.Node, Address: reg.Address,
		Metadata: map[string]string{factNode: reg.Node},
	}
	addNodeFacts(in, reg)
	for n := range checks {
		id := cmp.Or(checks[n].CheckID, checks[n].ID, checks[n].Name)
		f.addCheck(in, "Check", reg.Node, id, &checks[n], static)
	}
	if err := f.err(); err != nil {
		return err
	}
	return s.put(a, in, false)
}

// addNodeFacts keeps what the catalog is told of a node.
func addNodeFacts(in *registryv1.Instance, reg *catalogRegistration) {
	for key, value := range map[string]string{
		factNodeID: reg.ID, factNodeMeta: asJSON(reg.NodeMeta), factNodeTagged: asJSON(reg.TaggedAddresses),
	} {
		if value != "" {
			in.Metadata[key] = value
		}
	}
	if reg.Address != reg.Node {
		in.Metadata[factNodeAddress] = reg.Address
	}
}

// found is a check of an instance.
type found struct {
	record *fsm.Record
	name   string // the registry's
	ttl    bool
	status registryv1.CheckStatus
}

// resolveCheck finds the check that an id means at an agent.
func (s *Server) resolveCheck(a *request, st *fsm.State, id string) (found, error) {
	none := func() error {
		return notFound("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", cut(id))
	}
	if id == "" {
		return found{}, badRequest("Missing check ID")
	}
	r, err := s.pick(a, st, locator{byCheck, a.namespace, id}, none)
	if err == nil {
		return s.checkIn(r, id, none)
	}
	last := err
	rest, ok := strings.CutPrefix(id, serviceCheck)
	for ok {
		if r, err = s.pick(a, st, locator{byID, a.namespace, rest}, none); err == nil {
			var f found
			if f, err = s.checkIn(r, id, none); err == nil {
				return f, nil
			}
		}
		if code, _ := explain(err); code == http.StatusConflict {
			last = err
		}
		i := strings.LastIndexByte(rest, ':')
		if i < 0 {
			break
		}
		rest = rest[:i]
	}
	return found{}, last
}

// checkIn finds a check in an instance.
func (s *Server) checkIn(r *fsm.Record, id string, none func() error) (found, error) {
	i, err := open(r)
	if err != nil {
		return found{}, err
	}
	for n, c := range i.GetChecks() {
		if checkID(i.id, c.GetName(), factOfCheck(i.GetMetadata(), c.GetName())) == id && n < len(i.GetCheckStates()) {
			return found{r, c.GetName(), c.GetTtl() != nil, i.GetCheckStates()[n].GetStatus()}, nil
		}
	}
	return found{}, none()
}

// deregisterCheck is PUT agent/check/deregister/ID.
func (s *Server) deregisterCheck(w *answer, a *request) error {
	return s.done(w, s.settle(a, func(st *fsm.State) error {
		c, err := s.resolveCheck(a, st, a.rest)
		if err != nil {
			return err
		}
		return s.dropCheck(a, c)
	}))
}

// dropCheck takes a check from its instance. A node that was only there for its checks stays: it was registered.
func (s *Server) dropCheck(a *request, c found) error {
	return s.change(a, c.record, func(in *registryv1.Instance) error {
		kept := in.GetChecks()[:0]
		for _, have := range in.GetChecks() {
			if have.GetName() != c.name {
				kept = append(kept, have)
			}
		}
		in.Checks = kept
		delete(in.GetMetadata(), factCheck+c.name)
		return nil
	})
}

// reportCheck is PUT agent/check/pass|warn|fail/ID with ?note=.
func (s *Server) reportCheck(status string) func(*answer, *request) error {
	return func(w *answer, a *request) error {
		return s.done(w, s.report(a, a.rest, status, a.query.Get("note")))
	}
}

// updateCheck is PUT agent/check/update/ID.
func (s *Server) updateCheck(w *answer, a *request) error {
	var body struct{ Status, Output string }
	if err := readBody(w, a, "", &body); err != nil {
		return err
	}
	if body.Status != passing && body.Status != warning && body.Status != critical {
		return badRequest("Invalid check status: '%s': Status must be passing, warning or critical", cut(body.Status))
	}
	return s.done(w, s.report(a, a.rest, body.Status, body.Output))
}

// report sets the verdict of a TTL check, and its time begins anew. A verdict that stands already only does the latter.
func (s *Server) report(a *request, id, status, output string) error {
	var f faults
	verdict := f.status(status)
	if len(output) > rpc.MaxCheckOutputLen {
		output = strings.ToValidUTF8(output[:rpc.MaxCheckOutputLen], "")
	}
	return s.settle(a, func(st *fsm.State) error {
		c, err := s.resolveCheck(a, st, id)
		switch {
		case err != nil:
			return err
		case !c.ttl:
			return badRequest("CheckID %q does not have associated TTL", cut(id))
		}
		r := c.record
		if err = s.allow(a.Context(), a, registryv1.Action_ACTION_REGISTER, r.Namespace(), r.Service()); err != nil {
			return err
		}
		if c.status == verdict && verdict != registryv1.CheckStatus_CHECK_STATUS_CRITICAL {
			ended, renewErr := s.node.Renew(a.Context(), peerv1.RenewKind_RENEW_KIND_CHECK,
				[]string{health.CheckID(r.Namespace(), r.Service(), r.ID(), c.name)})
			if renewErr != nil || len(ended) == 0 {
				return renewErr
			}
		}
		return stale(s.propose(a, &raftlogv1.Command{Kind: &raftlogv1.Command_SetCheck{SetCheck: &raftlogv1.SetCheck{
			Key: keyOf(r), Incarnation: r.Incarnation(), Check: c.name, Status: verdict, Output: output,
		}}}))
	})
}

// agentChecks is GET agent/checks.
func (s *Server) agentChecks(w *answer, a *request) error {
	return s.ask(w, a, read{whole: true, topics: []topic{{ofChecks, a.namespace, ""}}, body: func(st *fsm.State) (any, bool, error) {
		all := map[string]check{}
		return all, false, s.own(a, st, func(i instance) error {
			for _, c := range s.shapes.checks(i) {
				ok, err := a.filter.keeps(c)
				if err != nil {
					return err
				}
				if !ok {
					continue
				}
				key := c.CheckID
				if _, taken := all[key]; taken && i.node != a.agent.node {
					key += "@" + i.node
				}
				all[key] = c
			}
			return nil
		})
	}})
}
