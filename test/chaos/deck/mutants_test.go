package deck

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/build"
)

// shownBy are the faults that show what is wrong with a mutant.
func shownBy(mutant string) []string {
	return map[string][]string{
		"M1":  {"power loss of all"},
		"M2":  {"pause leader", "isolate leader"},
		"M3":  {"pause leader"},
		"M4":  {"mute follower", "pause follower", "power loss of the leader"},
		"M5":  {"mute follower", "pause follower", "kill follower"},
		"M6":  {"clocks that jump"},
		"M7":  {"kill leader"},
		"M8":  {"pause leader"},
		"M9":  {"transfer leadership"},
		"M10": {"kill follower"},
	}[mutant]
}

// TestMutantsAreCaught: each slip in the product is found by the checker that is named for it. It runs when
// CHAOS_MUTANTS=1, as it takes many minutes; CHAOS_MUTANTS=M3 tries one.
func TestMutantsAreCaught(t *testing.T) {
	which := os.Getenv("CHAOS_MUTANTS")
	if which == "" {
		t.Skip("takes many minutes: make chaos-mutants")
	}
	for _, m := range build.Mutants() {
		if which != "1" && which != m.Name {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			for seed := range uint64(mutantSeeds) {
				if catch(t, seed+1, m) {
					return
				}
			}
			t.Errorf("%s was not caught by %s", m.Name, m.Rule)
		})
	}
}

// mutantSeeds is how many runs a mutant is given: some show in a few of many pauses only.
const mutantSeeds = 3

// catch makes a run on a mutant and tells whether the checker that is named for it found it.
func catch(t *testing.T, seed uint64, m build.Mutant) bool {
	t.Helper()
	p := whole()
	p.episodes = 6
	switch m.Name {
	case "M3":
		p = rapid()
		p.episodes = 40
	case "M8":
		p = rapid()
		p.episodes, p.last = 20, 2500*time.Millisecond
	}
	p.name, p.kinds = "mutant "+m.Name, shownBy(m.Name)
	found := map[string]int{}
	t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
		for _, v := range deal(t, seed, p, m).Violations {
			if found[v.Rule]++; found[v.Rule] == 1 {
				t.Logf("found: %v", v)
			}
		}
		if found[m.Rule] > 0 {
			t.Logf("%s, which breaks %q, was caught by %s with seed %d", m.Name, m.Promise, m.Rule, seed)
		}
		t.Logf("found in all: %v", found)
	})
	return found[m.Rule] > 0
}
