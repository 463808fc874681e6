package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

const (
	// progressEvery is the longest silence that watchers ask for.
	progressEvery = 2 * time.Second
	// deaf is the silence after which a watcher believes that its node is gone.
	deaf = 6 * time.Second
	// maxSubscriptions is the number of subscriptions of a watcher.
	maxSubscriptions = 4
	// slowest is the longest time that a slow reader takes for a message.
	slowest = 4 * time.Second
)

// watcher follows a few subscriptions over one stream after the other, each going on where the last one broke off.
type watcher struct {
	*caller
	single bool       // it uses WatchService, with one subscription
	fickle *rand.Rand // decides about changes of mind

	mu   latch // guards the fields below
	subs map[uint32]*subscription
	made uint32 // subscriptions so far
	// cluster and epoch are those of the last header.
	cluster string
	epoch   uint64
	stream  watchStream // nil: none is open
}

// latch is a mutex that may be held while a stream is opened or written to. In a testing/synctest bubble time goes on while
// somebody waits for it, as it does not for a sync.Mutex. Made by newLatch.
type latch chan struct{}

func newLatch() latch { return make(latch, 1) }

// Lock implements sync.Locker.
func (l latch) Lock() { l <- struct{}{} }

// Unlock implements sync.Locker.
func (l latch) Unlock() { <-l }

// subscription is one that is open, or will be on the next stream.
type subscription struct {
	filter *apiv1.Filter
	known  bool   // it has been synced, at some time
	synced bool   // on this stream
	upTo   uint64 // it has everything up to here
}

// watchStream is a stream of either kind.
type watchStream interface {
	send(*apiv1.WatchRequest) error
	recv() (watchMessage, error)
}

// watchMessage is what the messages of both kinds have in common.
type watchMessage interface {
	GetSynced() *apiv1.Synced
	GetEvents() *apiv1.Events
	GetProgress() *apiv1.Progress
	GetGoElsewhere() *apiv1.GoElsewhere
}

type manyStream struct {
	grpc.BidiStreamingClient[apiv1.WatchRequest, apiv1.WatchResponse]
}

func (s manyStream) send(req *apiv1.WatchRequest) error { return s.Send(req) }
func (s manyStream) recv() (watchMessage, error)        { return s.Recv() }

type singleStream struct {
	grpc.ServerStreamingClient[apiv1.WatchServiceResponse]
}

func (s singleStream) send(*apiv1.WatchRequest) error { return nil }
func (s singleStream) recv() (watchMessage, error)    { return s.Recv() }

// watch starts n watchers, every other one pinned to a node. They end with ctx.
func (w *Workload) watch(ctx context.Context, n int) {
	for i := range n {
		node := ""
		if i%2 == 0 {
			node = w.node(i / 2)
		}
		role := fmt.Sprintf("watcher%d", i)
		r := &watcher{
			caller: w.newCaller(role, node), fickle: w.random(role + "'s mind"), mu: newLatch(), subs: map[uint32]*subscription{},
		}
		r.single = i%4 == 3
		r.add()
		for !r.single && r.rng.IntN(2) == 0 {
			r.add()
		}
		w.watchers = append(w.watchers, r)
		w.watching.Go(func() {
			defer r.close()
			for ctx.Err() == nil {
				r.follow(ctx)
				r.move()
				sleep(ctx, r.within(0, 500*time.Millisecond))
			}
		})
	}
}

// follow opens a stream and reads it until it breaks, keeps silent, or the watcher wants another one.
func (r *watcher) follow(ctx context.Context) {
	conn, err := r.conn()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	silence := time.AfterFunc(deaf, cancel)
	defer silence.Stop()
	stream, err := r.open(ctx, conn)
	var minds sync.WaitGroup
	defer r.lost()
	defer minds.Wait()
	defer cancel()
	if err != nil {
		return
	}
	minds.Go(func() { r.changeItsMind(ctx, cancel) })
	slow := r.rng.IntN(4) == 0
	for {
		m, err := stream.recv()
		if err != nil || m.GetGoElsewhere() != nil {
			return
		}
		r.take(m)
		if slow {
			silence.Stop()
			r.dawdle(ctx)
		}
		silence.Reset(deaf)
	}
}

// open opens a stream with all subscriptions.
func (r *watcher) open(ctx context.Context, conn *grpc.ClientConn) (watchStream, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	registry := apiv1.NewRegistryServiceClient(conn)
	if r.single {
		sub := r.subscribe(1).GetSubscribe()
		stream, err := registry.WatchService(ctx, &apiv1.WatchServiceRequest{
			Filter: sub.GetFilter(), Resume: sub.GetResume(), ProgressInterval: sub.GetProgressInterval(),
		})
		r.stream = singleStream{stream}
		return r.stream, err
	}
	stream, err := registry.Watch(ctx)
	if err != nil {
		return nil, err
	}
	r.stream = manyStream{stream}
	for id := range r.made {
		if r.subs[id+1] == nil {
			continue
		}
		if err := stream.Send(r.subscribe(id + 1)); err != nil {
			return nil, err
		}
	}
	return r.stream, nil
}

// lost notes that the stream is over.
func (r *watcher) lost() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stream = nil
	for _, sub := range r.subs {
		sub.synced = false
	}
}

// add makes a subscription if there is room, and opens it if a stream is open. The caller holds mu, or is alone.
func (r *watcher) add() {
	if len(r.subs) >= maxSubscriptions {
		return
	}
	r.made++
	r.subs[r.made] = &subscription{filter: filter(r.fickle)}
	if r.stream != nil {
		_ = r.stream.send(r.subscribe(r.made))
	}
}

// drop ends a subscription, but not the last one. The caller holds mu.
func (r *watcher) drop(id uint32) {
	if len(r.subs) < 2 || r.subs[id] == nil {
		return
	}
	delete(r.subs, id)
	_ = r.stream.send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Unsubscribe{
		Unsubscribe: &apiv1.Unsubscribe{SubscriptionId: id},
	}})
}

// subscribe is the request that opens a subscription, or goes on with it. The caller holds mu.
func (r *watcher) subscribe(id uint32) *apiv1.WatchRequest {
	sub := r.subs[id]
	req := &apiv1.Subscribe{SubscriptionId: id, Filter: sub.filter, ProgressInterval: durationpb.New(progressEvery)}
	if sub.known {
		req.Resume = &apiv1.ResumePoint{ClusterId: r.cluster, Epoch: r.epoch, Revision: sub.upTo}
	}
	return &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: req}}
}

// take notes what a message says about how far the subscriptions are.
func (r *watcher) take(m watchMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case m.GetSynced() != nil:
		h := m.GetSynced().GetHeader()
		r.cluster, r.epoch = h.GetClusterId(), h.GetEpoch()
		if sub := r.subs[m.GetSynced().GetSubscriptionId()]; sub != nil {
			sub.known, sub.synced, sub.upTo = true, true, h.GetRevision()
		}
	case m.GetEvents() != nil:
		r.reach(m.GetEvents().GetRevision())
	case m.GetProgress() != nil:
		r.reach(m.GetProgress().GetHeader().GetRevision())
	}
}

// reach notes that whatever is synced has everything up to the revision. The caller holds mu.
func (r *watcher) reach(revision uint64) {
	for _, sub := range r.subs {
		if sub.synced {
			sub.upTo = max(sub.upTo, revision)
		}
	}
}

// behind tells how many subscriptions have not everything up to the revision.
func (r *watcher) behind(revision uint64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, sub := range r.subs {
		if !sub.synced || sub.upTo < revision {
			n++
		}
	}
	return n
}

// changeItsMind adds and ends subscriptions, and the stream now and then, until ctx ends or all others have stopped.
func (r *watcher) changeItsMind(ctx context.Context, end context.CancelFunc) {
	for {
		timer := time.NewTimer(time.Duration(r.fickle.ExpFloat64() * float64(8*r.w.cfg.Pause)))
		select {
		case <-timer.C:
		case <-r.w.settling:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
		r.mu.Lock()
		switch n := r.fickle.IntN(6); {
		case n < 2:
			end()
		case r.single:
		case n < 4:
			r.add()
		default:
			r.drop(1 + r.fickle.Uint32N(r.made))
		}
		r.mu.Unlock()
	}
}

// dawdle is what makes a reader slow. Nobody is once all others have stopped.
func (r *watcher) dawdle(ctx context.Context) {
	timer := time.NewTimer(r.within(0, slowest))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.w.settling:
	case <-ctx.Done():
	}
}
