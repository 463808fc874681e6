package fsm_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// failer is what testing.TB and rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func encode(t failer, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatalf("encode %T: %v", m, err)
	}
	return b
}

func encodeEntry(t failer, e *raftlogv1.Entry) []byte {
	t.Helper()
	commands := make([][]byte, len(e.GetCommands()))
	for i, c := range e.GetCommands() {
		commands[i] = encode(t, c)
	}
	return fsm.AppendEntry(nil, e.GetTimeUnixMs(), commands)
}

func register(t failer, i *registryv1.Instance) *raftlogv1.Command {
	t.Helper()
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: encode(t, i)}}}
}

func registerBytes(spec []byte) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: spec}}}
}

func deregister(d *raftlogv1.Deregister) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{Deregister: d}}
}

func setCheck(c *raftlogv1.SetCheck) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_SetCheck{SetCheck: c}}
}

func setDraining(c *raftlogv1.SetDraining) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_SetDraining{SetDraining: c}}
}

func setMaintenance(c *raftlogv1.SetMaintenance) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_SetMaintenance{SetMaintenance: c}}
}

func openSession(id string) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_OpenSession{
		OpenSession: &raftlogv1.OpenSession{Id: id, ClientName: "test", TtlMs: 15_000},
	}}
}

func closeSession(id string) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_CloseSession{CloseSession: &raftlogv1.CloseSession{Id: id}}}
}

func grantLease(id, session string) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_GrantLease{
		GrantLease: &raftlogv1.GrantLease{Id: id, TtlMs: 15_000, SessionId: session},
	}}
}

func expire(term uint64, sessions, leases []string) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Expire{
		Expire: &raftlogv1.Expire{Term: term, Sessions: sessions, Leases: leases},
	}}
}

func acquire(c *raftlogv1.AcquireLock) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_AcquireLock{AcquireLock: c}}
}

func release(c *raftlogv1.ReleaseLock) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_ReleaseLock{ReleaseLock: c}}
}

func batch(b *raftlogv1.Batch) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Batch{Batch: b}}
}

func kv(tx *raftlogv1.KVTransaction) *raftlogv1.Command {
	return &raftlogv1.Command{Level: fsm.KVLevel, Kind: &raftlogv1.Command_KvTransaction{KvTransaction: tx}}
}

func requested(c *raftlogv1.Command, client string, sequence, answeredBelow, hash uint64) *raftlogv1.Command {
	c = proto.CloneOf(c)
	c.Request = &raftlogv1.RequestID{
		ClientId: client, Sequence: sequence, AnsweredBelow: answeredBelow, BodyHash: hash,
	}
	return c
}

// machine applies commands, one entry each, to a State that it keeps.
type machine struct {
	t    failer
	st   *fsm.State
	term uint64
	time int64
}

func newMachine(t failer) *machine { return &machine{t: t, st: fsm.New(), term: 1, time: 1_000_000} }

// pass lets time pass as it does in a cluster that is in use: with many entries.
func (m *machine) pass(ms int64) {
	m.t.Helper()
	for end := m.time + ms; m.time < end; {
		m.time = min(end, m.time+fsm.MaxStepMs)
		m.apply()
	}
}

// apply applies the commands as one entry, checks the new state through and returns what it led to.
func (m *machine) apply(commands ...*raftlogv1.Command) fsm.Result {
	m.t.Helper()
	before := m.st.Hash()
	data := encodeEntry(m.t, &raftlogv1.Entry{TimeUnixMs: m.time, Commands: commands})
	next, result, err := m.st.Apply(fsm.Entry{Index: m.st.Index() + 1, Term: m.term, Data: data})
	if err != nil {
		m.t.Fatalf("apply: %v", err)
	}
	if m.st.Hash() != before {
		m.t.Fatalf("Apply changed its receiver")
	}
	m.st = next
	return result
}

// one applies a single command and returns its outcome.
func (m *machine) one(command *raftlogv1.Command) fsm.Outcome {
	m.t.Helper()
	return m.apply(command).Outcomes[0]
}

// must is one for a command that must change something.
func (m *machine) must(command *raftlogv1.Command) fsm.Outcome {
	m.t.Helper()
	o := m.one(command)
	if err := o.Err(); err != nil || !o.Changed {
		m.t.Fatalf("%v: outcome %+v, want a change", command, o)
	}
	return o
}

func snapshotOf(t failer, s *fsm.State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteSnapshot(&b, nil); err != nil {
		t.Fatalf("write snapshot: %v", err)
	}
	return b.Bytes()
}

func restored(t failer, snapshot []byte) *fsm.State {
	t.Helper()
	s, err := fsm.ReadSnapshot(bytes.NewReader(snapshot))
	if err != nil {
		t.Fatalf("read snapshot: %v", err)
	}
	return s
}

func audit(t failer, s *fsm.State) {
	t.Helper()
	if err := fsm.Audit(s); err != nil {
		t.Fatalf("audit of revision %d: %v", s.Revision(), err)
	}
}

func web(id string) *registryv1.Instance {
	return &registryv1.Instance{Namespace: "default", Service: "web", Id: id, Address: "10.0.0.1"}
}

func webKey(id string) *raftlogv1.Key {
	return &raftlogv1.Key{Namespace: "default", Service: "web", Id: id}
}

func member(id string) *registryv1.Member {
	return &registryv1.Member{
		Id: id, Name: "node-" + id, PeerAddress: "h:1", GrpcAddress: "h:2", HttpAddress: "h:3", Version: "1", FeatureLevel: 1,
	}
}

var _ failer = testing.TB(nil)

// large skips a test that fills a limit, with the race detector: there is one goroutine, and it takes ten seconds and more. CI has
// it run without.
func large(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("it has one goroutine, and takes too long with the race detector")
	}
}
