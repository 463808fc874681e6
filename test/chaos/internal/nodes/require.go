package nodes

import (
	"os"
	"testing"
)

// Alone skips the test unless CHAOS=1, which make chaos sets: it takes long, or judges how long things take, which is worth
// nothing while other tests share the processors.
func Alone(tb testing.TB) {
	tb.Helper()
	if os.Getenv("CHAOS") != "1" {
		tb.Skip("takes long, or needs the machine for itself: make chaos")
	}
}

// Require ends the test unless none of the probes failed: it is skipped, and with CHAOS_STRICT=1, where everything is
// meant to work, it fails.
func Require(tb testing.TB, probes ...error) {
	tb.Helper()
	for _, err := range probes {
		switch {
		case err == nil:
		case os.Getenv("CHAOS_STRICT") == "1":
			tb.Fatalf("can't run here, and CHAOS_STRICT=1: %v", err)
		default:
			tb.Skipf("can't run here: %v", err)
		}
	}
}
