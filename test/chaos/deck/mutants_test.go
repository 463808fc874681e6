package deck

import (
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
			p := whole()
			p.episodes = 6
			switch m.Name { // Not each pause shows these.
			case "M3":
				p = rapid()
				p.episodes = 40
			case "M8":
				p = rapid()
				p.episodes, p.last = 20, 2500*time.Millisecond
			}
			p.name, p.kinds = "mutant "+m.Name, shownBy(m.Name)
			r := deal(t, 1, p, m)
			found := map[string]int{}
			for _, v := range r.Violations {
				if found[v.Rule]++; found[v.Rule] == 1 {
					t.Logf("found: %v", v)
				}
			}
			if found[m.Rule] == 0 {
				t.Fatalf("%s was not caught by %s; found in all: %v", m.Name, m.Rule, found)
			}
			t.Logf("%s, which breaks %q, was caught by %s; found in all: %v", m.Name, m.Promise, m.Rule, found)
		})
	}
}
