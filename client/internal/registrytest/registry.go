// Package registrytest is a registry for tests of what builds on package discovery: one node, in memory, that serves watches.
package registrytest

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Registry is one. It is safe for concurrent use.
type Registry struct {
	apiv1.UnimplementedRegistryServiceServer
	tb testing.TB

	mu        sync.Mutex // guards the fields below
	instances map[key]*registryv1.Instance
	events    []*registryv1.Event // one for each revision, the first for revision 1
	changed   chan struct{}       // closed and replaced at each change
	refused   error
	listener  *bufconn.Listener // nil: the node is down
	server    *grpc.Server
	served    chan struct{}
}

// key is what an instance is known by.
type key struct{ namespace, service, id string }

func keyOf(i *registryv1.Instance) key { return key{i.GetNamespace(), i.GetService(), i.GetId()} }

// New starts an empty registry that ends with the test.
func New(tb testing.TB) *Registry {
	tb.Helper()
	r := &Registry{tb: tb, instances: make(map[key]*registryv1.Instance), changed: make(chan struct{})}
	r.Start()
	tb.Cleanup(r.Stop)
	return r
}

// Start starts the node, if it is down.
func (r *Registry) Start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		return
	}
	r.listener, r.server, r.served = bufconn.Listen(1<<20), grpc.NewServer(grpc.WaitForHandlers(true)), make(chan struct{})
	apiv1.RegisterRegistryServiceServer(r.server, r)
	server, listener, served := r.server, r.listener, r.served
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
}

// Stop takes the node down, and waits for it.
func (r *Registry) Stop() {
	r.mu.Lock()
	down := r.listener == nil
	r.listener = nil
	r.mu.Unlock()
	if !down {
		r.server.Stop()
		<-r.served
	}
}

// Discovery returns views of the registry, closed with the test.
func (r *Registry) Discovery(opts ...discovery.Option) *discovery.Discovery {
	r.tb.Helper()
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		r.mu.Lock()
		listener := r.listener
		r.mu.Unlock()
		if listener == nil {
			return nil, errors.New("connection refused")
		}
		return listener.DialContext(ctx)
	})
	c, err := client.New([]string{"n1:7400"}, client.WithDialOptions(dial))
	if err != nil {
		r.tb.Fatal(err)
	}
	d, err := discovery.New(c, opts...)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() {
		d.Close()
		if err := c.Close(); err != nil {
			r.tb.Error(err)
		}
	})
	return d
}

// Put registers instances, or changes them.
func (r *Registry) Put(instances ...*registryv1.Instance) {
	for _, i := range instances {
		r.change(registryv1.EventType_EVENT_TYPE_PUT, registryv1.Cause_CAUSE_REGISTERED, proto.CloneOf(i))
	}
}

// Remove deregisters instances.
func (r *Registry) Remove(instances ...*registryv1.Instance) {
	for _, i := range instances {
		r.change(registryv1.EventType_EVENT_TYPE_DELETE, registryv1.Cause_CAUSE_DEREGISTERED, &registryv1.Instance{
			Namespace: i.GetNamespace(), Service: i.GetService(), Id: i.GetId(),
		})
	}
}

// Refuse has watches end with an error, nil: no longer.
func (r *Registry) Refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = err
	r.tell()
}

// change is one revision.
func (r *Registry) change(kind registryv1.EventType, cause registryv1.Cause, i *registryv1.Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	event := &registryv1.Event{Type: kind, Cause: cause, Instance: i, Revision: uint64(len(r.events) + 1)}
	if kind == registryv1.EventType_EVENT_TYPE_DELETE {
		delete(r.instances, keyOf(i))
	} else {
		i.ModifyRevision = event.GetRevision()
		r.instances[keyOf(i)] = i
	}
	r.events = append(r.events, event)
	r.tell()
}

// tell wakes all streams. The caller holds mu.
func (r *Registry) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// header is of a revision.
func header(revision uint64) *apiv1.ResponseHeader {
	return &apiv1.ResponseHeader{
		ClusterId: "cluster", Epoch: 1, Revision: revision, Node: "n1", Staleness: durationpb.New(10 * time.Millisecond),
	}
}

// Watch serves a stream: of a new subscription all, then what changes.
func (r *Registry) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	requests := make(chan *apiv1.WatchRequest)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	reading.Go(func() {
		defer cancel()
		for {
			request, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- request:
			case <-ctx.Done():
				return
			}
		}
	})
	progress := time.NewTicker(5 * time.Second)
	defer progress.Stop()
	subs := make(map[uint32]*apiv1.Filter)
	r.mu.Lock()
	sent := len(r.events)
	r.mu.Unlock()
	for {
		r.mu.Lock()
		changed, refused := r.changed, r.refused
		var messages []*apiv1.WatchResponse
		messages, sent = r.since(sent, subs), len(r.events)
		r.mu.Unlock()
		if refused != nil {
			return refused
		}
		if err := send(stream, messages); err != nil {
			return err
		}
		messages = nil
		select {
		case <-changed:
		case request := <-requests:
			delete(subs, request.GetUnsubscribe().GetSubscriptionId())
			if sub := request.GetSubscribe(); sub != nil {
				r.mu.Lock()
				messages, sent = append(r.since(sent, subs), r.all(sub)...), len(r.events)
				r.mu.Unlock()
				subs[sub.GetSubscriptionId()] = sub.GetFilter()
			}
		case <-progress.C:
			messages = []*apiv1.WatchResponse{{Payload: &apiv1.WatchResponse_Progress{
				Progress: &apiv1.Progress{Header: header(uint64(sent))},
			}}}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		if err := send(stream, messages); err != nil {
			return err
		}
	}
}

func send(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse], messages []*apiv1.WatchResponse) error {
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// all is a subscription's beginning. The caller holds mu.
func (r *Registry) all(sub *apiv1.Subscribe) []*apiv1.WatchResponse {
	cut := &apiv1.Cut{SubscriptionId: sub.GetSubscriptionId(), Full: true}
	for i := range maps.Values(r.instances) {
		if matches(sub.GetFilter(), i) {
			cut.Instances = append(cut.Instances, i)
		}
	}
	synced := &apiv1.Synced{SubscriptionId: sub.GetSubscriptionId(), Header: header(uint64(len(r.events)))}
	if sub.GetLinearizable() {
		synced.Header.Mode = apiv1.Mode_MODE_LINEARIZABLE
	}
	return []*apiv1.WatchResponse{
		{Payload: &apiv1.WatchResponse_Cut{Cut: cut}}, {Payload: &apiv1.WatchResponse_Synced{Synced: synced}},
	}
}

// since returns what subscriptions have missed. The caller holds mu.
func (r *Registry) since(sent int, subs map[uint32]*apiv1.Filter) []*apiv1.WatchResponse {
	events := &apiv1.Events{Revision: uint64(len(r.events))}
	for _, e := range r.events[sent:] {
		ids := slices.Sorted(maps.Keys(subs))
		ids = slices.DeleteFunc(ids, func(id uint32) bool { return !matches(subs[id], e.GetInstance()) })
		if len(ids) > 0 {
			events.Events = append(events.Events, &apiv1.SubscribedEvent{Event: e, SubscriptionIds: ids})
		}
	}
	if len(events.GetEvents()) == 0 {
		return nil
	}
	return []*apiv1.WatchResponse{{Payload: &apiv1.WatchResponse_Events{Events: events}}}
}

func matches(f *apiv1.Filter, i *registryv1.Instance) bool {
	return f.GetNamespace() == i.GetNamespace() && f.GetService() == i.GetService()
}
