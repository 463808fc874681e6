package client

import (
	"errors"
	"maps"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// FuzzStatus reads an arbitrary status, details included: an error that says something, that keeps the code, and whose
// reason is the only one that it matches.
func FuzzStatus(f *testing.F) {
	detail := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			f.Fatal(err)
		}
		return a
	}
	add := func(s *statuspb.Status) {
		b, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(&statuspb.Status{Code: int32(codes.ResourceExhausted), Message: "full", Details: []*anypb.Any{
		detail(&errdetails.ErrorInfo{Reason: "OVERLOADED", Domain: errorDomain, Metadata: map[string]string{leaderKey: "n:1"}}),
		detail(&errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: 1 << 62, Nanos: -1}}),
	}})
	add(&statuspb.Status{Code: int32(codes.InvalidArgument), Details: []*anypb.Any{
		detail(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "a", Description: "b"}, nil}}),
		{TypeUrl: "type.googleapis.com/no.such.Message", Value: []byte{1}},
		{TypeUrl: "/"},
	}})
	add(&statuspb.Status{Code: 99, Message: `connection error: desc = "\x`})
	f.Fuzz(func(t *testing.T, data []byte) {
		var s statuspb.Status
		if proto.Unmarshal(data, &s) != nil || s.GetCode() == int32(codes.OK) {
			return
		}
		e := fromStatus(status.FromProto(&s).Err())
		if e.Code != codes.Code(s.GetCode()) {
			t.Fatalf("code %v, was %d", e.Code, s.GetCode())
		}
		matches := 0
		for _, row := range reasonTable() {
			if errors.Is(e, row.sentinel) {
				matches++
			}
		}
		if (matches == 1) != (e.Reason != apiv1.Reason_REASON_UNSPECIFIED) || matches > 1 {
			t.Fatalf("reason %v matches %d sentinels", e.Reason, matches)
		}
		if e.Retryable() != (e.verdict() != giveUp) || e.leavesOpen() && e.Retryable() {
			t.Fatalf("%v contradicts itself", e)
		}
		if text := (&UnreachableError{Op: "op", Attempts: []Attempt{{Address: "a:1", Err: e}}, Cause: e}).Error(); len(text) > 4*len(data)+200 {
			t.Fatalf("%d bytes of text for %d bytes of status", len(text), len(data))
		}
	})
}

// FuzzWatchMessages takes arbitrary messages of a watch stream in, two watches on it. Whatever a node says, the reader is
// told only of the end of what it has, and what it was told adds up to what the watch believes.
func FuzzWatchMessages(f *testing.F) {
	header := &apiv1.ResponseHeader{ClusterId: "c", Epoch: 1, Revision: 5, Leader: "n:1", Node: "n"}
	web := func(id string, revision uint64) *registryv1.Instance {
		return &registryv1.Instance{Namespace: "default", Service: "web", Id: id, ModifyRevision: revision}
	}
	cut := &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Cut{Cut: &apiv1.Cut{
		SubscriptionId: 1, Full: true, Instances: []*registryv1.Instance{web("a", 3), web("b", 5), web("a", 3)},
		Deleted: []*apiv1.InstanceKey{{Service: "web", Id: "b"}},
	}}}
	synced := &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Synced{Synced: &apiv1.Synced{SubscriptionId: 1, Header: header}}}
	events := &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Events{Events: &apiv1.Events{Revision: 7, Events: []*apiv1.SubscribedEvent{
		{SubscriptionIds: []uint32{1, 2}, Event: &registryv1.Event{Type: registryv1.EventType_EVENT_TYPE_PUT, Revision: 6, Instance: web("c", 6)}},
		{SubscriptionIds: []uint32{1, 1}, Event: &registryv1.Event{Type: registryv1.EventType_EVENT_TYPE_DELETE, Revision: 7, Instance: web("c", 7)}},
		{SubscriptionIds: []uint32{2, 9}},
	}}}}
	progress := &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Progress{Progress: &apiv1.Progress{Header: header}}}
	ended := &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Ended{Ended: &apiv1.SubscriptionEnded{SubscriptionId: 1, Reason: "OVERLOADED"}}}
	elsewhere := &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_GoElsewhere{GoElsewhere: &apiv1.GoElsewhere{Leader: "\x00:1"}}}
	f.Add(messages(f, cut, synced, events, progress, ended, elsewhere), uint8(1))
	f.Add(messages(f, events, cut, events, synced, progress), uint8(3))
	f.Add(messages(f, cut, synced, synced, cut, cut, synced), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, pace uint8) {
		s, readers := watching(t, int(pace%8)+1)
		for n := 0; len(data) > 0; n++ {
			b, size := protowire.ConsumeBytes(data)
			if size < 0 {
				break
			}
			data = data[size:]
			var m apiv1.WatchResponse
			if proto.Unmarshal(b, &m) != nil {
				continue
			}
			if s.handle(&m) != nil {
				break // The stream ends; the next one would begin with what is known here.
			}
			if n%(int(pace/8)+1) == 0 {
				readers[n%len(readers)].read(t)
			}
		}
		s.settle()
		for _, r := range readers {
			r.read(t)
			if !maps.EqualFunc(r.has, r.w.view, func(bool, uint64) bool { return true }) {
				t.Fatalf("the reader has %v, the watch %v", r.has, r.w.view)
			}
		}
		if n := len(s.h.c.pool.addresses()); n > 1+maxLearned {
			t.Fatalf("%d addresses are kept", n)
		}
	})
}

// messages puts messages in a row, each with its length before it.
func messages(f *testing.F, all ...*apiv1.WatchResponse) []byte {
	f.Helper()
	var data []byte
	for _, m := range all {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		data = protowire.AppendBytes(data, b)
	}
	return data
}

// watchReader reads one watch.
type watchReader struct {
	w   *Watch
	has map[Key]bool
}

// watching is a stream that nothing is behind, with two watches on it.
func watching(t *testing.T, limit int) (*watchStream, []*watchReader) {
	t.Helper()
	c, err := New([]string{"127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	s := &watchStream{h: c.hub, ep: c.pool.endpoints[0], pause: new(pause), open: make(map[uint32]bool), again: time.NewTimer(time.Hour)}
	t.Cleanup(func() {
		s.again.Stop()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	var readers []*watchReader
	for id := uint32(1); id <= 2; id++ {
		w := &Watch{
			hub: c.hub, id: id, unbind: func() bool { return true }, wake: make(chan struct{}, 1),
			view: make(map[Key]uint64), queue: queue{limit: limit},
		}
		c.hub.watches[id] = w
		readers = append(readers, &watchReader{w: w, has: make(map[Key]bool)})
	}
	return s, readers
}

// read takes what is there.
func (r *watchReader) read(t *testing.T) {
	t.Helper()
	for {
		change, ok, _ := r.w.take() // The error is why nothing more will come.
		if !ok {
			return
		}
		switch change.Kind {
		case ChangePut:
			r.has[change.Key] = true
		case ChangeDelete:
			if !r.has[change.Key] {
				t.Fatalf("%s is deleted, which the reader does not have", change.Key)
			}
			delete(r.has, change.Key)
		}
	}
}
