package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ReadSnapshot reads what [State.WriteSnapshot] wrote, to the end of r. Whatever the bytes, it does not panic and needs
// memory in proportion to what it has read. An error wraps [ErrBadSnapshot] and says what is wrong and where. A State
// that it returns has the hashes that the header promised, so it is the one that was written.
func ReadSnapshot(r io.Reader) (*State, error) {
	br := &blockReader{r: r}
	h, err := br.header()
	if err != nil {
		return nil, err
	}
	l := &loader{mark: new(mark), st: &State{
		index: h.GetIndex(), term: h.GetTerm(), revision: h.GetRevision(), epoch: h.GetEpoch(),
		number: h.GetLastNumber(), time: h.GetTimeUnixMs(), leaps: h.GetLeapsMs(), clusterID: h.GetClusterId(),
		chain: sum{binary.BigEndian.Uint64(h.GetChain()), binary.BigEndian.Uint64(h.GetChain()[8:])},
	}}
	if l.st.time < 0 || l.st.leaps < 0 || l.st.leaps > l.st.time {
		return nil, br.bad("time %d with leaps of %d", l.st.time, l.st.leaps)
	}
	for {
		payload, err := br.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := l.block(payload); err != nil {
			return nil, br.bad("%w", err)
		}
	}
	if err := l.verify(h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	return l.st, nil
}

// loader builds a state from records that come table by table, in order of their keys.
type loader struct {
	st    *State
	mark  *mark
	table tableID

	service *Service // that the last instance went to
	spec    spec
	status  status
	scratch []byte

	lastDeletion string // namespace of the last record of when a key was deleted
	keysLoaded   bool   // the record of what there is once about keys was there
}

// Errors of single records.
var (
	errOrder     = errors.New("records out of order")
	errMalformed = errors.New("malformed record")
	errDangling  = errors.New("record hangs on what is not there")
)

// block loads the records of one block.
func (l *loader) block(payload []byte) error {
	id := tableID(payload[0])
	if id < l.table || id >= tableCount {
		return fmt.Errorf("unexpected table %d", id)
	}
	l.table = id
	for rest := payload[1:]; len(rest) > 0; {
		record, n := protowire.ConsumeBytes(rest)
		if n < 0 {
			return errMalformed
		}
		rest = rest[n:]
		if err := l.record(record); err != nil {
			return fmt.Errorf("table %d: %w", id, err)
		}
	}
	return nil
}

//nolint:gocyclo // A table of the tables.
func (l *loader) record(b []byte) error {
	switch l.table {
	case tableSessions:
		return loadMessage(b, &raftlogv1.SessionRecord{}, l.session)
	case tableLeases:
		return loadMessage(b, &raftlogv1.LeaseRecord{}, l.lease)
	case tableServices:
		return l.serviceRecord(b)
	case tableInstances:
		return l.instance(b)
	case tableLocks:
		return loadMessage(b, &raftlogv1.LockRecord{}, l.lock)
	case tableClients:
		return loadMessage(b, &raftlogv1.ClientRecord{}, l.client)
	case tableMembers:
		return loadMessage(b, &registryv1.Member{}, l.member)
	case tablePolicies:
		return loadMessage(b, &registryv1.Policy{}, l.policy)
	case tableTokens:
		return loadMessage(b, &raftlogv1.TokenRecord{}, l.token)
	case tableGrants:
		return loadMessage(b, &registryv1.Grant{}, l.grant)
	case tableAccess:
		return loadMessage(b, &raftlogv1.AccessRecord{}, l.accessRecord)
	case tableNamespaces:
		return loadMessage(b, &registryv1.Namespace{}, l.namespace)
	case tableHistory:
		return loadMessage(b, &raftlogv1.HistoryRecord{}, l.historyRecord)
	case tableKeys:
		return loadMessage(b, &registryv1.KeyValue{}, l.key)
	case tableKVNamespaces:
		return loadMessage(b, &raftlogv1.KVNamespaceRecord{}, l.kvDeletion)
	case tableLockDelays:
		return loadMessage(b, &raftlogv1.LockDelayRecord{}, l.lockDelay)
	case tableKV:
		return loadMessage(b, &raftlogv1.KVRecord{}, l.kvRecord)
	default:
		return l.transitions(b)
	}
}

func loadMessage[M proto.Message](b []byte, m M, load func(M) error) error {
	if err := proto.Unmarshal(b, m); err != nil {
		return errMalformed
	}
	return load(m)
}

// load puts a value at the end of a table.
func load[V any](l *loader, tb *table[V], key string, value V) error {
	if last, ok := tb.last(); ok && key <= last {
		return errOrder
	}
	tb.load(l.mark, key, value)
	return nil
}

// add puts the encoding of what was loaded into the hash of its table.
func (l *loader) add(encoded []byte) {
	l.scratch = encoded
	l.st.sums[l.table].add(hashRecord(l.table, encoded))
}

func (l *loader) session(m *raftlogv1.SessionRecord) error {
	s := &Session{
		at: ident{id: m.GetId()}, ClientName: m.GetClientName(), TTLMs: m.GetTtlMs(),
		CreateRevision: m.GetCreateRevision(), OpenedUnixMs: m.GetOpenedUnixMs(), Owner: m.GetOwner(),
	}
	terms := sessionTerms{m.GetNode(), m.GetLockDelayMs(), m.GetBehavior()}
	if !validName(s.ID()) || len(s.Owner) > MaxNameBytes || terms.malformed() != "" {
		return errMalformed
	}
	s.terms = terms.kept()
	l.add(s.append(l.scratch[:0]))
	return load(l, &l.st.sessions, s.ID(), s)
}

func (l *loader) lease(m *raftlogv1.LeaseRecord) error {
	lease := &Lease{
		at: ident{id: m.GetId()}, TTLMs: m.GetTtlMs(), CreateRevision: m.GetCreateRevision(), Owner: m.GetOwner(),
	}
	if !validName(lease.ID()) || len(lease.Owner) > MaxNameBytes {
		return errMalformed
	}
	if id := m.GetSessionId(); id != "" {
		session := l.st.Session(id)
		if session == nil {
			return errDangling
		}
		lease.session = &session.at
	}
	l.add(lease.append(l.scratch[:0]))
	l.st.sessionLeases.add(l.mark, lease.session, &lease.at)
	return load(l, &l.st.leases, lease.ID(), lease)
}

func (l *loader) serviceRecord(b []byte) error {
	var namespace, name string
	s := &Service{owner: l.mark}
	for rest := b; len(rest) > 0; {
		var f field
		n := f.consume(rest)
		if n < 0 {
			return errMalformed
		}
		rest = rest[n:]
		switch f.number {
		case 1:
			namespace = string(f.bytes)
		case 2:
			name = string(f.bytes)
		case 3:
			s.revision = f.varint
		}
	}
	if !validName(namespace) || !validName(name) || s.revision == 0 {
		return errMalformed
	}
	s.at = newPair(namespace, name)
	l.add(appendService(l.scratch[:0], s))
	return load(l, &l.st.services, s.at.key, s)
}

// splitInstance returns the parts of an encoded raftlogv1.InstanceRecord.
func splitInstance(b []byte) (encodedSpec, encodedStatus []byte, ok bool) {
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			return nil, nil, false
		}
		b = b[n:]
		switch f.number {
		case 1:
			encodedSpec = f.bytes
		case 2:
			encodedStatus = f.bytes
		}
	}
	return encodedSpec, encodedStatus, true
}

func (l *loader) instance(b []byte) error {
	encodedSpec, encodedStatus, ok := splitInstance(b)
	sp, st := &l.spec, &l.status
	if !ok || sp.decode(encodedSpec) != "" || !st.decode(encodedStatus) || !l.consistent(encodedStatus) {
		return errMalformed
	}
	svc := l.service
	if svc == nil || svc.Name() != string(sp.service) || svc.Namespace() != string(sp.namespace) {
		svc, _ = l.st.services.get(pairKey(string(sp.namespace), string(sp.service)))
		if svc == nil {
			return errDangling
		}
		l.service = svc
	}
	r := newRecord(&ident{in: svc.at, id: string(sp.id)}, sp, svc.any())
	l.scratch = r.encode(encodedSpec, st, l.scratch)
	if err := l.hang(r, string(sp.session), string(sp.lease)); err != nil {
		return err
	}
	svc.counts.Instances++
	*svc.counts.of(r.health)++
	l.st.instances++
	l.st.sums[l.table].add(hashRecord(l.table, r.encoded))
	return load(l, &svc.records, r.at.id, r)
}

// consistent reports whether a decoded status is written as it is always written, and fits its specification.
func (l *loader) consistent(encodedStatus []byte) bool {
	sp, st := &l.spec, &l.status
	if len(sp.checks) != len(st.checks) || st.health != st.aggregate() {
		return false
	}
	for i := range sp.checks {
		if !bytes.Equal(sp.checks[i].name, st.checks[i].name) {
			return false
		}
	}
	l.scratch = st.append(l.scratch[:0])
	return bytes.Equal(l.scratch, encodedStatus)
}

// hang notes what an instance hangs on.
func (l *loader) hang(r *Record, sessionID, leaseID string) error {
	if sessionID != "" {
		session := l.st.Session(sessionID)
		if session == nil {
			return errDangling
		}
		r.session = &session.at
	}
	if leaseID != "" {
		lease := l.st.Lease(leaseID)
		if lease == nil {
			return errDangling
		}
		r.lease = &lease.at
	}
	l.st.bySession.add(l.mark, r.session, r.at)
	l.st.byLease.add(l.mark, r.lease, r.at)
	return nil
}

func (l *loader) lock(m *raftlogv1.LockRecord) error {
	lock := &Lock{
		Namespace: m.GetNamespace(), Name: m.GetName(), Slots: max(m.GetSlots(), 1),
		Owner: Owner{
			SessionID: m.GetSessionId(), Token: m.GetToken(), Value: m.GetValue(), AcquireRevision: m.GetAcquireRevision(),
		},
	}
	owners := 1 + len(m.GetOthers())
	switch {
	case !validName(lock.Namespace) || !validName(lock.Name) || len(m.GetWaiters()) > MaxLockWaiters,
		m.GetSlots() == 1 || m.GetSlots() > MaxLockSlots || owners > int(lock.Slots),
		len(m.GetWaiters()) > 0 && owners < int(lock.Slots):
		return errMalformed
	}
	lock.at = &ident{in: newPair(lock.Namespace, lock.Name)}
	if err := l.join(lock.at, lock.SessionID); err != nil {
		return err
	}
	last := lock.Token
	for _, o := range m.GetOthers() {
		if o.GetToken() <= last {
			return errOrder
		}
		if err := l.join(lock.at, o.GetSessionId()); err != nil {
			return err
		}
		last = o.GetToken()
		lock.Others = append(lock.Others, Owner{
			SessionID: o.GetSessionId(), Token: last, Value: o.GetValue(), AcquireRevision: o.GetAcquireRevision(),
		})
	}
	for _, w := range m.GetWaiters() {
		if err := l.join(lock.at, w.GetSessionId()); err != nil {
			return err
		}
		lock.Waiters = append(lock.Waiters, Waiter{SessionID: w.GetSessionId(), Value: w.GetValue()})
	}
	for i := range lock.Waiters {
		l.scratch = lock.appendPlace(l.scratch[:0], i)
		l.st.sums[tableLocks].add(hashBytes(l.scratch, seedPlace))
	}
	l.add(lock.appendHead(l.scratch[:0]))
	return load(l, &l.st.locks, lock.at.in.key, lock)
}

// join notes that a session holds or waits for a lock, once.
func (l *loader) join(at *ident, session string) error {
	s := l.st.Session(session)
	if s == nil {
		return errDangling
	}
	before := l.st.sessionLocks.len()
	l.st.sessionLocks.add(l.mark, &s.at, at)
	if l.st.sessionLocks.len() == before {
		return errMalformed
	}
	return nil
}

func (l *loader) client(m *raftlogv1.ClientRecord) error {
	c := &client{id: m.GetClientId(), last: m.GetLastUnixMs(), answeredBelow: m.GetAnsweredBelow()}
	if c.id == "" || len(c.id) > MaxClientIDBytes || c.last < 0 || len(m.GetOutcomes()) > MaxOutcomes {
		return errMalformed
	}
	for i, o := range m.GetOutcomes() {
		r := remembered{
			sequence: o.GetSequence(), bodyHash: o.GetBodyHash(), outcome: OutcomeFromProto(o.GetOutcome()),
		}
		if i > 0 && r.sequence <= c.outcomes[i-1].sequence {
			return errOrder
		}
		c.outcomes = append(c.outcomes, r)
		l.scratch = r.appendKeyed(l.scratch[:0], c.id)
		l.st.sums[tableClients].add(hashBytes(l.scratch, seedOutcome))
	}
	l.add(c.appendHead(l.scratch[:0]))
	l.st.idle.set(l.mark, c.idleKey(), struct{}{})
	return load(l, &l.st.clients, c.id, c)
}

func (l *loader) member(m *registryv1.Member) error {
	if !validName(m.GetId()) {
		return errMalformed
	}
	l.add(appendMember(l.scratch[:0], m))
	return load(l, &l.st.members, m.GetId(), m)
}

// ownAccess returns who may do what, for loading.
func (l *loader) ownAccess() *access {
	if l.st.access == nil {
		l.st.access = &access{owner: l.mark}
	}
	return l.st.access
}

func (l *loader) policy(m *registryv1.Policy) error {
	p, malformed := newPolicy(m, KVLevel)
	if malformed != "" {
		return errMalformed
	}
	l.add(appendPolicy(l.scratch[:0], p.message))
	return load(l, &l.ownAccess().policies, p.message.GetName(), p)
}

func (l *loader) token(m *raftlogv1.TokenRecord) error {
	from := m.GetToken()
	t, malformed := newToken(&raftlogv1.CreateToken{Token: from, SecretHash: m.GetSecretHash()}, from.GetIdentity())
	if malformed != "" {
		return errMalformed
	}
	t.CreateRevision, t.CreatedUnixMs, t.CreatedBy = from.GetCreateRevision(), from.GetCreatedUnixMs(), from.GetCreatedBy()
	l.add(t.append(l.scratch[:0]))
	return load(l, &l.ownAccess().tokens, t.ID, t)
}

func (l *loader) grant(m *registryv1.Grant) error {
	if malformedGrant(m) != "" {
		return errMalformed
	}
	l.add(appendGrant(l.scratch[:0], m))
	return load(l, &l.ownAccess().grants, m.GetIdentity(), m)
}

func (l *loader) accessRecord(m *raftlogv1.AccessRecord) error {
	r := accessRecord{enforced: m.GetEnforced(), bootstraps: m.GetBootstraps(), revision: m.GetRevision()}
	a := l.ownAccess()
	if a.record != (accessRecord{}) || r.revision == 0 {
		return errMalformed
	}
	a.record = r
	l.add(r.append(l.scratch[:0]))
	return nil
}

// verify compares what was loaded with what the header promised.
func (l *loader) verify(h *raftlogv1.SnapshotHeader) error {
	counts := l.st.tableCounts()
	switch tables, revision := len(h.GetTableCounts()), l.st.AccessRevision(); {
	case tables != l.st.tablesInUse():
		return fmt.Errorf("%d tables, not %d", l.st.tablesInUse(), tables)
	case l.st.keyspace != nil && !l.keysLoaded:
		return errors.New("keys without the record that comes with them")
	case l.st.access != nil && revision == 0 || revision > l.st.revision:
		return fmt.Errorf("access revision %d of %d", revision, l.st.revision)
	}
	for id := range h.GetTableCounts() {
		if uint64(counts[id]) != h.GetTableCounts()[id] {
			return fmt.Errorf("table %d: %d records, not %d", id, counts[id], h.GetTableCounts()[id])
		}
		if !bytes.Equal(l.st.sums[id].append(nil), h.GetTableHashes()[id]) {
			return fmt.Errorf("table %d: hash does not match", id)
		}
	}
	if hash := l.st.Hash(); !bytes.Equal(hash[:], h.GetStateHash()) {
		return errors.New("hash of the state does not match")
	}
	empty := false
	l.st.services.ascend("", func(_ string, s *Service) bool {
		empty = s.Len() == 0
		return !empty
	})
	if empty {
		return errors.New("service without instances")
	}
	return nil
}

// Rebase returns the content of a snapshot as the next state of a running cluster, for an operator's restore. Instances,
// sessions, leases, locks and keys are those of the snapshot; cluster id, members, index, term, chain and the remembered
// outcomes of clients are those of onto. The epoch is new, and neither revisions nor numbers nor the time fall.
//
// Policies, tokens and grants come with the sessions that they are about, from the snapshot: tokens that were deleted since
// are there again. But a snapshot of a time before the first bootstrap leaves those of onto as they are, access control is
// never switched off, and a number of resets never comes again. What is said about namespaces comes from the snapshot, too,
// unless that is of a time before there was any such thing. The history goes on: it is what happened here.
func Rebase(snapshot, onto *State) *State {
	next := *snapshot
	next.index, next.term, next.chain = onto.index, onto.term, onto.chain
	next.clusterID = onto.clusterID
	next.epoch = max(snapshot.epoch, onto.epoch) + 1
	next.revision = max(snapshot.revision, onto.revision) + 1
	next.number = max(snapshot.number, onto.number)
	next.time = max(snapshot.time, onto.time)
	next.leaps = next.time - onto.idleTime() // The clients are onto's, and have been silent for as long as before.
	next.members, next.clients, next.idle = onto.members, onto.clients, onto.idle
	next.sums[tableMembers] = onto.sums[tableMembers]
	next.sums[tableClients] = onto.sums[tableClients]
	next.rebaseAccess(snapshot, onto)
	next.rebaseNamespaces(snapshot, onto)
	next.rebaseHistory(snapshot, onto)
	next.rebaseKeys(snapshot, onto)
	return &next
}

func (s *State) rebaseAccess(snapshot, onto *State) {
	from := snapshot
	if from.access == nil || from.Bootstraps() == 0 && onto.Bootstraps() > 0 {
		from = onto
	}
	if s.access = from.access; s.access == nil {
		return
	}
	for id := tablePolicies; id < tableAccess; id++ {
		s.sums[id] = from.sums[id]
	}
	a := *from.access
	a.owner = nil
	a.record = accessRecord{
		enforced:   snapshot.Enforced() || onto.Enforced(),
		bootstraps: max(snapshot.Bootstraps(), onto.Bootstraps()),
		revision:   s.revision,
	}
	s.access = &a
	s.sums[tableAccess] = hashRecord(tableAccess, a.record.append(nil))
}
