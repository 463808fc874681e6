package fsm_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/fsm/model"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func (g *generator) node() string { return pick(g.t, "node", "", "n1", "n2") }

func (g *generator) expire() *raftlogv1.Command {
	c := expire(g.fence(), []string{g.session(), g.session()}, []string{g.lease()})
	e := c.GetExpire()
	e.Node = g.node()
	for range upTo(g.t, "silences", 3) {
		e.SessionSilenceMs = append(e.SessionSilenceMs, uint64(15_000+upTo(g.t, "silence", 100)))
	}
	if g.chance(50) {
		e.LeaseSilenceMs = []uint64{30_000}
	}
	return c
}

// namespace makes a command about a namespace. Its limits are small enough to be reached.
func (g *generator) namespace() *raftlogv1.Command {
	c := &raftlogv1.Command{Level: fsm.HistoryLevel}
	name := pick(g.t, "namespace", "default", "default", "dev", "empty", "")
	if g.chance(25) {
		c.Kind = &raftlogv1.Command_DeleteNamespace{DeleteNamespace: &raftlogv1.DeleteNamespace{Name: name}}
		return c
	}
	n := &registryv1.Namespace{Name: name, Description: pick(g.t, "description", "", "x", strings.Repeat("x", 257))}
	if g.chance(80) {
		n.Quota = &registryv1.Quota{
			MaxInstances: uint64(upTo(g.t, "instances", 5)), MaxLocks: uint64(upTo(g.t, "locks", 4)),
			MaxWatches: uint64(upTo(g.t, "watches", 2)), MaxWritesPerSecond: uint64(upTo(g.t, "writes", 2)),
			MaxKeys: uint64(upTo(g.t, "keys", 4)), MaxKvBytes: uint64(upTo(g.t, "bytes", 12)),
		}
	}
	c.Kind = &raftlogv1.Command_PutNamespace{PutNamespace: &raftlogv1.PutNamespace{Namespace: n}}
	return c
}

func namespaceText(n *registryv1.Namespace, use fsm.NamespaceUse) string {
	text := fmt.Sprintf("%s %q modified %d", n.GetName(), n.GetDescription(), n.GetModifyRevision())
	if q := n.GetQuota(); q != nil {
		text += fmt.Sprintf(" at most %d instances, %d locks, %d watches, %d writes",
			q.GetMaxInstances(), q.GetMaxLocks(), q.GetMaxWatches(), q.GetMaxWritesPerSecond())
		if q.GetMaxKeys()+q.GetMaxKvBytes() > 0 {
			text += fmt.Sprintf(", %d keys, %d bytes", q.GetMaxKeys(), q.GetMaxKvBytes())
		}
	}
	text += fmt.Sprintf(": %d instances, %d locks", use.Instances, use.Locks)
	if use.Keys > 0 {
		text += fmt.Sprintf(", %d keys, %d bytes", use.Keys, use.KVBytes)
	}
	return text
}

func namespacesOf(s *fsm.State) []string {
	var all []string
	s.Namespaces("", func(n *fsm.Namespace) bool {
		all = append(all, namespaceText(n.Proto(), s.NamespaceUse(n.Proto().GetName())))
		return true
	})
	return all
}

func namespacesOfModel(m *model.Registry) []string {
	var all []string
	for name, n := range m.Namespaces {
		all = append(all, namespaceText(n, fsm.NamespaceUse{
			Instances: m.Used(name, fsm.QuotaInstances), Locks: m.Used(name, fsm.QuotaLocks),
			Keys: m.Used(name, fsm.QuotaKeys), KVBytes: m.Used(name, fsm.QuotaKVBytes),
		}))
	}
	slices.Sort(all)
	return all
}

// historyText is the history, in order of revision and, in it, of text: what one command did has no order.
func historyText(s *fsm.State) []string {
	after, _, begun := s.HistoryAfter()
	return transitionTexts(begun, after, fsm.AllTransitions(s))
}

func historyTextOfModel(m *model.Registry) []string {
	return transitionTexts(m.HistoryBegun, m.HistoryAfter, m.History)
}

func transitionTexts(begun bool, after uint64, transitions []*registryv1.Transition) []string {
	if !begun {
		return nil
	}
	all := []string{fmt.Sprintf("%20d", after)}
	for _, tr := range transitions {
		all = append(all, transitionText(tr))
	}
	slices.Sort(all)
	return all
}

func transitionText(tr *registryv1.Transition) string {
	text := fmt.Sprintf("%20d at %d", tr.GetRevision(), tr.GetTimeUnixMs())
	for _, part := range [...]struct {
		format string
		value  any
		there  bool
	}{
		{" %s", tr.GetNamespace() + "/" + tr.GetService() + "/" + tr.GetId(), tr.GetId() != ""},
		{" %s", lowered(tr.GetCause(), "CAUSE_"), true},
		{", now %s", lowered(tr.GetHealth(), "HEALTH_"), tr.GetHealth() != 0},
		{", set %t", tr.GetSet(), tr.GetSet()},
		{", incarnation %d", tr.GetIncarnation(), tr.GetIncarnation() != 0},
		{" for %d", tr.GetReplaced(), tr.GetReplaced() != 0},
		{", by %s", tr.GetActor(), tr.GetActor() != ""},
		{", session %s", tr.GetSessionId(), tr.GetSessionId() != ""},
		{", lease %s", tr.GetLeaseId(), tr.GetLeaseId() != ""},
		{", check %s", tr.GetCheck(), tr.GetCheck() != ""},
		{" %s", lowered(tr.GetStatus(), "CHECK_STATUS_"), tr.GetStatus() != 0},
		{" %q", tr.GetOutput(), tr.GetOutput() != ""},
		{", silent for %d", tr.GetSilenceMs(), tr.GetSilenceMs() != 0},
		{", judged by %s", tr.GetJudge(), tr.GetJudge() != ""},
		{" in term %d", tr.GetTerm(), tr.GetTerm() != 0},
	} {
		if part.there {
			text += fmt.Sprintf(part.format, part.value)
		}
	}
	return text
}

func lowered(value fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}

func putNamespace(n *registryv1.Namespace) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.HistoryLevel, Kind: &raftlogv1.Command_PutNamespace{
		PutNamespace: &raftlogv1.PutNamespace{Namespace: n},
	}}
}

func deleteNamespace(name string) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.HistoryLevel, Kind: &raftlogv1.Command_DeleteNamespace{
		DeleteNamespace: &raftlogv1.DeleteNamespace{Name: name},
	}}
}

// TestTransitionsOfAnInstanceAreThoseOfTheHistory holds for every instance that ever was: what is found of it is what the
// history has of it, and no more than was asked for, the newest.
func TestTransitionsOfAnInstanceAreThoseOfTheHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, states := history(t)
		s := states[len(states)-1]
		want := map[model.Key][]string{}
		for _, tr := range fsm.AllTransitions(s) {
			key := model.Key{Namespace: tr.GetNamespace(), Service: tr.GetService(), ID: tr.GetId()}
			want[key] = append(want[key], transitionText(tr))
		}
		for key, texts := range want {
			most := 1 + upTo(t, "most", len(texts)+1)
			found, more := s.Transitions(key.Namespace, key.Service, key.ID, most)
			var got []string
			for _, tr := range found {
				got = append(got, transitionText(tr))
			}
			if keep := max(0, len(texts)-most); !slices.Equal(got, texts[keep:]) || more != (keep > 0) {
				t.Fatalf("%v, at most %d: got %q, more %t; want the last of %q", key, most, got, more, texts)
			}
		}
	})
}

// TestAQuotaHoldsWhateverHappens holds: no command but one that changes the limit leaves a namespace with more than it may
// have and than it had.
func TestAQuotaHoldsWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, states := history(t)
		for i, s := range states[1:] {
			before := states[i]
			s.Namespaces("", func(n *fsm.Namespace) bool {
				old := before.Namespace(n.Proto().GetName())
				if old == nil || old.Proto().GetModifyRevision() != n.Proto().GetModifyRevision() {
					return true
				}
				name := n.Proto().GetName()
				q, had, has := n.Quota(), before.NamespaceUse(name), s.NamespaceUse(name)
				if q.GetMaxInstances() > 0 && has.Instances > max(had.Instances, q.GetMaxInstances()) ||
					q.GetMaxLocks() > 0 && has.Locks > max(had.Locks, q.GetMaxLocks()) ||
					q.GetMaxKeys() > 0 && has.Keys > max(had.Keys, q.GetMaxKeys()) ||
					q.GetMaxKvBytes() > 0 && has.KVBytes > max(had.KVBytes, q.GetMaxKvBytes()) {
					t.Fatalf("%s had %+v, has %+v", n.Proto(), had, has)
				}
				return true
			})
		}
	})
}
