//go:build race

package check_test

// The race detector makes all of it several times slower, and what is found by trying much needs none: with it there are
// fewer tries. CI makes the others without it.
const fewer = 3
