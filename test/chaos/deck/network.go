package deck

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/netsim"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// networkFaults are done to the switch between the nodes.
func networkFaults() []fault {
	return []fault{
		{kind: "isolate leader", begin: func(w *world) undo {
			n := w.c.Leader()
			return w.rules(func() { w.net.Isolate(n.Name) }, n)
		}},
		{kind: "split, the leader with the few", begin: func(w *world) undo {
			few := []*nodes.Node{w.c.Leader(), w.follower()}
			return w.rules(func() { w.net.Cut(names(few), names(w.others(few...))) }, few...)
		}},
		{kind: "bridge", begin: func(w *world) undo {
			both := w.follower() // Followers talk to nobody but the leader: if that saw both halves, nothing would be cut.
			halves := slices.DeleteFunc(w.shuffled(), func(n *nodes.Node) bool { return n == both })
			return w.rules(func() { w.net.Cut(names(halves[:2]), names(halves[2:])) }, both)
		}},
		{kind: "deaf leader", begin: func(w *world) undo {
			n := w.c.Leader()
			return w.rules(func() {
				for _, other := range w.others(n) {
					w.net.CutOneWay(other.Name, n.Name)
				}
			}, n)
		}},
		{kind: "mute follower", begin: func(w *world) undo {
			n := w.follower()
			return w.rules(func() {
				for _, other := range w.others(n) {
					w.net.CutOneWay(n.Name, other.Name)
				}
			}, n)
		}},
		{kind: "answers to clients lost", begin: func(w *world) undo {
			n := w.c.Leader()
			return w.rules(func() {
				for _, leg := range w.net.Legs() {
					w.net.CutOneWay(n.Name, leg.Name)
				}
			}, n)
		}},
		{kind: "slow and lossy links", gentle: true, begin: func(w *world) undo {
			rule := netsim.Rule{
				Loss: 0.02 + 0.08*w.rng.Float64(), Delay: time.Duration(5+w.rng.IntN(40)) * time.Millisecond,
				Jitter: time.Duration(5+w.rng.IntN(20)) * time.Millisecond,
			}
			return w.rules(func() { w.everyLink(func(from, to string) { w.net.Set(from, to, rule) }) }, w.c.Nodes()...)
		}},
		{kind: "connections reset", begin: func(w *world) undo {
			n := w.follower()
			return w.rules(func() {
				for _, other := range w.others(n) {
					w.net.Set(n.Name, other.Name, netsim.Rule{Reset: true})
				}
			}, n)
		}},
		{kind: "flapping link", begin: flap},
	}
}

// rules changes rules of the network, and takes back all rules at the end. Evidence is what the switch did to frames.
func (w *world) rules(change func(), list ...*nodes.Node) undo {
	before := w.net.Total()
	change()
	return func() done {
		did := w.net.Total().Sub(before)
		w.net.Heal()
		if did.Cut+did.Reset+did.Lost+did.Delayed == 0 {
			return to("", list...)
		}
		return to(fmt.Sprintf("frames cut %d, reset %d, lost %d, delayed %d", did.Cut, did.Reset, did.Lost, did.Delayed), list...)
	}
}

func (w *world) everyLink(visit func(from, to string)) {
	for _, a := range w.c.Nodes() {
		for _, b := range w.c.Nodes() {
			if a != b {
				visit(a.Name, b.Name)
			}
		}
	}
}

// flap cuts the leader from a follower and heals that again, several times a second.
func flap(w *world) undo {
	leader, follower := w.c.Leader(), w.follower()
	before := w.net.Total()
	stop, stopped := make(chan struct{}), make(chan struct{})
	pause := func(rng *rand.Rand) time.Duration { return time.Duration(100+rng.IntN(200)) * time.Millisecond }
	rng := rand.New(rand.NewPCG(w.rng.Uint64(), 1))
	go func() {
		defer close(stopped)
		for cut := true; ; cut = !cut {
			if cut {
				w.net.Cut([]string{leader.Name}, []string{follower.Name})
			} else {
				w.net.Heal()
			}
			select {
			case <-stop:
				return
			case <-time.After(pause(rng)):
			}
		}
	}()
	return func() done {
		close(stop)
		<-stopped
		w.net.Heal()
		cut := w.net.Total().Sub(before).Cut
		if cut == 0 {
			return to("", leader, follower)
		}
		return to(fmt.Sprintf("frames cut %d", cut), leader, follower)
	}
}
