package fsm_test

import (
	"encoding/binary"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// A golden log is a row of entries, each as index, term and length of the data in varints, then the data.

func encodeGolden(entries []fsm.Entry) []byte {
	var b []byte
	for _, e := range entries {
		b = binary.AppendUvarint(b, e.Index)
		b = binary.AppendUvarint(b, e.Term)
		b = binary.AppendUvarint(b, uint64(len(e.Data)))
		b = append(b, e.Data...)
	}
	return b
}

func decodeGolden(tb testing.TB, b []byte) []fsm.Entry {
	tb.Helper()
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			tb.Fatalf("golden log ends within an entry")
		}
		b = b[n:]
		return v
	}
	var entries []fsm.Entry
	for len(b) > 0 {
		e := fsm.Entry{Index: next(), Term: next()}
		size := next()
		if size > uint64(len(b)) {
			tb.Fatalf("golden log ends within entry %d", e.Index)
		}
		e.Data, b = b[:size], b[size:]
		entries = append(entries, e)
	}
	return entries
}

// writeGolden makes a log out of a long random history in which each kind of command has an effect and that ends with
// access control on and with keys, and the text of the state that it leads to.
func writeGolden(t *testing.T, g golden) {
	t.Helper()
	histories := rapid.Custom(func(t *rapid.T) []fsm.Entry {
		entries, _ := historyOf(t, 1000)
		return entries
	})
	var log []fsm.Entry
	var s *fsm.State
	for seed, changed := 0, map[string]int{}; len(changed) < g.kinds || !s.Enforced() || s.Policy("p1") == nil || len(namespacesOf(s)) == 0 || len(keysOf(s)) < 5; seed++ {
		log, s = histories.Example(seed), fsm.New()
		clear(changed)
		for _, e := range log {
			next, result, err := s.Apply(e)
			if err != nil {
				t.Fatal(err)
			}
			countKinds(t, e, result, changed)
			s = next
		}
	}
	text := stateText(t, s)
	if err := os.WriteFile(g.log(), encodeGolden(log), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.text(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// countKinds counts the commands of an entry that changed something, by kind.
func countKinds(t *testing.T, e fsm.Entry, result fsm.Result, changed map[string]int) {
	t.Helper()
	var entry raftlogv1.Entry
	if err := proto.Unmarshal(e.Data, &entry); err != nil {
		t.Fatal(err)
	}
	for i, c := range entry.GetCommands() {
		m := c.ProtoReflect()
		if f := m.WhichOneof(m.Descriptor().Oneofs().Get(0)); f != nil && result.Outcomes[i].Changed {
			changed[string(f.Name())]++
		}
	}
}
