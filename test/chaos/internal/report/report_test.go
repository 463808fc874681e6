package report_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/chaos/internal/report"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

// run is a history of one fault from second 10 to 20, with a write each second but for seconds 12 to 15.
func run(evidence string) *history.History {
	h := &history.History{Faults: []history.Fault{
		{Kind: "kill", From: 10 * time.Second, To: 20 * time.Second, Recovered: 21 * time.Second, Evidence: evidence},
	}}
	for s := range 30 {
		if s > 12 && s < 15 {
			continue
		}
		at := time.Duration(s) * time.Second
		h.Calls = append(h.Calls, history.Call{
			Method: "/regd.api.v1.RegistryService/Deregister", Begun: at - time.Millisecond, Ended: at, Outcome: history.OK,
			Request: &apiv1.DeregisterRequest{RequestId: &apiv1.RequestID{ClientId: "c", Sequence: uint64(s + 1)}},
		})
	}
	return h
}

func TestARunThatDidTooLittleIsInvalid(t *testing.T) {
	enough := report.Minimum{Operations: 28, Share: 0.28, Faults: 1}
	for name, test := range map[string]struct {
		evidence string
		least    report.Minimum
		facts    []report.Fact
		want     []string
	}{
		"enough":      {evidence: "exit 137", least: enough, facts: []report.Fact{{What: "expiries", Count: 3, Least: 3}}},
		"no evidence": {least: enough, want: []string{`no evidence that "kill" ever happened`, "0 faults, want at least 1"}},
		"operations": {
			evidence: "x", least: report.Minimum{Operations: 29}, want: []string{"28 operations, want at least 29"},
		},
		"quiet faults": {
			evidence: "x", least: report.Minimum{Share: 0.5}, want: []string{"29 % of the operations overlap a fault, want at least 50 %"},
		},
		"a fact": {
			evidence: "x", facts: []report.Fact{{What: "expiries", Count: 2, Least: 3}}, want: []string{"2 expiries, want at least 3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &report.Report{Facts: test.facts}
			r.Fill(run(test.evidence), nil)
			if diff := cmp.Diff(test.want, r.Invalid(test.least)); diff != "" {
				t.Errorf("invalid because (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheVerdictStandsAtTheEnd(t *testing.T) {
	r := &report.Report{Profile: "smoke", Seed: 7, Replay: "make chaos SEED=7", Skipped: []string{"disks: not root"}}
	r.Fill(run("exit 137"), map[string]check.Gap{"kill": {Median: time.Second, Longest: 3 * time.Second}})
	r.Violations = []check.Violation{{Rule: "W2", Detail: "revision 7 came twice"}}
	var b strings.Builder
	if err := r.WriteText(&b, report.Minimum{Operations: 29}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"  1s                      3s   exit 137\n", "VIOLATION W2: revision 7 came twice\n", "INVALID 28 operations, want at least 29\n", "SKIPPED disks: not root\n",
		"\nINVALID, 1 violations, 1 skipped\nmake chaos SEED=7\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in the report:\n%s", want, b.String())
		}
	}
}
