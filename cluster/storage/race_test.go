//go:build race

package storage

import "flag"

// The race detector makes all of it several times slower, and what is found by trying much needs none: with it there are
// fewer tries. CI makes the others without it.
const fewer = 8

func init() { //nolint:gochecknoinits // Before the flags are parsed: those of the command line count for more.
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
}
