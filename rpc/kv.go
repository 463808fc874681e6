package rpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// kvServer serves KVService: calls here, streams in kv_watch.go.
type kvServer struct {
	apiv1.UnimplementedKVServiceServer
	*core
}

// Limits of keys.
const (
	// MaxKeyLen is the longest key, in bytes.
	MaxKeyLen = fsm.MaxKeyBytes
	// MaxValueLen is the largest value of a key, in bytes.
	MaxValueLen = fsm.MaxValueBytes
	// MaxKeyOps is the number of operations of a transaction.
	MaxKeyOps = fsm.MaxKVOps
	// MaxLockDelay is the longest lock delay of a session.
	MaxLockDelay = fsm.MaxLockDelayMs * time.Millisecond
)

// Errors of keys.
var (
	// ErrKeyNotFound: there is no such key.
	ErrKeyNotFound = errors.New("no such key")
	// ErrKeyExists: the key is there.
	ErrKeyExists = errors.New("the key exists")
)

// aboutKeys explains an error of an order about keys, of which one operation may be to blame.
func aboutKeys(err error, verb, namespace, key string) error {
	var refused *fsm.Error
	facts := []string{"namespace", namespace, "key", quoteless(key)}
	if errors.As(err, &refused) {
		if f, ok := refused.KVFailure(); ok {
			err = failedOp(err, f)
			facts = append(facts, "op", strconv.Itoa(f.Op), "key", quoteless(f.Key))
			if errors.Is(err, fsm.ErrRevisionMismatch) {
				facts = append(facts, "revision", strconv.FormatUint(f.Number, 10))
			}
		}
	}
	return explain(err, verb+" "+quote(namespace+"/"+key), facts...)
}

// failedOp says in words why an operation failed.
func failedOp(err error, f fsm.KVFailure) error {
	key := quote(f.Key)
	switch {
	case errors.Is(err, fsm.ErrRevisionMismatch) && f.Number == 0:
		return fmt.Errorf("%w: key %s is not there", fsm.ErrRevisionMismatch, key)
	case errors.Is(err, fsm.ErrRevisionMismatch):
		return fmt.Errorf("%w: key %s was changed last at revision %d", fsm.ErrRevisionMismatch, key, f.Number)
	case errors.Is(err, fsm.ErrLockHeld) && f.Number > 0:
		return fmt.Errorf("%w: the last owner of key %s has ended, and nobody may own it for a while", fsm.ErrLockHeld, key)
	case errors.Is(err, fsm.ErrLockHeld):
		return fmt.Errorf("%w: another session owns key %s", fsm.ErrLockHeld, key)
	case errors.Is(err, fsm.ErrLockNotHeld):
		return fmt.Errorf("%w: the session does not own key %s", fsm.ErrLockNotHeld, key)
	case errors.Is(err, fsm.ErrAlreadyExists):
		return fmt.Errorf("%w: %s", ErrKeyExists, key)
	case errors.Is(err, fsm.ErrNotFound):
		return fmt.Errorf("%w: %s", ErrKeyNotFound, key)
	default:
		return err
	}
}

// quoteless is a key as a fact of an error: short.
func quoteless(key string) string { return strings.Trim(quote(key), `"`) }

// GetKey returns a key.
func (s *kvServer) GetKey(ctx context.Context, req *apiv1.GetKeyRequest) (*apiv1.GetKeyResponse, error) {
	var f faults
	namespace := f.namespace("namespace", req.GetNamespace())
	f.keyText("key", req.GetKey(), false)
	fresh := f.freshness(req.GetFreshness())
	if err := f.err(); err != nil {
		return nil, err
	}
	st, header, err := s.view(ctx, fresh)
	if err != nil {
		return nil, aboutKeys(err, "get key", namespace, req.GetKey())
	}
	k := st.Key(namespace, req.GetKey())
	if k == nil {
		return nil, aboutKeys(ErrKeyNotFound, "get key", namespace, req.GetKey())
	}
	return &apiv1.GetKeyResponse{Header: header, KeyValue: k.Proto()}, nil
}

// ListKeys lists keys, in order of their bytes.
func (s *kvServer) ListKeys(ctx context.Context, req *apiv1.ListKeysRequest) (*apiv1.ListKeysResponse, error) {
	var f faults
	what := &apiv1.ListKeysRequest{
		Namespace: f.namespace("namespace", req.GetNamespace()), Prefix: req.GetPrefix(), KeysOnly: req.GetKeysOnly(),
	}
	f.keyText("prefix", req.GetPrefix(), true)
	p, err := s.openPage(ctx, &f, what, req)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListKeysResponse{Header: p.header}
	visible := s.visible(ctx, registryv1.Action_ACTION_KV_READ)
	last := ""
	p.state.Keys(what.GetNamespace(), what.GetPrefix(), p.last(0), func(k *fsm.KeyValue) bool {
		if visible != nil && !visible(k.Namespace, k.Key) {
			return ctx.Err() == nil
		}
		item := shownKey(k, what.GetKeysOnly())
		if !p.take(proto.Size(item)) {
			resp.NextPageToken = p.next(last)
			return false
		}
		resp.KeyValues, last = append(resp.KeyValues, item), k.Key
		return true
	})
	return resp, nil
}

// shownKey is a key as lists and watches show it.
func shownKey(k *fsm.KeyValue, keysOnly bool) *registryv1.KeyValue {
	m := k.Proto()
	if keysOnly {
		m.Value = nil
	}
	return m
}

// PutKey puts a value.
func (s *kvServer) PutKey(ctx context.Context, req *apiv1.PutKeyRequest) (*apiv1.PutKeyResponse, error) {
	var f faults
	id := f.request(req)
	namespace := f.namespace("namespace", req.GetNamespace())
	op := &raftlogv1.KVOp{
		Kind: raftlogv1.KVOpKind_KV_OP_KIND_SET, Key: req.GetKey(), Value: req.GetValue(), Flags: req.GetFlags(),
		ExpectedRevision: req.GetExpectedRevision(), SessionId: req.GetSessionId(),
	}
	ops := []*raftlogv1.KVOp{op}
	if req.GetMustBeAbsent() && req.GetExpectedRevision() != 0 {
		f.add("must_be_absent", "contradicts the expected revision %d", req.GetExpectedRevision())
	}
	switch {
	case req.GetSessionId() != "":
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE
		op.ExpectedRevision = 0
		if req.GetMustBeAbsent() || req.GetExpectedRevision() != 0 {
			ops = []*raftlogv1.KVOp{{
				Kind: raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION, Key: req.GetKey(), ExpectedRevision: req.GetExpectedRevision(),
			}, op}
		}
	case req.GetMustBeAbsent() || req.GetExpectedRevision() != 0:
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_SET_IF
	}
	f.keyOp(op)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.transact(ctx, id, namespace, ops)
	if err != nil {
		return nil, aboutKeys(err, "put key", namespace, req.GetKey())
	}
	return &apiv1.PutKeyResponse{Header: s.writeHeader(out.Revision)}, nil
}

// DeleteKey deletes a key, or all that begin alike.
func (s *kvServer) DeleteKey(ctx context.Context, req *apiv1.DeleteKeyRequest) (*apiv1.DeleteKeyResponse, error) {
	var f faults
	id := f.request(req)
	namespace := f.namespace("namespace", req.GetNamespace())
	op := &raftlogv1.KVOp{
		Kind: raftlogv1.KVOpKind_KV_OP_KIND_DELETE, Key: req.GetKey(), ExpectedRevision: req.GetExpectedRevision(),
	}
	if req.GetExpectedRevision() != 0 {
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF
	}
	if req.GetPrefix() {
		op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX
		if req.GetExpectedRevision() != 0 {
			f.add("expected_revision", "is of one key, not of a prefix")
		}
	}
	f.keyOp(op)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.transact(ctx, id, namespace, []*raftlogv1.KVOp{op})
	if err != nil {
		return nil, aboutKeys(err, "delete key", namespace, req.GetKey())
	}
	return &apiv1.DeleteKeyResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// Transact applies several operations as one change.
func (s *kvServer) Transact(ctx context.Context, req *apiv1.TransactRequest) (*apiv1.TransactResponse, error) {
	var f faults
	id := f.request(req)
	namespace := f.namespace("namespace", req.GetNamespace())
	ops := f.keyOps("ops", req.GetOps())
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.transact(ctx, id, namespace, ops)
	if err != nil {
		return nil, aboutKeys(err, "change keys of", namespace, "")
	}
	return &apiv1.TransactResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// transact proposes operations.
func (s *kvServer) transact(
	ctx context.Context, id *raftlogv1.RequestID, namespace string, ops []*raftlogv1.KVOp,
) (fsm.Outcome, error) {
	return s.propose(ctx, &raftlogv1.Command{Level: fsm.KVLevel, Request: id, Kind: &raftlogv1.Command_KvTransaction{
		KvTransaction: &raftlogv1.KVTransaction{Namespace: namespace, Ops: ops},
	}})
}

// keyOps checks the operations of a transaction.
func (f *faults) keyOps(field string, in []*apiv1.KeyOp) []*raftlogv1.KVOp {
	if len(in) == 0 {
		f.add(field, "is required")
	}
	if !f.count(field, len(in), MaxKeyOps) {
		return nil
	}
	out := make([]*raftlogv1.KVOp, 0, len(in))
	total := 0
	for i, op := range in {
		made := &raftlogv1.KVOp{
			Kind: raftlogv1.KVOpKind(op.GetKind()), Key: op.GetKey(), Value: op.GetValue(), Flags: op.GetFlags(),
			ExpectedRevision: op.GetExpectedRevision(), SessionId: op.GetSessionId(),
		}
		f.place.enterItem(field, i)
		f.keyOp(made)
		if fsm.ChangedTwice(out, made) {
			f.add("key", "is changed by an operation before: %s", quote(op.GetKey()))
		}
		f.place.leave()
		out = append(out, made)
		total += len(op.GetKey()) + len(op.GetValue())
	}
	if total > fsm.MaxKVTransactionBytes {
		f.add(field, "have keys and values of %d bytes together, the limit is %d", total, fsm.MaxKVTransactionBytes)
	}
	return out
}

// keyOp checks an operation.
func (f *faults) keyOp(op *raftlogv1.KVOp) {
	prefix := false
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_SET, raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, raftlogv1.KVOpKind_KV_OP_KIND_DELETE,
		raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION,
		raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, raftlogv1.KVOpKind_KV_OP_KIND_CHECK_EXISTS:
	case raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
		prefix = true
	case raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, raftlogv1.KVOpKind_KV_OP_KIND_RELEASE,
		raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION:
		f.word("session_id", op.GetSessionId(), MaxIDLen, nameChars)
	default:
		f.add("kind", "is unknown: %d", int32(op.GetKind()))
	}
	f.keyText("key", op.GetKey(), prefix)
	if n := len(op.GetValue()); n > MaxValueLen {
		f.add("value", "has %d bytes, the limit is %d", n, MaxValueLen)
	}
}

// keyText checks a key, or what keys begin with, which may be empty.
func (f *faults) keyText(field, key string, prefix bool) {
	control := strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r == unicode.MaxASCII })
	switch {
	case key == "" && !prefix:
		f.add(field, "is required")
	case len(key) > MaxKeyLen:
		f.add(field, "has %d bytes, the limit is %d: %s", len(key), MaxKeyLen, quote(key))
	case !utf8.ValidString(key):
		f.add(field, "is not UTF-8: %s", quote(key))
	case control >= 0:
		f.add(field, "has the control character %q at %d: %s", key[control], control+1, quote(key))
	}
}
