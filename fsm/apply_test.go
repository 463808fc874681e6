package fsm_test

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestApplyStopsAtWhatItCannotFollow holds that an entry that is none, that does not follow, or that needs a later
// version is an error, and that the state stays as it was.
func TestApplyStopsAtWhatItCannotFollow(t *testing.T) {
	base := newMachine(t)
	base.term = 5
	base.must(openSession("s"))
	good := fsm.AppendEntry(nil, 1, [][]byte{encode(t, openSession("x"))})
	unknown := fsm.AppendEntry(nil, 1, [][]byte{
		encode(t, openSession("y")), encode(t, &raftlogv1.Command{Level: fsm.FeatureLevel + 1, Kind: openSession("x").GetKind()}),
	})
	for _, row := range []struct {
		name  string
		entry fsm.Entry
		want  error
	}{
		{"no data", fsm.Entry{Index: 2, Term: 5}, fsm.ErrBadEntry},
		{"cut off", fsm.Entry{Index: 2, Term: 5, Data: good[:len(good)-1]}, fsm.ErrBadEntry},
		{"garbage", fsm.Entry{Index: 2, Term: 5, Data: []byte{0xff, 0xff}}, fsm.ErrBadEntry},
		{"no version", fsm.Entry{Index: 2, Term: 5, Data: good[2:]}, fsm.ErrBadEntry},
		{"later version", fsm.Entry{Index: 2, Term: 5, Data: append([]byte{8, 2}, good[2:]...)}, fsm.ErrUnknownCommand},
		{"later field", fsm.Entry{Index: 2, Term: 5, Data: append([]byte{0x20, 1}, good...)}, fsm.ErrUnknownCommand},
		{"later level", fsm.Entry{Index: 2, Term: 5, Data: unknown}, fsm.ErrUnknownCommand},
		{"same index", fsm.Entry{Index: 1, Term: 5, Data: good}, fsm.ErrBadEntry},
		{"older term", fsm.Entry{Index: 2, Term: 4, Data: good}, fsm.ErrBadEntry},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := snapshotOf(t, base.st)
			next, result, err := base.st.Apply(row.entry)
			if !errors.Is(err, row.want) || next != base.st || len(result.Outcomes) > 0 || len(result.Events) > 0 {
				t.Fatalf("err %v, result %+v", err, result)
			}
			if !bytes.Equal(snapshotOf(t, base.st), before) {
				t.Fatal("the state changed")
			}
		})
	}
}

// TestApplyDoesNotKeepTheEntry holds that the bytes of an entry may be used again.
func TestApplyDoesNotKeepTheEntry(t *testing.T) {
	i := web("a")
	i.Tags, i.Zone, i.SessionId = []string{"x", "y"}, "z", "s"
	i.Checks = []*registryv1.Check{{Name: "c"}}
	data := fsm.AppendEntry(nil, 1, [][]byte{
		encode(t, openSession("s")),
		encode(t, requested(register(t, i), "client", 1, 0, 1)),
		encode(t, acquire(&raftlogv1.AcquireLock{Namespace: "n", Name: "l", SessionId: "s", Value: []byte("v")})),
	})
	s, _, err := fsm.New().Apply(fsm.Entry{Index: 1, Term: 1, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	before := stateText(t, s)
	for n := range data {
		data[n] = '!'
	}
	audit(t, s)
	if stateText(t, s) != before {
		t.Fatal("the state changed with the bytes of its entry")
	}
}

// TestStateIsSafeForConcurrentUse applies entries to states while others read them and apply others to them. The race
// detector is the judge.
func TestStateIsSafeForConcurrentUse(t *testing.T) {
	m := newMachine(t)
	states := make(chan *fsm.State, 1000)
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for s := range states {
				if err := fsm.Audit(s); err != nil {
					t.Errorf("audit: %v", err)
				}
				data := fsm.AppendEntry(nil, 1, [][]byte{encode(t, register(t, web("other")))})
				if _, _, err := s.Apply(fsm.Entry{Index: s.Index() + 1, Term: 9, Data: data}); err != nil {
					t.Errorf("apply: %v", err)
				}
			}
		})
	}
	m.must(openSession("s"))
	for n := range 200 {
		i := web(string(rune('a' + n%20)))
		i.Address, i.SessionId = string(rune('a'+n%7)), "s"
		m.one(register(t, i))
		states <- m.st
	}
	close(states)
	readers.Wait()
}

// TestHistoriesThatBranchAreIndependent holds for what grows by appending, too: the queue of a lock and the outcomes of a
// client.
func TestHistoriesThatBranchAreIndependent(t *testing.T) {
	m := newMachine(t)
	wait := func(session string, sequence uint64) *raftlogv1.Command {
		return requested(acquire(&raftlogv1.AcquireLock{Namespace: "n", Name: "l", SessionId: session, Wait: true}),
			"client", sequence, 0, 0)
	}
	for n, session := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		m.must(openSession(session))
		if n < 6 {
			m.must(wait(session, uint64(n+1)))
		}
		left, right := *m, *m
		for _, session := range []string{"a", "b"} {
			left.one(wait(session, 50))
			left.one(wait("g", 51))
		}
		left.must(openSession("x"))
		left.must(wait("x", 60))
		before := stateText(t, left.st)
		right.must(openSession("y"))
		right.must(wait("y", 60))
		right.one(wait("h", 61))
		if stateText(t, left.st) != before {
			t.Fatal("one history changed the other")
		}
		audit(t, left.st)
		audit(t, right.st)
	}
}

// TestOutcomesSurviveTheWire holds for outcomes and their errors.
func TestOutcomesSurviveTheWire(t *testing.T) {
	sentinels := map[error]bool{}
	for n := range raftlogv1.Code_name {
		o := fsm.Outcome{Code: raftlogv1.Code(n), Revision: 7, Changed: true, ID: "i", Number: 9, Subject: "s"}
		if got := fsm.OutcomeFromProto(o.Proto()); got != o {
			t.Errorf("%+v came back as %+v", o, got)
		}
		err := o.Err()
		if n == 0 {
			if err != nil {
				t.Errorf("code 0 is %v", err)
			}
			continue
		}
		var e *fsm.Error
		if !errors.As(err, &e) || e.Code != o.Code || e.Subject != "s" || !strings.HasSuffix(err.Error(), ": s") {
			t.Errorf("code %d is %v", n, err)
			continue
		}
		if sentinel := e.Unwrap(); sentinels[sentinel] || errors.Is(err, fsm.ErrUnknownCode) {
			t.Errorf("code %d has no sentinel of its own", n)
		} else {
			sentinels[sentinel] = true
		}
	}
	if err := (fsm.Outcome{Code: 99}).Err(); !errors.Is(err, fsm.ErrUnknownCode) {
		t.Errorf("code 99 is %v", err)
	}
}

// TestAggregateHealthIsTheLeast checks every combination of up to two checks, draining and maintenance.
func TestAggregateHealthIsTheLeast(t *testing.T) {
	of := map[registryv1.CheckStatus]registryv1.Health{
		0: registryv1.Health_HEALTH_STARTING, 1: registryv1.Health_HEALTH_STARTING, 2: registryv1.Health_HEALTH_PASSING,
		3: registryv1.Health_HEALTH_WARNING, 4: registryv1.Health_HEALTH_CRITICAL,
	}
	if got := fsm.AggregateHealth(nil, false, false); got != registryv1.Health_HEALTH_PASSING {
		t.Errorf("without checks: %v", got)
	}
	for a := range registryv1.CheckStatus(5) {
		for b := range registryv1.CheckStatus(5) {
			for flags := range 4 {
				draining, maintenance := flags&1 != 0, flags&2 != 0
				want := min(of[a], of[b])
				if draining {
					want = min(want, registryv1.Health_HEALTH_DRAINING)
				}
				if maintenance {
					want = registryv1.Health_HEALTH_MAINTENANCE
				}
				if got := fsm.AggregateHealth([]registryv1.CheckStatus{a, b}, draining, maintenance); got != want {
					t.Errorf("%v %v draining %t maintenance %t: %v, want %v", a, b, draining, maintenance, got, want)
				}
			}
		}
	}
}

// TestSourceIsPure holds what lint cannot see: no goroutine, and no map, whose order could reach an output.
func TestSourceIsPure(t *testing.T) {
	notTest := func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }
	files := token.NewFileSet()
	packages, err := parser.ParseDir(files, ".", notTest, 0) //nolint:staticcheck // No build tags here.
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(packages["fsm"], func(n ast.Node) bool {
		switch n.(type) {
		case *ast.GoStmt:
			t.Errorf("%v: a goroutine", files.Position(n.Pos()))
		case *ast.MapType:
			t.Errorf("%v: a map", files.Position(n.Pos()))
		}
		return true
	})
}

// TestApplyStaysWithinItsAllocations holds the budget of the hot path: replacing one among many instances.
func TestApplyStaysWithinItsAllocations(t *testing.T) {
	m := newMachine(t)
	for n := range 2000 {
		m.one(register(t, benchInstanceAlone(n, 0)))
	}
	version, index := 0, m.st.Index()
	var entries [2][]byte
	for v := range entries {
		entries[v] = fsm.AppendEntry(nil, 1, [][]byte{encode(t, register(t, benchInstanceAlone(1234, v)))})
	}
	allocs := testing.AllocsPerRun(200, func() {
		version++
		index++
		next, _, err := m.st.Apply(fsm.Entry{Index: index, Term: 1, Data: entries[version%2]})
		if err != nil {
			t.Fatal(err)
		}
		m.st = next
	})
	if allocs > 30 {
		t.Errorf("%v allocations, at most 30 wanted", allocs)
	}
	r := m.st.Service("default", "service-00000")
	if allocs := testing.AllocsPerRun(100, func() {
		m.st.Instance("default", "service-00000", "instance-0000000")
		r.Ascend("", func(r *fsm.Record) bool { return len(r.Tags()) > 0 && r.Health() > 0 })
		m.st.Hash()
	}); allocs > 0 {
		t.Errorf("reading costs %v allocations", allocs)
	}
}

// benchInstanceAlone is benchInstance without a session and a lease.
func benchInstanceAlone(n, version int) *registryv1.Instance {
	i := benchInstance(n, version)
	i.SessionId, i.LeaseId = "", ""
	return i
}
