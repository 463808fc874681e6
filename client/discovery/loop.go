package discovery

import (
	"math"
	"slices"
)

// maxOwed bounds the acknowledgements that wait for loops. Beyond it the last one stands for the one before it.
const maxOwed = 64

// loop is a Service.All that runs. Who leaves waits until each has come back from the view in which the instance is draining:
// until then the balancer that it keeps may still choose it.
type loop struct {
	back uint64 // number of the last list from which it came back
}

// debt is an acknowledgement that the registry gets once all loops have come back from a list.
type debt struct {
	list   uint64
	accept func()
}

// enter notes that a loop begins. It counts as behind until it comes back from its first view.
func (f *follower) enter() *loop {
	l := &loop{}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loops == nil {
		f.loops = make(map[*loop]struct{})
	}
	f.loops[l] = struct{}{}
	return l
}

// leave notes that a loop has ended.
func (f *follower) leave(l *loop) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.loops, l)
	f.pay()
}

// back notes that a loop has come back from a view.
func (f *follower) back(l *loop, v *View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.back = v.list.number
	f.pay()
}

// owe has everything acknowledged that the view shows, which is all that came, once all loops have taken it in.
func (f *follower) owe(accept func()) {
	d := debt{accept: accept}
	if v := f.current.Load(); v != nil {
		d.list = v.list.number
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.owed); n > 0 && (f.owed[n-1].list == d.list || n == maxOwed) {
		f.owed[n-1] = d
	} else {
		f.owed = append(f.owed, d)
	}
	f.pay()
}

// pay acknowledges what all loops have taken in. The caller holds mu.
func (f *follower) pay() {
	back := uint64(math.MaxUint64)
	for l := range f.loops {
		back = min(back, l.back)
	}
	n := 0
	for n < len(f.owed) && f.owed[n].list <= back {
		n++
	}
	if n > 0 {
		f.owed[n-1].accept() // It stands for those before it.
		f.owed = slices.Delete(f.owed, 0, n)
	}
}
