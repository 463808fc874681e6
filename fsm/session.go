package fsm

import (
	"google.golang.org/protobuf/types/known/durationpb"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Session is one living client process. It never changes: what hangs on it is in the indexes of the State.
type Session struct {
	at ident // what hangs on it points here

	// ClientName is what the client calls itself.
	ClientName string
	// TTLMs is the time to live in milliseconds.
	TTLMs uint64
	// CreateRevision is the revision that opened it.
	CreateRevision uint64
	// OpenedUnixMs is the time of opening, in milliseconds since the Unix epoch.
	OpenedUnixMs int64
	// Owner is the identity that opened it, empty if access control was off then: anybody may use it.
	Owner string

	terms *sessionTerms // nil: those of most sessions
}

// sessionTerms are what a session says about the keys that it owns, and where it was opened. Few sessions say anything.
type sessionTerms struct {
	node        string
	lockDelayMs uint64
	behavior    registryv1.SessionBehavior
}

// malformed names what is malformed.
func (t *sessionTerms) malformed() string {
	switch {
	case t.behavior < 0 || t.behavior > registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE:
		return "behavior"
	case t.lockDelayMs > MaxLockDelayMs:
		return "lock_delay_ms"
	case len(t.node) > MaxNameBytes:
		return "node"
	default:
		return ""
	}
}

// kept returns the terms as a session keeps them: nil if they say nothing.
func (t sessionTerms) kept() *sessionTerms {
	if t.behavior != registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
		t.behavior = registryv1.SessionBehavior_SESSION_BEHAVIOR_RELEASE
	}
	if t == usualTerms() {
		return nil
	}
	return &t
}

func usualTerms() sessionTerms {
	return sessionTerms{behavior: registryv1.SessionBehavior_SESSION_BEHAVIOR_RELEASE}
}

// said returns the terms of the session.
func (s *Session) said() sessionTerms {
	if s.terms == nil {
		return usualTerms()
	}
	return *s.terms
}

// Behavior returns what becomes of the keys that the session owns when it ends: they are released or deleted.
func (s *Session) Behavior() registryv1.SessionBehavior { return s.said().behavior }

// LockDelayMs returns how long nobody may acquire these keys then, in milliseconds.
func (s *Session) LockDelayMs() uint64 { return s.said().lockDelayMs }

// Node returns where the session was opened, for people, empty if nobody said so.
func (s *Session) Node() string { return s.said().node }

// ID returns the id.
func (s *Session) ID() string { return s.at.id }

// Proto returns the session as a message, with the numbers of what hangs on it in the State. It takes as long as there
// are many.
func (s *Session) Proto(st *State) *registryv1.Session {
	m := &registryv1.Session{
		Id:             s.ID(),
		ClientName:     s.ClientName,
		Ttl:            milliseconds(s.TTLMs),
		CreateRevision: s.CreateRevision,
		Instances:      st.bySession.count(&s.at),
		Locks:          st.sessionLocks.count(&s.at),
		OpenedUnixMs:   s.OpenedUnixMs,
		Owner:          s.Owner,
		Keys:           st.store().sessions.count(&s.at),
	}
	if s.terms == nil {
		return m
	}
	m.Behavior, m.Node = s.terms.behavior, s.terms.node
	if s.terms.lockDelayMs > 0 {
		m.LockDelay = milliseconds(s.terms.lockDelayMs)
	}
	return m
}

func milliseconds(ms uint64) *durationpb.Duration {
	return &durationpb.Duration{Seconds: int64(ms / 1000), Nanos: int32(ms%1000) * 1_000_000}
}

// append encodes the session as a raftlogv1.SessionRecord. What hangs on it is not part of it.
func (s *Session) append(b []byte) []byte {
	b = appendString(b, 1, s.ID())
	b = appendString(b, 2, s.ClientName)
	b = appendUint(b, 3, s.TTLMs)
	b = appendUint(b, 4, s.CreateRevision)
	b = appendUint(b, 5, uint64(s.OpenedUnixMs))
	b = appendString(b, 6, s.Owner)
	if s.terms == nil {
		return b
	}
	if s.terms.behavior == registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
		b = appendUint(b, 7, uint64(s.terms.behavior))
	}
	b = appendUint(b, 8, s.terms.lockDelayMs)
	return appendString(b, 9, s.terms.node)
}

// openSession opens a session. Opening the same session again changes nothing, so that a proposal may come twice.
func (t *txn) openSession(cmd *raftlogv1.OpenSession) Outcome {
	if outcome, denied := t.deniedOwning(); denied {
		return outcome
	}
	s, outcome := t.sessionToOpen(cmd)
	if s == nil {
		return outcome
	}
	t.addSession(s)
	return Outcome{ID: s.ID()}
}

// sessionToOpen returns the session that the order is about: a new one, which is not in the state yet, or the one that was
// opened by the same order before. nil: it is refused.
func (t *txn) sessionToOpen(cmd *raftlogv1.OpenSession) (*Session, Outcome) {
	switch {
	case !validName(cmd.GetId()):
		return nil, refuse(raftlogv1.Code_CODE_INVALID, "id")
	case len(cmd.GetClientName()) > MaxNameBytes:
		return nil, refuse(raftlogv1.Code_CODE_INVALID, "client_name")
	case cmd.GetTtlMs() == 0:
		return nil, refuse(raftlogv1.Code_CODE_INVALID, "ttl_ms")
	}
	terms := usualTerms()
	if t.level >= KVLevel { // Versions that know no keys know none of this, and ignore it.
		terms = sessionTerms{cmd.GetNode(), cmd.GetLockDelayMs(), cmd.GetBehavior()}
		if malformed := terms.malformed(); malformed != "" {
			return nil, refuse(raftlogv1.Code_CODE_INVALID, malformed)
		}
	}
	next := &Session{
		at:           ident{id: cmd.GetId()},
		ClientName:   cmd.GetClientName(),
		TTLMs:        cmd.GetTtlMs(),
		OpenedUnixMs: t.st.time,
		Owner:        t.identity,
		terms:        terms.kept(),
	}
	if outcome, denied := t.deniedSession(cmd.GetId()); denied {
		return nil, outcome
	}
	if old, ok := t.st.sessions.get(cmd.GetId()); ok {
		if old.ClientName != next.ClientName || old.TTLMs != next.TTLMs || old.said() != next.said() {
			return nil, refuse(raftlogv1.Code_CODE_ALREADY_EXISTS, cmd.GetId())
		}
		return old, Outcome{}
	}
	return next, Outcome{}
}

// addSession puts a session into the state, unless it is there.
func (t *txn) addSession(s *Session) {
	if t.st.Session(s.ID()) == s {
		return
	}
	s.CreateRevision = t.change()
	t.st.sessions.set(t.mark, s.ID(), s)
	t.scratch = s.append(t.scratch[:0])
	t.addSum(tableSessions, t.scratch)
	t.events = append(t.events, Event{Kind: EventSession, Created: true, Revision: s.CreateRevision, Name: s.ID()})
}

// closeSession ends a session. One that is not there has ended already.
func (t *txn) closeSession(cmd *raftlogv1.CloseSession) Outcome {
	if outcome, denied := t.deniedSession(cmd.GetId()); denied {
		return outcome
	}
	if s, ok := t.st.sessions.get(cmd.GetId()); ok {
		t.endSession(s, registryv1.Cause_CAUSE_SESSION_CLOSED, registryv1.Cause_CAUSE_LEASE_REVOKED)
	}
	return Outcome{}
}

// expire ends sessions and leases whose time is over, if the leader that decided so leads still.
func (t *txn) expire(cmd *raftlogv1.Expire) Outcome {
	if cmd.GetTerm() != t.st.term {
		return refuse(raftlogv1.Code_CODE_STALE, "term")
	}
	for i, id := range cmd.GetSessions() {
		if s, ok := t.st.sessions.get(id); ok {
			t.reason = silent(cmd, cmd.GetSessionSilenceMs(), i)
			t.endSession(s, registryv1.Cause_CAUSE_SESSION_EXPIRED, registryv1.Cause_CAUSE_LEASE_EXPIRED)
		}
	}
	for i, id := range cmd.GetLeases() {
		if l, ok := t.st.leases.get(id); ok {
			t.reason = silent(cmd, cmd.GetLeaseSilenceMs(), i)
			t.endLease(l, registryv1.Cause_CAUSE_LEASE_EXPIRED)
		}
	}
	return Outcome{}
}

// silent says who judged that the i-th of what a command ends was silent for too long, and for how long it was.
func silent(cmd *raftlogv1.Expire, silences []uint64, i int) reason {
	why := judged(cmd.GetNode(), cmd.GetTerm())
	if i < len(silences) {
		why.silenceMs = silences[i]
	}
	return why
}

// endSession ends a session and all that hangs on it, under one revision: its instances, its leases with theirs, its
// locks and places in queues, its keys.
func (t *txn) endSession(s *Session, cause, leaseCause registryv1.Cause) {
	revision := t.change()
	t.reason.session = s.ID()
	t.st.sessions.delete(t.mark, s.ID())
	t.scratch = s.append(t.scratch[:0])
	t.subSum(tableSessions, t.scratch)
	t.removeAll(t.st.bySession.collect(&s.at), cause)
	for _, at := range t.st.sessionLeases.collect(&s.at) {
		l, _ := t.st.leases.get(at.id)
		t.endLease(l, leaseCause)
	}
	for _, at := range t.st.sessionLocks.collect(&s.at) {
		t.leaveLock(t.st.lock(at), &s.at)
	}
	t.leaveKeys(s)
	t.events = append(t.events, Event{Kind: EventSession, Cause: cause, Revision: revision, Name: s.ID()})
}
