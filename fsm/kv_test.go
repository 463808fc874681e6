package fsm_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/fsm/model"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// transaction makes operations on few keys.
func (g *generator) transaction() *raftlogv1.KVTransaction {
	tx := &raftlogv1.KVTransaction{Namespace: pick(g.t, "namespace", "default", "default", "default", "dev", "")}
	for range 1 + upTo(g.t, "ops", 3) {
		op := &raftlogv1.KVOp{
			Kind: raftlogv1.KVOpKind(1 + upTo(g.t, "op", 11)), Key: pick(g.t, "key", "a", "a/b", "a/b", "a/c", "b"),
			Value: []byte(pick(g.t, "value", "", "v", "value")), Flags: uint64(upTo(g.t, "flags", 2)),
		}
		old := g.m.Keys[model.Name{Namespace: tx.GetNamespace(), Name: op.GetKey()}]
		if g.chance(70) {
			op.ExpectedRevision = old.GetModifyRevision()
		}
		if op.SessionId = old.GetSessionId(); op.GetSessionId() == "" || g.chance(30) {
			op.SessionId = g.session()
		}
		switch {
		case op.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
			op.Key = pick(g.t, "prefix", "", "a/", "a", "none")
		case g.chance(40):
			op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE
		case g.chance(3):
			op.Key = pick(g.t, "wrong key", "", "x\x00", "\x7f", strings.Repeat("ä", 257), "x\ty")
		case g.chance(3):
			op.Key = strings.Repeat("ä", 256)
		case g.chance(2):
			op.Kind = pick[raftlogv1.KVOpKind](g.t, "wrong kind", 0, 12)
		}
		tx.Ops = append(tx.Ops, op)
	}
	if g.chance(1) {
		tx.Ops = make([]*raftlogv1.KVOp, pick(g.t, "wrong ops", 0, fsm.MaxKVOps+1))
	}
	return tx
}

// openOwner opens a session that says something about its keys.
func (g *generator) openOwner() *raftlogv1.Command {
	c := openSession(g.session())
	s := c.GetOpenSession()
	s.LockDelayMs = pick(g.t, "delay", uint64(0), 300, 2000, fsm.MaxLockDelayMs, fsm.MaxLockDelayMs+1)
	s.Behavior = pick(g.t, "behavior", registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE,
		registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE, registryv1.SessionBehavior_SESSION_BEHAVIOR_RELEASE, 0, 3)
	s.Node = pick(g.t, "node", "", "n1", strings.Repeat("x", fsm.MaxNameBytes+1))
	return c
}

func keysOfModel(m *model.Registry) []string {
	var all []string
	for _, k := range m.Keys {
		all = append(all, keyText(&fsm.KeyValue{
			Namespace: k.GetNamespace(), Key: k.GetKey(), Value: k.GetValue(), Flags: k.GetFlags(), Version: k.GetVersion(),
			CreateRevision: k.GetCreateRevision(), ModifyRevision: k.GetModifyRevision(), LockIndex: k.GetLockIndex(),
			SessionID: k.GetSessionId(),
		}))
	}
	for at, until := range m.Delays {
		all = append(all, fmt.Sprintf("lock delay of %s/%s until %d", at.Namespace, at.Name, until))
	}
	for namespace, revision := range m.Deleted {
		all = append(all, fmt.Sprintf("deleted in %q at %d", namespace, revision))
	}
	slices.Sort(all)
	return all
}

func allKeys(s *fsm.State) map[model.Name]string {
	all := map[model.Name]string{}
	for namespace, ok := s.NextNamespace(""); ok; namespace, ok = s.NextNamespace(namespace) {
		s.Keys(namespace, "", "", func(k *fsm.KeyValue) bool {
			all[model.Name{Namespace: k.Namespace, Name: k.Key}] = keyText(k)
			return true
		})
	}
	return all
}

func keyText(k *fsm.KeyValue) string {
	if k == nil {
		return ""
	}
	text := fmt.Sprintf("%s/%s %q created %d modified %d version %d", k.Namespace, k.Key, k.Value, k.CreateRevision, k.ModifyRevision, k.Version)
	if k.Flags != 0 {
		text += fmt.Sprintf(" flags %d", k.Flags)
	}
	if k.LockIndex != 0 {
		text += fmt.Sprintf(" locked %d times", k.LockIndex)
	}
	if k.SessionID != "" {
		text += ", of " + k.SessionID
	}
	return text
}

// keysOf is everything that a state shows of keys.
func keysOf(s *fsm.State) []string {
	var all []string
	for namespace, ok := s.NextNamespace(""); ok; namespace, ok = s.NextNamespace(namespace) {
		s.Keys(namespace, "", "", func(k *fsm.KeyValue) bool {
			all = append(all, keyText(k))
			return true
		})
	}
	for _, delay := range fsm.LockDelays(s) {
		all = append(all, "lock delay of "+delay)
	}
	deletions := fsm.Deletions(s)
	for _, namespace := range slices.Sorted(maps.Keys(deletions)) {
		if at := deletions[namespace]; at > 0 {
			all = append(all, fmt.Sprintf("deleted in %q at %d", namespace, at))
		}
	}
	return all
}
