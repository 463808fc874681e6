// Package report says on one screen, and as JSON, what a chaos run did, what it found, and whether it may count: a run
// that did too little is INVALID, not passed. Start at Report.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

// Report is what is told of a run. Durations are in nanoseconds in JSON.
type Report struct {
	// Seed is what all of the run's choices came from.
	Seed int64 `json:"seed"`
	// Commit is the version of the source, with "-dirty" when it had changes.
	Commit string `json:"commit"`
	// Profile names the size of the run.
	Profile string `json:"profile"`
	// Nodes is how many there were.
	Nodes int `json:"nodes"`
	// Took is the length of the run, checks included; Checks that of the checks alone.
	Took   time.Duration `json:"took"`
	Checks time.Duration `json:"checks"`

	// Operations are the calls, by the short name of the method.
	Operations map[string]Outcomes `json:"operations"`
	// DuringFaults is how many of the calls overlapped a fault.
	DuringFaults int `json:"during_faults"`
	// Faults are what was done to the cluster, by kind.
	Faults map[string]*Fault `json:"faults"`
	// Facts are counts of what the run is to have met, as in "lease expiries".
	Facts []Fact `json:"facts"`
	// Notes are figures without a minimum, in lines.
	Notes []string `json:"notes"`

	// Violations are broken promises.
	Violations []check.Violation `json:"violations"`
	// Skipped names what could not be done here, with the reason.
	Skipped []string `json:"skipped"`
	// Replay is the command that runs it again.
	Replay string `json:"replay"`
}

// Outcomes counts calls.
type Outcomes struct {
	OK      int `json:"ok"`
	Failed  int `json:"failed"`
	Unknown int `json:"unknown"`
}

func (o Outcomes) total() int { return o.OK + o.Failed + o.Unknown }

// Fault sums up the faults of one kind.
type Fault struct {
	// Times is how often it was done, with evidence.
	Times int `json:"times"`
	// Evidence is that of the last one.
	Evidence string `json:"evidence"`
	// Gap is how long no write was acknowledged around them.
	Gap check.Gap `json:"gap"`
}

// Fact is something that a run must have met often enough to count.
type Fact struct {
	// What is counted.
	What string `json:"what"`
	// Count is how often it was met, Least how often it has to be.
	Count int `json:"count"`
	Least int `json:"least"`
}

// Minimum is below what a run does not count.
type Minimum struct {
	// Operations in all, and the share of them that overlap a fault.
	Operations int
	Share      float64
	// Faults in all, with evidence.
	Faults int
}

// Fill takes operations and faults from a history, and from its figures how long there were no writes.
func (r *Report) Fill(h *history.History, gaps map[string]check.Gap) {
	r.Operations, r.Faults = map[string]Outcomes{}, map[string]*Fault{}
	for i := range h.Calls {
		c := &h.Calls[i]
		name := c.Method[strings.LastIndexByte(c.Method, '/')+1:]
		o := r.Operations[name]
		switch c.Outcome {
		case history.OK:
			o.OK++
		case history.Failed:
			o.Failed++
		case history.Unknown:
			o.Unknown++
		}
		r.Operations[name] = o
		if slices.ContainsFunc(h.Faults, func(f history.Fault) bool { return c.Begun < f.To && c.Ended > f.From }) {
			r.DuringFaults++
		}
	}
	for _, f := range h.Faults {
		sum := r.Faults[f.Kind]
		if sum == nil {
			sum = &Fault{Gap: gaps[f.Kind]}
			r.Faults[f.Kind] = sum
		}
		if f.Evidence != "" {
			sum.Times++
			sum.Evidence = f.Evidence
		}
	}
}

// Invalid tells why the run proves nothing, empty when it counts.
func (r *Report) Invalid(least Minimum) []string {
	var why []string
	operations := 0
	for _, o := range r.Operations {
		operations += o.total()
	}
	if operations < least.Operations {
		why = append(why, fmt.Sprintf("%d operations, want at least %d", operations, least.Operations))
	}
	if share := float64(r.DuringFaults) / float64(max(operations, 1)); share < least.Share {
		why = append(why, fmt.Sprintf("%.0f %% of the operations overlap a fault, want at least %.0f %%", 100*share, 100*least.Share))
	}
	faults := 0
	for _, kind := range r.kinds() {
		faults += r.Faults[kind].Times
		if r.Faults[kind].Times == 0 {
			why = append(why, fmt.Sprintf("no evidence that %q ever happened", kind))
		}
	}
	if faults < least.Faults {
		why = append(why, fmt.Sprintf("%d faults, want at least %d", faults, least.Faults))
	}
	for _, f := range r.Facts {
		if f.Count < f.Least {
			why = append(why, fmt.Sprintf("%d %s, want at least %d", f.Count, f.What, f.Least))
		}
	}
	return why
}

// kinds are the kinds of faults, sorted.
func (r *Report) kinds() []string {
	kinds := make([]string, 0, len(r.Faults))
	for kind := range r.Faults {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	return kinds
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
