package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// appended is what a request appends to something else.
func appended(t *testing.T, request func(b []byte, x *turn) []byte, x *turn) []byte {
	t.Helper()
	const before = "before"
	b := request([]byte(before), x)
	if string(b[:len(before)]) != before {
		t.Fatalf("%q was overwritten", b)
	}
	return b[len(before):]
}

func TestRegdIsSentWhatItsClientsSend(t *testing.T) {
	s := &regd{}
	in := instance{service: "web", id: "i7", version: 4711}
	few := instance{service: "web", id: "i7", version: 4} // With more digits, there is more than was filled up.
	for n, tt := range []struct {
		step      step
		got, want proto.Message
	}{
		{s.registering(0, func(*turn) instance { return in }), &apiv1.RegisterRequest{}, &apiv1.RegisterRequest{Instance: described(in, 0)}},
		{s.registering(4000, func(*turn) instance { return few }), &apiv1.RegisterRequest{}, &apiv1.RegisterRequest{Instance: described(few, 4000)}},
		{s.registeringAlone(func(*turn) instance { return in })[0], &apiv1.RegisterRequest{}, &apiv1.RegisterRequest{
			Instance: described(in, 0), OpenSession: &apiv1.NewSession{ClientName: "bench", Ttl: durationpb.New(time.Hour)},
		}},
		{s.opening(15 * time.Second), &apiv1.OpenRequest{}, &apiv1.OpenRequest{ClientName: "bench", Ttl: durationpb.New(15 * time.Second)}},
		{s.reading(web, true, ten), &apiv1.ListInstancesRequest{}, &apiv1.ListInstancesRequest{
			Filter: &apiv1.Filter{Service: "web"}, Freshness: &apiv1.Freshness{Mode: apiv1.Mode_MODE_LINEARIZABLE},
		}},
		{s.reading(web, false, ten), &apiv1.ListInstancesRequest{}, &apiv1.ListInstancesRequest{
			Filter: &apiv1.Filter{Service: "web"}, Freshness: &apiv1.Freshness{Mode: apiv1.Mode_MODE_STALE},
		}},
	} {
		if err := proto.Unmarshal(appended(t, tt.step.request, &turn{client: 4095, who: owner{id: "0123-4567"}}), tt.got); err != nil {
			t.Fatal(err)
		}
		if r, ok := tt.want.(*apiv1.RegisterRequest); ok {
			asked := s.asked.Load()
			r.RequestId = &apiv1.RequestID{ClientId: "bench-4095", Sequence: asked, AnsweredBelow: asked}
			r.Instance.SessionId = "0123-4567"
		}
		if !proto.Equal(tt.got, tt.want) {
			t.Errorf("%d: sent %v, want %v", n, tt.got, tt.want)
		}
	}
}

// value is an instance as it is stored in etcd.
type value struct {
	Service  string            `json:"service"`
	ID       string            `json:"id"`
	Address  string            `json:"address"`
	Port     int               `json:"port"`
	Zone     string            `json:"zone"`
	Tags     []string          `json:"tags"`
	Metadata map[string]string `json:"metadata"`
}

func TestEtcdIsSentWhatItsClientsSend(t *testing.T) {
	s := &etcd{}
	register := s.registeringAlone(func(x *turn) instance { return instance{service: "web", id: "i7", version: x.n} })
	var grant etcdserverpb.LeaseGrantRequest
	if err := grant.Unmarshal(appended(t, register[0].request, &turn{})); err != nil || grant.TTL != 3600 || grant.ID != 0 {
		t.Errorf("granted %v, %v", &grant, err)
	}
	x := turn{n: 4711, who: owner{number: 9}}
	for reply, want := range map[*etcdserverpb.LeaseGrantResponse]int64{
		{Header: &etcdserverpb.ResponseHeader{Revision: 2}, ID: 77, TTL: 3600}: 77, {Header: &etcdserverpb.ResponseHeader{Revision: 2}, TTL: 3600}: 0,
	} {
		message, err := reply.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := register[0].answer(&x, message); (err == nil) != (want > 0) || x.who.number != want {
			t.Errorf("lease %d, %v; want %d", x.who.number, err, want)
		}
	}
	x.who.number = 77
	var put etcdserverpb.PutRequest
	if err := put.Unmarshal(appended(t, register[1].request, &x)); err != nil || string(put.Key) != "/services/web/i7" || put.Lease != 77 {
		t.Errorf("put %v, %v", &put, err)
	}
	var got value
	want := value{
		Service: "web", ID: "i7", Address: "10.1.2.3", Port: 8080, Zone: "eu-central-1a", Tags: []string{"v2", "canary"},
		Metadata: map[string]string{"version": "2.14.3", "commit": "4711", "team": "payments", "lang": "go"},
	}
	if err := json.Unmarshal(put.Value, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("put %+v, %v; want %+v", got, err, want)
	}
	for _, linearizable := range []bool{false, true} {
		var read etcdserverpb.RangeRequest
		b := appended(t, s.reading(web, linearizable, ten).request, &x)
		if err := read.Unmarshal(b); err != nil || string(read.Key) != "/services/web/" || string(read.RangeEnd) != "/services/web0" || read.Serializable == linearizable {
			t.Errorf("read %v, %v", &read, err)
		}
	}
	var watch etcdserverpb.WatchRequest
	if err := watch.Unmarshal(s.watching("web").request); err != nil || string(watch.GetCreateRequest().GetKey()) != "/services/web/" {
		t.Errorf("watch %v, %v", &watch, err)
	}
}

func TestAReadHasAsManyInstancesAsItMust(t *testing.T) {
	for n := range 4 {
		var regdReply apiv1.ListInstancesResponse
		etcdReply := etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{Revision: 7}, Count: int64(n)}
		for i := range n {
			regdReply.Instances = append(regdReply.Instances, described(instance{id: strconv.Itoa(i)}, 0))
			etcdReply.Kvs = append(etcdReply.Kvs, &mvccpb.KeyValue{Key: []byte(strconv.Itoa(i)), Lease: 1})
		}
		message, err := etcdReply.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"regd": (&regd{}).reading(web, true, 2).answer(&turn{}, encoded(&regdReply)), "etcd": (&etcd{}).reading(web, true, 2).answer(&turn{}, message),
		} {
			if (err == nil) != (n == 2) {
				t.Errorf("%s: read %d of 2: %v", name, n, err)
			}
		}
	}
	if err := having(2, 0)(&turn{}, []byte{0x12, 9}); err == nil {
		t.Error("a message that is cut off was read")
	}
}

func TestRenewalsAreAnswered(t *testing.T) {
	r := (&regd{}).renewing()
	for _, tt := range []struct {
		reply *apiv1.AttachResponse
		want  int
		fails bool
	}{
		{&apiv1.AttachResponse{Sequence: 1}, 1, false},
		{&apiv1.AttachResponse{Sequence: 17, Epoch: 3}, 16, false},
		{&apiv1.AttachResponse{Sequence: 3}, 0, true},
		{&apiv1.AttachResponse{Sequence: 18, Ended: []string{"s"}}, 0, true},
	} {
		n, err := r.answer(encoded(tt.reply))
		if (err != nil) != tt.fails || !tt.fails && n != tt.want {
			t.Errorf("%v: %d, %v", tt.reply, n, err)
		}
	}
	for ttl, fails := range map[int64]bool{3600: false, 0: true, -1: true} {
		message, err := (&etcdserverpb.LeaseKeepAliveResponse{Header: &etcdserverpb.ResponseHeader{Revision: 7}, ID: 5, TTL: ttl}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := (&etcd{}).renewing().answer(message); n != 1 || (err != nil) != fails {
			t.Errorf("TTL %d: %d, %v", ttl, n, err)
		}
	}
	var asked apiv1.AttachRequest
	var kept etcdserverpb.LeaseKeepAliveRequest
	err := errors.Join(proto.Unmarshal((&regd{}).renewing().request(nil, owner{id: "s"}), &asked), kept.Unmarshal((&etcd{}).renewing().request(nil, owner{number: 5})))
	if err != nil || len(asked.GetSessionIds()) != 1 || asked.GetSequence() != 1 || kept.ID != 5 {
		t.Errorf("%v, %v, %v", &asked, &kept, err)
	}
}

// change is one that regd tells of.
func change(version int) *apiv1.SubscribedEvent {
	return &apiv1.SubscribedEvent{SubscriptionIds: []uint32{1}, Event: &registryv1.Event{
		Type: registryv1.EventType_EVENT_TYPE_PUT, Instance: described(instance{service: "web", id: "one", version: version}, 0),
	}}
}

// events are what regd tells of.
func events(versions ...int) *apiv1.WatchServiceResponse {
	e := &apiv1.Events{}
	for _, v := range versions {
		e.Events = append(e.Events, change(v))
	}
	return &apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Events{Events: e}}
}

func synced() *apiv1.WatchServiceResponse {
	return &apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Synced{Synced: &apiv1.Synced{}}}
}

func cut() *apiv1.WatchServiceResponse {
	return &apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Cut{Cut: &apiv1.Cut{}}}
}

// etcdEvents are what etcd tells of.
func etcdEvents(versions ...int) *etcdserverpb.WatchResponse {
	r := &etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 7}}
	for _, v := range versions {
		r.Events = append(r.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{
			Key: []byte("/services/web/one"), ModRevision: 5, Lease: 3, Value: appendValue(nil, instance{service: "web", id: "one", version: v}),
		}})
	}
	return r
}

func TestWhatAWatchHears(t *testing.T) {
	marshal := func(r *etcdserverpb.WatchResponse) []byte {
		b, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	type heard struct {
		message  []byte
		stands   bool
		versions []int
		fails    bool
	}
	header := &etcdserverpb.ResponseHeader{Revision: 7}
	broken := events(8)
	delete(broken.GetEvents().GetEvents()[0].GetEvent().GetInstance().GetMetadata(), "commit")
	for name, tt := range map[string]struct {
		system system
		heard  []heard
	}{
		"regd": {&regd{}, []heard{
			{encoded(cut()), false, nil, false},
			{encoded(events(1, 2)), false, nil, false},
			{encoded(synced()), true, nil, false},
			{encoded(events(3, 4711)), true, []int{3, 4711}, false},
			{encoded(broken), true, nil, true},
			{encoded(cut()), true, nil, true},
			{encoded(&apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Ended{Ended: &apiv1.SubscriptionEnded{}}}), true, nil, true},
		}},
		"etcd": {&etcd{}, []heard{
			{marshal(&etcdserverpb.WatchResponse{Header: header, Created: true}), true, nil, false},
			{marshal(etcdEvents(3, 4711)), true, []int{3, 4711}, false},
			{marshal(&etcdserverpb.WatchResponse{Header: header}), true, nil, false},
			{marshal(&etcdserverpb.WatchResponse{Events: []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Value: []byte("{}")}}}}), true, nil, true},
			{marshal(&etcdserverpb.WatchResponse{Header: header, Canceled: true, CancelReason: "old"}), true, nil, true},
		}},
	} {
		w := tt.system.watching("web")
		for i, h := range tt.heard {
			var versions []int
			stands, err := w.heard(h.message, func(v int) { versions = append(versions, v) })
			if stands != h.stands || (err != nil) != h.fails || !slices.Equal(versions, h.versions) {
				t.Errorf("%s: message %d: stands %v, versions %v, %v", name, i, stands, versions, err)
			}
		}
	}
}

const (
	// answering is how long an answer to renewals takes.
	answering = 50 * time.Millisecond
	// acksAtOnce is how many renewals regd answers at once.
	acksAtOnce = 5
)

// etcdServer is one as far as streams go.
type etcdServer struct {
	etcdserverpb.UnimplementedWatchServer
	etcdserverpb.UnimplementedLeaseServer
}

func (etcdServer) Watch(stream etcdserverpb.Watch_WatchServer) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	if string(req.GetCreateRequest().GetKey()) != "/services/web/" {
		return fmt.Errorf("watched %v", req)
	}
	for _, m := range []*etcdserverpb.WatchResponse{{Created: true}, etcdEvents(1, 2), etcdEvents(3)} {
		if err = stream.Send(m); err != nil {
			return err
		}
	}
	_, err = stream.Recv()
	return err // As etcd has it: who sends nothing more hears nothing more.
}

func (etcdServer) LeaseKeepAlive(stream etcdserverpb.Lease_LeaseKeepAliveServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		wait(stream.Context(), answering)
		if err := stream.Send(&etcdserverpb.LeaseKeepAliveResponse{ID: req.ID, TTL: 3600}); err != nil {
			return err
		}
	}
}

// streamingRegistry is one as far as streams go.
func streamingRegistry() registry {
	return registry{
		watch: func(req *apiv1.WatchServiceRequest, to grpc.ServerStreamingServer[apiv1.WatchServiceResponse]) error {
			if req.GetFilter().GetService() != "web" {
				return fmt.Errorf("watched %v", req)
			}
			for _, m := range []*apiv1.WatchServiceResponse{cut(), events(0), synced(), events(1, 2), events(3)} {
				if err := to.Send(m); err != nil {
					return err
				}
			}
			<-to.Context().Done()
			return nil
		},
		attach: func(stream grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error {
			for n := uint64(1); ; n++ {
				req, err := stream.Recv()
				if err != nil {
					return err
				}
				if req.GetSequence() != n {
					return fmt.Errorf("request %d is the %d", req.GetSequence(), n)
				}
				if n%acksAtOnce != 0 {
					continue
				}
				wait(stream.Context(), answering)
				if err := stream.Send(&apiv1.AttachResponse{Sequence: n}); err != nil {
					return err
				}
			}
		},
	}
}
