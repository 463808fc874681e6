package deck

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/build"
)

// allFaults are those of a machine that allows all.
func allFaults() []fault {
	return slices.Concat(processFaults(), memberFaults(), clockFaults(), networkFaults(), diskFaults())
}

func TestEveryFaultIsDealtOnceBeforeAnyTwice(t *testing.T) {
	all := allFaults()
	for seed := range uint64(50) {
		list := schedule(rand.New(rand.NewPCG(seed, 0)), all, len(all)+1, time.Second)
		if len(list) != 2*len(all) {
			t.Fatalf("%d episodes of %d faults, want each twice", len(list), len(all))
		}
		dealt, together := map[string]int{}, 0
		for i, e := range list {
			dealt[e.faults[0].kind]++
			if want := i/len(all) + 1; dealt[e.faults[0].kind] != want {
				t.Errorf("seed %d: episode %d deals %q for the %dth time", seed, i, e.faults[0].kind, dealt[e.faults[0].kind])
			}
			if len(e.faults) > 1 {
				together++
				if e.faults[0].alone || !e.faults[1].gentle {
					t.Errorf("seed %d: %v", seed, e)
				}
			}
			if e.last < time.Second || e.last >= 2*time.Second {
				t.Errorf("seed %d: %v", seed, e)
			}
		}
		if together == 0 {
			t.Errorf("seed %d: no two faults at once in %d episodes", seed, len(list))
		}
	}
}

func TestKindsOfFaultsAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range allFaults() {
		if seen[f.kind] {
			t.Errorf("two faults are called %q", f.kind)
		}
		seen[f.kind] = true
	}
	if len(seen) < 26 {
		t.Errorf("%d kinds of faults, want at least 26", len(seen))
	}
}

func TestMutantsAreShownByFaultsThatExist(t *testing.T) {
	w := &world{faults: allFaults()}
	for _, m := range build.Mutants() {
		if kinds := shownBy(m.Name); len(kinds) == 0 || len(w.deck(kinds)) != len(kinds) {
			t.Errorf("%s is shown by %q, of which %d exist", m.Name, kinds, len(w.deck(kinds)))
		}
	}
}
