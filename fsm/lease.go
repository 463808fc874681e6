package fsm

import (
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Lease is a time to live of its own for instances. It never changes: what hangs on it is in the indexes of the State.
type Lease struct {
	at      ident  // what hangs on it points here
	session *ident // nil: none

	// TTLMs is the time to live in milliseconds.
	TTLMs uint64
	// CreateRevision is the revision that granted it.
	CreateRevision uint64
	// Owner is the identity that was granted it, empty if access control was off then: anybody may use it.
	Owner string
}

// ID returns the id.
func (l *Lease) ID() string { return l.at.id }

// SessionID returns the session that the lease hangs on, empty if none.
func (l *Lease) SessionID() string { return l.session.text() }

// Proto returns the lease as a message, with the number of instances that hang on it in the State. It takes as long as
// there are many.
func (l *Lease) Proto(st *State) *registryv1.Lease {
	return &registryv1.Lease{
		Id:             l.ID(),
		Ttl:            milliseconds(l.TTLMs),
		SessionId:      l.SessionID(),
		CreateRevision: l.CreateRevision,
		Instances:      st.byLease.count(&l.at),
		Owner:          l.Owner,
	}
}

// append encodes the lease as a raftlogv1.LeaseRecord. What hangs on it is not part of it.
func (l *Lease) append(b []byte) []byte {
	b = appendString(b, 1, l.ID())
	b = appendUint(b, 2, l.TTLMs)
	b = appendString(b, 3, l.SessionID())
	b = appendUint(b, 4, l.CreateRevision)
	return appendString(b, 5, l.Owner)
}

// grantLease grants a lease. Granting the same lease again changes nothing, so that a proposal may come twice.
func (t *txn) grantLease(cmd *raftlogv1.GrantLease) Outcome {
	if outcome, denied := t.deniedOwning(); denied {
		return outcome
	}
	switch {
	case !validName(cmd.GetId()):
		return refuse(raftlogv1.Code_CODE_INVALID, "id")
	case cmd.GetTtlMs() == 0:
		return refuse(raftlogv1.Code_CODE_INVALID, "ttl_ms")
	}
	var session *ident
	if id := cmd.GetSessionId(); id != "" {
		s := t.st.Session(id)
		if s == nil {
			return refuse(raftlogv1.Code_CODE_SESSION_NOT_FOUND, id)
		}
		if outcome, denied := t.deniedSession(id); denied {
			return outcome
		}
		session = &s.at
	}
	if outcome, denied := t.deniedLease(cmd.GetId()); denied {
		return outcome
	}
	if old, ok := t.st.leases.get(cmd.GetId()); ok {
		if old.SessionID() != cmd.GetSessionId() || old.TTLMs != cmd.GetTtlMs() {
			return refuse(raftlogv1.Code_CODE_ALREADY_EXISTS, cmd.GetId())
		}
		return Outcome{ID: old.ID()}
	}
	l := &Lease{
		at:             ident{id: cmd.GetId()},
		session:        session,
		TTLMs:          cmd.GetTtlMs(),
		CreateRevision: t.change(),
		Owner:          t.identity,
	}
	t.st.leases.set(t.mark, l.ID(), l)
	t.st.sessionLeases.add(t.mark, l.session, &l.at)
	t.scratch = l.append(t.scratch[:0])
	t.addSum(tableLeases, t.scratch)
	t.events = append(t.events, Event{Kind: EventLease, Created: true, Revision: l.CreateRevision, Name: l.ID()})
	return Outcome{ID: l.ID()}
}

// revokeLease ends a lease. One that is not there has ended already.
func (t *txn) revokeLease(cmd *raftlogv1.RevokeLease) Outcome {
	if outcome, denied := t.deniedLease(cmd.GetId()); denied {
		return outcome
	}
	if l, ok := t.st.leases.get(cmd.GetId()); ok {
		t.endLease(l, registryv1.Cause_CAUSE_LEASE_REVOKED)
	}
	return Outcome{}
}

// endLease ends a lease and the instances that hang on it, under one revision.
func (t *txn) endLease(l *Lease, cause registryv1.Cause) {
	revision := t.change()
	t.reason.lease = l.ID()
	t.st.leases.delete(t.mark, l.ID())
	t.st.sessionLeases.remove(t.mark, l.session, &l.at)
	t.scratch = l.append(t.scratch[:0])
	t.subSum(tableLeases, t.scratch)
	t.removeAll(t.st.byLease.collect(&l.at), cause)
	t.events = append(t.events, Event{Kind: EventLease, Cause: cause, Revision: revision, Name: l.ID()})
}
