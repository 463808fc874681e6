package fsm

import (
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// EventKind says what an event is about.
type EventKind uint8

// The kinds of events.
const (
	// EventInstance is a change of an instance: New is nil when it is gone, Old is nil when it is new. Namespace and
	// Name are those of its service.
	EventInstance EventKind = iota + 1
	// EventSession is a session that was opened or has ended; Name is its id.
	EventSession
	// EventLease is a lease that was granted or has ended; Name is its id.
	EventLease
	// EventLock is a change of owner or queue of the lock Namespace, Name.
	EventLock
	// EventMember is a member that was set or removed; Name is its id.
	EventMember
	// EventAccess is a change of who may do what: a policy or a grant that was put, a token that was created, or
	// enforcement that was switched on; or the end of it. Name is "policy:NAME", "token:ID", "grant:IDENTITY" or
	// "enforcement".
	EventAccess
	// EventNamespace is what was said about a namespace, or that it was taken back; Name is its name.
	EventNamespace
	// EventKey is a change of the key Namespace, Name, of its value or its owner.
	EventKey
)

// String returns the name of the kind.
func (k EventKind) String() string {
	switch k {
	case EventInstance:
		return "instance"
	case EventSession:
		return "session"
	case EventLease:
		return "lease"
	case EventLock:
		return "lock"
	case EventMember:
		return "member"
	case EventAccess:
		return "access"
	case EventNamespace:
		return "namespace"
	case EventKey:
		return "key"
	default:
		return "unknown"
	}
}

// Event is one change. Events of one act (a cascade, a batch) share a revision.
type Event struct {
	// Kind says which of the other fields are set.
	Kind EventKind
	// Created says that a session was opened, a lease granted, a lock, member or key came to be; false when it ended. A lock,
	// member or key that changed and stays says true.
	Created bool
	// Cause says why. Set for instances, sessions and leases.
	Cause registryv1.Cause
	// Revision is that of the act.
	Revision uint64
	// New and Old are the instance after and before.
	New, Old *Record
	// Namespace and Name say what the event is about.
	Namespace, Name string
}
