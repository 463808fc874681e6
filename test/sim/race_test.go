//go:build race

package sim

import "time"

// The race detector makes a run ten times slower: with it some runs must do, to see races. make test makes the others
// without it.
const (
	leastSeeds = 6 // however long they take
	lasting    = 20 * time.Second
)
