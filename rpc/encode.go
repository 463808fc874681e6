package rpc

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// encodeSpec encodes a canonical specification. Equal specifications have equal encodings. It does what deterministic
// protobuf does, byte for byte, without its detour through reflection: every registration comes this way.
func encodeSpec(spec *registryv1.Instance) ([]byte, error) {
	e := specEncoder{b: make([]byte, 0, specSize)}
	e.text(1, spec.GetNamespace())
	e.text(2, spec.GetService())
	e.text(3, spec.GetId())
	e.text(4, spec.GetAddress())
	for _, p := range spec.GetPorts() {
		e.message(5, textSize(1, p.GetName())+numberSize(2, uint64(p.GetNumber())))
		e.text(1, p.GetName())
		e.number(2, uint64(p.GetNumber()))
	}
	for _, tag := range spec.GetTags() {
		e.bytes(6, tag)
	}
	e.metadata(7, spec.GetMetadata())
	e.text(8, spec.GetZone())
	e.text(9, spec.GetRegion())
	e.number(10, uint64(spec.GetWeight()))
	for _, c := range spec.GetChecks() {
		if err := e.nested(11, c); err != nil {
			return nil, fmt.Errorf("encode check %s: %w", quote(c.GetName()), err)
		}
	}
	e.text(12, spec.GetSessionId())
	e.text(13, spec.GetLeaseId())
	if d := spec.GetDeregisterCriticalAfter(); d != nil {
		if err := e.nested(14, d); err != nil {
			return nil, fmt.Errorf("encode deregister_critical_after: %w", err)
		}
	}
	return e.b, nil
}

// specSize is room for most specifications.
const specSize = 320

// specEncoder appends fields. What is empty is left out, as proto3 does.
type specEncoder struct{ b []byte }

func (e *specEncoder) bytes(n protowire.Number, s string) {
	e.b = protowire.AppendString(protowire.AppendTag(e.b, n, protowire.BytesType), s)
}

func (e *specEncoder) text(n protowire.Number, s string) {
	if s != "" {
		e.bytes(n, s)
	}
}

func (e *specEncoder) number(n protowire.Number, v uint64) {
	if v != 0 {
		e.b = protowire.AppendVarint(protowire.AppendTag(e.b, n, protowire.VarintType), v)
	}
}

// message begins a message of the given size.
func (e *specEncoder) message(n protowire.Number, size int) {
	e.b = protowire.AppendVarint(protowire.AppendTag(e.b, n, protowire.BytesType), uint64(size))
}

// metadata appends a map, sorted by key. Its entries name key and value even when they are empty.
func (e *specEncoder) metadata(n protowire.Number, m map[string]string) {
	for _, key := range sortedKeys(m) {
		value := m[key]
		e.message(n, bytesSize(1, key)+bytesSize(2, value))
		e.bytes(1, key)
		e.bytes(2, value)
	}
}

func sortedKeys(m map[string]string) []string {
	keys := slices.AppendSeq(make([]string, 0, len(m)), maps.Keys(m))
	slices.Sort(keys)
	return keys
}

// nested appends a message as the library encodes it.
func (e *specEncoder) nested(n protowire.Number, m proto.Message) error {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	e.message(n, len(data))
	e.b = append(e.b, data...)
	return err
}

func bytesSize(n protowire.Number, s string) int {
	return protowire.SizeTag(n) + protowire.SizeBytes(len(s))
}

func textSize(n protowire.Number, s string) int {
	if s == "" {
		return 0
	}
	return bytesSize(n, s)
}

func numberSize(n protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(n) + protowire.SizeVarint(v)
}
