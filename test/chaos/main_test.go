// Package chaos_test proves regd's promises on real processes: nodes are killed, paused, replaced and restored under
// load, and what clients saw is checked. See README.md.
package chaos_test

import (
	"os"
	"strconv"
	"testing"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		os.Exit(play(role))
	}
	code := m.Run()
	nodes.Cleanup()
	os.Exit(code)
}

// rounds is how often a directed scenario is repeated: a few times in `make test`, CHAOS_ROUNDS times when that is set.
func rounds(t *testing.T, few int) int {
	t.Helper()
	if s := os.Getenv("CHAOS_ROUNDS"); s != "" {
		k, err := strconv.Atoi(s)
		if err != nil || k < 1 {
			t.Fatalf("CHAOS_ROUNDS=%q: must be a positive number", s)
		}
		return k
	}
	return few
}
