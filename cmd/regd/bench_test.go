package main

import (
	"strings"
	"testing"
)

type benchDoc struct {
	Ops []opView `json:"ops"`
}

func TestBenchTellsHowLongCallsTakeAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	ops := decode[benchDoc](t, s.ok("bench", "--rate", "200", "--duration", "1s", "--writes", "25", "-o", "json")).Ops
	if len(ops) != 2 || ops[0].Op != "write" || ops[1].Op != "read" {
		t.Fatalf("calls: %+v, want writes and reads", ops)
	}
	for _, op := range ops {
		if op.Done == 0 || op.Failed > 0 || op.Error != "" || op.P50Ms <= 0 || op.P99Ms < op.P50Ms || op.MaxMs < op.P99Ms {
			t.Errorf("%+v", op)
		}
	}
	if w, r := ops[0].Done, ops[1].Done; w+r > 200 || w > r {
		t.Errorf("%d writes and %d reads, want 200 calls at most, a quarter of them writes", w, r)
	}
	if left := s.ok("services", "-n", "regd-bench", "-o", "name"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestBenchRefusesWhatIsNoLoad(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{
		"--rate=0":        "--rate 0: must be 1 to 100000",
		"--rate=100001":   "--rate 100001: must be 1 to 100000",
		"--clients=1001":  "--clients 1001: must be 1 to 1000",
		"--duration=10ms": "--duration 10ms: must be 1s to 10m",
		"--writes=101":    "--writes 101: must be 0 to 100",
	} {
		if r := newShell(t).run("bench", flag); r.code != exitUsage || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit code %d, %q; want %q", flag, r.code, r.stderr, want)
		}
	}
}

func TestBenchThatReachesNobodyFails(t *testing.T) {
	t.Parallel()
	r := newShell(t).run("bench", "--endpoint", freeAddress(t), "--timeout", "300ms", "--duration", "1s")
	if r.code != exitUnreachable {
		t.Errorf("exit code %d, want %d\n%s", r.code, exitUnreachable, r.stderr)
	}
}
