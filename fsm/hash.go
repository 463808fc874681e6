package fsm

import (
	"encoding/binary"
	"math/bits"

	"github.com/zeebo/xxh3"
)

// Table names a table of the state, in the order of a snapshot. The numbers are part of the hash and the snapshot
// format: they are only ever added to.
type tableID uint8

const (
	tableSessions tableID = iota
	tableLeases
	tableServices
	tableInstances
	tableLocks
	tableClients
	tableMembers
	// From here on tables of access control. They are left out of hash and snapshot while they are all empty, so that a
	// state without access control is the same to a version that does not know it.
	tablePolicies
	tableTokens
	tableGrants
	tableAccess
	// From here on tables of HistoryLevel. They are left out until the history begins, for the same reason.
	tableNamespaces
	tableHistory
	tableTransitions
	// From here on tables of KVLevel. They are left out until the first command of it, for the same reason.
	tableKeys
	tableKVNamespaces
	tableLockDelays
	tableKV
	tableCount
)

// Domains that separate hashes of equal bytes in different roles.
const (
	seedTable      = 0x7265676474616200 // + table
	seedOutcome    = 0x7265676472656d00
	seedPlace      = 0x72656764706c6300
	seedTransition = 0x72656764686973_00
	seedValue      = 0x7265676476616c00
	seedState      = 0x7265676473746100
	seedContent    = 0x7265676463746e00
	seedChain      = 0x7265676463686e00
)

// sum is a sum modulo 2^128 of hashes of records: the hash of a table in which the order of changes leaves no trace,
// and from which a record can be taken out. A sum and not an exclusive or: that would not see a record that is in twice.
type sum struct{ hi, lo uint64 }

func (s *sum) add(h sum) {
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, h.lo, 0)
	s.hi, _ = bits.Add64(s.hi, h.hi, carry)
}

func (s *sum) sub(h sum) {
	var borrow uint64
	s.lo, borrow = bits.Sub64(s.lo, h.lo, 0)
	s.hi, _ = bits.Sub64(s.hi, h.hi, borrow)
}

func (s sum) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, s.hi)
	return binary.BigEndian.AppendUint64(b, s.lo)
}

func (s sum) bytes() [16]byte {
	var b [16]byte
	s.append(b[:0])
	return b
}

func hashBytes(b []byte, seed uint64) sum {
	h := xxh3.Hash128Seed(b, seed)
	return sum{h.Hi, h.Lo}
}

// hashRecord hashes an encoded record, which begins with or holds its own key, in the domain of its table.
func hashRecord(id tableID, encoded []byte) sum {
	return hashBytes(encoded, seedTable+uint64(id))
}

// tablesInUse returns how many tables hash and snapshot have. Whatever changes one of those of access control leaves a
// record in the last, and history and keys begin before anything of their levels, so they are all in use or none; those of a
// level are, though empty, if those behind them are.
func (s *State) tablesInUse() int {
	switch {
	case s.keyspace != nil:
		return int(tableCount)
	case s.history.begun:
		return int(tableKeys)
	case s.access != nil:
		return int(tableNamespaces)
	default:
		return int(tablePolicies)
	}
}

// Hash is the hash of the whole state but for the index that it stands at and the chain that led to it: all tables,
// revision, epoch, numbers, time, leaps and cluster id. States that are equal have equal hashes; it finds divergence and
// damage, not forgery.
func (s *State) Hash() [16]byte {
	b := make([]byte, 0, 400)
	for i := range s.tablesInUse() {
		b = s.sums[i].append(b)
	}
	for _, v := range [...]uint64{s.revision, s.epoch, s.number, uint64(s.time)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(b, s.clusterID...)
	if s.leaps > 0 { // States without leaps keep the hashes that they had before there was this field.
		b = binary.BigEndian.AppendUint64(b, uint64(s.leaps))
	}
	return hashBytes(b, seedState).bytes()
}

// ContentHash is the hash of instances, sessions, leases, locks and keys alone. It is the same before a snapshot was saved and
// after it was restored, into whichever cluster.
func (s *State) ContentHash() [16]byte {
	b := make([]byte, 0, 80)
	for _, id := range [...]tableID{tableInstances, tableSessions, tableLeases, tableLocks} {
		b = s.sums[id].append(b)
	}
	if s.store().keys.len() > 0 { // Without keys it is what it was before there were any.
		b = s.sums[tableKeys].append(b)
	}
	return hashBytes(b, seedContent).bytes()
}

// Chain is a hash over all entries applied so far and what they led to. Unlike [State.Hash] it sees a different order
// that ended in an equal state.
func (s *State) Chain() [16]byte { return s.chain.bytes() }

// extend returns the chain after an entry. The scratch buffer is for reuse.
func (s sum) extend(scratch []byte, index, term uint64, outcomes []Outcome) (sum, []byte) {
	b := s.append(scratch[:0])
	b = binary.BigEndian.AppendUint64(b, index)
	b = binary.BigEndian.AppendUint64(b, term)
	for i := range outcomes {
		at := len(b)
		b = append(b, 0, 0, 0, 0)
		b = outcomes[i].append(b)
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	return hashBytes(b, seedChain), b
}
