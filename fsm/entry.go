package fsm

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// entryVersion is the format of an entry that this state machine reads and writes.
const entryVersion = 1

// Entry is one entry of the Raft log.
type Entry struct {
	// Index and Term are Raft's. Index is larger, and Term not smaller, than those of the entry before.
	Index, Term uint64
	// Data is an encoded raftlogv1.Entry. Apply does not keep it.
	Data []byte
}

// Result is what an entry led to.
type Result struct {
	// Outcomes has one outcome for each command, in order.
	Outcomes []Outcome
	// Events are the changes, in order of revision.
	Events []Event
}

// AppendEntry appends an encoded raftlogv1.Entry to dst and returns it. The commands are encoded raftlogv1.Commands,
// which are framed as they are. The time is that of the proposer, in milliseconds since the Unix epoch.
func AppendEntry(dst []byte, timeUnixMs int64, commands [][]byte) []byte {
	dst = appendUint(dst, 1, entryVersion)
	dst = appendUint(dst, 2, uint64(timeUnixMs))
	for _, c := range commands {
		dst = protowire.AppendTag(dst, 3, protowire.BytesType)
		dst = protowire.AppendBytes(dst, c)
	}
	return dst
}

// decodeEntry calls visit for each encoded command of an entry, after it has read all of its frame.
func decodeEntry(b []byte) (timeMs int64, commands int, err error) {
	var version uint64
	for rest := b; len(rest) > 0; {
		var f field
		n := f.consume(rest)
		if n < 0 {
			return 0, 0, fmt.Errorf("%w: malformed at byte %d", ErrBadEntry, len(b)-len(rest))
		}
		rest = rest[n:]
		switch {
		case f.number == 1:
			version = f.varint
		case f.number == 2:
			timeMs = int64(f.varint)
		case f.number == 3 && f.kind == protowire.BytesType:
			commands++
		default:
			return 0, 0, fmt.Errorf("%w: entry field %d", ErrUnknownCommand, f.number)
		}
	}
	switch {
	case version == 0:
		return 0, 0, fmt.Errorf("%w: no version", ErrBadEntry)
	case version != entryVersion:
		return 0, 0, fmt.Errorf("%w: entry version %d", ErrUnknownCommand, version)
	}
	return timeMs, commands, nil
}

// nextCommand returns the first encoded command of a decoded entry's bytes and what follows it.
func nextCommand(b []byte) (command, rest []byte) {
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if f.number == 3 {
			return f.bytes, b
		}
	}
	return nil, nil
}

// The kinds of commands, by their field numbers in raftlogv1.Command.
const (
	kindRegister        = 10
	kindDeregister      = 11
	kindSetCheck        = 12
	kindSetDraining     = 13
	kindSetMaintenance  = 14
	kindOpenSession     = 15
	kindCloseSession    = 16
	kindGrantLease      = 17
	kindRevokeLease     = 18
	kindExpire          = 19
	kindAcquireLock     = 20
	kindReleaseLock     = 21
	kindSetMember       = 22
	kindRemoveMember    = 23
	kindInitCluster     = 24
	kindBatch           = 25
	kindPutPolicy       = 26
	kindDeletePolicy    = 27
	kindCreateToken     = 28
	kindDeleteToken     = 29
	kindPutGrant        = 30
	kindDeleteGrant     = 31
	kindSetEnforcement  = 32
	kindBootstrap       = 33
	kindPutNamespace    = 34
	kindDeleteNamespace = 35
	kindKVTransaction   = 36
)

// command is the envelope of a raftlogv1.Command. Its slices alias the entry.
type command struct {
	level   uint64
	maySkip bool
	request *request
	actor   []byte
	kind    protowire.Number // 0: none
	body    []byte
}

// request is a raftlogv1.RequestID.
type request struct {
	clientID      []byte
	sequence      uint64
	answeredBelow uint64
	bodyHash      uint64
}

// decode reads an encoded command and reports whether it is well-formed. Fields that it does not know are taken for a
// kind of a later version. The request, if there is one, is put into req.
func (c *command) decode(b []byte, req *request) bool {
	*c = command{}
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch {
		case f.number >= kindRegister && f.kind == protowire.BytesType:
			c.kind, c.body = f.number, f.bytes
		case f.number == 1 && f.kind == protowire.VarintType:
			c.level = f.varint
		case f.number == 2 && f.kind == protowire.VarintType:
			c.maySkip = f.varint != 0
		case f.number == 3 && f.kind == protowire.BytesType:
			if !req.decode(f.bytes) {
				return false
			}
			c.request = req
		case f.number == 4 && f.kind == protowire.BytesType && validCredential(string(f.bytes)):
			c.actor = f.bytes
		default:
			return false
		}
	}
	return c.kind != 0
}

// known reports whether this version can apply the command.
func (c *command) known() bool {
	return c.level <= FeatureLevel && c.kind <= kindKVTransaction
}

// levelled reports whether a known command says the level that it needs: what does not is the same to all versions, which
// know nothing of actors.
func (c *command) levelled() bool {
	switch {
	case c.kind > kindDeleteNamespace:
		return c.level >= KVLevel
	case c.kind > kindBootstrap:
		return c.level >= HistoryLevel
	case c.kind > kindBatch || len(c.actor) > 0:
		return c.level >= AccessLevel
	default:
		return true
	}
}

func (r *request) decode(b []byte) bool {
	*r = request{}
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch f.number {
		case 1:
			r.clientID = f.bytes
		case 2:
			r.sequence = f.varint
		case 3:
			r.answeredBelow = f.varint
		case 4:
			r.bodyHash = f.varint
		}
	}
	return validText(r.clientID, MaxClientIDBytes) && len(r.clientID) > 0 && r.sequence > 0
}

// registration is a raftlogv1.Register.
type registration struct {
	instance         []byte
	ifAbsent         bool
	expectedRevision uint64
	openSession      *raftlogv1.OpenSession // nil: none
}

func (r *registration) decode(b []byte) bool {
	*r = registration{}
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch f.number {
		case 1:
			r.instance = f.bytes
		case 2:
			r.ifAbsent = f.varint != 0
		case 3:
			r.expectedRevision = f.varint
		case 4:
			r.openSession = new(raftlogv1.OpenSession)
			if proto.Unmarshal(f.bytes, r.openSession) != nil {
				return false
			}
		}
	}
	return true
}
