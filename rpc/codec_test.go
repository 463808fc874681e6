package rpc

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestCodecPassesOnWhatIsEncoded(t *testing.T) {
	c := newCodec()
	for _, size := range []int{0, 1, 1 << 10, 1<<10 + 1, maxPooled, maxPooled + 1, 1 << 20} {
		want := bytes.Repeat([]byte{byte(size), 1, 2}, size/3+1)[:size]
		got, err := c.Marshal(newEncoded(size, func(dst []byte) []byte {
			if len(dst) != 0 || cap(dst) < size {
				t.Errorf("room for %d bytes, want %d", cap(dst)-len(dst), size)
			}
			return append(dst, want...)
		}))
		if err != nil || !bytes.Equal(got.Materialize(), want) {
			t.Errorf("%d bytes became %d, %v", size, got.Len(), err)
		}
		got.Free()
	}
}

func TestCodecIsTheOrdinaryOneForMessages(t *testing.T) {
	c := newCodec()
	if c.Name() != "proto" {
		t.Errorf("name %q", c.Name())
	}
	want := &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "web", Id: "1"}}
	data, err := c.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := &apiv1.GetRequest{}
	if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(plain)}, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || !bytes.Equal(data.Materialize(), plain) {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := c.Marshal("no message"); err == nil {
		t.Error("a string is encoded")
	}
}

// The two kinds of watch answer with equal bytes, and what is encoded by hand has the generated code's numbers.
func TestHandEncodedFieldsHaveTheirNumbers(t *testing.T) {
	for _, tc := range []struct {
		message proto.Message
		fields  map[protoreflect.Name]protowire.Number
	}{
		{&apiv1.WatchResponse{}, map[protoreflect.Name]protowire.Number{"cut": watchCut, "events": watchEvents}},
		{&apiv1.Cut{}, map[protoreflect.Name]protowire.Number{
			"subscription_id": cutSubscription, "full": cutFull, "reason": cutReasonField,
			"instances": cutInstances, "deleted": cutDeleted,
		}},
		{&apiv1.InstanceKey{}, map[protoreflect.Name]protowire.Number{
			"namespace": keyNamespace, "service": keyService, "id": keyID,
		}},
		{&apiv1.Events{}, map[protoreflect.Name]protowire.Number{"events": eventsEvents, "revision": eventsRevision}},
		{&apiv1.SubscribedEvent{}, map[protoreflect.Name]protowire.Number{
			"event": subscribedEvent, "subscription_ids": subscribedIDs,
		}},
	} {
		fields := tc.message.ProtoReflect().Descriptor().Fields()
		for name, want := range tc.fields {
			if got := fields.ByName(name); got == nil || got.Number() != want {
				t.Errorf("%T.%s is not number %d", tc.message, name, want)
			}
		}
	}
	many := (&apiv1.WatchResponse{}).ProtoReflect().Descriptor().Fields()
	one := (&apiv1.WatchServiceResponse{}).ProtoReflect().Descriptor().Fields()
	if many.Len() != one.Len()+1 {
		t.Errorf("WatchResponse has %d fields, WatchServiceResponse %d: want one less", many.Len(), one.Len())
	}
	for i := range many.Len() {
		f := many.Get(i)
		if f.Name() == "marker" {
			continue // Nothing can be answered on that stream.
		}
		if g := one.ByNumber(f.Number()); g == nil || g.Name() != f.Name() || g.Message().FullName() != f.Message().FullName() {
			t.Errorf("field %s differs in WatchServiceResponse", f.Name())
		}
	}
}
