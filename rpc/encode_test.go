package rpc

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// fill sets every field of a message below a number, those of its messages too.
func fill(m protoreflect.Message, below protoreflect.FieldNumber) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.Number() >= below:
		case f.IsMap():
			values := m.Mutable(f).Map()
			for _, key := range []string{"b", "", "a"} {
				values.Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString("value of "+key))
			}
			values.Set(protoreflect.ValueOfString("empty").MapKey(), protoreflect.ValueOfString(""))
		case f.IsList() && f.Message() != nil:
			list := m.Mutable(f).List()
			for range 2 {
				v := list.NewElement()
				fill(v.Message(), below)
				list.Append(v)
			}
		case f.IsList():
			list := m.Mutable(f).List()
			list.Append(scalar(f))
			list.Append(protoreflect.ValueOfString(""))
		case f.Message() != nil:
			fill(m.Mutable(f).Message(), below)
		default:
			m.Set(f, scalar(f))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("text of " + string(f.Name()))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(300)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(300)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(300)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	default:
		return protoreflect.ValueOfEnum(1)
	}
}

// A field that is new in the API and forgotten here would be lost.
func TestSpecificationsAreEncodedAsProtobufDoes(t *testing.T) {
	full := &registryv1.Instance{}
	fill(full.ProtoReflect(), 20)
	for name, spec := range map[string]*registryv1.Instance{
		"full": full, "empty": {}, "usual": benchInstance("web", "1"),
		"a port without name": {Ports: []*registryv1.Port{{Number: 1}, {}}},
	} {
		got, err := encodeSpec(spec)
		if err != nil {
			t.Fatal(err)
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: encoded\n%x\nprotobuf has\n%x", name, got, want)
		}
	}
}
