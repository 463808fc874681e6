package check

import (
	"fmt"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// Order holds the revisions of all answers against the order of time. Clients are promised no order among reads that are
// not linearizable, so none is asked of them.
//
//   - order-write: a write has a larger revision than all that was acknowledged, or read linearizably, before it began.
//   - order-shared: two requests never made one revision.
//   - order-read: a linearizable read is no older than that either.
//   - order-bounded, order-at-least: a read is as fresh as was asked.
//   - order-staleness: an answer is no older than it claims.
//   - order-mode: it names the mode that was asked for.
//   - order-epoch: it is of this cluster and epoch.
func Order(r *Run) []Violation {
	o := &ordering{facts: r.facts()}
	made := map[uint64]*history.Write{}
	for _, w := range o.writes {
		o.write(w, made)
	}
	for i := range r.History.Calls {
		o.call(&r.History.Calls[i])
	}
	return o.list
}

type ordering struct {
	*facts
	verdict
}

func (o *ordering) write(w *history.Write, made map[uint64]*history.Write) {
	kind, revision := orderOf(w), headerOf(w.Response).GetRevision()
	if kind == unordered {
		return
	}
	least := o.knownBefore(w.Begun)
	if kind == effective {
		least++
		if other := made[revision]; other != nil {
			o.fault("order-shared", "%s and %s both made revision %d", describe(other), describe(w), revision)
		}
		made[revision] = w
	}
	if revision < least {
		o.fault("order-write", "%s has revision %d, and began after the answer with revision %d",
			describe(w), revision, o.knownBefore(w.Begun))
	}
}

func (o *ordering) call(c *history.Call) {
	h := c.Header()
	if h == nil {
		return
	}
	if !o.ours(h) {
		o.fault("order-epoch", "%s is of cluster %q, epoch %d", describeCall(c), h.GetClusterId(), h.GetEpoch())
		return
	}
	fresh, later, isRead := freshnessOf(c)
	if !isRead {
		return
	}
	if h.Staleness != nil {
		if least := o.ackedBefore(c.Begun - h.GetStaleness().AsDuration()); h.GetRevision() < least {
			o.fault("order-staleness", "%s has revision %d and claims to be %v old; revision %d was acknowledged before that",
				describeCall(c), h.GetRevision(), h.GetStaleness().AsDuration(), least)
		}
	}
	if later {
		return // What is known of it is the revision of the first page.
	}
	mode := modeOf(fresh)
	if h.GetMode() != mode {
		o.fault("order-mode", "%s was asked for %v and says %v", describeCall(c), mode, h.GetMode())
	}
	if least := o.leastAsked(c, fresh); h.GetRevision() < least {
		o.fault(ruleOf(mode), "%s has revision %d, must have %d at least", describeCall(c), h.GetRevision(), least)
	}
	if most := fresh.GetMaxStaleness().AsDuration(); mode == apiv1.Mode_MODE_BOUNDED &&
		(h.Staleness == nil || h.GetStaleness().AsDuration() > most) {
		o.fault("order-bounded", "%s may be %v old and claims %v", describeCall(c), most, h.GetStaleness())
	}
}

func ruleOf(mode apiv1.Mode) string {
	switch mode {
	case apiv1.Mode_MODE_BOUNDED:
		return "order-bounded"
	case apiv1.Mode_MODE_AT_LEAST:
		return "order-at-least"
	default:
		return "order-read"
	}
}

// leastAsked is the revision that the answer of a read must have at least.
func (f *facts) leastAsked(c *history.Call, fresh *apiv1.Freshness) uint64 {
	switch modeOf(fresh) {
	case apiv1.Mode_MODE_LINEARIZABLE:
		return f.knownBefore(c.Begun)
	case apiv1.Mode_MODE_BOUNDED:
		return f.ackedBefore(c.Begun - fresh.GetMaxStaleness().AsDuration())
	case apiv1.Mode_MODE_AT_LEAST:
		return fresh.GetMinRevision()
	default:
		return 0
	}
}

func describeCall(c *history.Call) string {
	return fmt.Sprintf("%s of %s at %s (%v to %v)", shortName(c.Method), c.Client, c.Node, c.Begun, c.Ended)
}

func describe(w *history.Write) string {
	return fmt.Sprintf("%s %s/%d (%v to %v)", shortName(w.Method), w.ClientID, w.Sequence, w.Begun, w.Ended)
}

// shortName is a method without its package.
func shortName(method string) string {
	for i := len(method) - 1; i >= 0; i-- {
		if method[i] == '.' {
			return method[i+1:]
		}
	}
	return method
}
