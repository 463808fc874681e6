package sim

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

var (
	oneSeed    = flag.Uint64("seed", 0, "run only this `seed`")
	freeSeeds  = flag.Int("seeds", 1, "run this `number` of random seeds besides the fixed ones")
	callsEvery = flag.Duration("every", 300*time.Millisecond, "mean `time` between two calls of all clients together")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixedSeeds is the number of seeds that every run makes, from 1.
const fixedSeeds = 5

// regressions are seeds that once found something, and what that was. As a seed does not decide everything, each found it
// in some of its runs only.
var regressions = map[uint64]string{
	11: "a watch that was ahead of its node missed what the node skipped by installing a snapshot (W14)",
}

func TestSimulation(t *testing.T) {
	seeds := slices.Sorted(maps.Keys(regressions))
	for i := range uint64(fixedSeeds) {
		seeds = append(seeds, i+1)
	}
	for range *freeSeeds {
		seeds = append(seeds, fixedSeeds+1+rand.Uint64N(1_000_000_000))
	}
	if *oneSeed != 0 {
		seeds = []uint64{*oneSeed}
	}
	var sum tally
	t.Run("seed", func(t *testing.T) {
		for _, seed := range seeds {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { sum.add(simulate(t, newOptions(seed, *callsEvery))) })
			})
		}
	})
	t.Log(&sum)
	if *oneSeed == 0 && !t.Failed() {
		sum.demand(t)
	}
}

// tally is what all runs together met.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (s *tally) add(o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = map[string]int{}
	}
	f := &o.figures
	for what, n := range map[string]int{
		"runs": 1, "calls": o.calls, "leaders": o.leaders, "snapshots installed": o.installed,
		"requests": f.Once.Requests, "requests repeated in the log": f.Once.Repeated,
		"accesses judged": f.Linear.Accesses, "instances judged": f.Linear.Keys,
		"renewals": f.Lease.Renewals, "expired": f.Lease.Expired,
		"locks acquired": f.Lock.Acquired, "locks handed over": f.Lock.Handovers,
		"subscriptions": f.Watch.Subscriptions, "resumed": f.Watch.Resumed, "events": f.Watch.Events,
		"hashes compared": f.Replica.Hashes,
	} {
		s.counts[what] += n
	}
	for reason, n := range f.Watch.Cuts {
		s.counts["cut "+reason] += n
	}
	for kind, n := range o.struck {
		s.counts["fault "+kind] += n
	}
}

// demand fails the test if the runs met too little to prove anything.
func (s *tally) demand(t *testing.T) {
	t.Helper()
	for what, least := range map[string]int{"calls": 1} {
		if s.counts[what] < least {
			t.Errorf("%s: %d in all runs together, want %d at least", what, s.counts[what], least)
		}
	}
	for _, kind := range kinds() {
		if s.counts["fault "+kind] == 0 {
			t.Errorf("no run met the fault %s", kind)
		}
	}
}

// String shows the counts, one a line.
func (s *tally) String() string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		fmt.Fprintf(&b, "\n%7d %s", s.counts[what], what)
	}
	return b.String()
}
