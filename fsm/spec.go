package fsm

import (
	"bytes"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	// fieldMetadata and fieldChecks are fields of an instance.
	fieldMetadata = 7
	fieldChecks   = 11
	// firstStatusField is the first field of an instance that the registry sets. Smaller ones are the specification.
	firstStatusField = 20
)

// spec is what the rules and filters need of an encoded specification. Its slices alias the bytes it was decoded from.
type spec struct {
	namespace, service, id []byte
	session, lease         []byte
	zone, region           []byte
	weight                 uint32
	tags                   [][]byte
	checks                 []checkDef
}

// checkDef is the definition of a check.
type checkDef struct {
	name    []byte
	encoded []byte // the whole definition, to tell whether it changed
	initial registryv1.CheckStatus
}

// decode reads and validates an encoded specification. It returns the name of what is wrong, empty when nothing is.
// Beyond what the header needs it checks the shape of everything, down to the last nested string: the bytes are served
// as they are, and one malformed instance would break every reader of its service. It reuses the slices of sp.
func (sp *spec) decode(b []byte) (malformed string) {
	*sp = spec{tags: sp.tags[:0], checks: sp.checks[:0]}
	if len(b) > MaxSpecBytes {
		return "instance"
	}
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 || f.number >= firstStatusField {
			return "instance"
		}
		b = b[n:]
		if !f.valid(messageInstance) {
			return instanceFieldName(f.number)
		}
		sp.set(&f)
	}
	return sp.invalid()
}

func (sp *spec) set(f *field) {
	switch f.number {
	case 1:
		sp.namespace = f.bytes
	case 2:
		sp.service = f.bytes
	case 3:
		sp.id = f.bytes
	case 6:
		sp.tags = append(sp.tags, f.bytes)
	case 8:
		sp.zone = f.bytes
	case 9:
		sp.region = f.bytes
	case 10:
		sp.weight = uint32(f.varint)
	case fieldChecks:
		sp.checks = append(sp.checks, decodeCheckDef(f.bytes))
	case 12:
		sp.session = f.bytes
	case 13:
		sp.lease = f.bytes
	}
}

// invalid names the first field whose value the state machine cannot work with.
func (sp *spec) invalid() string {
	switch {
	case !validName(sp.namespace):
		return "namespace"
	case !validName(sp.service):
		return "service"
	case !validName(sp.id):
		return "id"
	case len(sp.session) > MaxNameBytes:
		return "session_id"
	case len(sp.lease) > MaxNameBytes:
		return "lease_id"
	case len(sp.checks) > MaxChecks:
		return "checks"
	}
	for i := range sp.checks {
		if !validName(sp.checks[i].name) || sp.check(sp.checks[i].name) != &sp.checks[i] {
			return "checks"
		}
	}
	return ""
}

// check returns the first check of that name, nil if there is none.
func (sp *spec) check(name []byte) *checkDef {
	for i := range sp.checks {
		if bytes.Equal(sp.checks[i].name, name) {
			return &sp.checks[i]
		}
	}
	return nil
}

// hasCheck reports whether a valid specification has a check of exactly that definition.
func hasCheck(encodedSpec, definition []byte) bool {
	for b := encodedSpec; len(b) > 0; {
		var f field
		n := f.consume(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if f.number == fieldChecks && bytes.Equal(f.bytes, definition) {
			return true
		}
	}
	return false
}

// decodeCheckDef decodes what was validated before.
func decodeCheckDef(b []byte) checkDef {
	def := checkDef{encoded: b}
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			break
		}
		b = b[n:]
		switch f.number {
		case 1:
			def.name = f.bytes
		case 10:
			def.initial = registryv1.CheckStatus(int32(uint32(f.varint)))
		}
	}
	return def
}

// validName accepts what may be part of a key: not empty, not too long, without NUL, which separates keys.
func validName[T string | []byte](name T) bool {
	if len(name) == 0 || len(name) > MaxNameBytes {
		return false
	}
	for i := range len(name) {
		if name[i] == 0 {
			return false
		}
	}
	return true
}

// field is one field of an encoded message.
type field struct {
	number protowire.Number
	kind   protowire.Type
	varint uint64
	bytes  []byte
}

// consume reads the first field of b into f, which is zero, and returns its length, negative when it is malformed.
// Groups, which proto3 does not have, are malformed.
func (f *field) consume(b []byte) int {
	// Nearly all fields have a tag of one byte, and a value or length of one byte.
	if len(b) >= 2 && b[0] >= 1<<3 && b[0] < 0x80 && b[1] < 0x80 {
		f.number, f.kind = protowire.Number(b[0]>>3), protowire.Type(b[0]&7)
		end := 2 + int(b[1])
		switch {
		case f.kind == protowire.VarintType:
			f.varint = uint64(b[1])
			return 2
		case f.kind == protowire.BytesType && end <= len(b):
			f.bytes = b[2:end:end]
			return end
		}
	}
	return f.consumeLong(b)
}

// consumeLong is consume for every field.
func (f *field) consumeLong(b []byte) int {
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return n
	}
	f.number, f.kind = number, kind
	m := -1
	switch kind {
	case protowire.VarintType:
		f.varint, m = protowire.ConsumeVarint(b[n:])
	case protowire.BytesType:
		f.bytes, m = protowire.ConsumeBytes(b[n:])
	case protowire.Fixed32Type:
		_, m = protowire.ConsumeFixed32(b[n:])
	case protowire.Fixed64Type:
		_, m = protowire.ConsumeFixed64(b[n:])
	default:
	}
	if m < 0 {
		return m
	}
	return n + m
}

// shape is the shape of a field: a scalar, a string or a message.
type shape uint8

const (
	shapeUnknown shape = iota // a field of a later version: any well-formed value
	shapeVarint
	shapeString
	messageInstance
	messagePort
	messagePair
	messageCheck
	messageHTTP
	messageTCP
	messageGRPC
	messageTTL
	messageTLS
	messageDuration
)

// shapesOf lists the shapes of a message's fields from number 1 on. It follows registry.proto.
func shapesOf(message shape) string {
	const v, s = string(rune(shapeVarint)), string(rune(shapeString))
	const duration, tls, pair = string(rune(messageDuration)), string(rune(messageTLS)), string(rune(messagePair))
	switch message {
	case messageInstance:
		return s + s + s + s + string(rune(messagePort)) + s + pair + s + s + v + string(rune(messageCheck)) + s + s + duration
	case messagePort:
		return s + v
	case messagePair:
		return s + s
	case messageCheck:
		return s + string(rune(messageHTTP)) + string(rune(messageTCP)) + string(rune(messageGRPC)) +
			string(rune(messageTTL)) + duration + duration + v + v + v
	case messageHTTP:
		return s + s + s + s + pair + v + v + s + tls
	case messageTCP:
		return s + s
	case messageGRPC:
		return s + s + s + tls
	case messageTTL:
		return duration
	case messageTLS:
		return s + v
	case messageDuration:
		return v + v
	default:
		return ""
	}
}

// valid reports whether the field has the shape that the message gives it, all the way down.
func (f *field) valid(message shape) bool {
	shapes := shapesOf(message)
	want := shapeUnknown
	if int(f.number) <= len(shapes) {
		want = shape(shapes[f.number-1])
	}
	switch want {
	case shapeUnknown:
		return true
	case shapeVarint:
		return f.kind == protowire.VarintType
	case shapeString:
		return f.kind == protowire.BytesType && utf8.Valid(f.bytes)
	default:
		return f.kind == protowire.BytesType && validMessage(f.bytes, want)
	}
}

func validMessage(b []byte, message shape) bool {
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 || !f.valid(message) {
			return false
		}
		b = b[n:]
	}
	return true
}

// instanceFieldName names a field of the specification for people.
func instanceFieldName(number protowire.Number) string {
	names := [...]string{
		"instance", "namespace", "service", "id", "address", "ports", "tags", "metadata", "zone", "region", "weight",
		"checks", "session_id", "lease_id", "deregister_critical_after",
	}
	if int(number) < len(names) {
		return names[number]
	}
	return names[0]
}
