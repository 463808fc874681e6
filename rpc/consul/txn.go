package consul

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// How a transaction is answered.
//
// One that only reads and checks is a read: all of it sees one State, as fresh as was asked. One that writes becomes one command, of
// which the state machine does all or nothing. What it reads besides must be what was there just before, in its place among the other
// operations, but a command gives back no values. So reads are made here, on a State, with what the operations before them have
// done on top; and the command carries conditions under which that State is right: that a key that was read still has the revision
// that it had. If it has not, nothing was done, and it is tried again on a State that is sure to be current. Only get-tree has
// no such condition: beside a write it shows the tree of a State that may be older than the write by a moment.

// txnRequest is an operation of a transaction: of keys. Those of nodes, services and checks have another field, and are refused.
type txnRequest struct {
	KV *kvOperation
}

// kvOperation is an operation on keys.
type kvOperation struct {
	Verb, Key    string
	Value        []byte
	Flags, Index uint64
	Session      string
	Namespace    string
}

// The verbs that are no operation of the state machine.
const (
	verbGet        = "get"
	verbGetOrEmpty = "get-or-empty"
	verbGetTree    = "get-tree"
)

// kindOf returns the operation that a verb stands for, 0 for those that only read, and false for an unknown one.
func kindOf(verb string) (raftlogv1.KVOpKind, bool) {
	switch verb {
	case "set":
		return raftlogv1.KVOpKind_KV_OP_KIND_SET, true
	case "cas":
		return raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, true
	case "lock":
		return raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, true
	case "unlock":
		return raftlogv1.KVOpKind_KV_OP_KIND_RELEASE, true
	case "delete":
		return raftlogv1.KVOpKind_KV_OP_KIND_DELETE, true
	case "delete-cas":
		return raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF, true
	case "delete-tree":
		return raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX, true
	case "check-index":
		return raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION, true
	case "check-session":
		return raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION, true
	case "check-not-exists":
		return raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, true
	case verbGet, verbGetOrEmpty, verbGetTree:
		return 0, true
	default:
		return 0, false
	}
}

// txnResult is what an operation has read or changed.
type txnResult struct{ KV *kvPair }

// txnError is why an operation failed, and with it all of them.
type txnError struct {
	OpIndex int
	What    string
}

// txnAnswer is the answer: either of both.
type txnAnswer struct {
	Results []txnResult
	Errors  []txnError
}

// txn is a transaction.
type txn struct {
	namespace string
	verbs     []string          // of the operations
	ops       []*raftlogv1.KVOp // what they stand for
}

// transact is PUT txn.
func (s *Server) transact(w *answer, a *request) error {
	t, err := readTxn(w, a)
	if err != nil {
		return err
	}
	if err = s.mayTransact(a, t); err != nil {
		return err
	}
	if !t.writes() {
		return s.readTxn(w, a, t)
	}
	st := s.node.Feed().State()
	for range attempts {
		answer, again, err := s.tryTxn(a, t, st)
		if err != nil || !again {
			return answerTxn(w, answer, err)
		}
		v, err := s.view(a, cluster.Freshness{Mode: cluster.ModeLinearizable})
		if err != nil {
			return err
		}
		st, a.sure = v.State, true
	}
	return &failure{http.StatusServiceUnavailable, "others change the same keys all the time: try again"}
}

func answerTxn(w *answer, answer txnAnswer, err error) error {
	switch {
	case err != nil:
		return err
	case len(answer.Errors) > 0:
		return reply(w, http.StatusConflict, answer)
	default:
		return reply(w, http.StatusOK, answer)
	}
}

// readTxn reads the body.
func readTxn(w *answer, a *request) (*txn, error) {
	body, err := readAll(w, a)
	if err != nil {
		return nil, err
	}
	var requests []txnRequest
	if err = decodeList(body, &requests); err != nil {
		return nil, err
	}
	if n := len(requests); n > fsm.MaxKVOps {
		return nil, &failure{http.StatusRequestEntityTooLarge, fmt.Sprintf("Transaction contains too many operations (%d > %d)", n, fsm.MaxKVOps)}
	}
	t := &txn{namespace: a.namespace}
	for i, r := range requests {
		if r.KV == nil {
			return nil, badRequest("Operation %d is not of KV: transactions of regd are about keys only", i)
		}
		if err := t.add(a, i, r.KV); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *txn) add(a *request, i int, r *kvOperation) error {
	kind, known := kindOf(r.Verb)
	if !known {
		return badRequest("Operation %d: unknown verb %q of KV", i, cut(r.Verb))
	}
	if err := checkKey(r.Key, r.Verb == verbGetTree || kind == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX); err != nil {
		return badRequest("Operation %d: %v", i, err)
	}
	namespace := cmp.Or(r.Namespace, a.namespace)
	if i == 0 {
		t.namespace = namespace
		if err := rpc.CheckNamespace(namespace); err != nil {
			return err
		}
	}
	if namespace != t.namespace {
		return badRequest("Operation %d: Namespace %q: a transaction is about one namespace, this one about %q", i, cut(namespace), cut(t.namespace))
	}
	op := r.op(kind)
	if named(kind) && r.Session == "" {
		return badRequest("Operation %d: %s: Missing session", i, r.Verb)
	}
	for n, other := range t.ops {
		if fsm.ChangedTwice([]*raftlogv1.KVOp{other}, op) {
			return badRequest("Operations %d and %d change the same key %q: a transaction of regd changes each key once", n, i, cut(r.Key))
		}
	}
	t.verbs, t.ops = append(t.verbs, r.Verb), append(t.ops, op)
	return nil
}

// op is the operation of the state machine, of a kind.
func (r *kvOperation) op(kind raftlogv1.KVOpKind) *raftlogv1.KVOp {
	op := &raftlogv1.KVOp{Kind: kind, Key: r.Key}
	switch kind {
	case raftlogv1.KVOpKind_KV_OP_KIND_SET, raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, raftlogv1.KVOpKind_KV_OP_KIND_RELEASE:
		op.Value, op.Flags = r.Value, r.Flags
	default:
	}
	switch kind {
	case raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION:
		op.ExpectedRevision = r.Index
	default:
	}
	if named(kind) {
		op.SessionId = r.Session
	}
	return op
}

// named tells whether an operation is about a session.
func named(kind raftlogv1.KVOpKind) bool {
	return kind == raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE || kind == raftlogv1.KVOpKind_KV_OP_KIND_RELEASE ||
		kind == raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION
}

func isWrite(kind raftlogv1.KVOpKind) bool {
	return kind > 0 && kind < raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION
}

func (t *txn) writes() bool {
	return slices.ContainsFunc(t.ops, func(op *raftlogv1.KVOp) bool { return isWrite(op.GetKind()) })
}

// mayTransact checks that the caller may do all of it. A tree shows what the caller may see.
func (s *Server) mayTransact(a *request, t *txn) error {
	a.namespace = t.namespace
	for i, op := range t.ops {
		var err error
		switch {
		case t.verbs[i] == verbGetTree:
		case op.GetKind() == 0:
			err = s.allow(a.Context(), a, registryv1.Action_ACTION_KV_READ, t.namespace, op.GetKey())
		default:
			err = s.mayChange(a, op)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readTxn answers a transaction that writes nothing.
func (s *Server) readTxn(w *answer, a *request, t *txn) error {
	v, err := s.view(a, cluster.Freshness{Mode: a.mode})
	if err != nil {
		return err
	}
	s.setMeta(w, v.State.Revision(), v)
	d := draft{request: a, txn: t, st: v.State}
	for i := range t.ops {
		d.do(i)
	}
	return answerTxn(w, d.answer(0, nil), nil)
}

// tryTxn proposes a transaction with what it reads in a State. again: that State was too old, nothing was done.
func (s *Server) tryTxn(a *request, t *txn, st *fsm.State) (answer txnAnswer, again bool, err error) {
	d := draft{request: a, txn: t, st: st}
	var ops []*raftlogv1.KVOp
	var places []int // of the operations in the transaction
	for i := range t.ops {
		if op := d.do(i); op != nil {
			ops, places = append(ops, op), append(places, i)
		}
	}
	if len(d.errors) > 0 { // A key is not there: true for sure, if the State is.
		return txnAnswer{Errors: d.errors[:1]}, !a.sure, nil
	}
	out, err := s.order(a, transaction(t.namespace, ops...))
	if err == nil {
		var after *fsm.State
		if v, viewErr := s.view(a, cluster.Freshness{Mode: cluster.ModeAtLeast, MinRevision: out.Revision}); viewErr == nil {
			after = v.State // Else what was changed is shown as far as it is known here.
		}
		return d.answer(out.Revision, after), false, nil
	}
	var refused *fsm.Error
	if !errors.As(err, &refused) {
		return txnAnswer{}, false, err
	}
	why, ok := refused.KVFailure()
	if !ok || why.Op >= len(places) {
		return txnAnswer{}, false, err
	}
	i := places[why.Op]
	if t.ops[i].GetKind() == 0 {
		return txnAnswer{}, true, nil
	}
	return txnAnswer{Errors: []txnError{{i, whyFailed(refused, why, t.ops[i])}}}, false, nil
}

// whyFailed says why an operation failed.
func whyFailed(err error, why fsm.KVFailure, op *raftlogv1.KVOp) string {
	key := op.GetKey()
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION:
		return fmt.Sprintf("failed index check for key %q, current modify index %d != %d", key, why.Number, op.GetExpectedRevision())
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION:
		return fmt.Sprintf("failed session check for key %q, session %q does not hold it", key, op.GetSessionId())
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT:
		return fmt.Sprintf("key %q exists", key)
	default:
	}
	switch {
	case errors.Is(err, fsm.ErrRevisionMismatch) && op.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF:
		return fmt.Sprintf("failed to delete key %q, index is stale", key)
	case errors.Is(err, fsm.ErrRevisionMismatch):
		return fmt.Sprintf("failed to set key %q, index is stale", key)
	case errors.Is(err, fsm.ErrLockHeld) && why.Number > 0:
		return fmt.Sprintf("failed to lock key %q, due to lock delay", key)
	case errors.Is(err, fsm.ErrLockHeld):
		return fmt.Sprintf("failed to lock key %q, lock is already held", key)
	case errors.Is(err, fsm.ErrLockNotHeld):
		return fmt.Sprintf("failed to unlock key %q, lock isn't held, or is held by another session", key)
	case errors.Is(err, fsm.ErrSessionNotFound):
		return fmt.Sprintf("invalid session %q", op.GetSessionId())
	default:
		return fmt.Sprintf("key %q: %v", key, err)
	}
}
