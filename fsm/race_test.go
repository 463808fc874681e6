//go:build race

package fsm_test

import "flag"

// raceDetector tells that it is on.
const raceDetector = true

// The race detector makes all of it several times slower, and what a property finds needs none: with it there are fewer
// tries, of other inputs in each run.
func init() { //nolint:gochecknoinits // Before the flags are parsed: those of the command line count for more.
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
}
