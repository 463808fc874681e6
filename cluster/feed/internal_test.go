package feed

import (
	"context"
	"math"
	"sync"
	"testing"

	"github.com/regd-io/regd/fsm"
)

// Whatever holds the dispatcher up: the applier does not wait, and what is pending is bounded.
func TestAfterAnOverrunEverythingMayDiffer(t *testing.T) {
	st := fsm.New()
	f := New(st, Limits{})
	defer f.Close()
	w := f.Watch(Topic{Kind: fsm.EventSession})
	defer w.Close()
	instances := f.Watch(Topic{Kind: fsm.EventInstance, Namespace: AnyNamespace})
	defer instances.Close()
	events := make([]fsm.Event, 1000)
	for i := range events {
		events[i] = fsm.Event{Kind: fsm.EventSession, Name: "s"}
	}
	f.topics.mu.Lock() // The dispatcher can't go on.
	for range 3 * maxPending / len(events) {
		f.Publish(st, events)
	}
	f.mu.Lock()
	if f.events > maxPending {
		t.Errorf("%d events are pending, the limit is %d", f.events, maxPending)
	}
	f.mu.Unlock()
	f.topics.mu.Unlock()
	// Sessions are not compared, and who has read one of the States between has what differs in neither end.
	for _, told := range []*Watcher{w, instances} {
		resync := (*Resync)(nil)
		for resync == nil || resync.Reason == ReasonSlowReader { // The first ones were under way, however many.
			<-told.Ready()
			resync = told.Take().Resync
		}
		if !resync.Full {
			t.Errorf("resync %+v after an overrun, want a full one", resync)
		}
	}
}

func TestWaitersLeaveNothingBehind(t *testing.T) {
	f := New(fsm.New(), Limits{})
	defer f.Close()
	var wg sync.WaitGroup
	for i := range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { _, _ = f.WaitIndex(ctx, uint64(1+i%7)) })
		wg.Go(cancel)
	}
	wg.Wait()
	w := &f.indexes
	if len(w.groups) > 0 || len(w.heap) > 0 || w.lowest.Load() != math.MaxUint64 {
		t.Errorf("%d groups, %d in the heap, lowest %d", len(w.groups), len(w.heap), w.lowest.Load())
	}
}

// Only those are woken whose target is reached.
func TestWaitersAreWokenInOrder(t *testing.T) {
	var w waiters
	w.init()
	var groups []*group
	for _, target := range []uint64{5, 3, 9, 3, 7} {
		groups = append(groups, w.join(target))
	}
	if w.due(2) || !w.due(3) {
		t.Error("due is wrong about the lowest target")
	}
	w.release(6)
	for _, g := range groups {
		select {
		case <-g.ready:
			if g.target > 6 {
				t.Errorf("target %d was released by 6", g.target)
			}
		default:
			if g.target <= 6 {
				t.Errorf("target %d was not released by 6", g.target)
			}
		}
		w.leave(g)
	}
	if w.due(math.MaxUint64 - 1) {
		t.Error("somebody is still due")
	}
}
