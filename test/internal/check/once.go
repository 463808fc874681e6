package check

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// OnceFigures say what Once judged.
type OnceFigures struct {
	// Requests with an id, and those of them that are in the log several times.
	Requests, Repeated int
}

// Once judges what became of each request, by its id.
//
//   - lost-write: what was acknowledged is in the log.
//   - once-log: a request has one outcome, however often it is in the log.
//   - once-answer: every answer, the refusals of the state machine included, is that outcome.
//   - failed-but-done: what was refused at every attempt, with a reason that says that nothing was done, was not done.
func Once(r *Run) ([]Violation, OnceFigures) {
	o := &once{facts: r.facts()}
	for _, w := range o.writes {
		if w.ClientID != "" {
			o.figures.Requests++
			o.request(w)
		}
	}
	return o.list, o.figures
}

type once struct {
	*facts
	verdict
	figures OnceFigures
}

func (o *once) request(w *history.Write) {
	inLog := o.run.Timeline.Request(w.ClientID, w.Sequence)
	if len(inLog) > 1 {
		o.figures.Repeated++
	}
	var outcomes []fsm.Outcome
	for _, a := range inLog {
		if a.Outcome.Code != raftlogv1.Code_CODE_REQUEST_TOO_OLD && a.Outcome.Code != raftlogv1.Code_CODE_REQUEST_REUSED {
			outcomes = append(outcomes, a.Outcome)
		}
	}
	for _, other := range outcomes {
		if other != outcomes[0] {
			o.fault("once-log", "%s has the outcomes %+v and %+v", describe(w), outcomes[0], other)
			return
		}
	}
	_, acquires := w.Request.(*apiv1.AcquireRequest)
	if w.Outcome == history.Failed && !acquires && len(outcomes) > 0 && outcomes[0].Changed {
		o.fault("failed-but-done", "%s was refused for %v, and has the outcome %+v", describe(w), w.Calls[0].Reason, outcomes[0])
		return
	}
	for _, c := range w.Calls {
		o.attempt(w, c, outcomes)
	}
}

// attempt holds one answer against the outcome in the log.
func (o *once) attempt(w *history.Write, c *history.Call, outcomes []fsm.Outcome) {
	switch {
	case c.Outcome == history.OK && unlogged(c.Response):
	case c.Outcome == history.OK && len(outcomes) == 0:
		o.fault("lost-write", "%s was acknowledged with revision %d, and is not in the log",
			describe(w), c.Header().GetRevision())
	case c.Outcome == history.OK:
		if diff := differs(c.Response, outcomes[0]); diff != "" {
			o.fault("once-answer", "%s: attempt from %v to %v: %s", describe(w), c.Begun, c.Ended, diff)
		}
	case c.Outcome == history.Failed && judgedByLog(c):
		if code, ok := verdicts[c.Reason]; ok && (len(outcomes) == 0 || outcomes[0].Code != code) {
			o.fault("once-answer", "%s: attempt from %v to %v was refused for %v, outcomes in the log: %+v",
				describe(w), c.Begun, c.Ended, c.Reason, outcomes)
		}
	}
}

// unlogged tells whether an answer is one that needs no entry in the log: the report of a status that stands already.
func unlogged(resp proto.Message) bool {
	health, ok := resp.(*apiv1.SetHealthResponse)
	return ok && !health.GetChanged()
}

// verdicts are the reasons that only the state machine gives, and its codes for them.
var verdicts = map[apiv1.Reason]raftlogv1.Code{
	apiv1.Reason_REASON_INSTANCE_NOT_FOUND: raftlogv1.Code_CODE_NOT_FOUND,
	apiv1.Reason_REASON_SESSION_NOT_FOUND:  raftlogv1.Code_CODE_SESSION_NOT_FOUND,
	apiv1.Reason_REASON_LEASE_NOT_FOUND:    raftlogv1.Code_CODE_LEASE_NOT_FOUND,
	apiv1.Reason_REASON_ALREADY_EXISTS:     raftlogv1.Code_CODE_ALREADY_EXISTS,
	apiv1.Reason_REASON_STALE_INCARNATION:  raftlogv1.Code_CODE_STALE,
	apiv1.Reason_REASON_REVISION_MISMATCH:  raftlogv1.Code_CODE_REVISION_MISMATCH,
	apiv1.Reason_REASON_LOCK_HELD:          raftlogv1.Code_CODE_LOCK_HELD,
	apiv1.Reason_REASON_LOCK_NOT_HELD:      raftlogv1.Code_CODE_LOCK_NOT_HELD,
	apiv1.Reason_REASON_SLOTS_MISMATCH:     raftlogv1.Code_CODE_SLOTS_MISMATCH,
}

// judgedByLog tells whether the refusals of a call's method come from the log alone.
func judgedByLog(c *history.Call) bool {
	switch req := c.Request.(type) {
	case *apiv1.SetHealthRequest:
		return false // The check is looked up first.
	case *apiv1.AcquireRequest:
		return !req.GetWait() // Whoever waits is refused for what came later.
	default:
		return true
	}
}

// differs tells how an answer differs from an outcome, "" when it doesn't.
func differs(resp proto.Message, out fsm.Outcome) string {
	got := fsm.Outcome{
		Code: out.Code, Revision: headerOf(resp).GetRevision(), Changed: out.Changed, ID: out.ID, Number: out.Number, Subject: out.Subject,
	}
	if out.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		return fmt.Sprintf("acknowledged with %v, the outcome is %+v", resp, out)
	}
	if c, ok := resp.(interface{ GetChanged() bool }); ok {
		got.Changed = c.GetChanged()
	}
	switch r := resp.(type) {
	case *apiv1.RegisterResponse:
		got.Number = r.GetIncarnation()
	case *apiv1.RegisterBatchResponse:
		got.Number = r.GetIncarnation()
	case *apiv1.OpenResponse:
		got.ID = r.GetSession().GetId()
	case *apiv1.GrantResponse:
		got.ID = r.GetLease().GetId()
	case *apiv1.AcquireResponse:
		got.Revision = out.Revision // It may have waited for it.
		if out.Number > 0 {
			got.Number = r.GetToken()
		}
	}
	if got != out {
		return fmt.Sprintf("answered %+v, the outcome is %+v", got, out)
	}
	return ""
}
