package netsim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Rule is what becomes of frames of one direction. The zero value lets them pass.
type Rule struct {
	// Cut drops all.
	Cut bool
	// Reset drops TCP segments and resets their connection at both ends; a new connection is refused.
	Reset bool
	// Loss is the share that is dropped at random, 0 to 1.
	Loss float64
	// Delay holds each frame back, and Jitter for a random further time up to that. With jitter frames overtake each
	// other; without, they keep their order.
	Delay, Jitter time.Duration
}

// Counts is what was done with frames of one direction since the network was made.
type Counts struct {
	// Passed were handed on, at once or after a delay.
	Passed uint64
	// Cut, Reset and Lost were dropped by the rule of that name.
	Cut, Reset, Lost uint64
	// Delayed were held back; they count as Passed or Cut too once their time has come.
	Delayed uint64
	// Overrun were dropped as too many were held back, or as the receiver has no interface any more.
	Overrun uint64
}

// Sub returns how much was done since an earlier time.
func (c Counts) Sub(before Counts) Counts {
	return Counts{
		Passed: c.Passed - before.Passed, Cut: c.Cut - before.Cut, Reset: c.Reset - before.Reset,
		Lost: c.Lost - before.Lost, Delayed: c.Delayed - before.Delayed, Overrun: c.Overrun - before.Overrun,
	}
}

func (c Counts) add(d Counts) Counts {
	return Counts{
		Passed: c.Passed + d.Passed, Cut: c.Cut + d.Cut, Reset: c.Reset + d.Reset,
		Lost: c.Lost + d.Lost, Delayed: c.Delayed + d.Delayed, Overrun: c.Overrun + d.Overrun,
	}
}

// maxHeld is the number of frames of one direction that may be held back.
const maxHeld = 4096

// link is one direction between two endpoints. A change of its rule waits for the frame that is being written: after it
// no frame passes by the old one, but for those of Rule.Delay, which still come at their time unless the link is cut then.
type link struct {
	net *Network
	to  *Endpoint

	mu     sync.Mutex // guards all below, and is held while a frame is written
	rule   Rule
	counts Counts
	held   int
	rand   *rand.Rand
}

// pass does with a frame what the rule says. The frame is copied if it is kept.
func (l *link) pass(frame []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.rule
	switch {
	case r.Cut:
		l.counts.Cut++
	case r.Reset && isTCP(frame):
		l.counts.Reset++
		l.net.reset(frame)
	case r.Loss > 0 && l.rand.Float64() < r.Loss:
		l.counts.Lost++
	case r.Delay <= 0 && r.Jitter <= 0:
		l.write(frame)
	case l.held >= maxHeld:
		l.counts.Overrun++
	default:
		l.held++
		l.counts.Delayed++
		delay := r.Delay
		if r.Jitter > 0 {
			delay += time.Duration(l.rand.Int64N(int64(r.Jitter)))
		}
		l.net.delayer.add(heldFrame{due: time.Now().Add(delay), link: l, frame: slices.Clone(frame)})
	}
}

// release hands on a frame that was held back.
func (l *link) release(frame []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held--
	if l.rule.Cut {
		l.counts.Cut++
		return
	}
	l.write(frame)
}

// write is called with mu held.
func (l *link) write(frame []byte) {
	if _, err := l.to.port.file.Write(frame); err != nil {
		l.counts.Overrun++
		return
	}
	l.counts.Passed++
}

func (n *Network) change(from, to string, change func(*Rule)) {
	l := n.link(from, to)
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.rule)
}

// link panics when there is no such pair: a misspelt name is a bug of the harness.
func (n *Network) link(from, to string) *link {
	find := func(name string) int {
		i := slices.IndexFunc(n.ends, func(e *Endpoint) bool { return e.Name == name })
		if i < 0 {
			panic(fmt.Sprintf("netsim: no endpoint %q", name))
		}
		return i
	}
	return n.links[find(from)][find(to)]
}

// Set makes the rule that of one direction, whatever it was before.
func (n *Network) Set(from, to string, rule Rule) {
	n.change(from, to, func(r *Rule) { *r = rule })
}

// CutOneWay drops what from sends to to. What is said of delay and loss stays as it is.
func (n *Network) CutOneWay(from, to string) {
	n.change(from, to, func(r *Rule) { r.Cut = true })
}

// Cut cuts each of some endpoints from each of others, in both directions.
func (n *Network) Cut(some, others []string) {
	for _, a := range some {
		for _, b := range others {
			n.CutOneWay(a, b)
			n.CutOneWay(b, a)
		}
	}
}

// Isolate cuts a node from all other nodes, in both directions. The harness still reaches it.
func (n *Network) Isolate(node string) {
	for _, e := range n.Nodes() {
		if e.Name != node {
			n.Cut([]string{node}, []string{e.Name})
		}
	}
}

// Heal takes all rules back. Frames that are held back still come at their time.
func (n *Network) Heal() {
	for _, row := range n.links {
		for _, l := range row {
			l.mu.Lock()
			l.rule = Rule{}
			l.mu.Unlock()
		}
	}
}

// Counts tells what was done with frames of one direction: the evidence that a fault was one.
func (n *Network) Counts(from, to string) Counts {
	l := n.link(from, to)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Total is the sum of all counts.
func (n *Network) Total() Counts {
	var sum Counts
	for _, row := range n.links {
		for _, l := range row {
			l.mu.Lock()
			sum = sum.add(l.counts)
			l.mu.Unlock()
		}
	}
	return sum
}
