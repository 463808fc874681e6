package fsm

import (
	"slices"
	"strconv"
	"strings"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// KVFailure is what made a KVTransaction fail: the operation, and why it did.
type KVFailure struct {
	// Op is the place of the operation in the transaction, from 0.
	Op int
	// Number is the modify revision that there is (0: the key is not there) of a CODE_REVISION_MISMATCH, the end of the lock delay
	// that runs, in milliseconds since the Unix epoch, of a CODE_LOCK_HELD (0: another session owns the key), else 0.
	Number uint64
	// Key is that of the operation, cut to what fits into a subject: the operation has it whole.
	Key string
}

// kvFailurePrefix is what the subject of a failed operation begins with.
const kvFailurePrefix = "op "

// refuse is the outcome of a transaction of which an operation fails.
func (f KVFailure) refuse(code raftlogv1.Code) Outcome {
	return refuse(code, kvFailurePrefix+strconv.Itoa(f.Op)+" "+strconv.FormatUint(f.Number, 10)+" "+f.Key)
}

// KVFailure returns which operation of a KVTransaction failed, false if it was refused as a whole: as malformed, for a limit or
// a quota, or because the actor may not do that.
func (e *Error) KVFailure() (f KVFailure, ok bool) {
	rest, ok := strings.CutPrefix(e.Subject, kvFailurePrefix)
	parts := strings.SplitN(rest, " ", 3)
	if !ok || len(parts) != 3 {
		return KVFailure{}, false
	}
	var opErr, numberErr error
	f.Key = parts[2]
	f.Op, opErr = strconv.Atoi(parts[0])
	f.Number, numberErr = strconv.ParseUint(parts[1], 10, 64)
	return f, opErr == nil && numberErr == nil
}

// kvTransaction applies operations in order under one revision: all or none. As in a batch, undoing is taking back the state
// of before.
func (t *txn) kvTransaction(cmd *raftlogv1.KVTransaction) Outcome {
	if outcome, ok := checkKVTransaction(cmd); !ok {
		return outcome
	}
	for _, op := range cmd.GetOps() {
		if outcome, denied := t.deniedOp(cmd.GetNamespace(), op); denied {
			return outcome
		}
	}
	before, events := *t.st, len(t.events)
	t.mark = new(mark)
	outcome := t.applyOps(cmd)
	if outcome.Code == raftlogv1.Code_CODE_UNSPECIFIED {
		outcome = t.overfullOfKeys(cmd.GetNamespace(), &before)
	}
	if outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		clear(t.events[events:])
		*t.st, t.events = before, t.events[:events]
	}
	return outcome
}

func (t *txn) applyOps(cmd *raftlogv1.KVTransaction) Outcome {
	for i, op := range cmd.GetOps() {
		if outcome := t.applyOp(cmd.GetNamespace(), i, op); outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
			return outcome
		}
	}
	return Outcome{}
}

// checkKVTransaction refuses a transaction that makes no sense whatever the state.
func checkKVTransaction(cmd *raftlogv1.KVTransaction) (Outcome, bool) {
	ops := cmd.GetOps()
	switch {
	case !validName(cmd.GetNamespace()):
		return refuse(raftlogv1.Code_CODE_INVALID, "namespace"), false
	case len(ops) == 0 || len(ops) > MaxKVOps:
		return refuse(raftlogv1.Code_CODE_INVALID, "ops"), false
	}
	total := 0
	for i, op := range ops {
		total += len(op.GetKey()) + len(op.GetValue())
		if malformed := malformedOp(op); malformed != "" {
			return refuse(raftlogv1.Code_CODE_INVALID, "ops["+strconv.Itoa(i)+"]."+malformed), false
		}
		if ChangedTwice(ops[:i], op) {
			return refuse(raftlogv1.Code_CODE_INVALID, "ops["+strconv.Itoa(i)+"].key"), false
		}
	}
	if total > MaxKVTransactionBytes {
		return refuse(raftlogv1.Code_CODE_LIMIT, "kv transaction"), false
	}
	return Outcome{}, true
}

// malformedOp names what is malformed of an operation.
func malformedOp(op *raftlogv1.KVOp) string {
	kind := op.GetKind()
	named := kind == raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE || kind == raftlogv1.KVOpKind_KV_OP_KIND_RELEASE ||
		kind == raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION
	prefix := kind == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX
	switch {
	case kind <= raftlogv1.KVOpKind_KV_OP_KIND_UNSPECIFIED || kind > raftlogv1.KVOpKind_KV_OP_KIND_CHECK_EXISTS:
		return "kind"
	case prefix && !validKeyPrefix(op.GetKey()), !prefix && !validKey(op.GetKey()):
		return "key"
	case len(op.GetValue()) > MaxValueBytes:
		return "value"
	case named && !validName(op.GetSessionId()):
		return "session_id"
	default:
		return ""
	}
}

// writes reports whether an operation changes what it names.
func writes(op *raftlogv1.KVOp) bool {
	kind := op.GetKind()
	return kind > raftlogv1.KVOpKind_KV_OP_KIND_UNSPECIFIED && kind < raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION
}

// ChangedTwice reports whether an operation could change a key that one of those before it could change: a transaction in which
// there is such a one is refused.
func ChangedTwice(before []*raftlogv1.KVOp, op *raftlogv1.KVOp) bool {
	return slices.ContainsFunc(before, func(earlier *raftlogv1.KVOp) bool { return writeSame(earlier, op) })
}

// writeSame reports whether two operations could change the same key: which of them would win?
func writeSame(a, b *raftlogv1.KVOp) bool {
	if !writes(a) || !writes(b) {
		return false
	}
	return a.GetKey() == b.GetKey() ||
		a.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX && strings.HasPrefix(b.GetKey(), a.GetKey()) ||
		b.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX && strings.HasPrefix(a.GetKey(), b.GetKey())
}

// deniedOp refuses an operation that the actor may not do.
func (t *txn) deniedOp(namespace string, op *raftlogv1.KVOp) (outcome Outcome, denied bool) {
	if !t.judged {
		return Outcome{}, false
	}
	switch kind := op.GetKind(); {
	case !writes(op):
		return t.denied(registryv1.Action_ACTION_KV_READ, namespace, op.GetKey())
	case kind == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
		if t.st.access.allowsPrefix(t.identity, allowing(registryv1.Action_ACTION_KV_WRITE), namespace, op.GetKey()) {
			return Outcome{}, false
		}
		return refuse(raftlogv1.Code_CODE_DENIED,
			actionName(registryv1.Action_ACTION_KV_WRITE)+" "+namespace+"/"+op.GetKey()+"*"), true
	case kind == raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE || kind == raftlogv1.KVOpKind_KV_OP_KIND_RELEASE:
		if outcome, denied = t.deniedSession(op.GetSessionId()); denied {
			return outcome, true
		}
	}
	return t.denied(registryv1.Action_ACTION_KV_WRITE, namespace, op.GetKey())
}

// applyOp applies one operation, on top of those before it.
func (t *txn) applyOp(namespace string, i int, op *raftlogv1.KVOp) Outcome {
	old := t.st.Key(namespace, op.GetKey())
	if outcome := t.unmet(namespace, i, op, old); outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		return outcome
	}
	next := KeyValue{Namespace: namespace, Key: op.GetKey(), Value: op.GetValue(), Flags: op.GetFlags()}
	if old != nil {
		next.LockIndex, next.SessionID = old.LockIndex, old.SessionID
	}
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_SET, raftlogv1.KVOpKind_KV_OP_KIND_SET_IF:
		t.setKey(next, old)
	case raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE:
		if next.SessionID == "" {
			if t.st.keyspace.sessions.len()+t.st.keyspace.delays.len() >= MaxOwnedKeys {
				return refuse(raftlogv1.Code_CODE_LIMIT, "owned keys")
			}
			t.endDelay(pairKey(namespace, op.GetKey()))
			next.SessionID = op.GetSessionId()
			next.LockIndex++
		}
		t.setKey(next, old)
	case raftlogv1.KVOpKind_KV_OP_KIND_RELEASE:
		next.SessionID = ""
		t.setKey(next, old)
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE, raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF:
		if old != nil {
			t.deleteKey(old)
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
		return t.deletePrefix(namespace, op.GetKey())
	default:
	}
	return Outcome{}
}

// unmet refuses an operation whose condition does not hold.
//
//nolint:gocyclo // A table of the kinds.
func (t *txn) unmet(namespace string, i int, op *raftlogv1.KVOp, old *KeyValue) Outcome {
	failure := KVFailure{Op: i, Key: op.GetKey()}
	var revision uint64
	owned := false
	if old != nil {
		revision, owned = old.ModifyRevision, old.SessionID != "" && old.SessionID == op.GetSessionId()
	}
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION:
		if revision != op.GetExpectedRevision() {
			failure.Number = revision
			return failure.refuse(raftlogv1.Code_CODE_REVISION_MISMATCH)
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF:
		if old != nil && revision != op.GetExpectedRevision() {
			failure.Number = revision
			return failure.refuse(raftlogv1.Code_CODE_REVISION_MISMATCH)
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE:
		if t.st.Session(op.GetSessionId()) == nil {
			return failure.refuse(raftlogv1.Code_CODE_SESSION_NOT_FOUND)
		}
		until, delayed := t.st.LockDelayed(namespace, op.GetKey())
		switch {
		case old != nil && old.SessionID != "" && !owned:
			return failure.refuse(raftlogv1.Code_CODE_LOCK_HELD)
		case delayed && !owned:
			failure.Number = uint64(until)
			return failure.refuse(raftlogv1.Code_CODE_LOCK_HELD)
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_RELEASE, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION:
		if !owned {
			return failure.refuse(raftlogv1.Code_CODE_LOCK_NOT_HELD)
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT:
		if old != nil {
			return failure.refuse(raftlogv1.Code_CODE_ALREADY_EXISTS)
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_EXISTS:
		if old == nil {
			return failure.refuse(raftlogv1.Code_CODE_NOT_FOUND)
		}
	default:
	}
	return Outcome{}
}

// deletePrefix deletes the keys that begin alike, unless there are too many for one transaction.
func (t *txn) deletePrefix(namespace, prefix string) Outcome {
	var found []*KeyValue
	t.st.Keys(namespace, prefix, "", func(k *KeyValue) bool {
		found = append(found, k)
		return len(found) <= MaxDeletedKeys
	})
	if len(found) > MaxDeletedKeys {
		return refuse(raftlogv1.Code_CODE_LIMIT, "deleted keys")
	}
	for _, k := range found {
		t.deleteKey(k)
	}
	return Outcome{}
}

// Resources of keys that a quota bounds in the state machine.
const (
	// QuotaKeys is bounded by Quota.max_keys.
	QuotaKeys = "keys"
	// QuotaKVBytes is bounded by Quota.max_kv_bytes.
	QuotaKVBytes = "kv_bytes"
)

// overfullOfKeys refuses a transaction that leaves more than there may be, and more than there was.
func (t *txn) overfullOfKeys(namespace string, before *State) Outcome {
	now, was := t.st.keyspace, before.keyspace
	switch {
	case now.keys.len() > MaxKeys && now.keys.len() > was.keys.len():
		return refuse(raftlogv1.Code_CODE_LIMIT, "keys")
	case now.bytes > MaxKVBytes && now.bytes > was.bytes:
		return refuse(raftlogv1.Code_CODE_LIMIT, "kv bytes")
	}
	limits := t.st.Namespace(namespace).limits()
	if limits == nil {
		return Outcome{}
	}
	keys, bytes := t.st.KVUse(namespace)
	hadKeys, hadBytes := before.KVUse(namespace)
	switch most, mostBytes := limits.GetMaxKeys(), limits.GetMaxKvBytes(); {
	case most > 0 && keys > most && keys > hadKeys:
		return Quota{namespace, QuotaKeys, hadKeys, most}.refuse()
	case mostBytes > 0 && bytes > mostBytes && bytes > hadBytes:
		return Quota{namespace, QuotaKVBytes, hadBytes, mostBytes}.refuse()
	default:
		return Outcome{}
	}
}
