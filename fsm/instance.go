package fsm

import (
	"bytes"
	"strconv"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// applyRegister puts an instance.
func (t *txn) applyRegister(body []byte) Outcome {
	var cmd registration
	if !cmd.decode(body) {
		return refuse(raftlogv1.Code_CODE_INVALID, "command")
	}
	sp := &t.spec
	if malformed := sp.decode(cmd.instance); malformed != "" {
		return refuse(raftlogv1.Code_CODE_INVALID, malformed)
	}
	if outcome := t.checkOwners(sp); outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		return outcome
	}
	svc, _ := t.st.services.get(pairKey(string(sp.namespace), string(sp.service)))
	var old *Record
	if svc != nil {
		old = svc.Instance(string(sp.id))
	}
	if outcome := checkConditions(&cmd, sp, old); outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		return outcome
	}
	if old != nil && bytes.Equal(old.Spec(), cmd.instance) {
		return Outcome{Number: old.incarnation}
	}
	t.register(sp, cmd.instance, svc, old)
	return Outcome{Number: t.incarnation}
}

// checkOwners refuses a registration that hangs on what is not there.
func (t *txn) checkOwners(sp *spec) Outcome {
	if len(sp.session) > 0 {
		if _, ok := t.st.sessions.get(string(sp.session)); !ok {
			return refuse(raftlogv1.Code_CODE_SESSION_NOT_FOUND, string(sp.session))
		}
	}
	if len(sp.lease) > 0 {
		if _, ok := t.st.leases.get(string(sp.lease)); !ok {
			return refuse(raftlogv1.Code_CODE_LEASE_NOT_FOUND, string(sp.lease))
		}
	}
	return Outcome{}
}

// checkConditions holds a registration against the conditions that its sender set.
func checkConditions(cmd *registration, sp *spec, old *Record) Outcome {
	if cmd.ifAbsent && old != nil && (old.session == "" || old.session != string(sp.session)) {
		return refuse(raftlogv1.Code_CODE_ALREADY_EXISTS, old.session)
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
func (t *txn) register(sp *spec, encoded []byte, svc *Service, old *Record) {
	if t.incarnation == 0 {
		t.incarnation = t.nextNumber()
	}
	revision := t.change()
	st := &t.status
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

	at := t.identity(sp, svc, old)
	var record *Record
	record, t.scratch = newRecord(at, sp, encoded, st, like, t.scratch)
	t.put(record, old, registryv1.Cause_CAUSE_REGISTERED)
}

// initialChecks gives the status under way the states of the specification's checks. A check whose definition stands as
// it did in the old record keeps its verdict.
func (t *txn) initialChecks(sp *spec, old *Record) {
	t.oldSpec.checks, t.oldStatus.checks = t.oldSpec.checks[:0], t.oldStatus.checks[:0]
	if old != nil && old.hasChecks && len(sp.checks) > 0 {
		t.oldSpec.decode(old.Spec())
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
		if was := t.oldSpec.check(def.name); was != nil && bytes.Equal(was.encoded, def.encoded) {
			state = *t.oldStatus.check(string(def.name))
		}
		t.status.checks = append(t.status.checks, state)
	}
}

// identity returns the identity of an instance, sharing the strings that are there already.
func (t *txn) identity(sp *spec, svc *Service, old *Record) *ident {
	switch {
	case old != nil:
		return old.at
	case svc != nil:
		return &ident{namespace: svc.namespace, name: svc.name, id: string(sp.id)}
	default:
		return &ident{namespace: string(sp.namespace), name: string(sp.service), id: string(sp.id)}
	}
}

// deregister removes an instance. What is not there is removed already.
func (t *txn) deregister(cmd *raftlogv1.Deregister) Outcome {
	cause := cmd.GetCause()
	switch {
	case cause == registryv1.Cause_CAUSE_UNSPECIFIED:
		cause = registryv1.Cause_CAUSE_DEREGISTERED
	case cause == registryv1.Cause_CAUSE_REGISTERED || cause < 0 || cause > registryv1.Cause_CAUSE_CRITICAL_TOO_LONG:
		return refuse(raftlogv1.Code_CODE_INVALID, "cause")
	}
	if cmd.GetTerm() != 0 && cmd.GetTerm() != t.st.term {
		return refuse(raftlogv1.Code_CODE_STALE, "term")
	}
	old := t.lookup(cmd.GetKey())
	switch {
	case old == nil:
		return Outcome{}
	case cmd.GetIncarnation() != 0 && cmd.GetIncarnation() != old.incarnation:
		return staleIncarnation(old)
	case cmd.GetSessionId() != "" && cmd.GetSessionId() != old.session:
		return refuse(raftlogv1.Code_CODE_STALE, old.session)
	case cause == registryv1.Cause_CAUSE_CRITICAL_TOO_LONG && old.health != registryv1.Health_HEALTH_CRITICAL:
		return refuse(raftlogv1.Code_CODE_STALE, "health")
	}
	t.remove(old, cause)
	return Outcome{}
}

// setCheck records the verdict of a check. Only a change of the verdict is a change.
func (t *txn) setCheck(cmd *raftlogv1.SetCheck) Outcome {
	if !validVerdict(cmd.GetStatus()) {
		return refuse(raftlogv1.Code_CODE_INVALID, "status")
	}
	if cmd.GetTerm() != 0 && cmd.GetTerm() != t.st.term {
		return refuse(raftlogv1.Code_CODE_STALE, "term")
	}
	old, outcome := t.find(cmd.GetKey(), cmd.GetIncarnation())
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
	check.output = []byte(cut(cmd.GetOutput(), MaxOutputBytes))
	check.changedRevision = t.change()
	check.changedMs = t.st.time
	t.replaceStatus(old, st, registryv1.Cause_CAUSE_CHECK)
	return Outcome{}
}

// setDraining sets or clears draining.
func (t *txn) setDraining(cmd *raftlogv1.SetDraining) Outcome {
	old, outcome := t.find(cmd.GetKey(), cmd.GetIncarnation())
	switch {
	case old == nil:
		return outcome
	case old.draining == cmd.GetDraining():
		return Outcome{}
	}
	st := &t.status
	st.decode(old.status())
	st.draining = cmd.GetDraining()
	t.replaceStatus(old, st, registryv1.Cause_CAUSE_DRAIN)
	return Outcome{}
}

// setMaintenance sets or clears maintenance.
func (t *txn) setMaintenance(cmd *raftlogv1.SetMaintenance) Outcome {
	old, outcome := t.find(cmd.GetKey(), cmd.GetIncarnation())
	switch {
	case old == nil:
		return outcome
	case old.maintenance == cmd.GetMaintenance():
		return Outcome{}
	}
	st := &t.status
	st.decode(old.status())
	st.maintenance = cmd.GetMaintenance()
	if !st.maintenance {
		st.restartCritical(t.st.time)
	}
	t.replaceStatus(old, st, registryv1.Cause_CAUSE_MAINTENANCE)
	return Outcome{}
}

func (t *txn) lookup(key *raftlogv1.Key) *Record {
	return t.st.Instance(key.GetNamespace(), key.GetService(), key.GetId())
}

// find returns the instance of that key and incarnation (0: any), or nil and why not.
func (t *txn) find(key *raftlogv1.Key, incarnation uint64) (*Record, Outcome) {
	r := t.lookup(key)
	switch {
	case r == nil:
		return nil, refuse(raftlogv1.Code_CODE_NOT_FOUND, key.GetId())
	case incarnation != 0 && incarnation != r.incarnation:
		return nil, staleIncarnation(r)
	}
	return r, Outcome{}
}

// staleIncarnation refuses an order for an earlier incarnation than the one that is there.
func staleIncarnation(r *Record) Outcome {
	return refuse(raftlogv1.Code_CODE_STALE, strconv.FormatUint(r.incarnation, 10))
}

// replaceStatus gives an instance a changed status.
func (t *txn) replaceStatus(old *Record, st *status, cause registryv1.Cause) {
	st.modifyRevision = t.change()
	st.health = st.aggregate()
	var next *Record
	next, t.scratch = old.with(st, t.scratch)
	t.put(next, old, cause)
}

// put sets a record in the place of old, nil if there is none, and all that follows from it.
func (t *txn) put(next, old *Record, cause registryv1.Cause) {
	svc := t.service(next.at)
	svc.records.set(t.mark, next.at.id, next)
	*svc.counts.of(next.health)++
	t.addSum(tableInstances, next.encoded)
	if old != nil {
		*svc.counts.of(old.health)--
		t.subSum(tableInstances, old.encoded)
	} else {
		svc.counts.Instances++
		t.st.instances++
	}
	t.touchService(svc)
	if old == nil || old.session != next.session || old.lease != next.lease {
		t.unlink(old)
		t.link(next)
	}
	t.events = append(t.events, Event{
		Kind: EventInstance, Created: old == nil, Cause: cause, Revision: t.st.revision,
		New: next, Old: old, Namespace: next.at.namespace, Name: next.at.name,
	})
}

// remove takes a record out, and its service when it was the last.
func (t *txn) remove(old *Record, cause registryv1.Cause) {
	revision := t.change()
	svc := t.service(old.at)
	svc.records.delete(t.mark, old.at.id)
	svc.counts.Instances--
	*svc.counts.of(old.health)--
	t.st.instances--
	t.subSum(tableInstances, old.encoded)
	if svc.Len() > 0 {
		t.touchService(svc)
	} else {
		t.dropService(svc)
	}
	t.unlink(old)
	t.events = append(t.events, Event{
		Kind: EventInstance, Cause: cause, Revision: revision,
		Old: old, Namespace: old.at.namespace, Name: old.at.name,
	})
}

// service returns the service of an instance for changing, made if there is none.
func (t *txn) service(at *ident) *Service {
	key := pairKey(at.namespace, at.name)
	svc, ok := t.st.services.get(key)
	switch {
	case !ok:
		svc = &Service{key: key, namespace: at.namespace, name: at.name}
	case svc.owner == t.mark:
		return svc
	default:
		fork := *svc
		svc = &fork
	}
	svc.owner = t.mark
	t.st.services.set(t.mark, svc.key, svc)
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
	t.st.services.delete(t.mark, svc.key)
}

// link and unlink keep the indexes by session and lease and the counts that they show.
func (t *txn) link(r *Record) {
	t.st.bySession.add(t.mark, r.session, r.at)
	t.st.byLease.add(t.mark, r.lease, r.at)
	t.countInstances(r, 1)
}

func (t *txn) unlink(r *Record) {
	if r == nil {
		return
	}
	t.st.bySession.remove(t.mark, r.session, r.at)
	t.st.byLease.remove(t.mark, r.lease, r.at)
	t.countInstances(r, -1)
}

func (t *txn) countInstances(r *Record, by int) {
	t.st.countSession(t.mark, r.session, by, 0)
	t.st.countLease(t.mark, r.lease, by)
}
