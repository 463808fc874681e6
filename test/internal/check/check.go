// Package check judges a run: it holds what clients saw (package history) against what really happened (package oracle)
// and against the promises. Each checker is a function of its own that returns violations, and has a test that feeds it
// histories known to be bad, one for each of its rules. No checker knows how the run was made. Start at All, or at Judge
// for the figures as well.
package check

import (
	"fmt"
	"time"

	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// Run is what is judged. It belongs to one epoch: a registry that an operator restored begins another run, with a
// Timeline of its own.
//
// A checker may keep what it works out, so a Run must not change once it is judged, nor be judged by two goroutines.
type Run struct {
	// History is what the clients did and saw.
	History *history.History
	// Timeline is what the log says.
	Timeline *oracle.Timeline
	// Clashes are those of the oracle.Log that the Timeline is of.
	Clashes []string
	// Grace is how late an expiry may be beyond the TTL, on a cluster whose leader did not change meanwhile.
	Grace time.Duration
	// Recovery is how soon after a fault was undone the cluster must serve again. 0: that is not judged.
	Recovery time.Duration
	// Settled is when, since the start of the run, all faults were undone, nobody wrote any more and nothing was left to
	// expire. Watches that were open then were given time to reach the end. 0: the run never settled, and nothing is said
	// about its end.
	Settled time.Duration

	seen *facts
}

// Violation is a broken promise.
type Violation struct {
	// Rule names what was broken, as in "W2" or "lease-early".
	Rule string
	// Detail says how, with the numbers that show it.
	Detail string
}

// String returns the rule and the detail.
func (v Violation) String() string { return v.Rule + ": " + v.Detail }

// Figures say what the checkers had to judge: a run that met little proves little.
type Figures struct {
	Linear  LinearFigures
	Watch   WatchFigures
	Lease   LeaseFigures
	Lock    LockFigures
	Once    OnceFigures
	Replica ReplicaFigures
	// Gaps are how long no write was acknowledged during faults, by kind of fault.
	Gaps map[string]Gap
}

// All returns what all checkers find.
func All(r *Run) []Violation {
	found, _ := Judge(r)
	return found
}

// Judge is All with the figures.
func Judge(r *Run) ([]Violation, Figures) {
	var found []Violation
	var f Figures
	add := func(more []Violation) { found = append(found, more...) }
	var more []Violation
	more, f.Replica = Replica(r)
	add(more)
	add(Model(r))
	more, f.Once = Once(r)
	add(more)
	add(Order(r))
	add(Content(r))
	more, f.Linear = Linear(r)
	add(more)
	more, f.Watch = Watch(r)
	add(more)
	more, f.Lease = Lease(r)
	add(more)
	more, f.Lock = Lock(r)
	add(more)
	more, f.Gaps = Live(r)
	add(more)
	return found, f
}

// verdict collects violations of one checker, at most maxViolations of each rule: a broken rule is broken often.
type verdict struct {
	found map[string]int
	list  []Violation
}

// maxViolations is how many violations of a rule are told.
const maxViolations = 10

func (v *verdict) fault(rule, format string, args ...any) {
	if v.found == nil {
		v.found = map[string]int{}
	}
	v.found[rule]++
	if v.found[rule] <= maxViolations {
		v.list = append(v.list, Violation{Rule: rule, Detail: fmt.Sprintf(format, args...)})
	}
}
