package fsm_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func op(kind raftlogv1.KVOpKind, key string) *raftlogv1.KVOp {
	return &raftlogv1.KVOp{Kind: kind, Key: key}
}

func setOp(key string, value []byte) *raftlogv1.KVOp {
	return &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_SET, Key: key, Value: value}
}

func keysIn(namespace string, ops ...*raftlogv1.KVOp) *raftlogv1.Command {
	return kv(&raftlogv1.KVTransaction{Namespace: namespace, Ops: ops})
}

func wantCode(t *testing.T, o fsm.Outcome, code raftlogv1.Code, subject string) {
	t.Helper()
	if o.Code != code || o.Subject != subject || o.Changed {
		t.Errorf("outcome %+v, want %v %q", o, code, subject)
	}
}

// TestKeysAndValuesAreLimited holds for each limit that what reaches it is taken and what is beyond it is refused.
func TestKeysAndValuesAreLimited(t *testing.T) {
	m := newMachine(t)
	long := strings.Repeat("k", fsm.MaxKeyBytes)
	m.must(keysIn("n", setOp(long, make([]byte, fsm.MaxValueBytes))))
	wantCode(t, m.one(keysIn("n", setOp(long+"k", nil))), raftlogv1.Code_CODE_INVALID, "ops[0].key")
	wantCode(t, m.one(keysIn("n", setOp("k", make([]byte, fsm.MaxValueBytes+1)))), raftlogv1.Code_CODE_INVALID, "ops[0].value")
	for _, key := range []string{"", "a\x00b", "a\nb", "\x1f", "\x7f"} {
		wantCode(t, m.one(keysIn("n", setOp(key, nil))), raftlogv1.Code_CODE_INVALID, "ops[0].key")
	}
	half := make([]byte, fsm.MaxKVTransactionBytes/2-1)
	m.must(keysIn("n", setOp("a", half), setOp("b", half)))
	wantCode(t, m.one(keysIn("n", setOp("aa", half), setOp("b", half))), raftlogv1.Code_CODE_LIMIT, "kv transaction")
	var many []*raftlogv1.KVOp
	for i := range fsm.MaxKVOps + 1 {
		many = append(many, setOp(fmt.Sprint(i), nil))
	}
	m.must(keysIn("n", many[:fsm.MaxKVOps]...))
	wantCode(t, m.one(keysIn("n", many...)), raftlogv1.Code_CODE_INVALID, "ops")
	wantCode(t, m.one(keysIn("n")), raftlogv1.Code_CODE_INVALID, "ops")
	audit(t, m.st)
}

// TestAllKeysTogetherAreLimited holds that the whole state has no more than its limit, which what shrinks and what stays alike may
// exceed no further.
func TestAllKeysTogetherAreLimited(t *testing.T) {
	large(t)
	m := newMachine(t)
	value := make([]byte, fsm.MaxValueBytes-8) // The log and the states share it with nothing: that is what costs here.
	for i := range fsm.MaxKVBytes / fsm.MaxValueBytes {
		m.must(keysIn("n", setOp(fmt.Sprintf("%08d", i), value)))
	}
	if keys, used := m.st.KVTotal(); used != fsm.MaxKVBytes || keys != fsm.MaxKVBytes/fsm.MaxValueBytes {
		t.Fatalf("%d keys of %d bytes", keys, used)
	}
	wantCode(t, m.one(keysIn("other", setOp("k", nil))), raftlogv1.Code_CODE_LIMIT, "kv bytes")
	m.must(keysIn("n", setOp("00000000", value)))
	m.must(keysIn("n", setOp("00000000", value[:100])))
	m.must(keysIn("other", setOp("k", nil)))
	if got := restored(t, snapshotOf(t, m.st)); got.Hash() != m.st.Hash() {
		t.Error("the snapshot is another state")
	}
}

// TestAPrefixOfTooManyKeysIsNotDeleted holds that no operation does unbounded work.
func TestAPrefixOfTooManyKeysIsNotDeleted(t *testing.T) {
	large(t)
	m := &machine{t: t, st: fsm.WithKeys(fsm.MaxDeletedKeys+1, 10), term: 1, time: 1_000_000}
	audit(t, m.st)
	wantCode(t, m.one(keysIn("default", op(raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX, ""))), raftlogv1.Code_CODE_LIMIT, "deleted keys")
	m.must(keysIn("default", op(raftlogv1.KVOpKind_KV_OP_KIND_DELETE, "key-0000000")))
	result := m.apply(keysIn("default", op(raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX, "")))
	if keys, used := m.st.KVTotal(); keys != 0 || used != 0 || len(result.Events) != fsm.MaxDeletedKeys {
		t.Errorf("%d keys of %d bytes are left, %d events", keys, used, len(result.Events))
	}
	audit(t, m.st)
}

// TestOwnedKeysAreLimited holds that no more keys are owned, or in their lock delay, than the limit, and that the end of a session is
// never refused for it.
func TestOwnedKeysAreLimited(t *testing.T) {
	large(t)
	m := newMachine(t)
	owner := openSession("s")
	owner.Level, owner.GetOpenSession().LockDelayMs = fsm.KVLevel, 1000
	m.must(owner)
	var ops [][]byte
	own := func(i int) *raftlogv1.Command {
		return keysIn("n", &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, Key: fmt.Sprint(i), SessionId: "s"})
	}
	for i := range fsm.MaxOwnedKeys {
		ops = append(ops, encode(t, own(i)))
	}
	m.st = benchApply(t, m.st, fsm.AppendEntry(nil, m.time, ops))
	wantCode(t, m.one(own(-1)), raftlogv1.Code_CODE_LIMIT, "owned keys")
	m.must(closeSession("s"))
	if n := len(fsm.LockDelays(m.st)); n != fsm.MaxOwnedKeys {
		t.Errorf("%d lock delays", n)
	}
	m.must(openSession("s"))
	wantCode(t, m.one(own(-1)), raftlogv1.Code_CODE_LIMIT, "owned keys")
	m.time += 1000
	m.apply()
	if n := len(fsm.LockDelays(m.st)); n != fsm.MaxOwnedKeys-fsm.MaxSwept {
		t.Errorf("%d lock delays after a sweep", n)
	}
	m.must(own(-1))
	audit(t, m.st)
}

// TestDeletionsOfManyNamespacesAreForgottenButNeverRunBack holds that a reader's index does not fall when a namespace is forgotten.
func TestDeletionsOfManyNamespacesAreForgottenButNeverRunBack(t *testing.T) {
	m := newMachine(t)
	m.must(keysIn("kept", setOp("a", nil), setOp("b", nil)))
	m.must(keysIn("kept", op(raftlogv1.KVOpKind_KV_OP_KIND_DELETE, "a")))
	last := map[string]uint64{}
	for i := range fsm.MaxEmptyKVNamespaces + 1 {
		name := fmt.Sprintf("n%04d", i)
		m.must(keysIn(name, setOp("k", nil)))
		m.must(keysIn(name, op(raftlogv1.KVOpKind_KV_OP_KIND_DELETE, "k")))
		for other, revision := range last {
			if now := m.st.KeysDeleted(other); now < revision {
				t.Fatalf("the index of %s falls from %d to %d", other, revision, now)
			}
		}
		last[name] = m.st.KeysDeleted(name)
	}
	if diff := cmp.Diff(map[string]uint64{"": m.st.Revision(), "kept": 2}, fsm.Deletions(m.st)); diff != "" {
		t.Errorf("deletions (-want +got):\n%s", diff)
	}
	if got := restored(t, snapshotOf(t, m.st)); got.KeysDeleted("n0000") != m.st.Revision() || got.KeysDeleted("never") != m.st.Revision() {
		t.Error("a snapshot forgets that it forgot")
	}
	audit(t, m.st)
}

// TestAFailedOperationIsReadBack holds that what a subject says of a failure is what is read from it.
func TestAFailedOperationIsReadBack(t *testing.T) {
	m := newMachine(t)
	m.must(keysIn("n", setOp("a b/ä 7", nil)))
	for _, tt := range []struct {
		op   *raftlogv1.KVOp
		want fsm.KVFailure
	}{
		{op(raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, "a b/ä 7"), fsm.KVFailure{Op: 1, Key: "a b/ä 7"}},
		{op(raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, "a b/ä 7"), fsm.KVFailure{Op: 1, Number: 1, Key: "a b/ä 7"}},
		{op(raftlogv1.KVOpKind_KV_OP_KIND_CHECK_EXISTS, strings.Repeat("ä", 256)), fsm.KVFailure{Op: 1, Key: strings.Repeat("ä", 124)}},
	} {
		o := m.one(keysIn("n", op(raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, "none"), tt.op))
		var refused *fsm.Error
		refused, _ = o.Err().(*fsm.Error) //nolint:errorlint // It is just what Err returns.
		got, ok := refused.KVFailure()
		if !ok || got != tt.want {
			t.Errorf("%+v (%t) from %q, want %+v", got, ok, o.Subject, tt.want)
		}
	}
	for _, subject := range []string{"", "op", "op 1", "op x 1 k", "op 1 x k", "keys 1 1 n"} {
		if f, ok := (&fsm.Error{Subject: subject}).KVFailure(); ok {
			t.Errorf("%q is read as %+v", subject, f)
		}
	}
}

// TestAStateWithoutKeysCostsNothing holds that what comes with keys is not there before them.
func TestAStateWithoutKeysCostsNothing(t *testing.T) {
	m := newMachine(t)
	m.must(as("", putNamespace(&registryv1.Namespace{Name: "n"})))
	before := snapshotOf(t, m.st)
	if fsm.HasKeyspace(m.st) {
		t.Fatal("keys before their level")
	}
	m.one(keysIn("n", op(raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, "k")))
	after := snapshotOf(t, m.st)
	if grown := len(after) - len(before); grown < 0 || grown > 200 || bytes.Equal(before, after) {
		t.Errorf("the snapshot has grown by %d bytes", grown)
	}
}

// benchKeys is a state of n keys with values of 100 bytes.
func benchKeys(n int) *fsm.State { return fsm.WithKeys(n, 100) }

func BenchmarkKeySet(b *testing.B) {
	for _, size := range []int{100, 4 << 10, fsm.MaxValueBytes} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			s := benchKeys(10_000)
			data := fsm.AppendEntry(nil, 1, [][]byte{encode(b, keysIn("default", setOp("key-0005000", make([]byte, size))))})
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				s = benchApplyFast(b, s, data, uint64(i))
			}
		})
	}
}

func BenchmarkKeysCut(b *testing.B) {
	s := benchKeys(10_000)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		n := 0
		s.Keys("default", "key-", "", func(*fsm.KeyValue) bool { n++; return true })
		if n != 10_000 {
			b.Fatal(n)
		}
	}
}

func BenchmarkKeysDeletePrefix(b *testing.B) {
	s := benchKeys(fsm.MaxDeletedKeys)
	data := fsm.AppendEntry(nil, 1, [][]byte{encode(b, keysIn("default", op(raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX, "")))})
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		benchApplyFast(b, s, data, 0)
	}
}
