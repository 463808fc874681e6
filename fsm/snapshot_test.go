package fsm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// populated returns a state with something in every table.
func populated(t failer) *fsm.State {
	t.Helper()
	m := newMachine(t)
	for _, c := range []*raftlogv1.Command{
		{Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{ClusterId: "c"}}},
		openSession("s"), openSession("r"), grantLease("l", "s"), register(t, everything()),
		requested(register(t, web("b")), "client", 3, 1, 5),
		acquire(&raftlogv1.AcquireLock{Namespace: "n", Name: "l", SessionId: "s", Value: []byte("v")}),
		acquire(&raftlogv1.AcquireLock{Namespace: "n", Name: "l", SessionId: "r", Wait: true}),
		{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: member("n1")}}},
	} {
		m.must(c)
	}
	return m.st
}

func TestSnapshotRoundTrip(t *testing.T) {
	for name, s := range map[string]*fsm.State{"empty": fsm.New(), "populated": populated(t)} {
		t.Run(name, func(t *testing.T) {
			data := snapshotOf(t, s)
			again := restored(t, data)
			audit(t, again)
			if stateText(t, again) != stateText(t, s) || !bytes.Equal(snapshotOf(t, again), data) {
				t.Errorf("restored:\n%s\nwritten:\n%s", stateText(t, again), stateText(t, s))
			}
			h, err := fsm.ReadSnapshotHeader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			hash := s.Hash()
			if h.GetIndex() != s.Index() || h.GetRevision() != s.Revision() || !bytes.Equal(h.GetStateHash(), hash[:]) {
				t.Errorf("header %v", h)
			}
		})
	}
}

// TestSnapshotIsPacedAndBlocksAreSmall holds for a snapshot of several blocks, one of them with a single large record.
func TestSnapshotIsPacedAndBlocksAreSmall(t *testing.T) {
	m := newMachine(t)
	value := bytes.Repeat([]byte("v"), fsm.MaxLockValueBytes)
	for n := range 500 {
		session := fmt.Sprintf("s%03d", n)
		i := web(fmt.Sprint(n))
		i.Address = strings.Repeat("x", 2000)
		m.apply(openSession(session), register(t, i), acquire(&raftlogv1.AcquireLock{
			Namespace: "n", Name: "l", SessionId: session, Wait: true, Value: value,
		}))
	}
	var out bytes.Buffer
	paces := 0
	if err := m.st.WriteSnapshot(&out, func() { paces++ }); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for b := out.Bytes(); len(b) > 0; {
		size := int(binary.LittleEndian.Uint32(b)) + 8
		sizes, b = append(sizes, size), b[size:]
	}
	large := 0
	for _, size := range sizes {
		if size > 256<<10 {
			large++
		}
	}
	if paces != len(sizes)-1 || len(sizes) < 7 || large != 1 {
		t.Errorf("%d paces between blocks of %v bytes", paces, sizes)
	}
	if restored(t, out.Bytes()).Hash() != m.st.Hash() {
		t.Error("restored to another state")
	}
}

// TestDamagedSnapshotIsRefused flips each byte in turn, and cuts the snapshot at each.
func TestDamagedSnapshotIsRefused(t *testing.T) {
	data := snapshotOf(t, populated(t))
	for n := range data {
		damaged := bytes.Clone(data)
		damaged[n] ^= 0x40
		for what, b := range map[string][]byte{"flipped": damaged, "cut": data[:n]} {
			s, err := fsm.ReadSnapshot(bytes.NewReader(b))
			if !errors.Is(err, fsm.ErrBadSnapshot) || s != nil {
				t.Fatalf("byte %d %s: %v", n, what, err)
			}
		}
	}
	if _, err := fsm.ReadSnapshot(bytes.NewReader(append(bytes.Clone(data), 0))); !errors.Is(err, fsm.ErrBadSnapshot) {
		t.Fatalf("with a byte behind it: %v", err)
	}
	broken := errors.New("broken disk")
	if _, err := fsm.ReadSnapshot(io.MultiReader(bytes.NewReader(data[:20]), iotest.ErrReader(broken))); !errors.Is(err, broken) ||
		!errors.Is(err, fsm.ErrBadSnapshot) || !strings.Contains(err.Error(), "byte 0") {
		t.Fatalf("error of the reader: %v", err)
	}
}

// forge makes a block with a right checksum.
func forge(payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	return append(b, payload...)
}

// blocks splits a snapshot into the payloads of its blocks.
func blocks(data []byte) [][]byte {
	var all [][]byte
	for len(data) > 0 {
		size := int(binary.LittleEndian.Uint32(data)) + 8
		all, data = append(all, data[8:size]), data[size:]
	}
	return all
}

// TestForgedSnapshotIsRefused changes what checksums cover: the hashes and the rules must find it.
func TestForgedSnapshotIsRefused(t *testing.T) {
	const magic = "regd snapshot\n"
	data := snapshotOf(t, populated(t))
	header := func(change func(h *raftlogv1.SnapshotHeader)) func([][]byte) [][]byte {
		return func(b [][]byte) [][]byte {
			h := new(raftlogv1.SnapshotHeader)
			if err := proto.Unmarshal(b[0][len(magic):], h); err != nil {
				t.Fatal(err)
			}
			change(h)
			b[0] = append([]byte(magic), encode(t, h)...)
			return b
		}
	}
	for _, row := range []struct {
		name, want string
		change     func([][]byte) [][]byte
	}{
		{"not one", "not a snapshot", func(b [][]byte) [][]byte { return b[1:] }},
		{"later format", "format 2", header(func(h *raftlogv1.SnapshotHeader) { h.Version = 2 })},
		{"other tables", "tables", header(func(h *raftlogv1.SnapshotHeader) { h.TableCounts = nil })},
		{"no hash", "hashes", header(func(h *raftlogv1.SnapshotHeader) { h.StateHash = nil })},
		{"other revision", "hash of the state", header(func(h *raftlogv1.SnapshotHeader) { h.Revision++ })},
		{"other time", "time -1", header(func(h *raftlogv1.SnapshotHeader) { h.TimeUnixMs = -1 })},
		{"more leaps than time", "with leaps of", header(func(h *raftlogv1.SnapshotHeader) { h.LeapsMs = h.TimeUnixMs + 1 })},
		{"other count", "records", header(func(h *raftlogv1.SnapshotHeader) { h.TableCounts[0]++ })},
		{"missing sessions", "hangs on", func(b [][]byte) [][]byte { return append(b[:1], b[2:]...) }},
		{"missing members", "records", func(b [][]byte) [][]byte { return b[:len(b)-1] }},
		{"table twice", "out of order", func(b [][]byte) [][]byte { return append(b[:2], b[1:]...) }},
		{"tables out of order", "unexpected table", func(b [][]byte) [][]byte { b[6], b[7] = b[7], b[6]; return b }},
		{"unknown table", "unexpected table", func(b [][]byte) [][]byte { return append(b, []byte{99}) }},
		{"malformed record", "malformed", func(b [][]byte) [][]byte { b[1] = []byte{0, 9}; return b }},
		{"changed record", "hash", func(b [][]byte) [][]byte {
			last := b[len(b)-1]
			b[len(b)-1] = append(last[:1:1], append([]byte{4, 0x0a, 2, 'n', '2'}, nil...)...)
			return b
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out []byte
			for _, b := range row.change(blocks(bytes.Clone(data))) {
				out = append(out, forge(b)...)
			}
			_, err := fsm.ReadSnapshot(bytes.NewReader(out))
			if !errors.Is(err, fsm.ErrBadSnapshot) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestWriteSnapshotReportsTheWriter holds that an error of the writer ends the work and comes back.
func TestWriteSnapshotReportsTheWriter(t *testing.T) {
	if err := populated(t).WriteSnapshot(fullDisk{}, nil); !errors.Is(err, errFull) {
		t.Errorf("error %v", err)
	}
}

var errFull = errors.New("disk full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

// TestRebaseNeverFalls holds that a restore by an operator starts a new epoch above both sides and keeps the cluster's
// own: id, members, remembered requests, place in the log.
func TestRebaseNeverFalls(t *testing.T) {
	old := populated(t)
	m := newMachine(t)
	m.term = 7
	m.must(&raftlogv1.Command{Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{ClusterId: "d"}}})
	m.must(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: member("n2")}}})
	m.must(requested(openSession("gone"), "other", 1, 0, 0))
	onto := m.st
	got := fsm.Rebase(old, onto)
	audit(t, got)
	if got.ContentHash() != old.ContentHash() || got.ClusterID() != "d" || got.Index() != onto.Index() ||
		got.Term() != 7 || got.Epoch() != 2 || got.Revision() != old.Revision()+1 ||
		fsm.LastNumber(got) != fsm.LastNumber(old) || got.Chain() != onto.Chain() {
		t.Errorf("rebased:\n%s", stateText(t, got))
	}
	if got.Member("n2") == nil || got.Member("n1") != nil || fsm.Clients(got)[0].ID != "other" {
		t.Errorf("rebased:\n%s", stateText(t, got))
	}
	m.st = got
	if o := m.one(requested(openSession("gone"), "other", 1, 0, 0)); o.ID != "gone" || got.Session("gone") != nil {
		t.Errorf("outcome %+v", o)
	}
	m.must(register(t, web("new")))
	audit(t, m.st)
	audit(t, old)
	audit(t, onto)
	if again := fsm.Rebase(old, got); again.Epoch() != 3 || again.Revision() != got.Revision()+1 {
		t.Errorf("a second restore: epoch %d, revision %d", again.Epoch(), again.Revision())
	}
}
