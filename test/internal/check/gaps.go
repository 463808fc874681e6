package check

import (
	"slices"
	"time"

	"github.com/regd-io/regd/test/internal/history"
)

// Gap says how long no write was acknowledged around the faults of one kind.
type Gap struct {
	// Times is how many faults there were with evidence.
	Times int
	// Median and Longest are of the longest such time during each of them and until the cluster had recovered.
	Median, Longest time.Duration
}

// Live judges whether the cluster came back after each fault, and measures how long it was away.
//
//   - live: within Run.Recovery after a fault was undone, the cluster served writes on all nodes.
func Live(r *Run) ([]Violation, map[string]Gap) {
	var v verdict
	var acks []time.Duration
	for _, w := range r.facts().writes {
		if w.Outcome == history.OK {
			acks = append(acks, w.Ended)
		}
	}
	slices.Sort(acks)
	byKind := map[string][]time.Duration{}
	for _, f := range r.History.Faults {
		switch {
		case r.Recovery == 0:
		case f.Recovered == 0:
			v.fault("live", "%s of %v from %v to %v: the cluster did not recover", f.Kind, f.Nodes, f.From, f.To)
		case f.Recovered-f.To > r.Recovery:
			v.fault("live", "%s of %v from %v to %v: the cluster recovered after %v", f.Kind, f.Nodes, f.From, f.To, f.Recovered-f.To)
		}
		if f.Evidence != "" {
			byKind[f.Kind] = append(byKind[f.Kind], longestGap(acks, f.From, over(f.To, f.Recovered)))
		}
	}
	gaps := map[string]Gap{}
	for kind, list := range byKind {
		slices.Sort(list)
		gaps[kind] = Gap{Times: len(list), Median: list[len(list)/2], Longest: list[len(list)-1]}
	}
	return v.list, gaps
}

// longestGap is the longest time without one of the acks, between from and to.
func longestGap(acks []time.Duration, from, to time.Duration) time.Duration {
	i, _ := slices.BinarySearch(acks, from)
	longest, last := time.Duration(0), from
	for ; i < len(acks) && acks[i] < to; i++ {
		longest, last = max(longest, acks[i]-last), acks[i]
	}
	return max(longest, to-last)
}
