package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// registry is a naive one: every state that it ever had is kept, and its nodes show one or an older one.
type registry struct {
	tb    testing.TB
	nodes []*node

	mu      sync.Mutex // guards the fields below
	cluster string
	epochs  []uint64                          // by revision
	states  []map[string]*registryv1.Instance // by revision, from 0 on; instances by service/id
	events  []*registryv1.Event               // of all revisions
	kept    uint64                            // history after this revision is kept
	changed chan struct{}
	streams int // opened so far
	open    int
	subs    []*apiv1.Subscribe
	refuse  error
}

// node is a door to the registry.
type node struct {
	apiv1.UnimplementedRegistryServiceServer
	*registry
	address string
	lis     *bufconn.Listener
	srv     *grpc.Server
	served  chan struct{}
	// Guarded by the registry's mu.
	down bool
	held uint64 // revision that it has come to; 0: it follows
}

// newRegistry starts n nodes that end with the test. It is at revision 1 and empty.
func newRegistry(tb testing.TB, n int) *registry {
	tb.Helper()
	r := &registry{
		tb: tb, cluster: "cluster", changed: make(chan struct{}),
		states: []map[string]*registryv1.Instance{{}, {}}, epochs: []uint64{1, 1},
	}
	for i := range n {
		n := &node{registry: r, address: fmt.Sprintf("n%d:7400", i+1), down: true}
		r.nodes = append(r.nodes, n)
		n.start()
	}
	tb.Cleanup(func() { r.stop() })
	return r
}

// client makes a client of all nodes that is closed with the test.
func (r *registry) client() *client.Client {
	r.tb.Helper()
	var endpoints []string
	for _, n := range r.nodes {
		endpoints = append(endpoints, n.address)
	}
	c, err := client.New(endpoints, client.WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) {
		i := slices.IndexFunc(r.nodes, func(n *node) bool { return n.address == to })
		r.mu.Lock()
		down, lis := r.nodes[i].down, r.nodes[i].lis
		r.mu.Unlock()
		if down {
			return nil, errors.New("connection refused")
		}
		return lis.DialContext(ctx)
	})))
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *registry) start() {
	for _, n := range r.nodes {
		n.start()
	}
}

func (r *registry) stop() {
	for _, n := range r.nodes {
		n.stop()
	}
}

func (n *node) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.down {
		return
	}
	n.down = false
	n.lis, n.srv, n.served = bufconn.Listen(1<<20), grpc.NewServer(grpc.WaitForHandlers(true)), make(chan struct{})
	apiv1.RegisterRegistryServiceServer(n.srv, n)
	srv, lis, served := n.srv, n.lis, n.served
	go func() {
		defer close(served)
		_ = srv.Serve(lis)
	}()
}

func (n *node) stop() {
	n.mu.Lock()
	was := n.down
	n.down = true
	n.mu.Unlock()
	if !was {
		n.srv.Stop()
		<-n.served
	}
}

// change is one revision of the registry.
func (r *registry) change(events ...*registryv1.Event) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := maps.Clone(r.states[len(r.states)-1])
	revision := uint64(len(r.states))
	for _, e := range events {
		e.Revision = revision
		key := e.GetInstance().GetService() + "/" + e.GetInstance().GetId()
		if e.GetType() == registryv1.EventType_EVENT_TYPE_DELETE {
			delete(state, key)
		} else {
			e.Instance.ModifyRevision = revision
			state[key] = e.GetInstance()
		}
		r.events = append(r.events, e)
	}
	r.states, r.epochs = append(r.states, state), append(r.epochs, r.epochs[revision-1])
	r.tell()
	return revision
}

// restore brings the state of a revision back, as an operator does: a new revision in a new epoch.
func (r *registry) restore(revision uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epochs = append(r.epochs, r.epochs[len(r.epochs)-1]+1)
	r.states = append(r.states, r.states[revision])
	r.tell()
}

// tell wakes all streams. The caller holds mu.
func (r *registry) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// set changes the registry's ways.
func (r *registry) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	r.tell()
}

// asked returns how many streams were opened, how many are open, and what was subscribed to.
func (r *registry) asked() (streams, open int, subs []*apiv1.Subscribe) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streams, r.open, slices.Clone(r.subs)
}

// ids returns what a service had at a revision, by id with the revision of each.
func (r *registry) ids(service string, revision uint64) map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := map[string]uint64{}
	for _, i := range r.states[revision] {
		if i.GetService() == service {
			ids[i.GetId()] = i.GetModifyRevision()
		}
	}
	return ids
}

// revision is what the node has come to. The caller holds mu.
func (n *node) revision() uint64 {
	if n.held != 0 {
		return n.held
	}
	return uint64(len(n.states) - 1)
}

func (n *node) header(revision uint64) *apiv1.ResponseHeader {
	return &apiv1.ResponseHeader{
		ClusterId: n.cluster, Epoch: n.epochs[revision], Revision: revision, Node: n.address[:2], Staleness: durationpb.New(10 * time.Millisecond),
	}
}

// Watch serves a stream as the real one does: cut or history first, then every change, and progress after 5s of silence.
func (n *node) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	n.mu.Lock()
	n.streams++
	n.open++
	n.mu.Unlock()
	defer n.set(func() { n.open-- })
	requests := make(chan *apiv1.WatchRequest)
	failed := make(chan error, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	reading.Go(func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	})
	s := &served{n: n, stream: stream, subs: make(map[uint32]string)}
	progress := time.NewTimer(5 * time.Second)
	defer progress.Stop()
	for {
		n.mu.Lock()
		changed, refuse := n.changed, n.refuse
		n.mu.Unlock()
		err := refuse
		if err == nil {
			err = s.deliver()
		}
		if err != nil {
			cancel()
			return err
		}
		progress.Reset(5 * time.Second)
		select {
		case <-changed:
		case req := <-requests:
			err = s.handle(req)
		case <-progress.C:
			err = stream.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Progress{
				Progress: &apiv1.Progress{Header: s.header()},
			}})
		case err = <-failed:
		}
		if err != nil {
			return err
		}
	}
}

// served is a stream and what it has sent.
type served struct {
	n      *node
	stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]
	subs   map[uint32]string // services
	sent   uint64            // revision that all subscriptions have
}

func (s *served) handle(req *apiv1.WatchRequest) error {
	if id := req.GetUnsubscribe().GetSubscriptionId(); id != 0 {
		delete(s.subs, id)
		return nil
	}
	sub := req.GetSubscribe()
	id, service, from := sub.GetSubscriptionId(), sub.GetFilter().GetService(), sub.GetResume()
	s.n.mu.Lock()
	s.n.subs = append(s.n.subs, sub)
	revision := s.n.revision()
	if len(s.subs) == 0 {
		s.sent = revision
	}
	var answer []*apiv1.WatchResponse
	if from.GetClusterId() == s.n.cluster && from.GetEpoch() == s.n.epochs[s.sent] && from.GetRevision() >= s.n.kept && from.GetRevision() <= s.sent {
		if events := s.n.between(from.GetRevision(), s.sent, map[uint32]string{id: service}); len(events.GetEvents()) > 0 {
			answer = append(answer, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Events{Events: events}})
		}
	} else {
		answer = append(answer, s.cut(id, service))
	}
	s.n.mu.Unlock()
	s.subs[id] = service
	return s.send(append(answer, s.synced(id))...)
}

func (s *served) send(messages ...*apiv1.WatchResponse) error {
	for _, m := range messages {
		if err := s.stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// header is of what has been sent.
func (s *served) header() *apiv1.ResponseHeader {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	return s.n.header(s.sent)
}

func (s *served) synced(id uint32) *apiv1.WatchResponse {
	return &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Synced{Synced: &apiv1.Synced{SubscriptionId: id, Header: s.header()}}}
}

// cut is all that a service has at what has been sent. The caller holds mu.
func (s *served) cut(id uint32, service string) *apiv1.WatchResponse {
	cut := &apiv1.Cut{SubscriptionId: id, Full: true}
	for _, i := range s.n.states[s.sent] {
		if i.GetService() == service {
			cut.Instances = append(cut.Instances, i)
		}
	}
	return &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Cut{Cut: cut}}
}

// between returns the events of (after, upTo] for subscriptions. The caller holds mu.
func (r *registry) between(after, upTo uint64, subs map[uint32]string) *apiv1.Events {
	m := &apiv1.Events{Revision: upTo}
	for _, e := range r.events {
		if e.GetRevision() <= after || e.GetRevision() > upTo {
			continue
		}
		var ids []uint32
		for id, service := range subs {
			if service == e.GetInstance().GetService() {
				ids = append(ids, id)
			}
		}
		if len(ids) > 0 {
			m.Events = append(m.Events, &apiv1.SubscribedEvent{Event: e, SubscriptionIds: ids})
		}
	}
	return m
}

// deliver sends what has changed: events, or all anew in another epoch.
func (s *served) deliver() error {
	s.n.mu.Lock()
	before, upTo := s.sent, max(s.sent, s.n.revision())
	s.sent = upTo
	restored := s.n.epochs[before] != s.n.epochs[upTo] && before > 0
	var messages []*apiv1.WatchResponse
	if events := s.n.between(before, upTo, s.subs); !restored && len(events.GetEvents()) > 0 {
		messages = append(messages, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Events{Events: events}})
	}
	cuts := make(map[uint32]*apiv1.WatchResponse)
	for id, service := range s.subs {
		if restored {
			cuts[id] = s.cut(id, service)
		}
	}
	s.n.mu.Unlock()
	for id, cut := range cuts {
		messages = append(messages, cut, s.synced(id))
	}
	return s.send(messages...)
}

func inst(service, id string) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default", Service: service, Id: id, Address: "10.0.0.1", Health: registryv1.Health_HEALTH_PASSING,
	}
}

// put registers instances of service web.
func put(ids ...string) (events []*registryv1.Event) {
	for _, id := range ids {
		events = append(events, &registryv1.Event{
			Type: registryv1.EventType_EVENT_TYPE_PUT, Cause: registryv1.Cause_CAUSE_REGISTERED, Instance: inst("web", id),
		})
	}
	return events
}

// del removes instances of service web.
func del(cause registryv1.Cause, ids ...string) (events []*registryv1.Event) {
	for _, id := range ids {
		events = append(events, &registryv1.Event{
			Type: registryv1.EventType_EVENT_TYPE_DELETE, Cause: cause,
			Instance: &registryv1.Instance{Namespace: "default", Service: "web", Id: id},
		})
	}
	return events
}

const (
	expired      = registryv1.Cause_CAUSE_SESSION_EXPIRED
	deregistered = registryv1.Cause_CAUSE_DEREGISTERED
)

var errRefused = status.Error(codes.PermissionDenied, "not for you")
