package fsm

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// status is what the registry itself says of an instance: fields 20 to 27 of its encoding, always written in order.
type status struct {
	incarnation    uint64
	createRevision uint64
	modifyRevision uint64
	health         registryv1.Health
	draining       bool
	maintenance    bool
	checks         []checkState
	registeredMs   int64
}

// checkState is the verdict of one check. Name and output may alias the record they were decoded from.
type checkState struct {
	name, output    []byte
	status          registryv1.CheckStatus
	changedRevision uint64
	changedMs       int64
}

// aggregate is [AggregateHealth] of the status.
func (st *status) aggregate() registryv1.Health {
	health := baseHealth(st.draining, st.maintenance)
	for i := range st.checks {
		health = min(health, checkHealth(st.checks[i].status))
	}
	return health
}

func (st *status) check(name string) *checkState {
	for i := range st.checks {
		if string(st.checks[i].name) == name {
			return &st.checks[i]
		}
	}
	return nil
}

// append encodes the status: the one place where its bytes are made.
func (st *status) append(b []byte) []byte {
	b = appendUint(b, 20, st.incarnation)
	b = appendUint(b, 21, st.createRevision)
	b = appendUint(b, 22, st.modifyRevision)
	b = appendUint(b, 23, uint64(st.health))
	b = appendBool(b, 24, st.draining)
	b = appendBool(b, 25, st.maintenance)
	for i := range st.checks {
		b = protowire.AppendTag(b, 26, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(st.checks[i].size()))
		b = st.checks[i].append(b)
	}
	return appendUint(b, 27, uint64(st.registeredMs))
}

func (c *checkState) append(b []byte) []byte {
	b = appendBytes(b, 1, c.name)
	b = appendUint(b, 2, uint64(c.status))
	b = appendBytes(b, 3, c.output)
	b = appendUint(b, 4, c.changedRevision)
	return appendUint(b, 5, uint64(c.changedMs))
}

func (c *checkState) size() int {
	n := 0
	for _, part := range [...][]byte{c.name, c.output} {
		if len(part) > 0 {
			n += 1 + protowire.SizeBytes(len(part))
		}
	}
	for _, v := range [...]uint64{uint64(c.status), c.changedRevision, uint64(c.changedMs)} {
		if v != 0 {
			n += 1 + protowire.SizeVarint(v)
		}
	}
	return n
}

// decode reads an encoded status, reusing the slice of checks, and reports whether it was one. It reads what append
// wrote, so it is only strict enough never to go wrong on a damaged snapshot.
func (st *status) decode(b []byte) bool {
	*st = status{checks: st.checks[:0]}
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch f.number {
		case 20:
			st.incarnation = f.varint
		case 21:
			st.createRevision = f.varint
		case 22:
			st.modifyRevision = f.varint
		case 23:
			st.health = registryv1.Health(int32(uint32(f.varint)))
		case 24:
			st.draining = f.varint != 0
		case 25:
			st.maintenance = f.varint != 0
		case 26:
			check, ok := decodeCheckState(f.bytes)
			if !ok {
				return false
			}
			st.checks = append(st.checks, check)
		case 27:
			st.registeredMs = int64(f.varint)
		default:
			return false
		}
	}
	return true
}

func decodeCheckState(b []byte) (c checkState, ok bool) {
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			return checkState{}, false
		}
		b = b[n:]
		switch f.number {
		case 1:
			c.name = f.bytes
		case 2:
			c.status = registryv1.CheckStatus(int32(uint32(f.varint)))
		case 3:
			c.output = f.bytes
		case 4:
			c.changedRevision = f.varint
		case 5:
			c.changedMs = int64(f.varint)
		default:
			return checkState{}, false
		}
	}
	return c, utf8.Valid(c.output)
}

// restartCritical starts the clock of critical checks anew, so that time in maintenance does not count towards removal.
func (st *status) restartCritical(now int64) {
	for i := range st.checks {
		if st.checks[i].status == registryv1.CheckStatus_CHECK_STATUS_CRITICAL {
			st.checks[i].changedMs = now
		}
	}
}

// cut shortens text to at most limit bytes without cutting through a character.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}
