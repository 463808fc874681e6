package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	benchInstances   = 100_000
	benchPerService  = 10
	benchPerSession  = 10
	benchEntryLength = 512
)

// benchInstance is the instance that the design was measured with: two tags, four pairs of metadata, a port, a region,
// a zone, a check, a session and a lease, some 230 bytes.
func benchInstance(n, version int) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default",
		Service:   fmt.Sprintf("service-%05d", n/benchPerService),
		Id:        fmt.Sprintf("instance-%07d", n),
		Address:   fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255),
		Ports:     []*registryv1.Port{{Name: "main", Number: 8080}},
		Tags:      []string{"http", "v2"},
		Metadata: map[string]string{
			"version": fmt.Sprintf("1.2.%d", version), "commit": "8f3ac1d0", "owner": "payments", "build": "20261121",
		},
		Zone:      fmt.Sprintf("eu-west-1%c", 'a'+n%3),
		Region:    "eu-west-1",
		SessionId: fmt.Sprintf("session-%08d", n/benchPerSession),
		LeaseId:   fmt.Sprintf("lease-%08d", n/benchPerSession),
		Checks: []*registryv1.Check{{
			Name: "ttl", Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(10e9)}},
		}},
	}
}

func benchKey(n int) *raftlogv1.Key {
	i := benchInstance(n, 0)
	return &raftlogv1.Key{Namespace: i.GetNamespace(), Service: i.GetService(), Id: i.GetId()}
}

// benchState returns a state of n instances, filled in entries of 512.
func benchState(tb testing.TB, n int) *fsm.State {
	tb.Helper()
	s := fsm.New()
	var commands [][]byte
	add := func(c *raftlogv1.Command) { commands = append(commands, encode(tb, c)) }
	flush := func() {
		s = benchApply(tb, s, fsm.AppendEntry(nil, 1_700_000_000_000, commands))
		commands = commands[:0]
	}
	for i := range n {
		if i%benchPerSession == 0 {
			add(openSession(benchInstance(i, 0).GetSessionId()))
			add(grantLease(benchInstance(i, 0).GetLeaseId(), ""))
		}
		add(register(tb, benchInstance(i, 0)))
		if len(commands) >= benchEntryLength {
			flush()
		}
	}
	flush()
	return s
}

func benchApply(tb testing.TB, s *fsm.State, data []byte) *fsm.State {
	tb.Helper()
	next, _, err := s.Apply(fsm.Entry{Index: s.Index() + 1, Term: 1, Data: data})
	if err != nil {
		tb.Fatal(err)
	}
	return next
}

// benchReplacements returns entries of length commands each that change something in every instance they name, spread
// over the state, and undo it when they are applied a second time round.
func benchReplacements(tb testing.TB, entries, length int, request bool) [2][][]byte {
	tb.Helper()
	var out [2][][]byte
	for version := range out {
		for e := range entries {
			var commands [][]byte
			for c := range length {
				n := (e*length + c) * 7919 % benchInstances
				cmd := register(tb, benchInstance(n, version+1))
				if request {
					seq := uint64(version*entries + e + 1)
					cmd = requested(cmd, fmt.Sprintf("client-%06d", n/benchPerSession), seq, seq, seq)
				}
				commands = append(commands, encode(tb, cmd))
			}
			out[version] = append(out[version], fsm.AppendEntry(nil, 1_700_000_000_000, commands))
		}
	}
	return out
}

func benchmarkApply(b *testing.B, length int, request bool, before ...*raftlogv1.Command) {
	base := benchState(b, benchInstances)
	for _, c := range before {
		base = benchApply(b, base, fsm.AppendEntry(nil, 1_700_000_000_000, [][]byte{encode(b, c)}))
	}
	entries := max(1, 4096/length)
	data := benchReplacements(b, entries, length, request)
	s := base
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if i%(2*entries) == 0 && request {
			s = base // so that sequences are fresh
		}
		s = benchApplyFast(b, s, data[i/entries%2][i%entries], uint64(i))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*length), "ns/change")
}

func benchApplyFast(b *testing.B, s *fsm.State, data []byte, i uint64) *fsm.State {
	next, _, err := s.Apply(fsm.Entry{Index: 1<<40 + i, Term: 1, Data: data})
	if err != nil {
		b.Fatal(err)
	}
	return next
}

func BenchmarkApplyReplaceOne(b *testing.B)          { benchmarkApply(b, 1, false) }
func BenchmarkApplyReplaceOneWithDedup(b *testing.B) { benchmarkApply(b, 1, true) }
func BenchmarkApplyReplace512(b *testing.B)          { benchmarkApply(b, benchEntryLength, false) }
func BenchmarkApplyReplace512WithDedup(b *testing.B) { benchmarkApply(b, benchEntryLength, true) }

// With a history each replacement is a transition. With a quota of the namespace it is counted against it, too.
func BenchmarkApplyReplaceOneWithHistory(b *testing.B) {
	benchmarkApply(b, 1, false, deleteNamespace("none"))
}

func BenchmarkApplyReplace512WithHistory(b *testing.B) {
	benchmarkApply(b, benchEntryLength, false, deleteNamespace("none"))
}

func BenchmarkApplyAddAndRemove(b *testing.B) {
	benchmarkAddAndRemove(b, benchState(b, benchInstances))
}

func BenchmarkApplyAddAndRemoveWithQuota(b *testing.B) {
	base := benchState(b, benchInstances)
	c := putNamespace(&registryv1.Namespace{Name: "default", Quota: &registryv1.Quota{MaxInstances: 1 << 30}})
	benchmarkAddAndRemove(b, benchApply(b, base, fsm.AppendEntry(nil, 1_700_000_000_000, [][]byte{encode(b, c)})))
}

// benchmarkAddAndRemove measures entries of a command each that add an instance or remove it again.
func benchmarkAddAndRemove(b *testing.B, s *fsm.State) {
	in := benchInstance(5, 0)
	in.Id = "another"
	key := &raftlogv1.Key{Namespace: in.GetNamespace(), Service: in.GetService(), Id: in.GetId()}
	data := [2][]byte{
		fsm.AppendEntry(nil, 1_700_000_000_000, [][]byte{encode(b, register(b, in))}),
		fsm.AppendEntry(nil, 1_700_000_000_000, [][]byte{encode(b, deregister(&raftlogv1.Deregister{Key: key}))}),
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		s = benchApplyFast(b, s, data[i%2], uint64(i))
	}
}

// BenchmarkTransitions reads the whole of a full history for an instance that is not in it.
func BenchmarkTransitions(b *testing.B) {
	s := fsm.WithTransitions(200_000)
	b.ResetTimer()
	for range b.N {
		s.Transitions("default", "service-00001", "nobody", 100)
	}
}

func BenchmarkApplySetCheck(b *testing.B) {
	s := benchState(b, benchInstances)
	var data [2][][]byte
	for i, status := range []registryv1.CheckStatus{2, 4} {
		for n := range 4096 {
			cmd := setCheck(&raftlogv1.SetCheck{Key: benchKey(n * 7919 % benchInstances), Check: "ttl", Status: status})
			data[i] = append(data[i], fsm.AppendEntry(nil, 1_700_000_000_000, [][]byte{encode(b, cmd)}))
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		s = benchApplyFast(b, s, data[i/4096%2][i%4096], uint64(i))
	}
}

// BenchmarkMemory reports the bytes that a state keeps for each instance, its indexes, session and lease included.
func BenchmarkMemory(b *testing.B) {
	for range b.N {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := benchState(b, benchInstances)
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/benchInstances, "B/instance")
		b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/benchInstances, "objects/instance")
		b.ReportMetric(float64(len(s.Instance("default", "service-00000", "instance-0000000").Encoded())), "B/encoded")
		runtime.KeepAlive(s)
	}
}

func BenchmarkWriteSnapshot(b *testing.B) {
	s := benchState(b, benchInstances)
	b.SetBytes(int64(len(snapshotOf(b, s))))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := s.WriteSnapshot(io.Discard, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadSnapshot(b *testing.B) {
	data := snapshotOf(b, benchState(b, benchInstances))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := fsm.ReadSnapshot(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	s := benchState(b, 1000)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		s.Hash()
	}
}

// BenchmarkHashOneChange takes a record of usual size out of a table's sum and puts another in.
func BenchmarkHashOneChange(b *testing.B) {
	s := benchState(b, 10)
	r := s.Instance("default", "service-00000", "instance-0000000").Encoded()
	b.ReportAllocs()
	b.ResetTimer()
	fsm.HashChanges(b.N, r, r)
}

func BenchmarkDiffOfOneChange(b *testing.B) {
	s := benchState(b, benchInstances)
	next := benchApply(b, s, benchReplacements(b, 1, 1, false)[0][0])
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		n := 0
		fsm.Diff(s, next, func(_, _ *fsm.Record) bool { n++; return true })
		if n != 1 {
			b.Fatal(n)
		}
	}
}

func BenchmarkInstance(b *testing.B) {
	s := benchState(b, benchInstances)
	keys := make([]*raftlogv1.Key, 4096)
	for n := range keys {
		keys[n] = benchKey(n * 7919 % benchInstances)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		k := keys[i%len(keys)]
		if s.Instance(k.GetNamespace(), k.GetService(), k.GetId()) == nil {
			b.Fatal("gone")
		}
	}
}

// BenchmarkServiceScan walks a service of ten and looks at each instance as a filter does.
func BenchmarkServiceScan(b *testing.B) {
	s := benchState(b, benchInstances)
	names := make([]string, 4096)
	for n := range names {
		names[n] = fmt.Sprintf("service-%05d", n*7919%(benchInstances/benchPerService))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		n := 0
		s.Service("default", names[i%len(names)]).Ascend("", func(r *fsm.Record) bool {
			if r.Health() >= registryv1.Health_HEALTH_STARTING && strings.HasPrefix(r.Tags()[0], "h") {
				n++
			}
			return true
		})
		if n != benchPerService {
			b.Fatal(n)
		}
	}
}

func BenchmarkFullScan(b *testing.B) {
	s := benchState(b, benchInstances)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		n := 0
		s.Services("", "", func(svc *fsm.Service) bool {
			svc.Ascend("", func(*fsm.Record) bool { n++; return true })
			return true
		})
		if n != benchInstances {
			b.Fatal(n)
		}
	}
}

// BenchmarkDecodeSpec is the walk that every registration takes, BenchmarkRecordProto the decode that it stands for.
func BenchmarkDecodeSpec(b *testing.B) {
	spec := encode(b, benchInstance(1, 1))
	b.ReportAllocs()
	for range b.N {
		if malformed := fsm.DecodeSpec(spec); malformed != "" {
			b.Fatal(malformed)
		}
	}
}

func BenchmarkRecordProto(b *testing.B) {
	r := benchState(b, 10).Instance("default", "service-00000", "instance-0000000")
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := r.Proto(); err != nil {
			b.Fatal(err)
		}
	}
}
