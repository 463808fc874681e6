package model

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	maxKey         = 512
	maxValue       = 512 << 10
	maxOps         = 64
	maxTransaction = 1 << 20
	maxLockDelayMs = 60_000

	quotaKeys    = "keys"
	quotaKVBytes = "kv_bytes"
)

// kvTransaction applies operations one after the other. What they did before one of them fails is taken back by execute.
func (m *Registry) kvTransaction(c *raftlogv1.KVTransaction) (bool, *raftlogv1.Outcome) {
	if refused := wrongTransaction(c); refused != nil {
		return false, refused
	}
	for _, op := range c.GetOps() {
		if refused := m.deniedOp(c.GetNamespace(), op); refused != nil {
			return false, refused
		}
	}
	hadKeys, hadBytes := m.Used(c.GetNamespace(), quotaKeys), m.Used(c.GetNamespace(), quotaKVBytes)
	changed := false
	for i, op := range c.GetOps() {
		did, refused := m.op(Name{c.GetNamespace(), op.GetKey()}, i, op)
		if refused != nil {
			return false, refused
		}
		changed = changed || did
	}
	for _, limited := range []struct {
		resource string
		had      uint64
	}{{quotaKeys, hadKeys}, {quotaKVBytes, hadBytes}} {
		used, limit := m.Used(c.GetNamespace(), limited.resource), m.limit(c.GetNamespace(), limited.resource)
		if limit > 0 && used > limit && used > limited.had {
			return false, exceeded(c.GetNamespace(), limited.resource, limited.had, limit)
		}
	}
	return changed, done()
}

//nolint:gocyclo // One rule after the other.
func wrongTransaction(c *raftlogv1.KVTransaction) *raftlogv1.Outcome {
	invalid := func(format string, args ...any) *raftlogv1.Outcome {
		return fail(raftlogv1.Code_CODE_INVALID, fmt.Sprintf(format, args...))
	}
	if !name(c.GetNamespace()) {
		return invalid("namespace")
	}
	if n := len(c.GetOps()); n < 1 || n > maxOps {
		return invalid("ops")
	}
	bytes := 0
	for i, op := range c.GetOps() {
		bytes += len(op.GetKey()) + len(op.GetValue())
		switch op.GetKind() {
		case raftlogv1.KVOpKind_KV_OP_KIND_SET, raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, raftlogv1.KVOpKind_KV_OP_KIND_DELETE,
			raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF, raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX,
			raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, raftlogv1.KVOpKind_KV_OP_KIND_RELEASE,
			raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION,
			raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_EXISTS:
		default:
			return invalid("ops[%d].kind", i)
		}
		control := strings.ContainsFunc(op.GetKey(), func(r rune) bool { return r < ' ' || r == 0x7f })
		empty := op.GetKey() == "" && op.GetKind() != raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX
		if control || empty || len(op.GetKey()) > maxKey || !utf8.ValidString(op.GetKey()) {
			return invalid("ops[%d].key", i)
		}
		if len(op.GetValue()) > maxValue {
			return invalid("ops[%d].value", i)
		}
		if ofSession := []raftlogv1.KVOpKind{
			raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, raftlogv1.KVOpKind_KV_OP_KIND_RELEASE, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION,
		}; slices.Contains(ofSession, op.GetKind()) && !name(op.GetSessionId()) {
			return invalid("ops[%d].session_id", i)
		}
		for _, earlier := range c.GetOps()[:i] {
			if touches(earlier, op.GetKey()) && changes(op) || touches(op, earlier.GetKey()) && changes(earlier) {
				return invalid("ops[%d].key", i)
			}
		}
	}
	if bytes > maxTransaction {
		return fail(raftlogv1.Code_CODE_LIMIT, "kv transaction")
	}
	return nil
}

// shortened is as much of a text as a subject has room for.
func shortened(text string) string {
	for len(text) > maxName || !utf8.ValidString(text) {
		text = text[:min(len(text)-1, maxName)]
	}
	return text
}

func changes(op *raftlogv1.KVOp) bool {
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION,
		raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_EXISTS:
		return false
	default:
		return true
	}
}

// touches tells whether an operation changes a key.
func touches(op *raftlogv1.KVOp, key string) bool {
	if op.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX {
		return strings.HasPrefix(key, op.GetKey())
	}
	return changes(op) && op.GetKey() == key
}

func (m *Registry) deniedOp(namespace string, op *raftlogv1.KVOp) *raftlogv1.Outcome {
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, raftlogv1.KVOpKind_KV_OP_KIND_RELEASE:
		if refused := m.deniedSession(op.GetSessionId()); refused != nil {
			return refused
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
		if !m.actor.judged || m.mayPrefix(m.actor.identity, kvWrite, namespace, op.GetKey()) {
			return nil
		}
		return fail(raftlogv1.Code_CODE_DENIED, shortened("kv_write "+namespace+"/"+op.GetKey()+"*"))
	default:
	}
	if changes(op) {
		return m.denied(kvWrite, namespace, op.GetKey())
	}
	return m.denied(kvRead, namespace, op.GetKey())
}

// mayPrefix tells whether one rule lets an identity do something to whatever begins with the prefix.
func (m *Registry) mayPrefix(identity string, action registryv1.Action, namespace, prefix string) bool {
	return slices.ContainsFunc(m.rulesOf(identity), func(r *registryv1.Rule) bool {
		return slices.ContainsFunc(r.GetActions(), func(a registryv1.Action) bool { return implies(a, action) }) &&
			fits(r.GetNamespace(), namespace) && strings.HasSuffix(r.GetName(), "*") && fits(r.GetName(), prefix)
	})
}

// op applies an operation and reports whether it changed something.
//
//nolint:gocyclo,funlen // A table of the kinds.
func (m *Registry) op(at Name, i int, op *raftlogv1.KVOp) (bool, *raftlogv1.Outcome) {
	old := m.Keys[at]
	failed := func(code raftlogv1.Code, number uint64) (bool, *raftlogv1.Outcome) {
		return false, fail(code, shortened(fmt.Sprintf("op %d %d %s", i, number, op.GetKey())))
	}
	owner := old.GetSessionId()
	mine := owner != "" && owner == op.GetSessionId()
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_SET:
		m.putKey(at, op, owner)
	case raftlogv1.KVOpKind_KV_OP_KIND_SET_IF:
		if old.GetModifyRevision() != op.GetExpectedRevision() {
			return failed(raftlogv1.Code_CODE_REVISION_MISMATCH, old.GetModifyRevision())
		}
		m.putKey(at, op, owner)
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE:
		return m.dropKey(at), nil
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF:
		if old != nil && old.GetModifyRevision() != op.GetExpectedRevision() {
			return failed(raftlogv1.Code_CODE_REVISION_MISMATCH, old.GetModifyRevision())
		}
		return m.dropKey(at), nil
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
		dropped := false
		for other := range m.Keys {
			if other.Namespace == at.Namespace && strings.HasPrefix(other.Name, at.Name) {
				dropped = m.dropKey(other)
			}
		}
		return dropped, nil
	case raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE:
		if m.Sessions[op.GetSessionId()] == nil {
			return failed(raftlogv1.Code_CODE_SESSION_NOT_FOUND, 0)
		}
		if owner != "" && !mine {
			return failed(raftlogv1.Code_CODE_LOCK_HELD, 0)
		}
		if until := m.Delays[at]; until > m.Time {
			return failed(raftlogv1.Code_CODE_LOCK_HELD, uint64(until))
		}
		delete(m.Delays, at)
		m.putKey(at, op, op.GetSessionId())
		if !mine {
			m.Keys[at].LockIndex++
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_RELEASE:
		if !mine {
			return failed(raftlogv1.Code_CODE_LOCK_NOT_HELD, 0)
		}
		m.putKey(at, op, "")
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION:
		if old.GetModifyRevision() != op.GetExpectedRevision() {
			return failed(raftlogv1.Code_CODE_REVISION_MISMATCH, old.GetModifyRevision())
		}
		return false, nil
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION:
		if !mine {
			return failed(raftlogv1.Code_CODE_LOCK_NOT_HELD, 0)
		}
		return false, nil
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT:
		if old != nil {
			return failed(raftlogv1.Code_CODE_ALREADY_EXISTS, 0)
		}
		return false, nil
	default:
		if old == nil {
			return failed(raftlogv1.Code_CODE_NOT_FOUND, 0)
		}
		return false, nil
	}
	return true, nil
}

// putKey puts what an operation says, with an owner.
func (m *Registry) putKey(at Name, op *raftlogv1.KVOp, owner string) {
	next := &registryv1.KeyValue{
		Namespace: at.Namespace, Key: at.Name, Value: op.GetValue(), Flags: op.GetFlags(), SessionId: owner,
		CreateRevision: m.Revision, ModifyRevision: m.Revision, Version: 1,
	}
	if old := m.Keys[at]; old != nil {
		next.CreateRevision, next.Version, next.LockIndex = old.GetCreateRevision(), old.GetVersion()+1, old.GetLockIndex()
	}
	m.Keys[at] = next
}

// dropKey deletes a key and reports whether it was there.
func (m *Registry) dropKey(at Name) bool {
	if m.Keys[at] == nil {
		return false
	}
	delete(m.Keys, at)
	m.Deleted[at.Namespace] = m.Revision
	return true
}

// leaveKeys takes the keys of a session away, which has ended.
func (m *Registry) leaveKeys(s *raftlogv1.SessionRecord) {
	for at, k := range m.Keys {
		if k.GetSessionId() != s.GetId() {
			continue
		}
		if s.GetLockDelayMs() > 0 {
			m.Delays[at] = m.Time + int64(s.GetLockDelayMs())
		}
		if s.GetBehavior() == registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
			m.dropKey(at)
			continue
		}
		k.SessionId, k.ModifyRevision = "", m.Revision
		k.Version++
	}
}

// forgetDelays forgets the lock delays that are over.
func (m *Registry) forgetDelays() {
	for at, until := range m.Delays {
		if until <= m.Time {
			delete(m.Delays, at)
		}
	}
}

// wrongTerms names what is wrong with what a session says about keys.
func wrongTerms(c *raftlogv1.OpenSession) string {
	switch {
	case c.GetBehavior() < 0 || c.GetBehavior() > 2:
		return "behavior"
	case c.GetLockDelayMs() > maxLockDelayMs:
		return "lock_delay_ms"
	case len(c.GetNode()) > maxName:
		return "node"
	default:
		return ""
	}
}
