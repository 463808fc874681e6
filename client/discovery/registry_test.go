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
	unled   bool // no state is known to be linearizable
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
