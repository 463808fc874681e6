package chaos_test

import (
	"slices"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestARollingRestartFailsNoCall: a consumer calls five instances by HTTP and by gRPC while all registry nodes are restarted
// one after the other, one of them by kill -9, while the instances are replaced one after the other, and while both happen.
// No request fails, also none of those that may not be repeated (G1, G4, G5). While the registry is well instances leave so
// that there is nothing to be tried again either.
//
// CHAOS_RATE is how many requests per second are sent by HTTP, and as many by gRPC.
func TestARollingRestartFailsNoCall(t *testing.T) {
	t.Parallel()
	c := nodes.Start(t, 3)
	f := startFleet(t, c)
	d := discover(t, c)
	s := lookUp(t, d)
	tr := call(t, c, d)
	tr.progress()
	var calm []*phase
	for range rounds(t, 1) {
		tr.enter("registry nodes are restarted")
		before := d.Stats()[0].Stalls
		restart(c)
		if d.Stats()[0].Stalls == before {
			t.Error("the consumer's watch was never interrupted although every node was restarted: this proves nothing")
		}
		tr.progress()

		calm = append(calm, tr.enter("instances are replaced"))
		f.roll()
		tr.progress()

		tr.enter("both")
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.roll() // A Fatal in it ends this goroutine, and the test once the nodes have been restarted.
		}()
		restart(c)
		<-done
		tr.progress()
	}
	tr.judge()
	for _, p := range calm {
		if n := p.retries(); n > 0 {
			t.Errorf("%d requests were tried again while the registry was well: they were sent to an instance that had left", n)
		}
	}
	if v := now(t, s); len(v.Healthy) != fleetSize || len(v.Protected) > 0 {
		t.Errorf("%d healthy instances are listed, %d protected, want %d and none", len(v.Healthy), len(v.Protected), fleetSize)
	}
	stats := d.Stats()[0]
	t.Logf("the consumer's view: %d changes, %d resyncs, interrupted %d times", stats.Changes, stats.Resyncs, stats.Stalls)
	verify(t, c)
}

// restart restarts all nodes one after the other, each once it leads if it comes to that. The second one is killed.
func restart(c *nodes.Cluster) {
	rest := slices.Clone(c.Nodes())
	for k := 0; len(rest) > 0; k++ {
		n := rest[0]
		if leader := c.Leader(); slices.Contains(rest, leader) {
			n = leader
		}
		if k == 1 {
			n.Kill()
		} else {
			n.Terminate(30 * time.Second)
		}
		n.Start()
		c.Ready()
		rest = slices.DeleteFunc(rest, func(x *nodes.Node) bool { return x == n })
	}
}
