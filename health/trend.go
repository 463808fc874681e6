package health

import registryv1 "github.com/regd-io/regd/proto/registry/v1"

// trend is the run of like results of one check, from which verdicts are made.
type trend struct {
	successes int
	failures  int
	// inherited is set until the first success when the status was found by an earlier leader: one failure alone then
	// is not enough, whatever the check says.
	inherited bool
}

// add takes a result (passing, warning or critical) into account and returns the verdict that follows for a check with
// the given status; it is the status itself when nothing changes.
func (t *trend) add(p *plan, status, result registryv1.CheckStatus) registryv1.CheckStatus {
	if result == registryv1.CheckStatus_CHECK_STATUS_CRITICAL {
		t.successes = 0
		t.failures = min(t.failures+1, maxRun)
		if t.failures >= t.needed(p) {
			return result
		}
		return status
	}
	t.failures, t.inherited = 0, false
	t.successes = min(t.successes+1, maxRun)
	if t.successes >= p.rise {
		return result
	}
	return status
}

// needed is the number of failures in a row that turn the check critical.
func (t *trend) needed(p *plan) int {
	if t.inherited {
		return max(p.fall, 2)
	}
	return p.fall
}
