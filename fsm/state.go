package fsm

import (
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// State is the registry as of one log entry. It never changes: [State.Apply] returns the next one and shares with it
// what stayed the same. All methods may be called from any goroutine at any time.
type State struct {
	index, term     uint64
	revision, epoch uint64
	number          uint64 // last incarnation or token given
	time            int64  // largest time of an entry, unix ms
	leaps           int64  // how much of the time was leapt over, ms
	clusterID       string
	chain           sum

	sums      [tableCount]sum
	instances int

	services table[*Service]           // by pairKey
	sessions table[*Session]           // by id
	leases   table[*Lease]             // by id
	locks    table[*Lock]              // by pairKey
	members  table[*registryv1.Member] // by id
	access   *access                   // nil: nothing was ever said about it

	namespaces table[*Namespace] // by name: those about which something was said
	history    history
	keyspace   *keyspace // nil: before the first command of KVLevel

	clients table[*client]  // by id
	idle    table[struct{}] // by last use, then client id: who is forgotten first

	bySession     links // session -> instances
	byLease       links // lease -> instances
	sessionLeases links // session -> leases
	sessionLocks  links // session -> locks that it holds or waits for
}

// New returns the state before the first entry: empty, in epoch 1.
func New() *State { return &State{epoch: 1} }

// Index returns the Raft index of the last entry applied.
func (s *State) Index() uint64 { return s.index }

// Term returns the Raft term of the last entry applied.
func (s *State) Term() uint64 { return s.term }

// Revision returns the number of effective changes. It never falls, and grows by one with each.
func (s *State) Revision() uint64 { return s.revision }

// Epoch grows with each restore by an operator. Revisions compare only within one epoch.
func (s *State) Epoch() uint64 { return s.epoch }

// ClusterID returns the UUID of the cluster, empty before it was named.
func (s *State) ClusterID() string { return s.clusterID }

// Time returns the largest time of an entry so far, in milliseconds since the Unix epoch.
func (s *State) Time() int64 { return s.time }

// idleTime is the log time without its leaps: what silence is measured by.
func (s *State) idleTime() int64 { return s.time - s.leaps }

// advance moves the log time on. The first entry's way from the epoch is no leap.
func (s *State) advance(timeMs int64) {
	if timeMs <= s.time {
		return
	}
	if s.time > 0 {
		s.leaps += max(0, timeMs-s.time-MaxStepMs)
	}
	s.time = timeMs
}

// Counts are the sizes of the tables.
type Counts struct {
	// Instances, Services, Sessions and Leases that exist.
	Instances, Services, Sessions, Leases int
	// Locks that are held.
	Locks int
	// Clients whose outcomes are remembered.
	Clients int
	// Members that are recorded.
	Members int
}

// Counts returns the sizes of the tables.
func (s *State) Counts() Counts {
	return Counts{
		Instances: s.instances,
		Services:  s.services.len(),
		Sessions:  s.sessions.len(),
		Leases:    s.leases.len(),
		Locks:     s.locks.len(),
		Clients:   s.clients.len(),
		Members:   s.members.len(),
	}
}
