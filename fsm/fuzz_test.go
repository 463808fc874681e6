package fsm_test

import (
	"bytes"
	"os"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// FuzzApply applies arbitrary bytes as an entry to a state and to its restored snapshot: no panic, equal results, and
// nothing out of step with what is kept incrementally.
func FuzzApply(f *testing.F) {
	for _, g := range goldens() {
		log, err := os.ReadFile(g.log())
		if err != nil {
			f.Fatal(err)
		}
		for n, e := range decodeGolden(f, log) {
			if n%50 == 0 {
				f.Add(e.Data)
			}
		}
	}
	f.Add([]byte{})
	open, closed, noted := populated(f), guarded(f), recorded(f)
	openToo, closedToo := restored(f, snapshotOf(f, open)), restored(f, snapshotOf(f, closed))
	notedToo := restored(f, snapshotOf(f, noted))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzApply(t, open, openToo, data)
		fuzzApply(t, closed, closedToo, data)
		fuzzApply(t, noted, notedToo, data)
	})
}

// fuzzApply applies bytes to two equal states.
func fuzzApply(t *testing.T, one, two *fsm.State, data []byte) {
	t.Helper()
	e := fsm.Entry{Index: one.Index() + 1, Term: 2, Data: data}
	a, resultA, errA := one.Apply(e)
	b, resultB, errB := two.Apply(e)
	if (errA == nil) != (errB == nil) || a.Hash() != b.Hash() || a.Chain() != b.Chain() ||
		len(resultA.Events) != len(resultB.Events) {
		t.Fatalf("equal states went apart: %v, %v", errA, errB)
	}
	audit(t, a)
	if !bytes.Equal(snapshotOf(t, a), snapshotOf(t, b)) {
		t.Fatal("equal states write different snapshots")
	}
	if restored(t, snapshotOf(t, a)).Hash() != a.Hash() {
		t.Fatal("the snapshot is another state")
	}
	for _, e := range resultA.Events {
		if e.New != nil {
			decodes(t, e.New)
		}
	}
}

// decodes holds that a record that was let in can be decoded, and is what its header says.
func decodes(t *testing.T, r *fsm.Record) {
	t.Helper()
	i, err := r.Proto()
	if err != nil {
		t.Fatalf("a record that nobody can read: %v", err)
	}
	sameHeader(t, r, i)
}

// FuzzRecord registers arbitrary bytes: what the walk lets in is what the generated code reads, and the other way round
// nothing is lost.
func FuzzRecord(f *testing.F) {
	f.Add(encode(f, everything()))
	f.Add(encode(f, web("a")))
	f.Add([]byte{0x0a, 1, 'n', 0x12, 1, 's', 0x1a, 1, 'i', 0x50, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	base := newMachine(f)
	base.must(openSession("s"))
	base.must(grantLease("l", ""))
	f.Fuzz(func(t *testing.T, spec []byte) {
		m := &machine{t: t, st: base.st, term: 1, time: base.time}
		result := m.apply(registerBytes(spec))
		audit(t, m.st)
		if len(result.Events) == 0 {
			return
		}
		r := result.Events[0].New
		decodes(t, r)
		want := new(registryv1.Instance)
		if err := proto.Unmarshal(spec, want); err != nil {
			t.Fatalf("let in what cannot be read: %v", err)
		}
		if !bytes.Equal(r.Spec(), spec) {
			t.Fatal("the specification is not kept as it came")
		}
		for key, value := range want.GetMetadata() {
			if v, ok := r.Metadata(key); !ok || v != value {
				t.Fatalf("metadata %q is %q, want %q", key, v, value)
			}
		}
	})
}

// FuzzReadSnapshot reads arbitrary bytes: no panic, and what is read is a sound state that writes the same again.
func FuzzReadSnapshot(f *testing.F) {
	data := snapshotOf(f, populated(f))
	f.Add(data)
	f.Add(snapshotOf(f, guarded(f)))
	f.Add(snapshotOf(f, recorded(f)))
	f.Add(snapshotOf(f, fsm.New()))
	f.Add(data[:100])
	f.Add([]byte{0xff, 0xff, 0x1f, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := fsm.ReadSnapshot(bytes.NewReader(data))
		if err == nil {
			audit(t, s)
			restored(t, snapshotOf(t, s))
		}
		// Checksums keep random bytes from the decoder: read the same payloads behind right ones, too.
		var forged []byte
		for len(data) >= 8 {
			size := min(int(data[0])|int(data[1])<<8, len(data)-8)
			if size > 0 {
				forged = append(forged, forge(data[8:8+size])...)
			}
			data = data[8+size:]
		}
		if s, err = fsm.ReadSnapshot(bytes.NewReader(forged)); err == nil {
			audit(t, s)
		}
	})
}

// TestReadSnapshotAllocatesForWhatItReads holds that a block that claims to be large costs no more than a large block.
func TestReadSnapshotAllocatesForWhatItReads(t *testing.T) {
	for _, size := range []byte{0x1f, 0xff} { // 2 MiB, the largest there may be, and 16 MiB
		claim := []byte{0xff, 0xff, size, 0, 0, 0, 0, 0, 'x'}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := fsm.ReadSnapshot(bytes.NewReader(claim)); err == nil {
			t.Fatal("read")
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 3<<20 {
			t.Errorf("%d bytes for a claim of %#x0000", used, size)
		}
	}
}
