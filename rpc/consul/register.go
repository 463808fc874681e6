package consul

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// maxFaults is how many faults of one request are told.
const maxFaults = 16

// faults gathers what is wrong with a body, each with its field.
type faults []string

func (f *faults) add(field, format string, args ...any) {
	if len(*f) < maxFaults {
		*f = append(*f, field+": "+fmt.Sprintf(format, args...))
	}
}

func (f *faults) err() error {
	if len(*f) == 0 {
		return nil
	}
	return badRequest("Invalid request: %s", strings.Join(*f, "; "))
}

// instanceOf makes an instance of a registration at an agent. Its id is the service id: see place.
func (f *faults) instanceOf(a *request, reg *registration, at agent) *registryv1.Instance {
	in := &registryv1.Instance{
		Namespace: cmp.Or(reg.Namespace, a.namespace), Service: cmp.Or(reg.Name, reg.Service), Address: reg.Address,
		Metadata: map[string]string{factNode: at.node},
	}
	in.Id = cmp.Or(reg.ID, in.GetService())
	if in.GetService() == "" {
		f.add("Name", "Missing service name")
	}
	if in.GetService() == nodeService {
		f.add("Name", "%q stands for nodes", nodeService)
	}
	f.mesh(reg)
	fact := func(key, value string) {
		if value != "" {
			in.Metadata[key] = value
		}
	}
	if at.address != at.node {
		fact(factNodeAddress, at.address)
	}
	if reg.Address == "" {
		in.Address = at.address
		fact(factAddress, "node")
	}
	in.Tags = f.tags(reg.Tags)
	fact(factTags, tagOrder(in.GetTags(), slices.Sorted(slices.Values(in.GetTags()))))
	for key, value := range reg.Meta {
		if strings.HasPrefix(key, factPrefix) {
			f.add("Meta", "key %q: what begins with %q is set by the registry", cut(key), factPrefix)
		}
		in.Metadata[key] = value
	}
	if reg.EnableTagOverride {
		fact(factTagOverride, "true")
	}
	fact(factTagged, asJSON(reg.TaggedAddresses))
	fact(factSocket, reg.SocketPath)
	if reg.Locality != nil {
		in.Region, in.Zone = reg.Locality.Region, reg.Locality.Zone
	}
	in.Ports = f.ports(reg)
	f.weights(in, reg.Weights)
	return in
}

// mesh refuses what is a part of Consul's service mesh.
func (f *faults) mesh(reg *registration) {
	if reg.Kind != "" && reg.Kind != "typical" {
		f.add("Kind", "%q: regd has no service mesh; leave it out", cut(reg.Kind))
	}
	switch text := strings.ReplaceAll(string(reg.Connect), " ", ""); text {
	case "", "null", "{}":
	default:
		f.add("Connect", "regd has no service mesh; leave it out")
	}
}

// asJSON is a map as a fact, empty if there is nothing in it.
func asJSON[V any](m map[string]V) string {
	if len(m) == 0 {
		return ""
	}
	text, err := json.Marshal(m)
	if err != nil {
		return "" // Texts and numbers always can be.
	}
	return string(text)
}

// tags returns the tags without those that are empty or there twice: Consul takes them, and they mean nothing.
func (f *faults) tags(given []string) []string {
	var tags []string
	for _, tag := range given {
		if tag != "" && !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
		if len(tags) > rpc.MaxTags {
			f.add("Tags", "there are more than %d", rpc.MaxTags)
			return nil
		}
	}
	return tags
}

func (f *faults) ports(reg *registration) []*registryv1.Port {
	if reg.Port.wrong != "" || reg.Port.n < 0 || reg.Port.n > rpc.MaxPort {
		f.add("Port", "%s: must be 0 to %d", cmp.Or(reg.Port.wrong, strconv.Itoa(reg.Port.n)), rpc.MaxPort)
		return nil
	}
	if len(reg.Ports) == 0 {
		if reg.Port.n == 0 {
			return nil
		}
		return []*registryv1.Port{{Number: uint32(reg.Port.n)}} //nolint:gosec // It is in range.
	}
	var ports []*registryv1.Port
	for n, p := range reg.Ports {
		if p.Port <= 0 || p.Port > rpc.MaxPort {
			f.add(fmt.Sprintf("Ports[%d].Port", n), "%d: must be 1 to %d", p.Port, rpc.MaxPort)
			return nil
		}
		port := &registryv1.Port{Name: p.Name, Number: uint32(p.Port)} //nolint:gosec // It is in range.
		if p.Default {
			ports = slices.Insert(ports, 0, port)
		} else {
			ports = append(ports, port)
		}
	}
	return ports
}

// weights turns weights into a share of traffic. What does not fit is kept as a fact.
func (f *faults) weights(in *registryv1.Instance, w *weights) {
	if w == nil || *w == (weights{}) || *w == (weights{1, 1}) {
		return
	}
	if w.Passing < 1 || w.Passing > rpc.MaxWeight || w.Warning < 0 || w.Warning > rpc.MaxWeight {
		f.add("Weights", "Passing must be 1 to %d and Warning 0 to %d, they are %d and %d", rpc.MaxWeight, rpc.MaxWeight, w.Passing, w.Warning)
		return
	}
	in.Weight = uint32(min(w.Passing*weightUnit, rpc.MaxWeight)) //nolint:gosec // It is in range.
	if w.Warning != 1 || w.Passing*weightUnit > rpc.MaxWeight {
		in.Metadata[factWeights] = fmt.Sprintf("%d,%d", w.Passing, w.Warning)
	}
}

// attempts is how often a change that depends on what is there is tried before others that change the same.
const attempts = 8

// errRetry says that a State was too old to decide by.
var errRetry = errors.New("try again on a current state")

// settle calls fn with what this node has, and while that turns out to be too old, with a State that is sure to be current.
func (s *Server) settle(a *request, fn func(st *fsm.State) error) error {
	st := s.node.Feed().State()
	for range attempts {
		err := fn(st)
		if !errors.Is(err, errRetry) && !errors.Is(err, fsm.ErrAlreadyExists) && !errors.Is(err, fsm.ErrRevisionMismatch) {
			return err
		}
		v, viewErr := s.view(a, cluster.Freshness{Mode: cluster.ModeLinearizable})
		if viewErr != nil {
			return viewErr
		}
		st, a.sure = v.State, true
	}
	return &failure{http.StatusServiceUnavailable, "others change the same service all the time: try again"}
}

// put registers an instance at an agent. keep says what of the one that is there is kept, by the names of its checks; the checks of
// in have their facts in its metadata.
func (s *Server) put(a *request, in *registryv1.Instance, replaceChecks bool) error {
	if err := s.allow(a.Context(), a, registryv1.Action_ACTION_REGISTER, in.GetNamespace(), in.GetService()); err != nil {
		return err
	}
	node, id := in.GetMetadata()[factNode], in.GetId()
	return s.settle(a, func(st *fsm.State) error {
		if err := s.ledger.reach(a.Context(), st.Revision()); err != nil {
			return err
		}
		next := cloneInstance(in)
		if st.Enforced() {
			if identity, ok := st.Identity(a.credential); ok {
				next.Metadata[factAgent] = identity
			}
		}
		register := &raftlogv1.Register{}
		old := s.settleID(st, next, node, id, register)
		if old != nil && !replaceChecks {
			if err := keepChecks(next, old); err != nil {
				return err
			}
			register.ExpectedRevision = old.ModifyRevision()
		}
		var err error
		if register.Instance, err = rpc.Specification(next); err != nil {
			return err
		}
		return s.apply(a, register, s.moved(st, next, node, id))
	})
}

// settleID gives the instance an id that is free in its service, or is that of the same service id of the same node, which it
// returns. A nil record makes the registration one of what is not there yet.
func (s *Server) settleID(st *fsm.State, next *registryv1.Instance, node, id string, register *raftlogv1.Register) *fsm.Record {
	for _, candidate := range []string{id, id + "@" + node} {
		old := st.Instance(next.GetNamespace(), next.GetService(), candidate)
		next.Id = candidate
		if candidate != id {
			next.Metadata[factID] = id
		}
		if old == nil && candidate == id && st.Instance(next.GetNamespace(), next.GetService(), id+"@"+node) != nil {
			continue // It has its own already, though the short one is free now.
		}
		if old == nil {
			register.IfAbsent = true
			return nil
		}
		at := placeOf(old)
		if at.node == node || !at.door && addressOf(old) == next.GetAddress() {
			return old
		}
	}
	return nil // id@node of another node: that would be named id@node. The registry decides.
}

// keepChecks adds the checks of the instance that is there and that the new one does not have, as Consul does.
func keepChecks(next *registryv1.Instance, old *fsm.Record) error {
	if !old.HasChecks() {
		return nil
	}
	was, err := open(old)
	if err != nil {
		return err
	}
	if !was.door {
		return nil
	}
	var have []string
	taken := map[string]bool{}
	for _, c := range next.GetChecks() {
		have = append(have, checkID(was.id, c.GetName(), factOfCheck(next.GetMetadata(), c.GetName())))
		taken[c.GetName()] = true
	}
	for _, c := range was.GetChecks() {
		fact := factOfCheck(was.GetMetadata(), c.GetName())
		if taken[c.GetName()] || slices.Contains(have, checkID(was.id, c.GetName(), fact)) {
			continue
		}
		next.Checks = append(next.Checks, c)
		if text := was.GetMetadata()[factCheck+c.GetName()]; text != "" {
			next.Metadata[factCheck+c.GetName()] = text
		}
		if next.GetDeregisterCriticalAfter() == nil {
			next.DeregisterCriticalAfter = was.GetDeregisterCriticalAfter()
		}
	}
	return nil
}

// moved returns the instances of the same service id of the same node in other services: a service id is unique in a node.
func (s *Server) moved(st *fsm.State, next *registryv1.Instance, node, id string) []*raftlogv1.Deregister {
	var gone []*raftlogv1.Deregister
	for _, r := range s.ledger.find(st, locator{byID, next.GetNamespace(), id}) {
		if at := placeOf(r); at.door && at.node == node && r.Service() != next.GetService() {
			gone = append(gone, &raftlogv1.Deregister{Key: keyOf(r), Incarnation: r.Incarnation()})
		}
	}
	return gone
}

// apply registers, and deregisters in the same step.
func (s *Server) apply(a *request, register *raftlogv1.Register, gone []*raftlogv1.Deregister) error {
	cmd := &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: register}}
	if len(gone) > 0 {
		cmd.Kind = &raftlogv1.Command_Batch{Batch: &raftlogv1.Batch{Register: []*raftlogv1.Register{register}, Deregister: gone}}
	}
	return s.propose(a, cmd)
}

func keyOf(r *fsm.Record) *raftlogv1.Key {
	return &raftlogv1.Key{Namespace: r.Namespace(), Service: r.Service(), Id: r.ID()}
}

// cloneInstance copies what put changes.
func cloneInstance(in *registryv1.Instance) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: in.GetNamespace(), Service: in.GetService(), Id: in.GetId(), Address: in.GetAddress(), Ports: in.GetPorts(),
		Tags: in.GetTags(), Metadata: maps.Clone(in.GetMetadata()), Zone: in.GetZone(), Region: in.GetRegion(), Weight: in.GetWeight(),
		Checks: slices.Clone(in.GetChecks()), SessionId: in.GetSessionId(), LeaseId: in.GetLeaseId(),
		DeregisterCriticalAfter: durationOf(in.GetDeregisterCriticalAfter()),
	}
}

func durationOf(d *durationpb.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(d.AsDuration())
}

// change puts a changed specification of an instance in the place of the one that is there: fn changes it. It is a new registration, so an
// instance that came by another door is left alone: its owner's orders would be those of an earlier one.
func (s *Server) change(a *request, r *fsm.Record, fn func(in *registryv1.Instance) error) error {
	was, err := open(r)
	if err != nil {
		return err
	}
	if !was.door {
		return badRequest("service %q of %s was not registered by Consul's API: whoever registered it changes its checks", was.id, was.node)
	}
	next := cloneInstance(was.Instance)
	if err = fn(next); err != nil {
		return err
	}
	spec, err := rpc.Specification(next)
	if err != nil {
		return err
	}
	return s.apply(a, &raftlogv1.Register{Instance: spec, ExpectedRevision: r.ModifyRevision()}, nil)
}
