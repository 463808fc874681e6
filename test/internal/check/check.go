// Package check judges a run: it holds what clients saw (package history) against what really happened (package oracle)
// and against the promises. Each checker is a function of its own that returns violations, and has a test that feeds it
// histories known to be bad, one for each of its rules. No checker knows how the run was made.
package check

import (
	"fmt"
	"time"

	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// Run is what is judged.
type Run struct {
	// History is what the clients did and saw.
	History *history.History
	// Timeline is what the log says.
	Timeline *oracle.Timeline
	// Grace is how late an expiry may be beyond the TTL, on a cluster whose leader did not change meanwhile.
	Grace time.Duration
	// Terms are when each leader was first seen to be ready, by term, in order of time. They excuse late expiries.
	Terms []Term
}

// Term is a leader that was seen.
type Term struct {
	// Number is the Raft term.
	Number uint64
	// Node is who led.
	Node string
	// At is when it was first seen, since the start of the run.
	At time.Duration
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
