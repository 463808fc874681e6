package netsim

import (
	"container/heap"
	"sync"
	"time"
)

// maxFrame is the largest frame: an Ethernet header and an MTU of 1500.
const maxFrame = 14 + 1500

// Where things are in a frame.
const (
	etherType  = 12
	ipHeader   = 14
	ipSource   = ipHeader + 12
	ipTarget   = ipHeader + 16
	leastFrame = ipHeader + 20
)

// read forwards what comes in at a port until that is closed.
func (n *Network) read(p *port) {
	buf := make([]byte, maxFrame+1)
	for {
		size, err := p.file.Read(buf)
		if err != nil {
			return
		}
		if l := n.route(buf[:size]); l != nil {
			l.pass(buf[:size])
		}
	}
}

// route returns the link of a frame, nil when it is not IPv4 between two endpoints. The addresses decide, as all legs of
// the harness share one MAC.
func (n *Network) route(frame []byte) *link {
	if len(frame) < leastFrame || frame[etherType] != 0x08 || frame[etherType+1] != 0x00 {
		return nil
	}
	from, to := n.at(frame[ipSource:ipTarget]), n.at(frame[ipTarget:leastFrame])
	if from < 0 || to < 0 {
		return nil
	}
	return n.links[from][to]
}

// at returns the index of the endpoint with an address, -1 when there is none.
func (n *Network) at(address []byte) int {
	if [3]byte(address[:3]) != n.prefix {
		return -1
	}
	return n.places[address[3]]
}

// heldFrame is a frame that is held back.
type heldFrame struct {
	due   time.Time
	order uint64
	link  *link
	frame []byte
}

// delayer releases frames when they are due, those due at one time in the order in which they came.
type delayer struct {
	mu    sync.Mutex // guards the next two
	held  heldFrames
	order uint64

	wake chan struct{} // capacity 1: the first frame may be another one
}

func newDelayer() *delayer { return &delayer{wake: make(chan struct{}, 1)} }

func (d *delayer) add(f heldFrame) {
	d.mu.Lock()
	d.order++
	f.order = d.order
	heap.Push(&d.held, f)
	first := d.held[0].order == f.order
	d.mu.Unlock()
	if !first {
		return
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run releases frames until quit is closed. What is held back then is dropped.
func (d *delayer) run(quit <-chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		f, wait := d.take(time.Now())
		if f.link != nil {
			f.link.release(f.frame)
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-d.wake:
		case <-quit:
			return
		}
	}
}

// take removes the first frame if it is due, else it returns how long to wait.
func (d *delayer) take(now time.Time) (f heldFrame, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.held) == 0 {
		return heldFrame{}, time.Hour
	}
	if wait := d.held[0].due.Sub(now); wait > 0 {
		return heldFrame{}, wait
	}
	return heap.Pop(&d.held).(heldFrame), 0
}

// heldFrames implements heap.Interface.
type heldFrames []heldFrame

func (h heldFrames) Len() int { return len(h) }

func (h heldFrames) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].order < h[j].order
	}
	return h[i].due.Before(h[j].due)
}

func (h heldFrames) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *heldFrames) Push(x any)   { *h = append(*h, x.(heldFrame)) }

func (h *heldFrames) Pop() any {
	last := len(*h) - 1
	f := (*h)[last]
	(*h)[last] = heldFrame{}
	*h = (*h)[:last]
	return f
}
