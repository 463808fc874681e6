package model

import (
	"bytes"
	"slices"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// register opens a session if it is to, and puts an instance with the given incarnation, 0 for the next, if it is to be
// bounded only while there is room. What it did before it refuses is taken back by execute.
func (m *Registry) register(r *raftlogv1.Register, incarnation uint64, bounded bool) (bool, *raftlogv1.Outcome) {
	if r.GetOpenSession() == nil {
		return m.registerAlone(r, incarnation, bounded)
	}
	opened, session := m.openAllowed(r.GetOpenSession())
	if session.GetCode() != raftlogv1.Code_CODE_UNSPECIFIED {
		return false, session
	}
	changed, outcome := m.registerAlone(r, incarnation, bounded)
	if outcome.GetCode() == raftlogv1.Code_CODE_UNSPECIFIED {
		outcome.Id = session.GetId()
	}
	return opened || changed, outcome
}

// registerAlone puts an instance.
func (m *Registry) registerAlone(r *raftlogv1.Register, incarnation uint64, bounded bool) (bool, *raftlogv1.Outcome) {
	next := new(registryv1.Instance)
	if err := proto.Unmarshal(r.GetInstance(), next); err != nil || len(r.GetInstance()) > maxSpec || hasStatus(next) {
		return false, fail(raftlogv1.Code_CODE_INVALID, "instance")
	}
	if field := wrongField(next); field != "" {
		return false, fail(raftlogv1.Code_CODE_INVALID, field)
	}
	if refused := m.deniedInstance(next); refused != nil {
		return false, refused
	}
	if refused := m.orphan(next); refused != nil {
		return false, refused
	}
	key := Key{next.GetNamespace(), next.GetService(), next.GetId()}
	old := m.Instances[key]
	if refused := unmet(r, next, old); refused != nil {
		return false, refused
	}
	if old != nil && bytes.Equal(old.Spec, r.GetInstance()) {
		return false, &raftlogv1.Outcome{Number: old.Message.GetIncarnation()}
	}
	if refused := m.noRoom(key.Namespace, quotaInstances); refused != nil && old == nil && bounded {
		return false, refused
	}
	if incarnation == 0 {
		m.Number++
		incarnation = m.Number
	}
	m.seat(key, r.GetInstance(), next, old, incarnation)
	return true, &raftlogv1.Outcome{Number: incarnation}
}

// seat puts an instance that nothing speaks against in the place of the old one, nil for none.
func (m *Registry) seat(key Key, spec []byte, next *registryv1.Instance, old *Instance, incarnation uint64) {
	next.Incarnation = incarnation
	next.CreateRevision = m.Revision
	next.RegisteredUnixMs = m.Time
	for _, c := range next.GetChecks() {
		next.CheckStates = append(next.CheckStates, m.firstState(c, old))
	}
	if old != nil {
		next.CreateRevision = old.Message.GetCreateRevision()
		next.Maintenance = old.Message.GetMaintenance()
	}
	m.why = &registryv1.Transition{
		SessionId: next.GetSessionId(), LeaseId: next.GetLeaseId(), Replaced: old.message().GetIncarnation(),
	}
	m.put(key, &Instance{Spec: bytes.Clone(spec), Message: next}, registryv1.Cause_CAUSE_REGISTERED)
}

// deniedInstance refuses an instance that the actor may not register, or not hang on that.
func (m *Registry) deniedInstance(i *registryv1.Instance) *raftlogv1.Outcome {
	if refused := m.denied(register, i.GetNamespace(), i.GetService()); refused != nil {
		return refused
	}
	if refused := m.deniedSession(i.GetSessionId()); refused != nil {
		return refused
	}
	return m.deniedLease(i.GetLeaseId())
}

// orphan refuses an instance that hangs on what is not there.
func (m *Registry) orphan(i *registryv1.Instance) *raftlogv1.Outcome {
	if id := i.GetSessionId(); id != "" && m.Sessions[id] == nil {
		return fail(raftlogv1.Code_CODE_SESSION_NOT_FOUND, id)
	}
	if id := i.GetLeaseId(); id != "" && m.Leases[id] == nil {
		return fail(raftlogv1.Code_CODE_LEASE_NOT_FOUND, id)
	}
	return nil
}

// unmet refuses a registration whose conditions do not hold.
func unmet(r *raftlogv1.Register, next *registryv1.Instance, old *Instance) *raftlogv1.Outcome {
	if owner := old.message().GetSessionId(); r.GetIfAbsent() && old != nil &&
		(owner == "" || owner != next.GetSessionId()) {
		return fail(raftlogv1.Code_CODE_ALREADY_EXISTS, owner)
	}
	have := old.message().GetModifyRevision()
	if want := r.GetExpectedRevision(); want != 0 && want != have {
		return fail(raftlogv1.Code_CODE_REVISION_MISMATCH, strconv.FormatUint(have, 10))
	}
	return nil
}

// message returns the message of an instance, an empty one of none.
func (i *Instance) message() *registryv1.Instance {
	if i == nil {
		return nil
	}
	return i.Message
}

// firstState returns the state of a check of a new registration.
func (m *Registry) firstState(c *registryv1.Check, old *Instance) *registryv1.CheckState {
	if old != nil {
		for i, was := range old.Message.GetChecks() {
			if proto.Equal(was, c) {
				return proto.CloneOf(old.Message.GetCheckStates()[i])
			}
		}
	}
	state := &registryv1.CheckState{
		Name: c.GetName(), Status: c.GetInitial(), ChangedRevision: m.Revision, ChangedUnixMs: m.Time,
	}
	if !verdict(c.GetInitial()) {
		state.Status = registryv1.CheckStatus_CHECK_STATUS_STARTING
	}
	return state
}

func hasStatus(i *registryv1.Instance) bool {
	return i.GetIncarnation() != 0 || i.GetCreateRevision() != 0 || i.GetModifyRevision() != 0 || i.GetHealth() != 0 ||
		i.GetDraining() || i.GetMaintenance() || len(i.GetCheckStates()) > 0 || i.GetRegisteredUnixMs() != 0
}

func wrongField(i *registryv1.Instance) string {
	switch {
	case !name(i.GetNamespace()):
		return "namespace"
	case !name(i.GetService()):
		return "service"
	case !name(i.GetId()):
		return "id"
	case len(i.GetSessionId()) > maxName:
		return "session_id"
	case len(i.GetLeaseId()) > maxName:
		return "lease_id"
	case len(i.GetChecks()) > maxChecks:
		return "checks"
	}
	seen := map[string]bool{}
	for _, c := range i.GetChecks() {
		if !name(c.GetName()) || seen[c.GetName()] {
			return "checks"
		}
		seen[c.GetName()] = true
	}
	return ""
}

func verdict(s registryv1.CheckStatus) bool {
	return slices.Contains([]registryv1.CheckStatus{
		registryv1.CheckStatus_CHECK_STATUS_STARTING, registryv1.CheckStatus_CHECK_STATUS_PASSING,
		registryv1.CheckStatus_CHECK_STATUS_WARNING, registryv1.CheckStatus_CHECK_STATUS_CRITICAL,
	}, s)
}

// put sets an instance, with the revision under way and the health that follows from the rest.
func (m *Registry) put(key Key, i *Instance, cause registryv1.Cause) {
	i.Message.ModifyRevision = m.Revision
	i.Message.Health = health(i.Message)
	m.Instances[key] = i
	m.note(key, i.Message, cause, i.Message.GetHealth())
	m.Services[Name{key.Namespace, key.Service}] = m.Revision
}

// health is the least that checks, draining and maintenance leave.
func health(i *registryv1.Instance) registryv1.Health {
	candidates := []registryv1.Health{registryv1.Health_HEALTH_PASSING}
	if i.GetMaintenance() {
		candidates = append(candidates, registryv1.Health_HEALTH_MAINTENANCE)
	}
	if i.GetDraining() {
		candidates = append(candidates, registryv1.Health_HEALTH_DRAINING)
	}
	for _, c := range i.GetCheckStates() {
		switch c.GetStatus() {
		case registryv1.CheckStatus_CHECK_STATUS_STARTING:
			candidates = append(candidates, registryv1.Health_HEALTH_STARTING)
		case registryv1.CheckStatus_CHECK_STATUS_WARNING:
			candidates = append(candidates, registryv1.Health_HEALTH_WARNING)
		case registryv1.CheckStatus_CHECK_STATUS_CRITICAL:
			candidates = append(candidates, registryv1.Health_HEALTH_CRITICAL)
		default:
		}
	}
	return slices.Min(candidates)
}

func (m *Registry) drop(key Key, cause registryv1.Cause) {
	m.note(key, m.Instances[key].Message, cause, registryv1.Health_HEALTH_UNSPECIFIED)
	delete(m.Instances, key)
	service := Name{key.Namespace, key.Service}
	for other := range m.Instances {
		if (Name{other.Namespace, other.Service}) == service {
			m.Services[service] = m.Revision
			return
		}
	}
	delete(m.Services, service)
}

func (m *Registry) dropInstances(cause registryv1.Cause, which func(*registryv1.Instance) bool) {
	for key, i := range m.Instances {
		if which(i.Message) {
			m.drop(key, cause)
		}
	}
}

func (m *Registry) deregister(d *raftlogv1.Deregister) (bool, *raftlogv1.Outcome) {
	if refused := m.deniedKey(d.GetKey(), d.GetTerm()); refused != nil {
		return false, refused
	}
	switch d.GetCause() {
	case registryv1.Cause_CAUSE_UNSPECIFIED, registryv1.Cause_CAUSE_DEREGISTERED,
		registryv1.Cause_CAUSE_SESSION_EXPIRED, registryv1.Cause_CAUSE_SESSION_CLOSED,
		registryv1.Cause_CAUSE_LEASE_EXPIRED, registryv1.Cause_CAUSE_LEASE_REVOKED, registryv1.Cause_CAUSE_CHECK,
		registryv1.Cause_CAUSE_DRAIN, registryv1.Cause_CAUSE_MAINTENANCE, registryv1.Cause_CAUSE_CRITICAL_TOO_LONG:
	default:
		return false, fail(raftlogv1.Code_CODE_INVALID, "cause")
	}
	if d.GetTerm() != 0 && d.GetTerm() != m.Term {
		return false, fail(raftlogv1.Code_CODE_STALE, "term")
	}
	key := keyOf(d.GetKey())
	old := m.Instances[key]
	if old == nil {
		return false, done()
	}
	if d.GetIncarnation() != 0 && d.GetIncarnation() != old.Message.GetIncarnation() {
		return false, fail(raftlogv1.Code_CODE_STALE, strconv.FormatUint(old.Message.GetIncarnation(), 10))
	}
	if d.GetSessionId() != "" && d.GetSessionId() != old.Message.GetSessionId() {
		return false, fail(raftlogv1.Code_CODE_STALE, old.Message.GetSessionId())
	}
	if d.GetCause() == registryv1.Cause_CAUSE_CRITICAL_TOO_LONG &&
		old.Message.GetHealth() != registryv1.Health_HEALTH_CRITICAL {
		return false, fail(raftlogv1.Code_CODE_STALE, "health")
	}
	m.why = judgedBy(d.GetNode(), d.GetTerm())
	if d.GetCause() == registryv1.Cause_CAUSE_CRITICAL_TOO_LONG {
		m.why.SilenceMs = uint64(max(0, m.Time-criticalSince(old.Message)))
	}
	cause := d.GetCause()
	if cause == registryv1.Cause_CAUSE_UNSPECIFIED {
		cause = registryv1.Cause_CAUSE_DEREGISTERED
	}
	m.drop(key, cause)
	return true, done()
}

func keyOf(k *raftlogv1.Key) Key { return Key{k.GetNamespace(), k.GetService(), k.GetId()} }

// find returns an instance for changing, or why there is none.
func (m *Registry) find(k *raftlogv1.Key, incarnation uint64) (*registryv1.Instance, *raftlogv1.Outcome) {
	i := m.Instances[keyOf(k)]
	if i == nil {
		return nil, fail(raftlogv1.Code_CODE_NOT_FOUND, k.GetId())
	}
	if incarnation != 0 && incarnation != i.Message.GetIncarnation() {
		return nil, fail(raftlogv1.Code_CODE_STALE, strconv.FormatUint(i.Message.GetIncarnation(), 10))
	}
	return i.Message, nil
}

func (m *Registry) setCheck(c *raftlogv1.SetCheck) (bool, *raftlogv1.Outcome) {
	if refused := m.deniedKey(c.GetKey(), c.GetTerm()); refused != nil {
		return false, refused
	}
	if !verdict(c.GetStatus()) {
		return false, fail(raftlogv1.Code_CODE_INVALID, "status")
	}
	if c.GetTerm() != 0 && c.GetTerm() != m.Term {
		return false, fail(raftlogv1.Code_CODE_STALE, "term")
	}
	i, refused := m.find(c.GetKey(), c.GetIncarnation())
	if refused != nil {
		return false, refused
	}
	for _, state := range i.GetCheckStates() {
		if state.GetName() != c.GetCheck() {
			continue
		}
		if state.GetStatus() == c.GetStatus() {
			return false, done()
		}
		state.Status = c.GetStatus()
		state.Output = shorten(c.GetOutput())
		state.ChangedRevision = m.Revision
		state.ChangedUnixMs = m.Time
		m.why = judgedBy(c.GetNode(), c.GetTerm())
		m.why.Check, m.why.Status, m.why.Output = state.GetName(), state.GetStatus(), state.GetOutput()
		m.put(keyOf(c.GetKey()), m.Instances[keyOf(c.GetKey())], registryv1.Cause_CAUSE_CHECK)
		return true, done()
	}
	return false, fail(raftlogv1.Code_CODE_CHECK_NOT_FOUND, c.GetCheck())
}

// shorten cuts an output to whole characters within the limit.
func shorten(s string) string {
	out := ""
	for _, r := range s {
		if len(out)+utf8.RuneLen(r) > maxOutput {
			break
		}
		out += string(r)
	}
	return out
}

func (m *Registry) setDraining(c *raftlogv1.SetDraining) (bool, *raftlogv1.Outcome) {
	if refused := m.deniedKey(c.GetKey(), 0); refused != nil {
		return false, refused
	}
	i, refused := m.find(c.GetKey(), c.GetIncarnation())
	if refused != nil {
		return false, refused
	}
	if i.GetDraining() == c.GetDraining() {
		return false, done()
	}
	i.Draining = c.GetDraining()
	m.why = &registryv1.Transition{Set: c.GetDraining()}
	m.put(keyOf(c.GetKey()), m.Instances[keyOf(c.GetKey())], registryv1.Cause_CAUSE_DRAIN)
	return true, done()
}

func (m *Registry) setMaintenance(c *raftlogv1.SetMaintenance) (bool, *raftlogv1.Outcome) {
	if refused := m.deniedKey(c.GetKey(), 0); refused != nil {
		return false, refused
	}
	i, refused := m.find(c.GetKey(), c.GetIncarnation())
	if refused != nil {
		return false, refused
	}
	if i.GetMaintenance() == c.GetMaintenance() {
		return false, done()
	}
	i.Maintenance = c.GetMaintenance()
	for _, state := range i.GetCheckStates() {
		if !c.GetMaintenance() && state.GetStatus() == registryv1.CheckStatus_CHECK_STATUS_CRITICAL {
			state.ChangedUnixMs = m.Time // the time in maintenance does not count towards removal
		}
	}
	m.why = &registryv1.Transition{Set: c.GetMaintenance()}
	m.put(keyOf(c.GetKey()), m.Instances[keyOf(c.GetKey())], registryv1.Cause_CAUSE_MAINTENANCE)
	return true, done()
}
