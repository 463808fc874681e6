package cluster_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/fsm"
)

// audit replays what Config.Applied shows.
type audit struct {
	mu    sync.Mutex
	state *fsm.State
	err   error
}

func (a *audit) applied(index, term uint64, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.state, _, a.err = a.state.Apply(fsm.Entry{Index: index, Term: term, Data: data})
	}
}

func (a *audit) seen() (*fsm.State, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.err
}

func TestWhatAnAuditorSeesMakesTheSameState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		audits := map[string]*audit{}
		c := clustertest.New(t, 3, func(cfg *cluster.Config) {
			a := &audit{state: fsm.New()}
			audits[cfg.Name], cfg.Applied = a, a.applied
		})
		c.Ready()
		for i, n := range c.Nodes() {
			c.Put(n, "web", fmt.Sprint(i))
		}
		old := c.Leader()
		c.Net.Isolate(old.Info().Name)
		c.Put(c.Leader(old.Info().Name), "web", "next term")
		c.Net.Heal()
		c.Ready()
		last := c.Leader().Feed().State().Index()
		for _, n := range c.Nodes() {
			name := n.Info().Name
			want, err := n.Feed().WaitIndex(within(t, cluster.DefaultHeartbeatTimeout*10), last)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // The auditor comes after the State.
			got, err := audits[name].seen()
			if err != nil {
				t.Fatalf("%s: the entries seen don't replay: %v", name, err)
			}
			if got.Index() != want.Index() || got.Hash() != want.Hash() || got.Chain() != want.Chain() {
				t.Errorf("%s: what was seen replays to index %d, hash %x; the node has index %d, hash %x",
					name, got.Index(), got.Hash(), want.Index(), want.Hash())
			}
		}
	})
}

func TestAnAuditorSeesAWriteBeforeItIsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &audit{state: fsm.New()}
		c := clustertest.New(t, 1, func(cfg *cluster.Config) { cfg.Applied = a.applied })
		c.Ready()
		for i := range 100 {
			id := fmt.Sprint(i)
			c.Put(c.Leader(), "web", id)
			got, err := a.seen()
			if err != nil {
				t.Fatal(err)
			}
			if got.Instance("default", "web", id) == nil {
				t.Fatalf("the write of %s is acknowledged and the auditor has not seen it", id)
			}
		}
	})
}
