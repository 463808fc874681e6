package fsm_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// FuzzSnapshotRecords reads snapshots whose sums are right for arbitrary records: what is let in is a sound state, which
// can be written, read, restored onto a cluster and taken apart like any other, on two replicas alike.
func FuzzSnapshotRecords(f *testing.F) {
	f.Add(snapshotOf(f, populated(f)))
	f.Add(snapshotOf(f, guarded(f)))
	f.Add(snapshotOf(f, recorded(f)))
	f.Add(snapshotOf(f, fsm.New()))
	onto := populated(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		forged, ok := fsm.Forge(data)
		if !ok {
			return
		}
		s, err := fsm.ReadSnapshot(bytes.NewReader(forged))
		if err != nil {
			if !errors.Is(err, fsm.ErrBadSnapshot) {
				t.Fatalf("unfiled error %v", err)
			}
			return
		}
		audit(t, s)
		next := fsm.Rebase(s, onto)
		audit(t, next)
		takeApart(t, next, restored(t, snapshotOf(t, next)))
	})
}

// takeApart ends everything in two equal states, and holds that they stay equal and that nothing is left.
func takeApart(t *testing.T, one, two *fsm.State) {
	t.Helper()
	for step, commands := range [][]*raftlogv1.Command{ends(t, one), removals(t, one)} {
		e := fsm.Entry{
			Index: one.Index() + 1, Term: math.MaxUint64,
			Data: encodeEntry(t, &raftlogv1.Entry{TimeUnixMs: 1, Commands: commands}),
		}
		a, result, errA := one.Apply(e)
		b, _, errB := two.Apply(e)
		if errA != nil || errB != nil || a.Hash() != b.Hash() || a.Chain() != b.Chain() {
			t.Fatalf("step %d: equal states went apart: %v, %v", step, errA, errB)
		}
		audit(t, a)
		for i, o := range result.Outcomes {
			if step == 0 && o.Err() != nil {
				t.Fatalf("%v: %v", commands[i], o.Err())
			}
		}
		one, two = a, b
	}
	if n := one.Counts(); n.Instances != 0 || n.Sessions != 0 || n.Leases != 0 || n.Locks != 0 {
		t.Fatalf("left over: %+v", n)
	}
}

// ends closes all sessions and revokes the leases that none has.
func ends(t *testing.T, s *fsm.State) []*raftlogv1.Command {
	t.Helper()
	var commands []*raftlogv1.Command
	s.Sessions("", func(v *fsm.Session) bool {
		commands = append(commands, as("", closeSession(v.ID())))
		return true
	})
	s.Leases("", func(v *fsm.Lease) bool {
		if v.SessionID() == "" {
			commands = append(commands, as("", &raftlogv1.Command{Kind: &raftlogv1.Command_RevokeLease{
				RevokeLease: &raftlogv1.RevokeLease{Id: v.ID()},
			}}))
		}
		return true
	})
	return commands
}

// removals deregisters all instances, which must be what anybody can read.
func removals(t *testing.T, s *fsm.State) []*raftlogv1.Command {
	t.Helper()
	var commands []*raftlogv1.Command
	s.Services("", "", func(svc *fsm.Service) bool {
		svc.Ascend("", func(r *fsm.Record) bool {
			decodes(t, r)
			commands = append(commands, as("", deregister(&raftlogv1.Deregister{
				Key: &raftlogv1.Key{Namespace: r.Namespace(), Service: r.Service(), Id: r.ID()},
			})))
			return true
		})
		return true
	})
	return commands
}
