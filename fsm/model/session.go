package model

import (
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// expire ends sessions and leases that were silent and all that hangs on them, and reports whether there were any.
func (m *Registry) expire(c *raftlogv1.Expire) bool {
	changed := false
	silent := func(all []uint64, i int) *registryv1.Transition {
		why := judgedBy(c.GetNode(), c.GetTerm())
		if len(all) > i {
			why.SilenceMs = all[i]
		}
		return why
	}
	for i, id := range c.GetSessions() {
		m.why = silent(c.GetSessionSilenceMs(), i)
		changed = m.endSession(id, registryv1.Cause_CAUSE_SESSION_EXPIRED, registryv1.Cause_CAUSE_LEASE_EXPIRED) || changed
	}
	for i, id := range c.GetLeases() {
		m.why = silent(c.GetLeaseSilenceMs(), i)
		changed = m.endLease(id, registryv1.Cause_CAUSE_LEASE_EXPIRED) || changed
	}
	return changed
}

// endSession ends a session and all that hangs on it, and reports whether it was there.
func (m *Registry) endSession(id string, cause, leaseCause registryv1.Cause) bool {
	session := m.Sessions[id]
	if session == nil {
		return false
	}
	delete(m.Sessions, id)
	m.why.SessionId = id
	m.dropInstances(cause, func(i *registryv1.Instance) bool { return i.GetSessionId() == id })
	for _, leaseID := range sortedKeys(m.Leases) {
		if m.Leases[leaseID].GetSessionId() == id {
			m.endLease(leaseID, leaseCause)
		}
	}
	names := make([]Name, 0, len(m.Locks))
	for n := range m.Locks {
		names = append(names, n)
	}
	slices.SortFunc(names, compareNames)
	for _, n := range names {
		m.leave(n, id)
	}
	m.leaveKeys(session)
	return true
}

// endLease ends a lease and what hangs on it, and reports whether it was there.
func (m *Registry) endLease(id string, cause registryv1.Cause) bool {
	if m.Leases[id] == nil {
		return false
	}
	delete(m.Leases, id)
	m.why.LeaseId = id
	m.dropInstances(cause, func(i *registryv1.Instance) bool { return i.GetLeaseId() == id })
	return true
}

// Session returns a session with what hangs on it counted, nil if there is none.
func (m *Registry) Session(id string) *registryv1.Session {
	s := m.Sessions[id]
	if s == nil {
		return nil
	}
	out := &registryv1.Session{
		Id: id, ClientName: s.GetClientName(), Ttl: duration(s.GetTtlMs()),
		CreateRevision: s.GetCreateRevision(), OpenedUnixMs: s.GetOpenedUnixMs(), Owner: s.GetOwner(),
		Node: s.GetNode(),
	}
	if s.GetNode() != "" || s.GetLockDelayMs() > 0 || s.GetBehavior() == registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
		out.Behavior = s.GetBehavior()
	}
	if s.GetLockDelayMs() > 0 {
		out.LockDelay = duration(s.GetLockDelayMs())
	}
	for _, k := range m.Keys {
		if k.GetSessionId() == id {
			out.Keys++
		}
	}
	for _, i := range m.Instances {
		if i.Message.GetSessionId() == id {
			out.Instances++
		}
	}
	for _, l := range m.Locks {
		if tokenOf(l, id) > 0 || waits(l, id) {
			out.Locks++
		}
	}
	return out
}

// Lease returns a lease with what hangs on it counted, nil if there is none.
func (m *Registry) Lease(id string) *registryv1.Lease {
	l := m.Leases[id]
	if l == nil {
		return nil
	}
	out := &registryv1.Lease{
		Id: id, Ttl: duration(l.GetTtlMs()), SessionId: l.GetSessionId(), CreateRevision: l.GetCreateRevision(),
		Owner: l.GetOwner(),
	}
	for _, i := range m.Instances {
		if i.Message.GetLeaseId() == id {
			out.Instances++
		}
	}
	return out
}

func duration(ms uint64) *durationpb.Duration {
	return &durationpb.Duration{Seconds: int64(ms / 1000), Nanos: int32(ms % 1000 * 1e6)}
}
