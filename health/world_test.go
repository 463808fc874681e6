package health

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

var (
	errOverloaded = errors.New("overloaded")
	errUnknown    = errors.New("outcome unknown")
)

// world is a cluster of one node: a real State behind a real feed, and a log that can stall, refuse and lose answers.
type world struct {
	t    testing.TB
	feed *feed.Feed
	m    *Monitor

	mu       sync.Mutex // Guards all below.
	st       *fsm.State
	term     uint64
	stalled  bool
	pending  []*entry
	refuse   error // What proposals are refused with, before they reach the log.
	refused  int   // How many were.
	loseAck  bool  // Answers are lost: the proposer gets errUnknown.
	commands []*raftlogv1.Command
	onApply  func(*raftlogv1.Command, *fsm.State) // Sees each command and the State before it.

	stop func() // Ends the current lead, and waits.
}

type entry struct {
	term    uint64
	command *raftlogv1.Command
	done    chan fsm.Outcome // Capacity 1; closed when the entry is truncated.
}

// newWorld starts a node that does not lead. It is closed with the test.
func newWorld(tb testing.TB, change func(*Config)) *world {
	tb.Helper()
	w := &world{t: tb, st: fsm.New(), term: 1, stop: func() {}}
	w.feed = feed.New(w.st, feed.Limits{})
	tb.Cleanup(func() {
		w.stop()
		w.feed.Close()
	})
	cfg := testConfig()
	cfg.Unapplied = func(err error) bool { return errors.Is(err, errOverloaded) }
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg, w.feed, w)
	if err != nil {
		tb.Fatal(err)
	}
	w.m = m
	m.probe = func(context.Context, *plan) result { return passing("ok") }
	return w
}

// lead begins the next term. What is pending is applied first, as by the barrier of a new leader.
func (w *world) lead() {
	w.stop()
	w.mu.Lock()
	w.release()
	w.term++
	term := w.term
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.m.Lead(ctx, term)
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	for w.m.tenure.Load() == nil {
		runtime.Gosched() // It is loading the State.
	}
}

// release applies what is pending. Called with mu held.
func (w *world) release() {
	w.stalled = false
	pending := w.pending
	w.pending = nil
	for _, e := range pending {
		w.apply(e)
	}
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// Propose appends a command to the log.
func (w *world) Propose(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	e := &entry{command: cmd, done: make(chan fsm.Outcome, 1)}
	w.mu.Lock()
	if err := w.refuse; err != nil {
		w.refused++
		w.mu.Unlock()
		return fsm.Outcome{}, err
	}
	e.term = w.term
	lose := w.loseAck
	if w.stalled {
		w.pending = append(w.pending, e)
	} else {
		w.apply(e)
	}
	w.mu.Unlock()
	select {
	case outcome, ok := <-e.done:
		if lose || !ok {
			return fsm.Outcome{}, errUnknown
		}
		return outcome, nil
	case <-ctx.Done():
		return fsm.Outcome{}, errors.Join(errUnknown, ctx.Err())
	}
}

// apply is called with mu held.
func (w *world) apply(e *entry) {
	if w.onApply != nil {
		w.onApply(e.command, w.st)
	}
	encoded, err := proto.Marshal(e.command)
	if err != nil {
		w.t.Error(err)
	}
	data := fsm.AppendEntry(nil, time.Now().UnixMilli(), [][]byte{encoded})
	st, result, err := w.st.Apply(fsm.Entry{Index: w.st.Index() + 1, Term: e.term, Data: data})
	if err != nil {
		w.t.Errorf("apply %v: %v", e.command, err)
	}
	w.st = st
	w.commands = append(w.commands, e.command)
	w.feed.Publish(st, result.Events)
	e.done <- result.Outcomes[0]
}

// do applies a command that a client sent.
func (w *world) do(cmd *raftlogv1.Command) fsm.Outcome {
	w.t.Helper()
	e := &entry{command: cmd, done: make(chan fsm.Outcome, 1)}
	w.mu.Lock()
	e.term = w.term
	w.apply(e)
	w.mu.Unlock()
	outcome := <-e.done
	if err := outcome.Err(); err != nil {
		w.t.Fatalf("%v: %v", cmd, err)
	}
	return outcome
}

func (w *world) openSession(id string, ttl time.Duration) {
	w.t.Helper()
	w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_OpenSession{
		OpenSession: &raftlogv1.OpenSession{Id: id, TtlMs: uint64(ttl.Milliseconds())},
	}})
}

func (w *world) grantLease(id string, ttl time.Duration) {
	w.t.Helper()
	w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_GrantLease{
		GrantLease: &raftlogv1.GrantLease{Id: id, TtlMs: uint64(ttl.Milliseconds())},
	}})
}

// register registers instance id of service "web" at a host of its own.
func (w *world) register(id string, change func(*registryv1.Instance), checks ...*registryv1.Check) {
	w.t.Helper()
	in := &registryv1.Instance{
		Namespace: "default", Service: "web", Id: id, Address: id + ".test",
		Ports: []*registryv1.Port{{Name: "main", Number: 80}}, Checks: checks,
	}
	if change != nil {
		change(in)
	}
	encoded, err := proto.Marshal(in)
	if err != nil {
		w.t.Fatal(err)
	}
	w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: encoded}}})
}

func (w *world) deregister(id string) {
	w.t.Helper()
	w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{
		Deregister: &raftlogv1.Deregister{Key: instanceKey{"default", "web", id}.proto()},
	}})
}

// report is a report of a TTL check by its service.
func (w *world) report(id, check string, status registryv1.CheckStatus) {
	w.t.Helper()
	w.do(setCheck(instanceKey{"default", "web", id}, &raftlogv1.SetCheck{Check: check, Status: status}))
}

// applied returns the commands since the first skip.
func (w *world) applied(skip int) []*raftlogv1.Command {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.commands[skip:])
}

func (w *world) state() *fsm.State { return w.feed.State() }

// instance returns instance id of service "web", nil if it is gone.
func (w *world) instance(id string) *registryv1.Instance {
	w.t.Helper()
	rec := w.state().Instance("default", "web", id)
	if rec == nil {
		return nil
	}
	in, err := rec.Proto()
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

// status returns the status of the only check of an instance.
func (w *world) status(id string) registryv1.CheckStatus {
	w.t.Helper()
	return w.instance(id).GetCheckStates()[0].GetStatus()
}

// renew renews ids, taken now, in the current term.
func (w *world) renew(kind peerv1.RenewKind, ids ...string) (ended []string) {
	w.t.Helper()
	w.mu.Lock()
	term := w.term
	w.mu.Unlock()
	got, err := w.m.Renew(term, time.Now(), []*peerv1.Renewals{{Kind: kind, Ids: ids}})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range got {
		ended = append(ended, r.GetIds()...)
	}
	return ended
}

const (
	renewSession = peerv1.RenewKind_RENEW_KIND_SESSION
	renewLease   = peerv1.RenewKind_RENEW_KIND_LEASE
	renewCheck   = peerv1.RenewKind_RENEW_KIND_CHECK
)

// tcpCheck is an active check that passes through the monitor's fake probe.
func tcpCheck(interval time.Duration, rise, fall uint32) *registryv1.Check {
	return &registryv1.Check{
		Name: "tcp", Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{}},
		Interval: durationpb.New(interval), Rise: rise, Fall: fall,
	}
}

func ttlCheck(ttl time.Duration) *registryv1.Check {
	return &registryv1.Check{
		Name: "ttl", Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(ttl)}},
	}
}

// targets is what a fake probe finds, by host. Everything else passes.
type targets struct {
	mu     sync.Mutex
	status map[string]registryv1.CheckStatus
	probes map[string]int
}

func (w *world) fakeTargets() *targets {
	f := &targets{status: map[string]registryv1.CheckStatus{}, probes: map[string]int{}}
	w.m.probe = func(_ context.Context, p *plan) result {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.probes[p.host]++
		if status := f.status[p.host]; status != 0 {
			return result{status, "as told"}
		}
		return passing("ok")
	}
	return f
}

func (f *targets) set(host string, status registryv1.CheckStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status[host] = status
}

func (f *targets) count(host string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.probes[host]
}

// value returns the value of a counter.
func value(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
