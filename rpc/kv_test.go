package rpc

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// keyRig is a rig whose cluster knows keys.
func keyRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.node.upgradedTo(t, fsm.KVLevel)
	return r
}

func (r *rig) put(tb testing.TB, key, value string) uint64 {
	tb.Helper()
	resp, err := r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: key, Value: []byte(value)})
	if err != nil {
		tb.Fatal(err)
	}
	return resp.GetHeader().GetRevision()
}

func TestKeysArePutReadAndDeleted(t *testing.T) {
	r := keyRig(t)
	first := r.put(t, "app/a", "one")
	second, err := r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "app/a", Value: []byte("two"), Flags: 7, ExpectedRevision: first})
	if err != nil {
		t.Fatal(err)
	}
	revision := second.GetHeader().GetRevision()
	got, err := r.keys.GetKey(bg, &apiv1.GetKeyRequest{Key: "app/a"})
	if err != nil {
		t.Fatal(err)
	}
	want := &registryv1.KeyValue{
		Namespace: DefaultNamespace, Key: "app/a", Value: []byte("two"), Flags: 7,
		CreateRevision: first, ModifyRevision: revision, Version: 2,
	}
	if diff := cmp.Diff(want, got.GetKeyValue(), protocmp.Transform()); diff != "" {
		t.Errorf("key (-want +got):\n%s", diff)
	}

	_, err = r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "app/a", ExpectedRevision: first})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REVISION_MISMATCH)
	if facts := factsOfError(err); facts["revision"] != fmt.Sprint(revision) || facts["op"] != "0" || facts["key"] != "app/a" {
		t.Errorf("facts %v", facts)
	}
	_, err = r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "app/a", MustBeAbsent: true})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REVISION_MISMATCH)
	_, err = r.keys.GetKey(bg, &apiv1.GetKeyRequest{Key: "app"})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_KEY_NOT_FOUND)
	_, err = r.keys.DeleteKey(bg, &apiv1.DeleteKeyRequest{Key: "app/a", ExpectedRevision: first})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REVISION_MISMATCH)

	r.put(t, "app/b", "")
	for _, changed := range []bool{true, false} {
		deleted, err := r.keys.DeleteKey(bg, &apiv1.DeleteKeyRequest{Key: "app/", Prefix: true})
		if err != nil || deleted.GetChanged() != changed {
			t.Errorf("DeleteKey: %v, %v, want changed %t", deleted, err, changed)
		}
	}
}

func TestKeysAreListedByPage(t *testing.T) {
	r := keyRig(t)
	for i := range 5 {
		r.put(t, fmt.Sprintf("app/%d", i), "v")
	}
	r.put(t, "apq", "v")
	var got []string
	req := &apiv1.ListKeysRequest{Prefix: "app/", KeysOnly: true, PageSize: 2}
	for pages := 1; ; pages++ {
		resp, err := r.keys.ListKeys(bg, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range resp.GetKeyValues() {
			got = append(got, k.GetKey()+string(k.GetValue()))
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		r.put(t, "app/9", "later")
	}
	if diff := cmp.Diff([]string{"app/0", "app/1", "app/2", "app/3", "app/4"}, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

func TestAPageOfLargeValuesEndsEarly(t *testing.T) {
	r := keyRig(t)
	large := strings.Repeat("x", MaxValueLen)
	for i := range 6 {
		r.put(t, fmt.Sprint(i), large)
	}
	resp, err := r.keys.ListKeys(bg, &apiv1.ListKeysRequest{})
	if n := len(resp.GetKeyValues()); err != nil || n != 4 || resp.GetNextPageToken() == "" {
		t.Errorf("%d keys, next %q, %v", n, resp.GetNextPageToken(), err)
	}
	if resp, err = r.keys.ListKeys(bg, &apiv1.ListKeysRequest{KeysOnly: true}); err != nil || len(resp.GetKeyValues()) != 6 {
		t.Errorf("without values: %d keys, %v", len(resp.GetKeyValues()), err)
	}
}

func TestTransactionsSayWhichOperationFailed(t *testing.T) {
	r := keyRig(t)
	opened, err := r.sessions.Open(bg, &apiv1.OpenRequest{
		Behavior: registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE, LockDelay: durationpb.New(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	owner, other := opened.GetSession().GetId(), r.openSession(t)
	do := func(ops ...*apiv1.KeyOp) error {
		return drop(r.keys.Transact(bg, &apiv1.TransactRequest{Ops: ops}))
	}
	set := &apiv1.KeyOp{Kind: apiv1.KeyOpKind_KEY_OP_KIND_SET, Key: "free"}
	acquire := func(session string) *apiv1.KeyOp {
		return &apiv1.KeyOp{Kind: apiv1.KeyOpKind_KEY_OP_KIND_ACQUIRE, Key: "k", SessionId: session}
	}
	if err = do(set, acquire(owner)); err != nil {
		t.Fatal(err)
	}
	revision := r.node.feed.State().Revision()
	for name, row := range map[string]struct {
		op     *apiv1.KeyOp
		code   codes.Code
		reason apiv1.Reason
	}{
		"held":     {acquire(other), codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_HELD},
		"not held": {&apiv1.KeyOp{Kind: apiv1.KeyOpKind_KEY_OP_KIND_RELEASE, Key: "k", SessionId: other}, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_NOT_HELD},
		"session":  {acquire("none"), codes.NotFound, apiv1.Reason_REASON_SESSION_NOT_FOUND},
		"there":    {&apiv1.KeyOp{Kind: apiv1.KeyOpKind_KEY_OP_KIND_CHECK_ABSENT, Key: "k"}, codes.AlreadyExists, apiv1.Reason_REASON_KEY_EXISTS},
		"absent":   {&apiv1.KeyOp{Kind: apiv1.KeyOpKind_KEY_OP_KIND_CHECK_EXISTS, Key: "none"}, codes.NotFound, apiv1.Reason_REASON_KEY_NOT_FOUND},
		"revision": {&apiv1.KeyOp{Kind: apiv1.KeyOpKind_KEY_OP_KIND_CHECK_REVISION, Key: "k"}, codes.FailedPrecondition, apiv1.Reason_REASON_REVISION_MISMATCH},
	} {
		t.Run(name, func(t *testing.T) {
			failed := do(set, row.op)
			wantReason(t, failed, row.code, row.reason)
			if facts := factsOfError(failed); facts["op"] != "1" || facts["key"] != row.op.GetKey() {
				t.Errorf("facts %v", facts)
			}
		})
	}
	if got := r.node.feed.State().Revision(); got != revision {
		t.Errorf("a transaction that failed has changed something: revision %d, was %d", got, revision)
	}
	if _, err = r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: owner}); err != nil {
		t.Fatal(err)
	}
	if k := r.node.feed.State().Key(DefaultNamespace, "k"); k != nil {
		t.Errorf("the key outlives its owner: %+v", k)
	}
	_, err = r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "k", SessionId: other})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_HELD)
	if !strings.Contains(err.Error(), "for a while") {
		t.Errorf("it does not tell of the delay: %v", err)
	}
}

func TestKeyRequestsAreChecked(t *testing.T) {
	r := keyRig(t)
	for name, row := range map[string]struct {
		field string
		err   func() error
	}{
		"no key": {"key", func() error { return drop(r.keys.GetKey(bg, &apiv1.GetKeyRequest{})) }},
		"long key": {"key", func() error {
			return drop(r.keys.GetKey(bg, &apiv1.GetKeyRequest{Key: strings.Repeat("k", MaxKeyLen+1)}))
		}},
		"control": {"key", func() error { return drop(r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "a\tb"})) }},
		"value": {"value", func() error {
			return drop(r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "a", Value: make([]byte, MaxValueLen+1)}))
		}},
		"session": {"session_id", func() error { return drop(r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "a", SessionId: "a b"})) }},
		"contradicts": {"must_be_absent", func() error {
			return drop(r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "a", MustBeAbsent: true, ExpectedRevision: 1}))
		}},
		"prefix": {"prefix", func() error { return drop(r.keys.ListKeys(bg, &apiv1.ListKeysRequest{Prefix: "\x7f"})) }},
		"of a prefix": {"expected_revision", func() error {
			return drop(r.keys.DeleteKey(bg, &apiv1.DeleteKeyRequest{Prefix: true, ExpectedRevision: 1}))
		}},
		"no ops": {"ops", func() error { return drop(r.keys.Transact(bg, &apiv1.TransactRequest{})) }},
		"many ops": {"ops", func() error {
			return drop(r.keys.Transact(bg, &apiv1.TransactRequest{Ops: make([]*apiv1.KeyOp, MaxKeyOps+1)}))
		}},
		"no kind": {"ops[1].kind", func() error {
			return drop(r.keys.Transact(bg, &apiv1.TransactRequest{Ops: []*apiv1.KeyOp{{Kind: 1, Key: "a"}, {Key: "b"}}}))
		}},
		"no session": {"ops[0].session_id", func() error {
			return drop(r.keys.Transact(bg, &apiv1.TransactRequest{Ops: []*apiv1.KeyOp{{Kind: 6, Key: "a"}}}))
		}},
		"lock delay": {"lock_delay", func() error {
			return drop(r.sessions.Open(bg, &apiv1.OpenRequest{LockDelay: durationpb.New(time.Hour)}))
		}},
		"behavior": {"behavior", func() error { return drop(r.sessions.Open(bg, &apiv1.OpenRequest{Behavior: 9})) }},
		"watch": {"key", func() error {
			s, err := r.keys.WatchKeys(bg, &apiv1.WatchKeysRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}},
		"twice": {"ops[1].key", func() error {
			return drop(r.keys.Transact(bg, &apiv1.TransactRequest{Ops: []*apiv1.KeyOp{{Kind: 1, Key: "a"}, {Kind: 3, Key: "a"}}}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			err := row.err()
			wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
			if !strings.Contains(err.Error(), row.field+":") && row.field != "" {
				t.Errorf("it does not name %s: %v", row.field, err)
			}
		})
	}
}

// TestKeysNeedTheirLevel holds that nothing of keys is written before all members know what it means.
func TestKeysNeedTheirLevel(t *testing.T) {
	r := newRig(t)
	r.node.upgraded(t)
	for name, err := range map[string]error{
		"put":     drop(r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "a"})),
		"delete":  drop(r.keys.DeleteKey(bg, &apiv1.DeleteKeyRequest{Key: "a"})),
		"txn":     drop(r.keys.Transact(bg, &apiv1.TransactRequest{Ops: []*apiv1.KeyOp{{Kind: 11, Key: "a"}}})),
		"session": drop(r.sessions.Open(bg, &apiv1.OpenRequest{LockDelay: durationpb.New(time.Second)})),
		"quota": drop(r.namespaces().PutNamespace(bg, &apiv1.PutNamespaceRequest{
			Namespace: &registryv1.Namespace{Name: "n", Quota: &registryv1.Quota{MaxKeys: 1}},
		})),
		"policy": drop(apiv1.NewAccessServiceClient(r.conn).PutPolicy(bg, &apiv1.PutPolicyRequest{Policy: &registryv1.Policy{
			Name: "p", Rules: []*registryv1.Rule{{Actions: []registryv1.Action{registryv1.Action_ACTION_KV_READ}, Namespace: "*", Name: "*"}},
		}})),
	} {
		if name != "" {
			wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_FEATURE_LEVEL)
		}
	}
	if _, err := r.keys.ListKeys(bg, &apiv1.ListKeysRequest{}); err != nil {
		t.Errorf("a list of no keys: %v", err)
	}
}

// TestKeyOpsAreThoseOfTheLog holds that the kinds of operations have the same numbers in the API and in the log.
func TestKeyOpsAreThoseOfTheLog(t *testing.T) {
	named := map[int32]string{}
	for n, name := range apiv1.KeyOpKind_name {
		named[n] = strings.Replace(name, "KEY_OP", "KV_OP", 1)
	}
	if diff := cmp.Diff(raftlogv1.KVOpKind_name, named); diff != "" {
		t.Errorf("kinds (-log +API):\n%s", diff)
	}
}

func TestAPutIsAppliedOnce(t *testing.T) {
	r := keyRig(t)
	req := &apiv1.PutKeyRequest{Key: "a", MustBeAbsent: true, RequestId: &apiv1.RequestID{ClientId: "c", Sequence: 1}}
	first, err := r.keys.PutKey(bg, req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.keys.PutKey(bg, req)
	if err != nil || again.GetHeader().GetRevision() != first.GetHeader().GetRevision() {
		t.Errorf("the retry: %v, %v", again, err)
	}
	req.Value = []byte("other")
	_, err = r.keys.PutKey(bg, req)
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_REQUEST_REUSED)
}

// TestARequestIsItsSendersOwnAlsoAtANodeThatIsBehind holds that it is the state machine that tells senders apart: whoever
// proposes may not know yet whose a token is.
func TestARequestIsItsSendersOwnAlsoAtANodeThatIsBehind(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.upgradedTo(t, fsm.KVLevel)
	all := rule("*/*", registryv1.Action_ACTION_KV_WRITE)
	r.node.identity(t, "a", all)
	r.node.identity(t, "b", all)
	req := &apiv1.PutKeyRequest{Key: "k", RequestId: &apiv1.RequestID{ClientId: "c", Sequence: 1}}
	put := func(as string) error { return drop(r.keys.PutKey(showing(t.Context(), as), req)) }
	if err := put("a"); err != nil {
		t.Fatal(err)
	}
	if err := put("a"); err != nil {
		t.Errorf("the retry: %v", err)
	}
	wantReason(t, put("b"), codes.FailedPrecondition, apiv1.Reason_REASON_REQUEST_REUSED)
}

func TestQuotasOfKeys(t *testing.T) {
	r := keyRig(t)
	r.bound(t, DefaultNamespace, &registryv1.Quota{MaxKeys: 1, MaxKvBytes: 5})
	r.put(t, "a", "1234")
	_, err := r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "b"})
	wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_QUOTA_EXCEEDED)
	_, err = r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "a", Value: []byte("12345")})
	wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_QUOTA_EXCEEDED)
	if facts := factsOfError(err); facts["resource"] != "kv_bytes" || facts["limit"] != "5" || facts["used"] != "5" {
		t.Errorf("facts %v", facts)
	}
	info, err := r.namespaces().GetNamespace(bg, &apiv1.GetNamespaceRequest{})
	if err != nil || info.GetNamespace().GetKeys() != 1 || info.GetNamespace().GetKvBytes() != 5 {
		t.Errorf("namespace %v, %v", info, err)
	}
	r.bound(t, DefaultNamespace, &registryv1.Quota{MaxWritesPerSecond: 1})
	r.put(t, "a", "1")
	_, err = r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: "a"})
	wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_RATE_LIMITED)
	if _, err = r.keys.DeleteKey(bg, &apiv1.DeleteKeyRequest{Key: "a"}); err != nil {
		t.Errorf("what frees is always let in: %v", err)
	}
}

// TestKeysAreGuardedByTheirBeginning holds that a rule about a prefix is about just that.
func TestKeysAreGuardedByTheirBeginning(t *testing.T) {
	r := newRig(t)
	r.node.enforce(t)
	r.node.upgradedTo(t, fsm.KVLevel)
	r.node.identity(t, "app", rule("default/app/*", registryv1.Action_ACTION_KV_WRITE), rule("default/shared", registryv1.Action_ACTION_KV_READ))
	ctx, root := showing(t.Context(), "app"), showing(t.Context(), "root")
	for _, key := range []string{"app/a", "apq", "shared"} {
		if _, err := r.keys.PutKey(root, &apiv1.PutKeyRequest{Key: key, Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := r.keys.ListKeys(ctx, &apiv1.ListKeysRequest{})
	var got []string
	for _, k := range list.GetKeyValues() {
		got = append(got, k.GetKey())
	}
	if diff := cmp.Diff([]string{"app/a", "shared"}, got); diff != "" || err != nil {
		t.Errorf("visible (-want +got): %v\n%s", err, diff)
	}
	for name, row := range map[string]struct {
		allowed bool
		err     error
	}{
		"get own":          {true, drop(r.keys.GetKey(ctx, &apiv1.GetKeyRequest{Key: "app/a"}))},
		"get shared":       {true, drop(r.keys.GetKey(ctx, &apiv1.GetKeyRequest{Key: "shared"}))},
		"get other":        {false, drop(r.keys.GetKey(ctx, &apiv1.GetKeyRequest{Key: "apq"}))},
		"put own":          {true, drop(r.keys.PutKey(ctx, &apiv1.PutKeyRequest{Key: "app/b"}))},
		"put shared":       {false, drop(r.keys.PutKey(ctx, &apiv1.PutKeyRequest{Key: "shared"}))},
		"delete own":       {true, drop(r.keys.DeleteKey(ctx, &apiv1.DeleteKeyRequest{Key: "app/", Prefix: true}))},
		"delete more":      {false, drop(r.keys.DeleteKey(ctx, &apiv1.DeleteKeyRequest{Key: "app", Prefix: true}))},
		"check shared":     {true, drop(r.keys.Transact(ctx, &apiv1.TransactRequest{Ops: []*apiv1.KeyOp{{Kind: 11, Key: "shared"}}}))},
		"check other":      {false, drop(r.keys.Transact(ctx, &apiv1.TransactRequest{Ops: []*apiv1.KeyOp{{Kind: 11, Key: "shared"}, {Kind: 11, Key: "apq"}}}))},
		"other's session":  {false, drop(r.keys.PutKey(ctx, &apiv1.PutKeyRequest{Key: "app/a", SessionId: r.openSessionAs(t, root)}))},
		"another's spaces": {false, drop(r.keys.PutKey(ctx, &apiv1.PutKeyRequest{Namespace: "team", Key: "app/a"}))},
	} {
		if denied := reasonOfError(row.err) == "PERMISSION_DENIED"; denied == row.allowed || row.allowed && row.err != nil {
			t.Errorf("%s: %v, want it allowed: %t", name, row.err, row.allowed)
		}
	}
}

func (r *rig) openSessionAs(tb testing.TB, ctx context.Context) string {
	tb.Helper()
	opened, err := r.sessions.Open(ctx, &apiv1.OpenRequest{})
	if err != nil {
		tb.Fatal(err)
	}
	return opened.GetSession().GetId()
}

func TestTheLargestValueIsTaken(t *testing.T) {
	r := keyRig(t)
	value := bytes.Repeat([]byte{0xff}, MaxValueLen)
	if _, err := r.keys.PutKey(bg, &apiv1.PutKeyRequest{Key: strings.Repeat("k", MaxKeyLen), Value: value}); err != nil {
		t.Fatal(err)
	}
	got, err := r.keys.GetKey(bg, &apiv1.GetKeyRequest{Key: strings.Repeat("k", MaxKeyLen)})
	if err != nil || !bytes.Equal(got.GetKeyValue().GetValue(), value) {
		t.Errorf("%d bytes, %v", len(got.GetKeyValue().GetValue()), err)
	}
}
