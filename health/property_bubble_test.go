package health

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// TestNeverEarlyBoundedLate is the promise on leases (G5), under random renewals, changes of leader, interruptions, and
// failures of the log: nothing ends before the time that its last acknowledged renewal promised, what was told to have
// ended is never acknowledged again in that term, and everything ends in the end.
func TestNeverEarlyBoundedLate(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		actions := rapid.SliceOfN(rapid.IntRange(0, 99), 20, 150).Draw(rt, "actions")
		waits := rapid.SliceOfN(rapid.IntRange(0, 4000), len(actions), len(actions)).Draw(rt, "waits")
		// rapid's T is not of the bubble: faults found inside come out as text.
		var fault string
		synctest.Test(t, func(t *testing.T) {
			r := newHistory(t)
			for i, a := range actions {
				r.step(a, time.Duration(waits[i])*time.Millisecond)
			}
			r.finish()
			fault = r.fault()
		})
		if fault != "" {
			rt.Fatal(fault)
		}
	})
}

// promised is what a client of a session or lease may rely on.
type promised struct {
	kind  peerv1.RenewKind
	ttl   time.Duration
	until time.Time
	ended uint64 // The term in which it was told to have ended.
}

// history is one run of the property test. All but onApply runs in the goroutine of the test.
type history struct {
	*world
	ids   []string
	stall atomic.Int64

	// Guarded by world.mu.
	faults   []string
	promises map[string]*promised
}

func newHistory(t *testing.T) *history {
	r := &history{world: newWorld(t, nil), promises: map[string]*promised{}}
	r.m.state = func() *fsm.State {
		time.Sleep(time.Duration(r.stall.Swap(0)))
		return r.feed.State()
	}
	r.onApply = func(cmd *raftlogv1.Command, st *fsm.State) {
		for _, id := range cmd.GetExpire().GetSessions() {
			r.expire(id, st.Session(id) != nil)
		}
		for _, id := range cmd.GetExpire().GetLeases() {
			r.expire(id, st.Lease(id) != nil)
		}
	}
	r.lead()
	return r
}

// expire is called with mu held, before a command that ends id is applied.
func (r *history) expire(id string, there bool) {
	p := r.promises[id]
	if early := time.Until(p.until); there && early > 0 {
		r.faults = append(r.faults, fmt.Sprintf("%s ended %v before the promised time", id, early))
	}
}

func (r *history) fault() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.faults, "; ")
}

// step does one thing; d is the time that it has to do with.
func (r *history) step(action int, d time.Duration) {
	switch {
	case action < 15:
		r.open()
	case action < 70:
		wait(d / 4)
		r.renewSome(action, d/20)
	case action < 80:
		wait(2 * d)
	case action < 86:
		r.pause(d * 3)
	case action < 92:
		r.lead()
	default:
		r.disturb(action)
	}
}

func (r *history) open() {
	id := fmt.Sprint("id", len(r.ids))
	p := &promised{ttl: time.Duration(2+len(r.ids)%9) * time.Second, kind: renewSession}
	r.set(func() { r.promises[id] = p })
	if len(r.ids)%3 == 0 {
		p.kind = renewLease
		r.grantLease(id, p.ttl)
	} else {
		r.openSession(id, p.ttl)
	}
	r.set(func() { p.until = time.Now().Add(p.ttl) })
	r.ids = append(r.ids, id)
}

// renewSome renews every few ids, in a round that takes the given time.
func (r *history) renewSome(every int, round time.Duration) {
	taken := time.Now()
	r.mu.Lock()
	term := r.term
	r.mu.Unlock()
	wait(round)
	for i, id := range r.ids {
		if i%(1+every%4) != 0 {
			continue
		}
		p := r.promises[id]
		ended, err := r.m.Renew(term, taken, []*peerv1.Renewals{{Kind: p.kind, Ids: []string{id}}})
		r.set(func() {
			switch {
			case err != nil: // Nothing is promised.
			case len(ended) > 0:
				p.ended = term
			case p.ended == term:
				r.faults = append(r.faults, id+" was renewed after it was told to have ended")
			default:
				if until := taken.Add(p.ttl); until.After(p.until) {
					p.until = until
				}
			}
		})
	}
}

// pause stops the whole node.
func (r *history) pause(d time.Duration) {
	r.stall.Store(int64(d))
	wait(d + grace/2) // Until the next look at the queue is over; nothing else happens meanwhile.
	r.stall.Store(0)
}

// disturb changes how the log behaves.
func (r *history) disturb(action int) {
	r.set(func() {
		switch action {
		case 92, 93:
			r.stalled = true
		case 94:
			r.release()
		case 95: // What was pending is dropped, as by a new leader that does not have it.
			for _, e := range r.pending {
				close(e.done)
			}
			r.pending, r.stalled = nil, false
		case 96:
			r.refuse = errOverloaded
		case 97:
			r.loseAck = true
		default:
			r.refuse, r.loseAck = nil, false
		}
	})
}

// finish heals everything and waits until all must have ended.
func (r *history) finish() {
	r.set(func() {
		r.release()
		r.refuse, r.loseAck = nil, false
	})
	// The longest TTL, extended by one interruption, and the wait of a proposal that failed.
	wait(10*time.Second + 12*time.Second + late + 5*time.Second + 2*lastBackoff)
	if n := r.state().Counts(); n.Sessions+n.Leases > 0 {
		r.faults = append(r.faults, fmt.Sprintf("%d sessions and %d leases did not end", n.Sessions, n.Leases))
	}
	r.stop()
}
