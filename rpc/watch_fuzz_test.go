package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// past is the history of a registry: every State that a client can have seen.
type past []*fsm.State

// at returns the State of a resume point, nil if there was none.
func (p past) at(r *apiv1.ResumePoint) *fsm.State {
	for _, st := range p {
		if r.GetClusterId() == "c1" && r.GetEpoch() == st.Epoch() && r.GetRevision() == st.Revision() {
			return st
		}
	}
	return nil
}

// changes are commands that each change something, to be repeated.
func changes(tb testing.TB) []*raftlogv1.Command {
	tb.Helper()
	zoned := instance("api", "1")
	zoned.Zone, zoned.Tags, zoned.Metadata = "z", []string{"x"}, map[string]string{"k": "v"}
	return []*raftlogv1.Command{
		registration(tb, instance("web", "1")), registration(tb, zoned), registration(tb, instance("web", "2")),
		maintenance("web", "1", true), batch(tb, 9, 10), removal("web", "2"), maintenance("web", "1", false),
		removal("api", "1"), removal("web", "1"),
	}
}

// listener is a watch stream whose client has asked for everything already, and believes what it is told.
type listener struct {
	grpc.ServerStream
	ctx  context.Context
	past past

	mu sync.Mutex // guards what is below
	*follower
	rest    []byte
	resumes map[uint32]*apiv1.ResumePoint
}

func (l *listener) Context() context.Context     { return l.ctx }
func (l *listener) SetHeader(metadata.MD) error  { return nil }
func (l *listener) SendHeader(metadata.MD) error { return nil }
func (l *listener) SetTrailer(metadata.MD)       {}

// RecvMsg asks for the next thing. A subscription knows what its resume point says that it knows.
func (l *listener) RecvMsg(m any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		frame, n := protowire.ConsumeBytes(l.rest)
		if n < 0 {
			return io.EOF
		}
		l.rest = l.rest[n:]
		req := new(apiv1.WatchRequest)
		if proto.Unmarshal(frame, req) != nil {
			continue
		}
		*m.(*undecoded) = frame
		if gone := req.GetUnsubscribe(); gone != nil {
			l.resumes[gone.GetSubscriptionId()] = nil
		}
		sub := req.GetSubscribe()
		if sub == nil {
			return nil
		}
		id := sub.GetSubscriptionId()
		if _, used := l.resumes[id]; used {
			continue // What is said of one of that id before could not be told from what is said of this one.
		}
		l.resumes[id] = sub.GetResume()
		s := &followed{filter: sub.GetFilter(), known: map[string]*registryv1.Instance{}}
		if st := l.past.at(sub.GetResume()); st != nil {
			s.known, s.last, s.upTo = matching(l.tb, st, s.filter), st.Revision(), st.Revision()
		}
		l.subs[id] = s
		return nil
	}
}

// SendMsg takes in what is said, decoded as a client decodes it.
func (l *listener) SendMsg(m any) error {
	data, err := newCodec().Marshal(m)
	if err != nil {
		return err
	}
	defer data.Free()
	resp := new(apiv1.WatchResponse)
	if err := proto.Unmarshal(data.Materialize(), resp); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.take(resp)
	return l.ctx.Err()
}

// FuzzWatch asks arbitrary things of a watch stream, before, in and after the history that the node has kept, while the
// registry changes and is restored. Whoever resumes after a revision with what the registry was there has in the end what
// it is now, each change told once and in order; whoever names no such place gets all of it; whoever is ahead waits.
func FuzzWatch(f *testing.F) {
	resume := func(epoch, revision uint64) *apiv1.ResumePoint {
		return &apiv1.ResumePoint{ClusterId: "c1", Epoch: epoch, Revision: revision}
	}
	asks := func(subs ...*apiv1.Subscribe) []byte {
		var all []proto.Message
		for i, s := range subs {
			s.SubscriptionId = uint32(i + 1)
			all = append(all, &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: s}})
		}
		all = append(all, &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Unsubscribe{
			Unsubscribe: &apiv1.Unsubscribe{SubscriptionId: 2},
		}}, &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Acknowledge{Acknowledge: &apiv1.Acknowledge{Number: 1}}})
		return framed(f, all...)
	}
	web, zoned := &apiv1.Filter{Service: "web"}, &apiv1.Filter{Namespace: "*", Zone: "z", Tags: []string{"x"}, Metadata: map[string]string{"k": "v"}}
	everything := &apiv1.Filter{MinHealth: registryv1.Health_HEALTH_PASSING}
	f.Add(asks(&apiv1.Subscribe{Filter: web}, &apiv1.Subscribe{}, &apiv1.Subscribe{Filter: zoned}), uint8(0))
	f.Add(asks(&apiv1.Subscribe{Resume: resume(1, 3), Filter: everything}, &apiv1.Subscribe{Resume: resume(1, 12)}, &apiv1.Subscribe{Resume: resume(1, 17), Filter: web}), uint8(0))
	f.Add(asks(&apiv1.Subscribe{Resume: resume(2, 25)}, &apiv1.Subscribe{Resume: resume(1, 1<<62)}, &apiv1.Subscribe{Resume: resume(7, 2), Filter: zoned}), uint8(1))
	f.Add(asks(&apiv1.Subscribe{Resume: resume(1, 18)}, &apiv1.Subscribe{Resume: resume(2, 20)}, &apiv1.Subscribe{Resume: resume(2, 1<<63), Filter: zoned}), uint8(1))
	f.Add(asks(&apiv1.Subscribe{Resume: &apiv1.ResumePoint{ClusterId: "other", Revision: 12}}, &apiv1.Subscribe{Resume: &apiv1.ResumePoint{}}), uint8(0))
	// What the registry was: a node that knows the history from its middle on, and was restored.
	st := after(f, fsm.New(), &raftlogv1.Command{Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{ClusterId: "c1"}}})
	early := past{st}
	for range 2 {
		for _, c := range changes(f) {
			st = after(f, st, c)
			early = append(early, st)
		}
	}
	f.Fuzz(func(t *testing.T, asked []byte, restore uint8) {
		synctest.Test(t, func(t *testing.T) {
			middle := len(early) / 2
			b := newBare(nodeAt(early[middle]))
			defer b.close()
			for _, st := range early[middle+1:] {
				c := changes(t)[(int(st.Index())-2)%len(changes(t))]
				b.node.mustApply(t, c)
			}
			if restore%2 == 1 {
				if err := b.node.Restore(t.Context(), early[2]); err != nil {
					t.Fatal(err)
				}
			}
			// A client may have seen at another node what this one is going to see.
			all := append(early[:len(early):len(early)], b.node.feed.State())
			for _, c := range changes(t) {
				all = append(all, after(t, all[len(all)-1], c))
			}
			listenTo(t, b, all, asked)
		})
	})
}

// listenTo serves the stream, goes on changing the registry, and judges what its client knows then.
func listenTo(t *testing.T, b *bare, known past, asked []byte) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := &listener{
		ctx: ctx, past: known, rest: asked, resumes: map[uint32]*apiv1.ResumePoint{},
		follower: &follower{tb: t, subs: map[uint32]*followed{}, cuts: map[uint32][]*apiv1.Cut{}},
	}
	ended := make(chan error, 1)
	go func() {
		server := b.impl[registryService].(*registryServer)
		ended <- server.watch(l)
	}()
	synctest.Wait()
	for _, c := range changes(t) {
		b.node.mustApply(t, c)
	}
	synctest.Wait()
	select {
	case err := <-ended:
		wantServed(t, err)
		var broken *InvalidError
		if err != nil && !errors.As(err, &broken) {
			t.Fatalf("the stream ended: %v", err)
		}
		return
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st := b.node.feed.State()
	for id, s := range l.subs {
		r := l.resumes[id]
		ahead := r.GetClusterId() == "c1" && r.GetEpoch() >= st.Epoch() && r.GetRevision() > st.Revision()
		if ahead == s.synced || s.cut != nil {
			t.Errorf("subscription %d from %v at revision %d: synced %v, cut %v", id, r, st.Revision(), s.synced, s.cut)
		}
		if ahead {
			delete(l.subs, id)
		}
	}
	l.equal(st)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
}
