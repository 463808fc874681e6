package deck

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// clockFaults shift the wall clocks of nodes, each by its own. They change nothing that a node may rely on.
func clockFaults() []fault {
	return []fault{
		{kind: "clocks an hour ahead and two behind", gentle: true, begin: func(w *world) undo {
			leader, follower := w.c.Leader(), w.follower()
			w.setClock(leader, -2*time.Hour)
			w.setClock(follower, time.Hour)
			return w.rightClocks("leader -2h, follower +1h", leader, follower)
		}},
		{kind: "clocks that jump", gentle: true, begin: jump},
	}
}

// setClock sets a node's wall clock to be ahead of the machine's. Safe for concurrent use.
func (w *world) setClock(n *nodes.Node, ahead time.Duration) {
	c := w.clocks[n.Name]
	c.Shift(ahead - c.Offset())
}

// rightClocks sets the clocks of nodes right.
func (w *world) rightClocks(what string, list ...*nodes.Node) undo {
	return func() done {
		for _, n := range list {
			w.setClock(n, 0)
		}
		return to(what, list...)
	}
}

// jump sets all clocks to other times, many times a second.
func jump(w *world) undo {
	all := w.c.Nodes()
	rng := rand.New(rand.NewPCG(w.rng.Uint64(), 2))
	stop, stopped, jumps := make(chan struct{}), make(chan struct{}), 0
	go func() {
		defer close(stopped)
		for {
			for _, n := range all {
				w.setClock(n, time.Duration(rng.Int64N(int64(4*time.Hour)))-2*time.Hour)
			}
			jumps++
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	right := w.rightClocks("", all...)
	return func() done {
		close(stop)
		<-stopped
		d := right()
		d.evidence = fmt.Sprintf("%d jumps of up to 2h", jumps)
		return d
	}
}
