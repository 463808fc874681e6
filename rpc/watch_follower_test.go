package rpc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// follower is a client of Watch as simple as one can be: it believes what it is told, and checks that it is told what
// the rules promise.
type follower struct {
	tb     testing.TB
	stream grpc.BidiStreamingClient[apiv1.WatchRequest, apiv1.WatchResponse]
	subs   map[uint32]*followed
	// progress is the revision of the last progress mark.
	progress uint64
	// cuts, events and ended are what has come: cuts by subscription, with all parts joined.
	cuts   map[uint32][]*apiv1.Cut
	events []string
	ended  []*apiv1.SubscriptionEnded
	moved  *apiv1.GoElsewhere
}

// followed is what a follower knows of a subscription.
type followed struct {
	filter *apiv1.Filter
	known  map[string]*registryv1.Instance
	synced bool
	cut    *apiv1.Cut // under way
	// last is the revision of the last event, upTo says that nothing up to it is missing.
	last, upTo uint64
	header     *apiv1.ResponseHeader
}

func newFollower(ctx context.Context, tb testing.TB, client apiv1.RegistryServiceClient) *follower {
	tb.Helper()
	stream, err := client.Watch(ctx)
	if err != nil {
		tb.Fatalf("Watch: %v", err)
	}
	return &follower{tb: tb, stream: stream, subs: map[uint32]*followed{}, cuts: map[uint32][]*apiv1.Cut{}}
}

func (f *follower) send(req *apiv1.WatchRequest) {
	f.tb.Helper()
	if err := f.stream.Send(req); err != nil {
		f.tb.Fatalf("Send: %v", err)
	}
}

// subscribe begins a subscription. With a resume point it knows what other knows.
func (f *follower) subscribe(sub *apiv1.Subscribe, other ...*followed) {
	f.tb.Helper()
	s := &followed{filter: sub.GetFilter(), known: map[string]*registryv1.Instance{}}
	for _, o := range other {
		s.known, s.last, s.upTo = maps.Clone(o.known), o.last, o.upTo
	}
	f.subs[sub.GetSubscriptionId()] = s
	f.send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: sub}})
}

func (f *follower) unsubscribe(id uint32) {
	f.tb.Helper()
	f.send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Unsubscribe{
		Unsubscribe: &apiv1.Unsubscribe{SubscriptionId: id},
	}})
}

// resume is a resume point after all that a subscription has.
func (s *followed) resume() *apiv1.ResumePoint {
	return &apiv1.ResumePoint{
		ClusterId: s.header.GetClusterId(), Epoch: s.header.GetEpoch(), Revision: max(s.last, s.upTo),
	}
}

// recv takes the next message in.
func (f *follower) recv() *apiv1.WatchResponse {
	f.tb.Helper()
	m, err := f.stream.Recv()
	if err != nil {
		f.tb.Fatalf("Recv: %v", err)
	}
	f.take(m)
	return m
}

func (f *follower) take(m *apiv1.WatchResponse) {
	f.tb.Helper()
	switch p := m.GetPayload().(type) {
	case *apiv1.WatchResponse_Cut:
		f.takeCut(p.Cut)
	case *apiv1.WatchResponse_Synced:
		f.takeSynced(p.Synced)
	case *apiv1.WatchResponse_Events:
		f.takeEvents(p.Events)
	case *apiv1.WatchResponse_Progress:
		f.upTo(p.Progress.GetHeader().GetRevision())
		if p.Progress.GetHeader().GetRevision() < f.progress {
			f.tb.Errorf("progress of revision %d after %d", p.Progress.GetHeader().GetRevision(), f.progress)
		}
		f.progress = p.Progress.GetHeader().GetRevision()
		for id, s := range f.subs {
			if s.synced && s.last > f.progress {
				f.tb.Errorf("progress of revision %d, subscription %d has an event of %d", f.progress, id, s.last)
			}
		}
	case *apiv1.WatchResponse_Ended:
		f.ended = append(f.ended, p.Ended)
		delete(f.subs, p.Ended.GetSubscriptionId())
	case *apiv1.WatchResponse_GoElsewhere:
		f.moved = p.GoElsewhere
	case *apiv1.WatchResponse_Marker:
		for _, id := range p.Marker.GetSubscriptionIds() {
			if s := f.subs[id]; s == nil || !s.synced || s.cut != nil {
				f.tb.Errorf("marker for subscription %d, which is not synced", id)
			}
		}
	default:
		f.tb.Fatalf("message %v", m)
	}
}

// upTo notes that nothing up to the revision is missing.
func (f *follower) upTo(revision uint64) {
	for _, s := range f.subs {
		if s.synced {
			s.upTo = max(s.upTo, revision)
		}
	}
}

func (f *follower) takeCut(c *apiv1.Cut) {
	f.tb.Helper()
	s := f.subs[c.GetSubscriptionId()]
	if s == nil {
		f.tb.Fatalf("cut for subscription %d, which is not open", c.GetSubscriptionId())
	}
	if n := proto.Size(c); n > maxPooled+MaxInstanceBytes {
		f.tb.Errorf("a part of a cut has %d bytes", n)
	}
	if s.cut == nil {
		s.cut = &apiv1.Cut{SubscriptionId: c.GetSubscriptionId(), Full: c.GetFull(), Reason: c.GetReason()}
	}
	if s.cut.GetFull() != c.GetFull() || s.cut.GetReason() != c.GetReason() {
		f.tb.Errorf("parts of a cut differ: %v, %v", s.cut.GetReason(), c.GetReason())
	}
	s.cut.Instances = append(s.cut.Instances, c.GetInstances()...)
	s.cut.Deleted = append(s.cut.Deleted, c.GetDeleted()...)
}

func (f *follower) takeSynced(y *apiv1.Synced) {
	f.tb.Helper()
	id := y.GetSubscriptionId()
	s := f.subs[id]
	if s == nil {
		f.tb.Fatalf("synced for subscription %d, which is not open", id)
	}
	if c := s.cut; c != nil {
		if c.GetFull() {
			s.known = map[string]*registryv1.Instance{}
		}
		for _, in := range c.GetInstances() {
			s.known[nameOf(in)] = in
		}
		for _, k := range c.GetDeleted() {
			delete(s.known, k.GetNamespace()+"/"+k.GetService()+"/"+k.GetId())
		}
		f.cuts[id] = append(f.cuts[id], c)
	}
	if y.GetHeader().GetRevision() < s.upTo {
		f.tb.Errorf("synced at revision %d, but it had been at %d", y.GetHeader().GetRevision(), s.upTo)
	}
	s.cut, s.synced, s.header = nil, true, y.GetHeader()
	s.upTo, s.last = y.GetHeader().GetRevision(), y.GetHeader().GetRevision()
}

func (f *follower) takeEvents(m *apiv1.Events) {
	f.tb.Helper()
	was := map[uint32]uint64{} // a revision is in one message only
	seen := map[string]bool{}
	for _, e := range m.GetEvents() {
		in, revision := e.GetEvent().GetInstance(), e.GetEvent().GetRevision()
		f.events = append(f.events, tell(e))
		if revision > m.GetRevision() {
			f.tb.Errorf("event of revision %d in a message up to %d", revision, m.GetRevision())
		}
		for _, id := range e.GetSubscriptionIds() {
			s := f.subs[id]
			if s == nil {
				continue // Unsubscribed meanwhile.
			}
			if _, ok := was[id]; !ok {
				was[id] = s.last
			}
			if revision <= was[id] || revision < s.last {
				f.tb.Errorf("subscription %d: revision %d after %d", id, revision, s.last)
			}
			unique := fmt.Sprint(id, revision, nameOf(in))
			if seen[unique] {
				f.tb.Errorf("subscription %d: %s of revision %d twice", id, nameOf(in), revision)
			}
			seen[unique] = true
			s.last = revision
			_, known := s.known[nameOf(in)]
			switch {
			case e.GetEvent().GetType() == registryv1.EventType_EVENT_TYPE_PUT:
				s.known[nameOf(in)] = in
			case !known:
				f.tb.Errorf("subscription %d: %s is deleted, which it did not have", id, nameOf(in))
			default:
				delete(s.known, nameOf(in))
			}
		}
	}
	f.upTo(m.GetRevision())
}

func nameOf(in *registryv1.Instance) string {
	return in.GetNamespace() + "/" + in.GetService() + "/" + in.GetId()
}

// tell says an event as "revision sign service/id ids".
func tell(e *apiv1.SubscribedEvent) string {
	sign := "+"
	if e.GetEvent().GetType() == registryv1.EventType_EVENT_TYPE_DELETE {
		sign = "-"
	}
	in := e.GetEvent().GetInstance()
	return fmt.Sprintf("%d %s%s/%s %v", e.GetEvent().GetRevision(), sign, in.GetService(), in.GetId(), e.GetSubscriptionIds())
}

// until takes messages in until all subscriptions have everything up to the revision.
func (f *follower) until(revision uint64) {
	f.tb.Helper()
	for f.behind(revision) {
		f.recv()
	}
}

func (f *follower) behind(revision uint64) bool {
	for _, s := range f.subs {
		if !s.synced || s.upTo < revision || s.cut != nil {
			return true
		}
	}
	return false
}

// equal checks that each subscription knows just what matches in the State.
func (f *follower) equal(st *fsm.State) {
	f.tb.Helper()
	for _, id := range slices.Sorted(maps.Keys(f.subs)) {
		s := f.subs[id]
		want := matching(f.tb, st, s.filter)
		if diff := cmp.Diff(want, s.known, protocmp.Transform()); diff != "" {
			f.tb.Errorf("subscription %d at revision %d (-want +got):\n%s", id, st.Revision(), diff)
		}
	}
}

// matching is what a filter chooses, worked out as the API describes it.
func matching(tb testing.TB, st *fsm.State, f *apiv1.Filter) map[string]*registryv1.Instance {
	tb.Helper()
	namespace := f.GetNamespace()
	if namespace == "" {
		namespace = "default"
	}
	all := map[string]*registryv1.Instance{}
	st.Services("", "", func(svc *fsm.Service) bool {
		svc.Ascend("", func(r *fsm.Record) bool {
			in, err := r.Proto()
			if err != nil {
				tb.Fatal(err)
			}
			ok := (namespace == "*" || in.GetNamespace() == namespace) &&
				(f.GetService() == "" || in.GetService() == f.GetService()) &&
				(f.GetZone() == "" || in.GetZone() == f.GetZone()) &&
				in.GetHealth() >= f.GetMinHealth()
			for _, tag := range f.GetTags() {
				ok = ok && slices.Contains(in.GetTags(), tag)
			}
			for k, v := range f.GetMetadata() {
				got, has := in.GetMetadata()[k]
				ok = ok && has && got == v
			}
			if ok {
				all[nameOf(in)] = in
			}
			return true
		})
		return true
	})
	return all
}

// registration is a command that puts an instance.
func registration(tb testing.TB, in *registryv1.Instance) *raftlogv1.Command {
	tb.Helper()
	if in.GetNamespace() == "" {
		in.Namespace = "default"
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(in)
	if err != nil {
		tb.Fatal(err)
	}
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: b}}}
}

// removal is a command that removes an instance.
func removal(service, id string) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{Deregister: &raftlogv1.Deregister{
		Key: &raftlogv1.Key{Namespace: "default", Service: service, Id: id},
	}}}
}

// maintenance is a command that changes an instance's health.
func maintenance(service, id string, on bool) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_SetMaintenance{SetMaintenance: &raftlogv1.SetMaintenance{
		Key: &raftlogv1.Key{Namespace: "default", Service: service, Id: id}, Maintenance: on,
	}}}
}

// put registers an instance on the node, without the API.
func (n *fakeNode) put(tb testing.TB, in *registryv1.Instance) {
	tb.Helper()
	n.mustApply(tb, registration(tb, in))
}

// skip has the node install a snapshot that is the given commands further.
func (n *fakeNode) skip(tb testing.TB, commands ...*raftlogv1.Command) {
	tb.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.feed.State()
	for _, c := range commands {
		data, err := proto.Marshal(c)
		if err != nil {
			tb.Fatal(err)
		}
		next, _, err := st.Apply(fsm.Entry{Index: st.Index() + 1, Term: 1, Data: fsm.AppendEntry(nil, 1, [][]byte{data})})
		if err != nil {
			tb.Fatal(err)
		}
		st = next
	}
	n.feed.Reset(st)
}
