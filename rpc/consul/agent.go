package consul

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// registerService is PUT agent/service/register.
func (s *Server) registerService(w *answer, a *request) error {
	var reg registration
	if err := readBody(w, a, "service", &reg); err != nil {
		return err
	}
	var f faults
	in := f.instanceOf(a, &reg, a.agent)
	f.checks(in, in.GetId(), reg.Check, reg.Checks, false)
	if err := f.err(); err != nil {
		return err
	}
	if err := s.put(a, in, a.on("replace-existing-checks")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// deregisterService is PUT agent/service/deregister/ID.
func (s *Server) deregisterService(w *answer, a *request) error {
	return s.done(w, s.settle(a, func(st *fsm.State) error {
		r, err := s.resolve(a, st, a.rest)
		if err != nil {
			return err
		}
		return s.deregister(a, r)
	}))
}

func (s *Server) deregister(a *request, r *fsm.Record) error {
	return stale(s.propose(a, &raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{
		Deregister: &raftlogv1.Deregister{Key: keyOf(r), Incarnation: r.Incarnation()},
	}}))
}

// stale makes an order that came too late one to be tried again.
func stale(err error) error {
	if err == nil {
		return nil
	}
	for _, late := range []error{fsm.ErrStale, fsm.ErrNotFound, fsm.ErrCheckNotFound} {
		if errors.Is(err, late) {
			return fmt.Errorf("%w: %w", errRetry, err)
		}
	}
	return err
}

// done answers a write that has no answer but its status.
func (s *Server) done(w *answer, err error) error {
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// serviceMaintenance is PUT agent/service/maintenance/ID with ?enable= and ?reason=.
func (s *Server) serviceMaintenance(w *answer, a *request) error {
	enable, err := a.boolean("enable")
	if err != nil {
		return err
	}
	return s.done(w, s.settle(a, func(st *fsm.State) error {
		r, err := s.resolve(a, st, a.rest)
		if err != nil {
			return err
		}
		return s.maintain(a, r, enable)
	}))
}

// maintain takes an instance out of service, with a reason, or puts it back.
func (s *Server) maintain(a *request, r *fsm.Record, enable bool) error {
	reason := ""
	if enable {
		reason = a.query.Get("reason")
	}
	if have, _ := r.Metadata(factMaintenance); have != reason && placeOf(r).door {
		err := s.change(a, r, func(in *registryv1.Instance) error {
			if in.Metadata[factMaintenance] = reason; reason == "" {
				delete(in.GetMetadata(), factMaintenance)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return s.propose(a, &raftlogv1.Command{Kind: &raftlogv1.Command_SetMaintenance{
		SetMaintenance: &raftlogv1.SetMaintenance{Key: keyOf(r), Maintenance: enable},
	}})
}

// nodeMaintenance is PUT agent/maintenance with ?enable=: all services of the agent that there are.
func (s *Server) nodeMaintenance(w *answer, a *request) error {
	enable, err := a.boolean("enable")
	if err != nil {
		return err
	}
	return s.done(w, s.settle(a, func(st *fsm.State) error {
		if err := s.ledger.reach(a.Context(), st.Revision()); err != nil {
			return err
		}
		for _, r := range s.ledger.find(st, locator{byNode, a.namespace, a.agent.node}) {
			if r.Service() == nodeService || r.Maintenance() == enable {
				continue
			}
			if err := s.maintain(a, r, enable); err != nil {
				return err
			}
		}
		return nil
	}))
}

// resolve finds the instance that a service id means at an agent: the agent's own; else one of another agent, as who registered it may
// have another address by now; else one that came by another door. Where several would do the client must say which.
func (s *Server) resolve(a *request, st *fsm.State, id string) (*fsm.Record, error) {
	if id == "" {
		return nil, badRequest("Missing service ID")
	}
	return s.pick(a, st, locator{byID, a.namespace, id}, func() error {
		return notFound("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", cut(id))
	})
}

func (s *Server) pick(a *request, st *fsm.State, at locator, none func() error) (*fsm.Record, error) {
	if err := s.ledger.reach(a.Context(), st.Revision()); err != nil {
		return nil, err
	}
	ranks := [3][]*fsm.Record{}
	for _, r := range s.ledger.find(st, at) {
		if !a.sees(st, r.Namespace(), r.Service()) {
			continue
		}
		switch p := placeOf(r); {
		case p.door && p.node == a.agent.node:
			ranks[0] = append(ranks[0], r)
		case p.door:
			ranks[1] = append(ranks[1], r)
		default:
			ranks[2] = append(ranks[2], r)
		}
	}
	for _, found := range ranks {
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return nil, &failure{http.StatusConflict, fmt.Sprintf("%q is at several nodes, and not at %s: say at which by the header X-Regd-Node: %s",
				cut(at.name), a.agent.node, nodesOf(found))}
		}
	}
	if !a.sure { // Somebody may have registered it at another node just now.
		return nil, errRetry
	}
	return nil, none()
}

func nodesOf(records []*fsm.Record) string {
	var names []string
	for _, r := range records {
		names = append(names, placeOf(r).node)
	}
	slices.Sort(names)
	const most = 8
	if names = slices.Compact(names); len(names) > most {
		names = append(names[:most], "...")
	}
	return strings.Join(names, ", ")
}

// own calls fn for what agents have registered: with access control off all of it, else what the caller's identity has.
func (s *Server) own(a *request, st *fsm.State, fn func(instance) error) error {
	identity, _ := st.Identity(a.credential)
	var err error
	eachService(st, a.namespace, func(svc *fsm.Service) bool {
		if !a.sees(st, a.namespace, svc.Name()) {
			return true
		}
		svc.Ascend("", func(r *fsm.Record) bool {
			if _, door := r.Metadata(factNode); !door {
				return true
			}
			if st.Enforced() {
				if by, ok := r.Metadata(factAgent); !ok || by != identity {
					return true
				}
			}
			var i instance
			if i, err = open(r); err == nil {
				err = fn(i)
			}
			return err == nil
		})
		return err == nil
	})
	return err
}

// eachService calls fn for the services of a namespace, until it returns false.
func eachService(st *fsm.State, namespace string, fn func(*fsm.Service) bool) {
	st.Services(namespace, "", func(svc *fsm.Service) bool { return svc.Namespace() == namespace && fn(svc) })
}

// agentServices is GET agent/services.
func (s *Server) agentServices(w *answer, a *request) error {
	return s.ask(w, a, read{whole: true, topics: []topic{{ofChecks, a.namespace, ""}}, body: func(st *fsm.State) (any, bool, error) {
		found := map[string]service{}
		return found, false, s.own(a, st, func(i instance) error {
			if i.GetService() == nodeService {
				return nil
			}
			sv := s.shapes.service(i)
			sv.Datacenter = s.cfg.Datacenter
			ok, err := a.filter.keeps(sv)
			if ok {
				found[s.key(a, found[sv.ID].ID != "", i)] = sv
			}
			return err
		})
	}})
}

// key is what an instance is listed under: its service id, or the registry's where that is taken by another node.
func (s *Server) key(a *request, taken bool, i instance) string {
	if taken && i.node != a.agent.node {
		return i.GetId()
	}
	return i.id
}

// agentService is GET agent/service/ID, which waits while the content has the hash that is given.
func (s *Server) agentService(w *answer, a *request) error {
	v, err := s.first(a)
	if err != nil {
		return err
	}
	a.sure = true
	r, err := s.resolve(a, v.State, a.rest)
	if err != nil {
		return missing(err, "unknown service ID: %q", a.rest)
	}
	about := topic{ofService, a.namespace, r.Service()}
	deadline := time.NewTimer(a.jitter())
	defer deadline.Stop()
	for {
		sv, err := s.hashed(r)
		if err != nil {
			return err
		}
		if sv.ContentHash != a.hash {
			return s.showService(w, v, sv)
		}
		a.index = s.ledger.index(v.State, about)
		woken, err := s.waitOut(a, about, deadline.C)
		if err != nil {
			return err
		}
		if !woken {
			return s.showService(w, v, sv)
		}
		v = cluster.View{State: s.node.Feed().State(), Mode: cluster.ModeStale}
		if r = v.State.Instance(r.Namespace(), r.Service(), r.ID()); r == nil {
			return notFound("unknown service ID: %q", cut(a.rest))
		}
	}
}

// waitOut waits for a change without a place among those that work.
func (s *Server) waitOut(a *request, about topic, deadline <-chan time.Time) (woken bool, err error) {
	resume, err := s.rest(a)
	if err != nil {
		return false, err
	}
	defer func() { err = resume(err) }()
	woken, err = s.sleep(a, []topic{about}, deadline)
	if err == nil {
		err = s.ledger.reach(a.Context(), s.node.Feed().State().Revision())
	}
	return woken, err
}

// hashed returns a service with a hash of what it is registered as.
func (s *Server) hashed(r *fsm.Record) (service, error) {
	i, err := open(r)
	if err != nil {
		return service{}, err
	}
	sv := s.shapes.service(i)
	sv.Datacenter = s.cfg.Datacenter
	content := sv
	content.CreateIndex, content.ModifyIndex = 0, 0
	text, err := json.Marshal(content)
	sum := sha256.Sum256(text)
	sv.ContentHash = hex.EncodeToString(sum[:8])
	return sv, err
}

func (s *Server) showService(w *answer, v cluster.View, sv service) error {
	w.Header().Set("X-Consul-Contenthash", sv.ContentHash)
	s.setMeta(w, sv.ModifyIndex, v)
	return reply(w, http.StatusOK, sv)
}

// agentHealthByID is GET agent/health/service/id/ID.
func (s *Server) agentHealthByID(w *answer, a *request) error {
	v, err := s.first(a)
	if err != nil {
		return err
	}
	a.sure = true
	r, err := s.resolve(a, v.State, a.rest)
	if err != nil {
		return missing(err, "ServiceId %s not found", a.rest)
	}
	h, err := s.healthOf(v.State, r)
	if err != nil {
		return err
	}
	if a.query.Get("format") == "text" {
		return text(w, codeOf(h.AggregatedStatus), h.AggregatedStatus)
	}
	return reply(w, codeOf(h.AggregatedStatus), h)
}

// missing gives an error of what is not there the text of an endpoint.
func missing(err error, format, id string) error {
	if code, _ := explain(err); code == http.StatusNotFound {
		return notFound(format, cut(id))
	}
	return err
}

func text(w *answer, code int, body string) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body))
	return nil
}

// agentHealthByName is GET agent/health/service/name/NAME: its code tells of the worst.
func (s *Server) agentHealthByName(w *answer, a *request) error {
	v, err := s.first(a)
	if err != nil {
		return err
	}
	svc := v.State.Service(a.namespace, a.rest)
	if svc == nil || !a.sees(v.State, a.namespace, a.rest) {
		return notFound("ServiceName %s Not Found", cut(a.rest))
	}
	worse := []string{passing, warning, critical, maintenance}
	all, worst := []agentHealth{}, passing
	svc.Ascend("", func(r *fsm.Record) bool {
		var h agentHealth
		if h, err = s.healthOf(v.State, r); err != nil {
			return false
		}
		if slices.Index(worse, h.AggregatedStatus) > slices.Index(worse, worst) {
			worst = h.AggregatedStatus
		}
		all = append(all, h)
		return true
	})
	if err != nil {
		return err
	}
	code := codeOf(worst)
	if a.query.Get("format") == "text" {
		return text(w, code, worst)
	}
	return reply(w, code, all)
}

// codeOf is the status code that tells of a health.
func codeOf(status string) int {
	switch status {
	case passing:
		return http.StatusOK
	case warning:
		return http.StatusTooManyRequests
	default:
		return http.StatusServiceUnavailable
	}
}

func (s *Server) healthOf(st *fsm.State, r *fsm.Record) (agentHealth, error) {
	i, err := open(r)
	if err != nil {
		return agentHealth{}, err
	}
	checks := s.allChecks(st, i)
	return agentHealth{aggregate(checks), s.shapes.service(i), checks}, nil
}

// allChecks are the checks of an instance and those of its node.
func (s *Server) allChecks(st *fsm.State, i instance) []check {
	checks := s.shapes.checks(i)
	if i.GetService() == nodeService {
		return checks
	}
	if r := st.Instance(i.GetNamespace(), nodeService, i.node); r != nil {
		if n, err := open(r); err == nil && n.door {
			return append(s.shapes.checks(n), checks...)
		}
	}
	return checks
}
