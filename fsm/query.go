package fsm

import (
	"cmp"
	"slices"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Instance returns an instance, nil if there is none.
func (s *State) Instance(namespace, service, id string) *Record {
	svc := s.Service(namespace, service)
	if svc == nil {
		return nil
	}
	return svc.Instance(id)
}

// record returns the record of an identity that an index holds.
func (s *State) record(at *ident) *Record {
	svc, _ := s.services.get(at.in.key)
	if svc == nil {
		return nil
	}
	return svc.Instance(at.id)
}

// Service returns a service, nil if it has no instances.
func (s *State) Service(namespace, name string) *Service {
	svc, _ := s.services.get(pairKey(namespace, name))
	return svc
}

// Services calls fn for the services after the given pair, sorted by namespace and name, until fn returns false. An
// empty name stands before all services of its namespace.
func (s *State) Services(afterNamespace, afterName string, fn func(*Service) bool) {
	s.services.after(pairKey(afterNamespace, afterName), fn)
}

// Session returns a session, nil if it is unknown or has ended.
func (s *State) Session(id string) *Session {
	session, _ := s.sessions.get(id)
	return session
}

// Sessions calls fn for the sessions with ids after the given one, in order of id, until fn returns false.
func (s *State) Sessions(after string, fn func(*Session) bool) {
	s.sessions.after(after, fn)
}

// SessionInstances calls fn for the instances of a session, sorted by namespace, service and id, until fn returns false.
func (s *State) SessionInstances(id string, fn func(*Record) bool) {
	s.bySession.of(&ident{id: id}, func(at *ident) bool { return fn(s.record(at)) })
}

// SessionLeases calls fn for the leases that hang on a session, in order of id, until fn returns false.
func (s *State) SessionLeases(id string, fn func(*Lease) bool) {
	s.sessionLeases.of(&ident{id: id}, func(at *ident) bool { return fn(s.Lease(at.id)) })
}

// SessionLocks calls fn for the locks that a session holds or waits for, sorted by namespace and name, until fn returns
// false.
func (s *State) SessionLocks(id string, fn func(*Lock) bool) {
	s.sessionLocks.of(&ident{id: id}, func(at *ident) bool { return fn(s.lock(at)) })
}

// Lease returns a lease, nil if it is unknown or has ended.
func (s *State) Lease(id string) *Lease {
	lease, _ := s.leases.get(id)
	return lease
}

// Leases calls fn for the leases with ids after the given one, in order of id, until fn returns false.
func (s *State) Leases(after string, fn func(*Lease) bool) {
	s.leases.after(after, fn)
}

// LeaseInstances calls fn for the instances of a lease, sorted by namespace, service and id, until fn returns false.
func (s *State) LeaseInstances(id string, fn func(*Record) bool) {
	s.byLease.of(&ident{id: id}, func(at *ident) bool { return fn(s.record(at)) })
}

// Lock returns a lock, nil if nobody holds it.
func (s *State) Lock(namespace, name string) *Lock {
	lock, _ := s.locks.get(pairKey(namespace, name))
	return lock
}

// lock returns the lock of an identity that an index holds.
func (s *State) lock(at *ident) *Lock {
	lock, _ := s.locks.get(at.in.key)
	return lock
}

// Locks calls fn for the locks after the given pair, sorted by namespace and name, until fn returns false.
func (s *State) Locks(afterNamespace, afterName string, fn func(*Lock) bool) {
	s.locks.after(pairKey(afterNamespace, afterName), fn)
}

// Member returns a member, nil if it is not recorded. It must not be changed.
func (s *State) Member(id string) *registryv1.Member {
	member, _ := s.members.get(id)
	return member
}

// FeatureLevel returns the highest Command.level that all members can apply, voters or not: a command of a higher one must
// not be proposed. While no member is recorded it is 1. Once there is anything about access it does not fall below
// [AccessLevel], once the history has begun not below [HistoryLevel], and once there could be keys not below [KVLevel]: a member
// that does not know of these can follow no more, whatever is proposed.
func (s *State) FeatureLevel() uint32 {
	level := uint32(1)
	if s.members.len() > 0 {
		level = FeatureLevel
	}
	for it := s.members.iter(); it.Next(); {
		level = min(level, max(it.Value().GetFeatureLevel(), 1))
	}
	if s.access != nil {
		level = max(level, AccessLevel)
	}
	if s.history.begun {
		level = max(level, HistoryLevel)
	}
	if s.keyspace != nil {
		level = max(level, KVLevel)
	}
	return level
}

// Members returns the members sorted by name, then id. They must not be changed.
func (s *State) Members() []*registryv1.Member {
	members := make([]*registryv1.Member, 0, s.members.len())
	s.members.ascend("", func(_ string, m *registryv1.Member) bool {
		members = append(members, m)
		return true
	})
	slices.SortStableFunc(members, func(a, b *registryv1.Member) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return members
}
