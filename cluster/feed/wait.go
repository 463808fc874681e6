package feed

import (
	"container/heap"
	"math"
	"sync"
	"sync/atomic"
)

// waiters are those who wait until a number that only grows has reached a target. All who wait for one target share one
// channel, so that waking them costs one close, and who is not due is not touched.
type waiters struct {
	// lowest is the smallest target, MaxUint64 when nobody waits: what the applier looks at.
	lowest atomic.Uint64

	mu     sync.Mutex        // guards the next two
	groups map[uint64]*group // by target
	heap   groupHeap
}

// group are those who wait for one target.
type group struct {
	target  uint64
	ready   chan struct{} // closed when the target is reached
	members int
	place   int // in the heap, -1 when not in it
}

func (w *waiters) init() {
	w.lowest.Store(math.MaxUint64)
	w.groups = map[uint64]*group{}
}

// due tells whether somebody waits for reached or less.
func (w *waiters) due(reached uint64) bool { return w.lowest.Load() <= reached }

// join adds the caller to the group of the target. It must leave it.
func (w *waiters) join(target uint64) *group {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.groups[target]
	if g == nil {
		g = &group{target: target, ready: make(chan struct{})}
		w.groups[target] = g
		heap.Push(&w.heap, g)
		w.lowest.Store(w.heap[0].target)
	}
	g.members++
	return g
}

// leave takes the caller out of its group.
func (w *waiters) leave(g *group) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g.members--
	if g.members == 0 && g.place >= 0 {
		heap.Remove(&w.heap, g.place)
		w.forget(g)
	}
}

// release wakes all whose target is reached.
func (w *waiters) release(reached uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.heap) > 0 && w.heap[0].target <= reached {
		g := heap.Pop(&w.heap).(*group)
		w.forget(g)
		close(g.ready)
	}
}

// forget drops a group that is out of the heap. w.mu is held.
func (w *waiters) forget(g *group) {
	delete(w.groups, g.target)
	if len(w.heap) == 0 {
		w.lowest.Store(math.MaxUint64)
		return
	}
	w.lowest.Store(w.heap[0].target)
}

// groupHeap orders groups by target, for container/heap.
type groupHeap []*group

func (h groupHeap) Len() int           { return len(h) }
func (h groupHeap) Less(i, j int) bool { return h[i].target < h[j].target }
func (h groupHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push adds a group at the end.
func (h *groupHeap) Push(x any) {
	g := x.(*group)
	g.place = len(*h)
	*h = append(*h, g)
}

// Pop takes the group at the end.
func (h *groupHeap) Pop() any {
	old := *h
	g := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	g.place = -1
	return g
}
