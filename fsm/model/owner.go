package model

import (
	"slices"
	"strconv"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

func (m *Registry) openSession(c *raftlogv1.OpenSession) (bool, *raftlogv1.Outcome) {
	switch {
	case !name(c.GetId()):
		return false, fail(raftlogv1.Code_CODE_INVALID, "id")
	case len(c.GetClientName()) > maxName:
		return false, fail(raftlogv1.Code_CODE_INVALID, "client_name")
	case c.GetTtlMs() == 0:
		return false, fail(raftlogv1.Code_CODE_INVALID, "ttl_ms")
	}
	if old := m.Sessions[c.GetId()]; old != nil {
		if old.GetClientName() == c.GetClientName() && old.GetTtlMs() == c.GetTtlMs() {
			return false, &raftlogv1.Outcome{Id: c.GetId()}
		}
		return false, fail(raftlogv1.Code_CODE_ALREADY_EXISTS, c.GetId())
	}
	m.Sessions[c.GetId()] = &raftlogv1.SessionRecord{
		Id: c.GetId(), ClientName: c.GetClientName(), TtlMs: c.GetTtlMs(),
		CreateRevision: m.Revision, OpenedUnixMs: m.Time,
	}
	return true, &raftlogv1.Outcome{Id: c.GetId()}
}

func (m *Registry) grantLease(c *raftlogv1.GrantLease) (bool, *raftlogv1.Outcome) {
	switch {
	case !name(c.GetId()):
		return false, fail(raftlogv1.Code_CODE_INVALID, "id")
	case c.GetTtlMs() == 0:
		return false, fail(raftlogv1.Code_CODE_INVALID, "ttl_ms")
	case c.GetSessionId() != "" && m.Sessions[c.GetSessionId()] == nil:
		return false, fail(raftlogv1.Code_CODE_SESSION_NOT_FOUND, c.GetSessionId())
	}
	if old := m.Leases[c.GetId()]; old != nil {
		if old.GetSessionId() == c.GetSessionId() && old.GetTtlMs() == c.GetTtlMs() {
			return false, &raftlogv1.Outcome{Id: c.GetId()}
		}
		return false, fail(raftlogv1.Code_CODE_ALREADY_EXISTS, c.GetId())
	}
	m.Leases[c.GetId()] = &raftlogv1.LeaseRecord{
		Id: c.GetId(), TtlMs: c.GetTtlMs(), SessionId: c.GetSessionId(), CreateRevision: m.Revision,
	}
	return true, &raftlogv1.Outcome{Id: c.GetId()}
}

func (m *Registry) acquire(c *raftlogv1.AcquireLock) (bool, *raftlogv1.Outcome) {
	switch {
	case !name(c.GetNamespace()):
		return false, fail(raftlogv1.Code_CODE_INVALID, "namespace")
	case !name(c.GetName()):
		return false, fail(raftlogv1.Code_CODE_INVALID, "name")
	case len(c.GetValue()) > maxLockValue:
		return false, fail(raftlogv1.Code_CODE_INVALID, "value")
	case m.Sessions[c.GetSessionId()] == nil:
		return false, fail(raftlogv1.Code_CODE_SESSION_NOT_FOUND, c.GetSessionId())
	}
	n := Name{c.GetNamespace(), c.GetName()}
	lock := m.Locks[n]
	if lock == nil {
		m.Number++
		m.Locks[n] = &raftlogv1.LockRecord{
			Namespace: n.Namespace, Name: n.Name, SessionId: c.GetSessionId(), Token: m.Number,
			Value: c.GetValue(), AcquireRevision: m.Revision,
		}
		return true, &raftlogv1.Outcome{Number: m.Number}
	}
	if lock.GetSessionId() == c.GetSessionId() {
		return false, &raftlogv1.Outcome{Number: lock.GetToken()}
	}
	if !c.GetWait() {
		return false, fail(raftlogv1.Code_CODE_LOCK_HELD, lock.GetSessionId())
	}
	for _, w := range lock.GetWaiters() {
		if w.GetSessionId() == c.GetSessionId() {
			return false, done()
		}
	}
	if len(lock.GetWaiters()) == maxWaiters {
		return false, fail(raftlogv1.Code_CODE_LIMIT, "lock waiters")
	}
	lock.Waiters = append(lock.Waiters, &raftlogv1.LockWaiter{SessionId: c.GetSessionId(), Value: c.GetValue()})
	return true, done()
}

func (m *Registry) release(c *raftlogv1.ReleaseLock) (bool, *raftlogv1.Outcome) {
	n := Name{c.GetNamespace(), c.GetName()}
	lock := m.Locks[n]
	if lock == nil {
		return false, fail(raftlogv1.Code_CODE_LOCK_NOT_HELD, "")
	}
	owner := lock.GetSessionId() == c.GetSessionId()
	if owner && c.GetWaitingOnly() {
		return false, &raftlogv1.Outcome{Number: lock.GetToken()}
	}
	if owner && c.GetToken() != 0 && c.GetToken() != lock.GetToken() {
		return false, fail(raftlogv1.Code_CODE_STALE, strconv.FormatUint(lock.GetToken(), 10))
	}
	if !owner && c.GetToken() != 0 || !m.leave(n, c.GetSessionId()) {
		return false, fail(raftlogv1.Code_CODE_LOCK_NOT_HELD, lock.GetSessionId())
	}
	return true, done()
}

// leave takes a session out of a lock and reports whether it was in it.
func (m *Registry) leave(n Name, session string) bool {
	lock := m.Locks[n]
	if lock.GetSessionId() != session {
		before := len(lock.GetWaiters())
		lock.Waiters = slices.DeleteFunc(lock.GetWaiters(), func(w *raftlogv1.LockWaiter) bool {
			return w.GetSessionId() == session
		})
		return len(lock.GetWaiters()) < before
	}
	if len(lock.GetWaiters()) == 0 {
		delete(m.Locks, n)
		return true
	}
	heir := lock.GetWaiters()[0]
	lock.Waiters = lock.GetWaiters()[1:]
	m.Number++
	lock.SessionId, lock.Value, lock.Token = heir.GetSessionId(), heir.GetValue(), m.Number
	lock.AcquireRevision = m.Revision
	return true
}
