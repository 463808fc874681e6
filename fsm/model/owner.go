package model

import (
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func (m *Registry) openSession(c *raftlogv1.OpenSession) (bool, *raftlogv1.Outcome) {
	if refused := m.deniedOwning(); refused != nil {
		return false, refused
	}
	return m.openAllowed(c)
}

// openAllowed opens a session for whom may have one.
func (m *Registry) openAllowed(c *raftlogv1.OpenSession) (bool, *raftlogv1.Outcome) {
	switch {
	case !name(c.GetId()):
		return false, fail(raftlogv1.Code_CODE_INVALID, "id")
	case len(c.GetClientName()) > maxName:
		return false, fail(raftlogv1.Code_CODE_INVALID, "client_name")
	case c.GetTtlMs() == 0:
		return false, fail(raftlogv1.Code_CODE_INVALID, "ttl_ms")
	}
	next := &raftlogv1.SessionRecord{
		Id: c.GetId(), ClientName: c.GetClientName(), TtlMs: c.GetTtlMs(),
		CreateRevision: m.Revision, OpenedUnixMs: m.Time, Owner: m.actor.identity,
		Behavior: registryv1.SessionBehavior_SESSION_BEHAVIOR_RELEASE,
	}
	if m.level >= 4 {
		if wrong := wrongTerms(c); wrong != "" {
			return false, fail(raftlogv1.Code_CODE_INVALID, wrong)
		}
		next.Node, next.LockDelayMs = c.GetNode(), c.GetLockDelayMs()
		if c.GetBehavior() != registryv1.SessionBehavior_SESSION_BEHAVIOR_UNSPECIFIED {
			next.Behavior = c.GetBehavior()
		}
	}
	if refused := m.deniedSession(c.GetId()); refused != nil {
		return false, refused
	}
	if old := m.Sessions[c.GetId()]; old != nil {
		same := proto.CloneOf(old)
		same.CreateRevision, same.OpenedUnixMs, same.Owner = next.GetCreateRevision(), next.GetOpenedUnixMs(), next.GetOwner()
		if proto.Equal(same, next) {
			return false, &raftlogv1.Outcome{Id: c.GetId()}
		}
		return false, fail(raftlogv1.Code_CODE_ALREADY_EXISTS, c.GetId())
	}
	m.Sessions[c.GetId()] = next
	return true, &raftlogv1.Outcome{Id: c.GetId()}
}

func (m *Registry) grantLease(c *raftlogv1.GrantLease) (bool, *raftlogv1.Outcome) {
	if refused := m.deniedOwning(); refused != nil {
		return false, refused
	}
	switch {
	case !name(c.GetId()):
		return false, fail(raftlogv1.Code_CODE_INVALID, "id")
	case c.GetTtlMs() == 0:
		return false, fail(raftlogv1.Code_CODE_INVALID, "ttl_ms")
	case c.GetSessionId() != "" && m.Sessions[c.GetSessionId()] == nil:
		return false, fail(raftlogv1.Code_CODE_SESSION_NOT_FOUND, c.GetSessionId())
	}
	if refused := m.deniedSession(c.GetSessionId()); refused != nil {
		return false, refused
	}
	if refused := m.deniedLease(c.GetId()); refused != nil {
		return false, refused
	}
	if old := m.Leases[c.GetId()]; old != nil {
		if old.GetSessionId() == c.GetSessionId() && old.GetTtlMs() == c.GetTtlMs() {
			return false, &raftlogv1.Outcome{Id: c.GetId()}
		}
		return false, fail(raftlogv1.Code_CODE_ALREADY_EXISTS, c.GetId())
	}
	m.Leases[c.GetId()] = &raftlogv1.LeaseRecord{
		Id: c.GetId(), TtlMs: c.GetTtlMs(), SessionId: c.GetSessionId(), CreateRevision: m.Revision,
		Owner: m.actor.identity,
	}
	return true, &raftlogv1.Outcome{Id: c.GetId()}
}

func (m *Registry) acquire(c *raftlogv1.AcquireLock) (bool, *raftlogv1.Outcome) {
	if refused := m.wrongAcquire(c); refused != nil {
		return false, refused
	}
	n := Name{c.GetNamespace(), c.GetName()}
	slots := c.GetSlots()
	if slots == 1 {
		slots = 0
	}
	lock := m.Locks[n]
	full := m.noRoom(n.Namespace, quotaLocks)
	if lock == nil {
		if full != nil {
			return false, full
		}
		m.Number++
		m.Locks[n] = &raftlogv1.LockRecord{
			Namespace: n.Namespace, Name: n.Name, SessionId: c.GetSessionId(), Token: m.Number,
			Value: c.GetValue(), AcquireRevision: m.Revision, Slots: slots,
		}
		return true, &raftlogv1.Outcome{Number: m.Number}
	}
	if lock.GetSlots() != slots {
		return false, fail(raftlogv1.Code_CODE_SLOTS_MISMATCH, strconv.Itoa(max(int(lock.GetSlots()), 1)))
	}
	if token := tokenOf(lock, c.GetSessionId()); token > 0 {
		return false, &raftlogv1.Outcome{Number: token}
	}
	if len(owners(lock)) < int(slots) {
		if full != nil {
			return false, full
		}
		m.admit(lock, &raftlogv1.LockWaiter{SessionId: c.GetSessionId(), Value: c.GetValue()})
		return true, &raftlogv1.Outcome{Number: m.Number}
	}
	if !c.GetWait() {
		return false, fail(raftlogv1.Code_CODE_LOCK_HELD, lock.GetSessionId())
	}
	if waits(lock, c.GetSessionId()) {
		return false, done()
	}
	if len(lock.GetWaiters()) == maxWaiters {
		return false, fail(raftlogv1.Code_CODE_LIMIT, "lock waiters")
	}
	if full != nil {
		return false, full
	}
	lock.Waiters = append(lock.Waiters, &raftlogv1.LockWaiter{SessionId: c.GetSessionId(), Value: c.GetValue()})
	return true, done()
}

// wrongAcquire refuses an order for a lock whatever becomes of the lock.
func (m *Registry) wrongAcquire(c *raftlogv1.AcquireLock) *raftlogv1.Outcome {
	if refused := m.denied(useLock, c.GetNamespace(), c.GetName()); refused != nil {
		return refused
	}
	switch {
	case !name(c.GetNamespace()):
		return fail(raftlogv1.Code_CODE_INVALID, "namespace")
	case !name(c.GetName()):
		return fail(raftlogv1.Code_CODE_INVALID, "name")
	case len(c.GetValue()) > maxLockValue:
		return fail(raftlogv1.Code_CODE_INVALID, "value")
	case c.GetSlots() > maxSlots:
		return fail(raftlogv1.Code_CODE_INVALID, "slots")
	}
	return m.noSession(c.GetSessionId())
}

// noSession refuses what needs a session that is not there, or is another's.
func (m *Registry) noSession(id string) *raftlogv1.Outcome {
	if m.Sessions[id] == nil {
		return fail(raftlogv1.Code_CODE_SESSION_NOT_FOUND, id)
	}
	return m.deniedSession(id)
}

func (m *Registry) release(c *raftlogv1.ReleaseLock) (bool, *raftlogv1.Outcome) {
	if refused := m.denied(useLock, c.GetNamespace(), c.GetName()); refused != nil {
		return false, refused
	}
	if refused := m.deniedSession(c.GetSessionId()); refused != nil {
		return false, refused
	}
	n := Name{c.GetNamespace(), c.GetName()}
	lock := m.Locks[n]
	if lock == nil {
		return false, fail(raftlogv1.Code_CODE_LOCK_NOT_HELD, "")
	}
	token := tokenOf(lock, c.GetSessionId())
	if token > 0 && c.GetWaitingOnly() {
		return false, &raftlogv1.Outcome{Number: token}
	}
	if token > 0 && c.GetToken() != 0 && c.GetToken() != token {
		return false, fail(raftlogv1.Code_CODE_STALE, strconv.FormatUint(token, 10))
	}
	if token == 0 && c.GetToken() != 0 || !m.leave(n, c.GetSessionId()) {
		return false, fail(raftlogv1.Code_CODE_LOCK_NOT_HELD, lock.GetSessionId())
	}
	return true, done()
}

// owners returns all owners of a lock, the oldest first.
func owners(lock *raftlogv1.LockRecord) []*raftlogv1.LockOwner {
	first := &raftlogv1.LockOwner{
		SessionId: lock.GetSessionId(), Token: lock.GetToken(), Value: lock.GetValue(), AcquireRevision: lock.GetAcquireRevision(),
	}
	return append([]*raftlogv1.LockOwner{first}, lock.GetOthers()...)
}

// tokenOf returns the token with which a session owns a lock, 0 if it does not.
func tokenOf(lock *raftlogv1.LockRecord, session string) uint64 {
	for _, o := range owners(lock) {
		if o.GetSessionId() == session {
			return o.GetToken()
		}
	}
	return 0
}

// waits tells whether a session is in the queue of a lock.
func waits(lock *raftlogv1.LockRecord, session string) bool {
	return slices.ContainsFunc(lock.GetWaiters(), func(w *raftlogv1.LockWaiter) bool { return w.GetSessionId() == session })
}

// setOwners is the opposite of owners.
func setOwners(lock *raftlogv1.LockRecord, all []*raftlogv1.LockOwner) {
	first := all[0]
	lock.SessionId, lock.Token, lock.Value = first.GetSessionId(), first.GetToken(), first.GetValue()
	lock.AcquireRevision, lock.Others = first.GetAcquireRevision(), all[1:]
}

// admit gives a free slot of a lock to somebody.
func (m *Registry) admit(lock *raftlogv1.LockRecord, w *raftlogv1.LockWaiter) {
	m.Number++
	setOwners(lock, append(owners(lock), &raftlogv1.LockOwner{
		SessionId: w.GetSessionId(), Token: m.Number, Value: w.GetValue(), AcquireRevision: m.Revision,
	}))
}

// leave takes a session out of a lock and reports whether it was in it.
func (m *Registry) leave(n Name, session string) bool {
	lock := m.Locks[n]
	all := owners(lock)
	left := slices.DeleteFunc(owners(lock), func(o *raftlogv1.LockOwner) bool { return o.GetSessionId() == session })
	if len(left) == len(all) {
		before := len(lock.GetWaiters())
		lock.Waiters = slices.DeleteFunc(lock.GetWaiters(), func(w *raftlogv1.LockWaiter) bool {
			return w.GetSessionId() == session
		})
		return len(lock.GetWaiters()) < before
	}
	if len(lock.GetWaiters()) > 0 {
		heir := lock.GetWaiters()[0]
		lock.Waiters = lock.GetWaiters()[1:]
		m.Number++
		left = append(left, &raftlogv1.LockOwner{
			SessionId: heir.GetSessionId(), Token: m.Number, Value: heir.GetValue(), AcquireRevision: m.Revision,
		})
	}
	if len(left) == 0 {
		delete(m.Locks, n)
		return true
	}
	setOwners(lock, left)
	return true
}
