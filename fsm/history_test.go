package fsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// recorded is the guarded state with a namespace that has a quota, and a history of several chunks.
func recorded(tb testing.TB) *fsm.State {
	tb.Helper()
	st := guarded(tb)
	m := &machine{t: tb, st: st, term: st.Term(), time: st.Time()}
	m.must(as("token:root", putNamespace(&registryv1.Namespace{Name: "n", Quota: &registryv1.Quota{MaxLocks: 3, MaxInstances: 9}})))
	for i := range 150 {
		m.must(as("token:root", register(tb, web(fmt.Sprint(i)))))
		m.must(as("token:root", deregister(&raftlogv1.Deregister{
			Key: &raftlogv1.Key{Namespace: "default", Service: "web", Id: fmt.Sprint(i)},
		})))
	}
	own := openSession("owner")
	own.Level, own.GetOpenSession().LockDelayMs = fsm.KVLevel, 1000
	m.must(own)
	for _, name := range []string{"a", "a/b", "gone"} {
		m.must(kv(&raftlogv1.KVTransaction{Namespace: "n", Ops: []*raftlogv1.KVOp{
			{Kind: raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE, Key: name, SessionId: "owner"},
		}}))
	}
	m.must(kv(&raftlogv1.KVTransaction{Namespace: "n", Ops: []*raftlogv1.KVOp{{Kind: raftlogv1.KVOpKind_KV_OP_KIND_DELETE, Key: "gone"}}}))
	return m.st
}

// TestHistoryIsBounded holds that a full history forgets its oldest transitions, says so, and is the same on a replica that
// read it from a snapshot.
func TestHistoryIsBounded(t *testing.T) {
	large(t)
	const noted = 200_000
	s := fsm.WithTransitions(noted)
	audit(t, s)
	kept := fsm.AllTransitions(s)
	after, afterMs, _ := s.HistoryAfter()
	if n := uint64(len(kept)); n < 80_000 || after != noted-n || kept[0].GetRevision() != after+1 || afterMs != int64(after)*10 {
		t.Fatalf("%d kept, after revision %d of time %d, the first is %v", n, after, afterMs, kept[0])
	}
	data := snapshotOf(t, s)
	if most := 16 << 10 * (fsm.HistoryChunks + 1); len(data) > most {
		t.Errorf("a snapshot of %d bytes, want at most %d", len(data), most)
	}
	again := restored(t, data)
	one, two := &machine{t: t, st: s, term: 1, time: s.Time()}, &machine{t: t, st: again, term: 1, time: s.Time()}
	for i := range 400 { // Until the next chunk is dropped, too.
		c := register(t, web(fmt.Sprint(i)))
		one.must(c)
		two.must(c)
	}
	audit(t, one.st)
	if one.st.Hash() != two.st.Hash() || !bytes.Equal(snapshotOf(t, one.st), snapshotOf(t, two.st)) {
		t.Errorf("the states went apart")
	}
	if now, _, _ := one.st.HistoryAfter(); now == after {
		t.Errorf("nothing was dropped")
	}
	found, more := s.Transitions("default", "service-00999", "instance-0049999", 100)
	for i, tr := range found {
		if want := uint64(noted - 50_000*(len(found)-1-i)); tr.GetRevision() != want || want <= after {
			t.Errorf("found one of revision %d, want %d, after %d", tr.GetRevision(), want, after)
		}
	}
	if len(found) < 2 || more {
		t.Errorf("%d found, more %t", len(found), more)
	}
}

// TestStatesThatGoOnFromOneDoNotMeet holds that a transition which is noted behind a state, by whichever of several goroutines,
// is seen by nobody else. The race detector watches.
func TestStatesThatGoOnFromOneDoNotMeet(t *testing.T) {
	base := recorded(t)
	before := snapshotOf(t, base)
	var wg sync.WaitGroup
	states := make([]*fsm.State, 8)
	for i := range states {
		wg.Go(func() {
			m := &machine{t: t, st: base, term: base.Term(), time: base.Time()}
			for n := range 20 {
				m.one(as("", register(t, web(fmt.Sprintf("%d-%d", i, n)))))
			}
			states[i] = m.st
		})
	}
	wg.Wait()
	for i, s := range states {
		audit(t, s)
		all := fsm.AllTransitions(s)
		for n, tr := range all[len(all)-20:] {
			if want := fmt.Sprintf("%d-%d", i, n); tr.GetId() != want {
				t.Fatalf("state %d has a transition of %s where %s should be", i, tr.GetId(), want)
			}
		}
	}
	if !bytes.Equal(snapshotOf(t, base), before) {
		t.Errorf("the state that they went on from has changed")
	}
}

// TestWithoutHistoryAStateIsAsBefore holds that a version without history reads what this one writes until a command of
// HistoryLevel: the snapshot has the tables that there were then.
func TestWithoutHistoryAStateIsAsBefore(t *testing.T) {
	s := guarded(t)
	if n := len(headerOf(t, s).GetTableHashes()); n != 11 || len(fsm.AllTransitions(s)) > 0 || s.FeatureLevel() != fsm.AccessLevel {
		t.Errorf("%d tables, level %d", n, s.FeatureLevel())
	}
	if _, _, begun := s.HistoryAfter(); begun {
		t.Errorf("there is a history")
	}
	m := newMachine(t)
	m.one(deleteNamespace("none"))
	if n := len(headerOf(t, m.st).GetTableHashes()); n != 14 || m.st.FeatureLevel() != fsm.HistoryLevel {
		t.Errorf("%d tables, level %d", n, m.st.FeatureLevel())
	}
	audit(t, restored(t, snapshotOf(t, m.st)))
}

// TestForgedHistoryIsRefused changes what the sums cover, and makes the sums right: the rules must find it.
func TestForgedHistoryIsRefused(t *testing.T) {
	data := snapshotOf(t, recorded(t))
	if _, ok := fsm.Forge(data); !ok {
		t.Fatal("the sound one is refused")
	}
	const tableNamespaces, tableHistory, tableTransitions = 11, 12, 13
	for name, change := range map[string]func(table byte, record []byte) [][]byte{
		"no name": func(table byte, record []byte) [][]byte {
			if table == tableNamespaces {
				return [][]byte{encode(t, &registryv1.Namespace{ModifyRevision: 1})}
			}
			return [][]byte{record}
		},
		"no revision": func(table byte, record []byte) [][]byte {
			if table == tableNamespaces {
				return [][]byte{encode(t, &registryv1.Namespace{Name: "n"})}
			}
			return [][]byte{record}
		},
		"two histories": func(table byte, record []byte) [][]byte {
			if table == tableHistory {
				return [][]byte{record, record}
			}
			return [][]byte{record}
		},
		"no history": func(table byte, record []byte) [][]byte {
			if table == tableHistory {
				return nil
			}
			return [][]byte{record}
		},
		"begun in the future": func(table byte, record []byte) [][]byte {
			if table == tableHistory {
				return [][]byte{encode(t, &raftlogv1.HistoryRecord{AfterRevision: 1 << 40})}
			}
			return [][]byte{record}
		},
		"a chunk that could hold more": func(table byte, record []byte) [][]byte {
			var all raftlogv1.Transitions
			if table != tableTransitions || proto.Unmarshal(record, &all) != nil {
				return [][]byte{record}
			}
			first := encode(t, &raftlogv1.Transitions{Transitions: all.GetTransitions()[:1]})
			return [][]byte{first, record[len(first):]}
		},
		"a transition of nothing": func(table byte, record []byte) [][]byte {
			if table == tableTransitions {
				return [][]byte{encode(t, &raftlogv1.Transitions{Transitions: []*registryv1.Transition{{Revision: 200}}})}
			}
			return [][]byte{record}
		},
		"a transition of the future": func(table byte, record []byte) [][]byte {
			if table == tableTransitions {
				return [][]byte{encode(t, &raftlogv1.Transitions{Transitions: []*registryv1.Transition{
					{Id: "a", Service: "b", Namespace: "c", Revision: 1 << 40},
				}})}
			}
			return [][]byte{record}
		},
		"an empty chunk": func(table byte, record []byte) [][]byte {
			if table == tableTransitions {
				return [][]byte{{}}
			}
			return [][]byte{record}
		},
		"what is no transition": func(table byte, record []byte) [][]byte {
			if table == tableTransitions {
				return [][]byte{[]byte("\x12\x00")}
			}
			return [][]byte{record}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, ok := fsm.Forge(fsm.ChangeRecords(data, change)); ok {
				t.Error("it was taken")
			}
		})
	}
}

func TestNamespacesAreBounded(t *testing.T) {
	m := newMachine(t)
	for n := range fsm.MaxNamespaces {
		m.must(putNamespace(&registryv1.Namespace{Name: fmt.Sprint(n)}))
	}
	if o := m.one(putNamespace(&registryv1.Namespace{Name: "more"})); !errors.Is(o.Err(), fsm.ErrLimit) || o.Subject != "namespaces" {
		t.Fatalf("outcome %+v", o)
	}
	m.must(putNamespace(&registryv1.Namespace{Name: "7", Description: "changed"}))
	m.must(deleteNamespace("8"))
	m.must(putNamespace(&registryv1.Namespace{Name: "more"}))
	audit(t, m.st)
}

// TestAQuotaIsTold holds that whoever is refused learns what is full.
func TestAQuotaIsTold(t *testing.T) {
	m := newMachine(t)
	in := web("a")
	in.Namespace = strings.Repeat("n", 63)
	m.must(putNamespace(&registryv1.Namespace{Name: in.GetNamespace(), Quota: &registryv1.Quota{MaxInstances: 1}}))
	m.must(register(t, in))
	in.Id = "b"
	o := fsm.OutcomeFromProto(m.one(register(t, in)).Proto())
	var refused *fsm.Error
	want := fsm.Quota{Namespace: in.GetNamespace(), Resource: fsm.QuotaInstances, Used: 1, Limit: 1}
	if !errors.Is(o.Err(), fsm.ErrQuota) || !errors.As(o.Err(), &refused) {
		t.Fatalf("error %v", o.Err())
	}
	if got, ok := refused.Quota(); !ok || got != want {
		t.Errorf("quota %+v, %t; want %+v", got, ok, want)
	}
	if _, ok := (&fsm.Error{Code: raftlogv1.Code_CODE_LIMIT, Subject: "a 1 2 b"}).Quota(); ok {
		t.Error("another code has a quota")
	}
	for _, subject := range []string{"", "instances 1 2", "instances x 1 n", "instances 1 x n"} {
		if q, ok := (&fsm.Error{Code: raftlogv1.Code_CODE_QUOTA, Subject: subject}).Quota(); ok {
			t.Errorf("%q: %+v", subject, q)
		}
	}
}

// TestNamespacesAreFound holds that a walk over namespaces meets each that is in use or has an entry, once and in order.
func TestNamespacesAreFound(t *testing.T) {
	m := newMachine(t)
	m.must(openSession("s"))
	for _, name := range []string{"b", "a", "b-1"} {
		in := web("x")
		in.Namespace = name
		m.must(register(t, in))
		in.Service = "other"
		m.must(register(t, in))
	}
	for _, name := range []string{"b", "c"} {
		m.must(acquire(&raftlogv1.AcquireLock{Namespace: name, Name: "l", SessionId: "s"}))
		m.must(acquire(&raftlogv1.AcquireLock{Namespace: name, Name: "m", SessionId: "s"}))
	}
	m.must(putNamespace(&registryv1.Namespace{Name: "b"}))
	m.must(putNamespace(&registryv1.Namespace{Name: "d"}))
	var got []string
	for name, ok := m.st.NextNamespace(""); ok; name, ok = m.st.NextNamespace(name) {
		use := m.st.NamespaceUse(name)
		got = append(got, fmt.Sprintf("%s %d %d", name, use.Instances, use.Locks))
	}
	if want := "a 2 0, b 2 2, b-1 2 0, c 0 2, d 0 0"; strings.Join(got, ", ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
