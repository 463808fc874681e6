package check

import (
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

type instanceMessage = *registryv1.Instance

// part takes a part of a cut.
func (w *watching) part(at string, s *subscription, part *apiv1.Cut) {
	c := s.cut
	if c == nil {
		c = &cut{
			full: part.GetFull(), reason: part.GetReason(),
			instances: map[key]instanceMessage{}, deleted: map[key]bool{},
		}
		s.cut = c
	}
	if c.full != part.GetFull() || c.reason != part.GetReason() {
		w.fault("W3", "%s: subscription %d: a part (full %v, %v) in the middle of a cut (full %v, %v)",
			at, s.id, part.GetFull(), part.GetReason(), c.full, c.reason)
	}
	twice := func(k key) {
		if c.instances[k] != nil || c.deleted[k] {
			w.fault("W2", "%s: subscription %d: the cut names %v twice", at, s.id, k)
		}
	}
	for _, i := range part.GetInstances() {
		twice(keyOf(i))
		c.instances[keyOf(i)] = i
	}
	for _, k := range part.GetDeleted() {
		twice(keyOf(k))
		c.deleted[keyOf(k)] = true
	}
}

// sync judges a Synced, and the cut that it ends.
func (w *watching) sync(at string, s *subscription, h *apiv1.ResponseHeader) {
	c := s.cut
	s.cut = nil
	revision, ours := w.revision(h)
	if !ours {
		w.fault("W12", "%s: subscription %d is synced with another cluster or epoch: %v", at, s.id, h)
		return
	}
	if !w.exists(at, revision) {
		return
	}
	if revision < s.at {
		rule := "W1"
		if !s.synced {
			rule = "W8"
		}
		w.fault(rule, "%s: subscription %d has revision %d and is synced at %d", at, s.id, s.at, revision)
		return
	}
	switch {
	case c != nil:
		w.figures.Cuts[reasonName(c.reason)]++
		if !s.may(c) {
			w.fault("W7", "%s: subscription %d (synced before: %v, resume: %v) gets a cut (full: %v) for %v",
				at, s.id, s.synced, s.resume, c.full, c.reason)
		}
	case s.gone && !s.synced:
		w.fault("W7", "%s: subscription %d asked for another history, and is told nothing of it", at, s.id)
		c = &cut{full: true}
	case s.resume == nil && !s.synced:
		c = &cut{full: true, reason: apiv1.CutReason_CUT_REASON_INITIAL} // Nothing matches.
	default:
		c = &cut{} // Nothing has changed.
	}
	if c.full {
		w.whole(at, s, c, revision)
	} else {
		w.difference(at, s, c, revision)
	}
	s.at, s.synced = revision, true
}

// may tells whether a cut is one that the subscription can get now.
func (s *subscription) may(c *cut) bool {
	switch c.reason {
	case apiv1.CutReason_CUT_REASON_INITIAL:
		return c.full && !s.synced && s.resume == nil && !s.gone
	case apiv1.CutReason_CUT_REASON_HISTORY_GONE:
		return c.full && !s.synced && (s.resume != nil || s.gone)
	case apiv1.CutReason_CUT_REASON_RESTORED:
		return c.full && !s.synced && s.gone
	case apiv1.CutReason_CUT_REASON_SLOW_READER, apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED:
		return s.synced
	case apiv1.CutReason_CUT_REASON_LARGE_REVISION:
		return !c.full && (s.synced || s.resume != nil)
	default:
		return false
	}
}

// ruleOfCut is the rule that a wrong cut breaks.
func (s *subscription) ruleOfCut(c *cut) string {
	switch c.reason {
	case apiv1.CutReason_CUT_REASON_INITIAL:
		return "W9"
	case apiv1.CutReason_CUT_REASON_HISTORY_GONE, apiv1.CutReason_CUT_REASON_RESTORED:
		return "W7"
	case apiv1.CutReason_CUT_REASON_SLOW_READER, apiv1.CutReason_CUT_REASON_LARGE_REVISION:
		return "W10"
	case apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED:
		return "W14"
	default:
		if s.synced {
			return "W4"
		}
		return "W5"
	}
}

// whole holds a full cut against the registry.
func (w *watching) whole(at string, s *subscription, c *cut, revision uint64) {
	rule := s.ruleOfCut(c)
	st := w.run.Timeline.AtRevision(revision)
	if st == nil {
		w.fault(rule, "%s: subscription %d: a full cut at revision %d, which nobody can have read", at, s.id, revision)
		return
	}
	want := w.matching(s.filter, st)
	for _, r := range want {
		if got := c.instances[keyOfRecord(r)]; got == nil || !w.same(r, got) {
			w.fault(rule, "%s: subscription %d: full cut at revision %d has %v, want %v", at, s.id, revision, got, w.instance(r))
			return
		}
	}
	if len(c.instances) != len(want) || len(c.deleted) > 0 {
		w.fault(rule, "%s: subscription %d: full cut at revision %d has %d instances and %d deleted, want %d and none",
			at, s.id, revision, len(c.instances), len(c.deleted), len(want))
	}
}

// difference holds a cut that is not full against what has changed.
func (w *watching) difference(at string, s *subscription, c *cut, revision uint64) {
	touched := map[key]bool{}
	for _, t := range w.wanted(s, s.at, revision) {
		touched[t.key] = true
	}
	for k := range c.instances {
		touched[k] = true
	}
	for k := range c.deleted {
		touched[k] = true
	}
	for k := range touched {
		want, had := w.record(k, revision), w.record(k, s.at)
		got := c.instances[k]
		var right bool
		switch {
		case w.matches(s.filter, want) && got == nil:
			right = had == want && !c.deleted[k]
		case w.matches(s.filter, want):
			right = w.same(want, got)
		case got == nil:
			right = c.deleted[k] || !w.matches(s.filter, had)
		}
		if !right {
			w.fault(s.ruleOfCut(c), "%s: subscription %d: the cut from revision %d to %d has %v as %v, deleted %v",
				at, s.id, s.at, revision, k, got, c.deleted[k])
		}
	}
}
