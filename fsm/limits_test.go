package fsm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestLockQueueIsBounded(t *testing.T) {
	m := newMachine(t)
	lock := func(n int) *raftlogv1.Command {
		return acquire(&raftlogv1.AcquireLock{
			Namespace: "default", Name: "l", SessionId: fmt.Sprintf("s%04d", n), Wait: true,
		})
	}
	for n := range fsm.MaxLockWaiters + 2 {
		m.must(openSession(fmt.Sprintf("s%04d", n)))
	}
	var commands []*raftlogv1.Command
	for n := range fsm.MaxLockWaiters + 1 {
		commands = append(commands, lock(n))
	}
	for _, o := range m.apply(commands...).Outcomes {
		if !o.Changed {
			t.Fatalf("outcome %+v below the limit", o)
		}
	}
	if o := m.one(lock(fsm.MaxLockWaiters + 1)); !errors.Is(o.Err(), fsm.ErrLimit) || o.Subject != "lock waiters" {
		t.Fatalf("outcome %+v beyond the limit", o)
	}
	if n := len(m.st.Lock("default", "l").Waiters); n != fsm.MaxLockWaiters {
		t.Fatalf("%d wait", n)
	}
	m.must(closeSession("s0500"))
	m.must(lock(fsm.MaxLockWaiters + 1))
	audit(t, m.st)
	audit(t, restored(t, snapshotOf(t, m.st)))
}

func TestLockValueIsBounded(t *testing.T) {
	m := newMachine(t)
	m.must(openSession("s"))
	c := &raftlogv1.AcquireLock{Namespace: "n", Name: "l", SessionId: "s", Value: make([]byte, fsm.MaxLockValueBytes+1)}
	if o := m.one(acquire(c)); !errors.Is(o.Err(), fsm.ErrInvalid) || o.Subject != "value" {
		t.Fatalf("outcome %+v", o)
	}
	c.Value = c.Value[1:]
	m.must(acquire(c))
}

func TestBatchIsBounded(t *testing.T) {
	m := newMachine(t)
	b := &raftlogv1.Batch{}
	for n := range fsm.MaxBatch {
		b.Register = append(b.Register, register(t, web(fmt.Sprint(n))).GetRegister())
	}
	b.Deregister = append(b.Deregister, &raftlogv1.Deregister{Key: webKey("x")})
	if o := m.one(batch(b)); !errors.Is(o.Err(), fsm.ErrLimit) || o.Subject != "batch" {
		t.Fatalf("outcome %+v", o)
	}
	b.Deregister = nil
	m.must(batch(b))
	if m.st.Revision() != 1 || m.st.Counts().Instances != fsm.MaxBatch {
		t.Fatalf("revision %d, %+v", m.st.Revision(), m.st.Counts())
	}
}

func TestOutcomesOfAClientAreBounded(t *testing.T) {
	m := newMachine(t)
	for seq := range uint64(fsm.MaxOutcomes + 10) {
		m.must(requested(openSession(fmt.Sprintf("s%d", seq)), "c", seq+1, 0, seq))
	}
	c := fsm.Clients(m.st)[0]
	if len(c.Sequences) != fsm.MaxOutcomes || c.Sequences[0] != 11 || c.AnsweredBelow != 11 {
		t.Fatalf("remembered %+v", c)
	}
	// What fell out is refused, not applied again; what is left is answered.
	if o := m.one(requested(openSession("s9"), "c", 10, 0, 9)); !errors.Is(o.Err(), fsm.ErrRequestTooOld) {
		t.Fatalf("outcome %+v", o)
	}
	if o := m.one(requested(openSession("s10"), "c", 11, 0, 10)); !o.Changed || o.ID != "s10" {
		t.Fatalf("outcome %+v", o)
	}
	audit(t, m.st)
}

func TestClientsAreBounded(t *testing.T) {
	m := newMachine(t)
	m.st = fsm.WithClients(fsm.MaxClients, m.time)
	audit(t, m.st)
	m.time += fsm.ClientTouchMs
	m.one(requested(closeSession("nobody"), "c000000", 1, 0, 0)) // the oldest asks again
	m.one(requested(closeSession("nobody"), "new", 1, 0, 0))
	clients := fsm.Clients(m.st)
	if len(clients) != fsm.MaxClients || clients[0].ID != "c000000" || clients[1].ID != "c000002" {
		t.Fatalf("%d clients, first %s, %s", len(clients), clients[0].ID, clients[1].ID)
	}
	// One entry forgets a bounded number of idle clients, the next ones the rest.
	m.pass(fsm.ClientIdleMs - fsm.ClientTouchMs)
	m.time++
	m.one(closeSession("nobody"))
	if n := m.st.Counts().Clients; n != fsm.MaxClients-fsm.MaxForgotten {
		t.Fatalf("%d clients left after an entry", n)
	}
	audit(t, m.st)
}

func TestOutputIsCutAtACharacter(t *testing.T) {
	m := newMachine(t)
	i := web("a")
	i.Checks = []*registryv1.Check{{Name: "c"}}
	m.must(register(t, i))
	m.must(setCheck(&raftlogv1.SetCheck{
		Key: webKey("a"), Check: "c", Status: 4, Output: "x" + strings.Repeat("ä", fsm.MaxOutputBytes),
	}))
	got, err := m.st.Instance("default", "web", "a").Proto()
	if err != nil {
		t.Fatal(err)
	}
	if want := "x" + strings.Repeat("ä", 127); got.GetCheckStates()[0].GetOutput() != want {
		t.Fatalf("output %q", got.GetCheckStates()[0].GetOutput())
	}
}

func TestNamesAreBounded(t *testing.T) {
	long := strings.Repeat("x", fsm.MaxNameBytes+1)
	for _, row := range []struct {
		name, subject string
		command       func(m *machine) *raftlogv1.Command
	}{
		{"service", "service", func(*machine) *raftlogv1.Command {
			return register(t, &registryv1.Instance{Namespace: "n", Service: long, Id: "i"})
		}},
		{"NUL in an id", "id", func(*machine) *raftlogv1.Command {
			return register(t, &registryv1.Instance{Namespace: "n", Service: "s", Id: "a\x00b"})
		}},
		{"session of an instance", "session_id", func(*machine) *raftlogv1.Command {
			return register(t, &registryv1.Instance{Namespace: "n", Service: "s", Id: "i", SessionId: long})
		}},
		{"lease of an instance", "lease_id", func(*machine) *raftlogv1.Command {
			return register(t, &registryv1.Instance{Namespace: "n", Service: "s", Id: "i", LeaseId: long})
		}},
		{"check", "checks", func(*machine) *raftlogv1.Command {
			return register(t, &registryv1.Instance{
				Namespace: "n", Service: "s", Id: "i", Checks: []*registryv1.Check{{Name: long}},
			})
		}},
		{"checks", "checks", func(*machine) *raftlogv1.Command {
			i := web("a")
			for n := range fsm.MaxChecks + 1 {
				i.Checks = append(i.Checks, &registryv1.Check{Name: fmt.Sprint(n)})
			}
			return register(t, i)
		}},
		{"specification", "instance", func(*machine) *raftlogv1.Command {
			i := web("a")
			i.Address = strings.Repeat("x", fsm.MaxSpecBytes)
			return register(t, i)
		}},
		{"session", "id", func(*machine) *raftlogv1.Command { return openSession(long) }},
		{"lease", "id", func(*machine) *raftlogv1.Command { return grantLease(long, "") }},
		{"lock", "name", func(*machine) *raftlogv1.Command {
			return acquire(&raftlogv1.AcquireLock{Namespace: "n", Name: long, SessionId: "s"})
		}},
		{"client", "command", func(*machine) *raftlogv1.Command {
			return requested(openSession("s"), strings.Repeat("x", fsm.MaxClientIDBytes+1), 1, 0, 0)
		}},
		{"member", "member", func(*machine) *raftlogv1.Command {
			return &raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
				Member: &registryv1.Member{Id: "n", Version: strings.Repeat("x", fsm.MaxMemberBytes+1)},
			}}}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := newMachine(t)
			o := m.one(row.command(m))
			if !errors.Is(o.Err(), fsm.ErrInvalid) || o.Subject != row.subject || m.st.Revision() != 0 {
				t.Fatalf("outcome %+v at revision %d", o, m.st.Revision())
			}
		})
	}
}
