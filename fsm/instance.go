package fsm

import (
	"bytes"
	"strconv"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// applyRegister puts an instance, and opens a session for it if the command says so. Nothing is changed before all that
// can be refused has been looked at.
func (t *txn) applyRegister(body []byte) Outcome {
	var cmd registration
	if !cmd.decode(body) {
		return refuse(raftlogv1.Code_CODE_INVALID, "command")
	}
	var opening *Session
	if cmd.openSession != nil {
		var outcome Outcome
		if opening, outcome = t.sessionToOpen(cmd.openSession); opening == nil {
			return outcome
		}
	}
	sp := &t.spec
	if malformed := sp.decode(cmd.instance); malformed != "" {
		return refuse(raftlogv1.Code_CODE_INVALID, malformed)
	}
	if outcome, denied := t.deniedSpec(sp); denied {
		return outcome
	}
	svc, _ := t.st.services.get(pairKey(string(sp.namespace), string(sp.service)))
	var old *Record
	if svc != nil {
		old = svc.Instance(string(sp.id))
	}
	owners, outcome := t.owners(sp, old, opening)
	if outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		return outcome
	}
	if outcome = checkConditions(&cmd, sp, old); outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		return outcome
	}
	if old == nil {
		if refused, full := t.fullOfInstances(sp.namespace); full {
			return refused
		}
	}
	if opening != nil {
		t.addSession(opening)
		outcome.ID = opening.ID()
	}
	if old != nil && bytes.Equal(old.Spec(), cmd.instance) {
		outcome.Number = old.incarnation
		return outcome
	}
	t.register(cmd.instance, owners, svc, old)
	outcome.Number = t.incarnation
	return outcome
}

// owners is what an instance hangs on.
type owners struct{ session, lease *ident }

// owners finds what a registration hangs on, or refuses it. What the old record hangs on is there: else it would not be.
// The session that is opening, nil for none, is as good as there.
func (t *txn) owners(sp *spec, old *Record, opening *Session) (owners, Outcome) {
	var o owners
	if old != nil {
		o = owners{old.session, old.lease}
	}
	if o.session.text() != string(sp.session) {
		o.session = nil
		if id := string(sp.session); id != "" {
			s := t.st.Session(id)
			if opening != nil && opening.ID() == id {
				s = opening
			}
			if s == nil {
				return o, refuse(raftlogv1.Code_CODE_SESSION_NOT_FOUND, id)
			}
			o.session = &s.at
		}
	}
	if o.lease.text() != string(sp.lease) {
		o.lease = nil
		if id := string(sp.lease); id != "" {
			l := t.st.Lease(id)
			if l == nil {
				return o, refuse(raftlogv1.Code_CODE_LEASE_NOT_FOUND, id)
			}
			o.lease = &l.at
		}
	}
	return o, Outcome{}
}

// checkConditions holds a registration against the conditions that its sender set.
func checkConditions(cmd *registration, sp *spec, old *Record) Outcome {
	if cmd.ifAbsent && old != nil && (old.session == nil || old.session.id != string(sp.session)) {
		return refuse(raftlogv1.Code_CODE_ALREADY_EXISTS, old.SessionID())
	}
	var revision uint64
	if old != nil {
		revision = old.modifyRevision
	}
	if cmd.expectedRevision != 0 && cmd.expectedRevision != revision {
		return refuse(raftlogv1.Code_CODE_REVISION_MISMATCH, strconv.FormatUint(revision, 10))
	}
	return Outcome{}
}

// register puts a record that differs from the one that is there, if any. All registrations of one command share an
// incarnation.
func (t *txn) register(encoded []byte, o owners, svc *Service, old *Record) {
	if t.incarnation == 0 {
		t.incarnation = t.nextNumber()
	}
	revision := t.change()
	sp, st := &t.spec, &t.status
	*st = status{
		incarnation:    t.incarnation,
		createRevision: revision,
		modifyRevision: revision,
		checks:         st.checks[:0],
		registeredMs:   t.st.time,
	}
	like := old
	if old != nil {
		st.createRevision = old.createRevision
		st.maintenance = old.maintenance
	} else if svc != nil {
		like = svc.any()
	}
	t.initialChecks(sp, old)
	st.health = st.aggregate()

	svc = t.ownService(svc, sp)
	r := newRecord(identity(sp, svc, old), sp, like)
	r.session, r.lease = o.session, o.lease
	t.scratch = r.encode(encoded, st, t.scratch)
	t.put(svc, r, old, registryv1.Cause_CAUSE_REGISTERED)
}

// initialChecks gives the status under way the states of the specification's checks. A check whose definition stands as
// it did in the old record keeps its verdict.
func (t *txn) initialChecks(sp *spec, old *Record) {
	hadChecks := old != nil && old.hasChecks && len(sp.checks) > 0
	if hadChecks {
		t.oldStatus.decode(old.status())
	}
	for i := range sp.checks {
		def := &sp.checks[i]
		state := checkState{
			name: def.name, status: def.initial, changedRevision: t.st.revision, changedMs: t.st.time,
		}
		if !validVerdict(state.status) {
			state.status = registryv1.CheckStatus_CHECK_STATUS_STARTING
		}
		if hadChecks && hasCheck(old.Spec(), def.encoded) {
			state = *t.oldStatus.check(string(def.name))
		}
		t.status.checks = append(t.status.checks, state)
	}
}

// identity returns the identity of an instance of a service, that of the old record if there is one.
func identity(sp *spec, svc *Service, old *Record) *ident {
	if old != nil {
		return old.at
	}
	return &ident{in: svc.at, id: string(sp.id)}
}

// deregister removes an instance. What is not there is removed already.
func (t *txn) deregister(cmd *raftlogv1.Deregister) Outcome {
	if outcome, denied := t.deniedKey(cmd.GetKey(), cmd.GetTerm()); denied {
		return outcome
	}
	cause := cmd.GetCause()
	switch {
	case cause == registryv1.Cause_CAUSE_UNSPECIFIED:
		cause = registryv1.Cause_CAUSE_DEREGISTERED
	case cause == registryv1.Cause_CAUSE_REGISTERED || cause < 0 || cause > registryv1.Cause_CAUSE_CRITICAL_TOO_LONG:
		return refuse(raftlogv1.Code_CODE_INVALID, "cause")
	}
	if t.staleTerm(cmd.GetTerm()) {
		return refuse(raftlogv1.Code_CODE_STALE, "term")
	}
	svc, old := t.lookup(cmd.GetKey())
	switch {
	case old == nil:
		return Outcome{}
	case cmd.GetIncarnation() != 0 && cmd.GetIncarnation() != old.incarnation:
		return staleIncarnation(old)
	case cmd.GetSessionId() != "" && cmd.GetSessionId() != old.SessionID():
		return refuse(raftlogv1.Code_CODE_STALE, old.SessionID())
	case cause == registryv1.Cause_CAUSE_CRITICAL_TOO_LONG && old.health != registryv1.Health_HEALTH_CRITICAL:
		return refuse(raftlogv1.Code_CODE_STALE, "health")
	}
	if t.reason = judged(cmd.GetNode(), cmd.GetTerm()); cause == registryv1.Cause_CAUSE_CRITICAL_TOO_LONG {
		t.reason.silenceMs = uint64(max(0, t.st.time-old.CriticalSince()))
	}
	t.remove(svc, old, cause)
	return Outcome{}
}

// staleTerm reports whether a leader of another term gave the order. 0 is that of a client.
func (t *txn) staleTerm(term uint64) bool { return term != 0 && term != t.st.term }

// setCheck records the verdict of a check. Only a change of the verdict is a change.
func (t *txn) setCheck(cmd *raftlogv1.SetCheck) Outcome {
	if outcome, denied := t.deniedKey(cmd.GetKey(), cmd.GetTerm()); denied {
		return outcome
	}
	if !validVerdict(cmd.GetStatus()) {
		return refuse(raftlogv1.Code_CODE_INVALID, "status")
	}
	if t.staleTerm(cmd.GetTerm()) {
		return refuse(raftlogv1.Code_CODE_STALE, "term")
	}
	svc, old, outcome := t.find(cmd.GetKey(), cmd.GetIncarnation())
	if old == nil {
		return outcome
	}
	st := &t.status
	st.decode(old.status())
	check := st.check(cmd.GetCheck())
	switch {
	case check == nil:
		return refuse(raftlogv1.Code_CODE_CHECK_NOT_FOUND, cmd.GetCheck())
	case check.status == cmd.GetStatus():
		return Outcome{}
	}
	check.status = cmd.GetStatus()
	t.reason = judged(cmd.GetNode(), cmd.GetTerm())
	t.reason.check, t.reason.status, t.reason.output = cmd.GetCheck(), cmd.GetStatus(), cut(cmd.GetOutput(), MaxOutputBytes)
	check.output = []byte(t.reason.output)
	check.changedRevision = t.change()
	check.changedMs = t.st.time
	t.replaceStatus(svc, old, st, registryv1.Cause_CAUSE_CHECK)
	return Outcome{}
}

// setDraining sets or clears draining.
func (t *txn) setDraining(cmd *raftlogv1.SetDraining) Outcome {
	if outcome, denied := t.deniedKey(cmd.GetKey(), 0); denied {
		return outcome
	}
	svc, old, outcome := t.find(cmd.GetKey(), cmd.GetIncarnation())
	switch {
	case old == nil:
		return outcome
	case old.draining == cmd.GetDraining():
		return Outcome{}
	}
	st := &t.status
	st.decode(old.status())
	st.draining = cmd.GetDraining()
	t.reason = reason{set: st.draining}
	t.replaceStatus(svc, old, st, registryv1.Cause_CAUSE_DRAIN)
	return Outcome{}
}

// setMaintenance sets or clears maintenance.
func (t *txn) setMaintenance(cmd *raftlogv1.SetMaintenance) Outcome {
	if outcome, denied := t.deniedKey(cmd.GetKey(), 0); denied {
		return outcome
	}
	svc, old, outcome := t.find(cmd.GetKey(), cmd.GetIncarnation())
	switch {
	case old == nil:
		return outcome
	case old.maintenance == cmd.GetMaintenance():
		return Outcome{}
	}
	st := &t.status
	st.decode(old.status())
	st.maintenance = cmd.GetMaintenance()
	t.reason = reason{set: st.maintenance}
	if !st.maintenance {
		st.restartCritical(t.st.time)
	}
	t.replaceStatus(svc, old, st, registryv1.Cause_CAUSE_MAINTENANCE)
	return Outcome{}
}

// lookup returns an instance and its service, nil if there is none.
func (t *txn) lookup(key *raftlogv1.Key) (*Service, *Record) {
	svc := t.st.Service(key.GetNamespace(), key.GetService())
	if svc == nil {
		return nil, nil
	}
	return svc, svc.Instance(key.GetId())
}

// find returns the instance of that key and incarnation (0: any) and its service, or no record and why not.
func (t *txn) find(key *raftlogv1.Key, incarnation uint64) (*Service, *Record, Outcome) {
	svc, r := t.lookup(key)
	switch {
	case r == nil:
		return nil, nil, refuse(raftlogv1.Code_CODE_NOT_FOUND, key.GetId())
	case incarnation != 0 && incarnation != r.incarnation:
		return nil, nil, staleIncarnation(r)
	}
	return svc, r, Outcome{}
}

// staleIncarnation refuses an order for an earlier incarnation than the one that is there.
func staleIncarnation(r *Record) Outcome {
	return refuse(raftlogv1.Code_CODE_STALE, strconv.FormatUint(r.incarnation, 10))
}

// replaceStatus gives an instance a changed status.
func (t *txn) replaceStatus(svc *Service, old *Record, st *status, cause registryv1.Cause) {
	st.modifyRevision = t.change()
	st.health = st.aggregate()
	var next *Record
	next, t.scratch = old.with(st, t.scratch)
	t.put(t.ownService(svc, nil), next, old, cause)
}

// put sets a record of an owned service in the place of old, nil if there is none, and all that follows from it.
func (t *txn) put(svc *Service, next, old *Record, cause registryv1.Cause) {
	svc.records.set(t.mark, next.at.id, next)
	*svc.counts.of(next.health)++
	t.addSum(tableInstances, next.encoded)
	if old != nil {
		*svc.counts.of(old.health)--
		t.subSum(tableInstances, old.encoded)
	} else {
		svc.counts.Instances++
		t.st.instances++
		t.countInstances(svc.Namespace(), 1)
	}
	t.touchService(svc)
	if old == nil || old.session != next.session || old.lease != next.lease {
		t.unlink(old)
		t.link(next)
	}
	t.events = append(t.events, Event{
		Kind: EventInstance, Created: old == nil, Cause: cause, Revision: t.st.revision,
		New: next, Old: old, Namespace: svc.Namespace(), Name: svc.Name(),
	})
	t.noteChange(next, old, cause)
}

// remove takes a record out of its service, and the service out when it was the last.
func (t *txn) remove(svc *Service, old *Record, cause registryv1.Cause) {
	revision := t.change()
	svc = t.ownService(svc, nil)
	svc.records.delete(t.mark, old.at.id)
	svc.counts.Instances--
	*svc.counts.of(old.health)--
	t.st.instances--
	t.countInstances(svc.Namespace(), -1)
	t.subSum(tableInstances, old.encoded)
	if svc.Len() > 0 {
		t.touchService(svc)
	} else {
		t.dropService(svc)
	}
	t.unlink(old)
	t.events = append(t.events, Event{
		Kind: EventInstance, Cause: cause, Revision: revision,
		Old: old, Namespace: svc.Namespace(), Name: svc.Name(),
	})
	t.noteChange(nil, old, cause)
}

// removeAll takes out the instances of these identities.
func (t *txn) removeAll(all []*ident, cause registryv1.Cause) {
	for _, at := range all {
		svc, _ := t.st.services.get(at.in.key)
		t.remove(svc, svc.Instance(at.id), cause)
	}
}

// ownService returns a service for changing in place. Without one it makes that of the specification.
func (t *txn) ownService(svc *Service, sp *spec) *Service {
	switch {
	case svc == nil:
		svc = &Service{at: newPair(string(sp.namespace), string(sp.service))}
	case svc.owner == t.mark:
		return svc
	default:
		fork := *svc
		svc = &fork
	}
	svc.owner = t.mark
	t.st.services.set(t.mark, svc.at.key, svc)
	return svc
}

// touchService sets the revision of a service to that of the command under way.
func (t *txn) touchService(svc *Service) {
	if svc.revision == t.st.revision {
		return
	}
	if svc.revision != 0 {
		t.scratch = appendService(t.scratch[:0], svc)
		t.subSum(tableServices, t.scratch)
	}
	svc.revision = t.st.revision
	t.scratch = appendService(t.scratch[:0], svc)
	t.addSum(tableServices, t.scratch)
}

func (t *txn) dropService(svc *Service) {
	t.scratch = appendService(t.scratch[:0], svc)
	t.subSum(tableServices, t.scratch)
	t.st.services.delete(t.mark, svc.at.key)
}

// link and unlink keep the indexes by session and lease.
func (t *txn) link(r *Record) {
	t.st.bySession.add(t.mark, r.session, r.at)
	t.st.byLease.add(t.mark, r.lease, r.at)
}

func (t *txn) unlink(r *Record) {
	if r == nil {
		return
	}
	t.st.bySession.remove(t.mark, r.session, r.at)
	t.st.byLease.remove(t.mark, r.lease, r.at)
}
