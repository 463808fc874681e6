package build

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
	"github.com/regd-io/regd/test/internal/oracle"
)

// user is a client of one node.
type user struct {
	t *testing.T
	c *nodes.Cluster
	n *nodes.Node
}

func (u user) context() context.Context {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), 10*time.Second)
	u.t.Cleanup(cancel)
	return ctx
}

func (u user) open(ttl time.Duration) (id string) {
	u.t.Helper()
	resp, err := apiv1.NewSessionServiceClient(u.n.Conn()).Open(u.context(), &apiv1.OpenRequest{Ttl: durationpb.New(ttl)})
	if err != nil {
		u.t.Fatal(err)
	}
	return resp.GetSession().GetId()
}

// lives tells whether a session does.
func (u user) lives(id string) bool {
	u.t.Helper()
	resp, err := apiv1.NewSessionServiceClient(u.n.Conn()).List(u.context(), &apiv1.ListRequest{})
	if err != nil {
		u.t.Fatal(err)
	}
	for _, s := range resp.GetSessions() {
		if s.GetId() == id {
			return true
		}
	}
	return false
}

func (u user) register(id, session string) {
	u.t.Helper()
	_, err := u.n.Registry().Register(u.context(), &apiv1.RegisterRequest{Instance: &registryv1.Instance{
		Service: "web", Id: id, Address: "127.0.0.1", SessionId: session,
	}})
	if err != nil {
		u.t.Fatal(err)
	}
}

// replay replays the applied file and holds it against what the node says of itself.
func (u user) replay(applied string) *oracle.Timeline {
	u.t.Helper()
	says, err := u.n.Admin().Verify(u.context(), &apiv1.VerifyRequest{})
	if err != nil {
		u.t.Fatal(err)
	}
	log := oracle.NewLog()
	if err = log.ReadFile(u.n.Name, applied); err != nil {
		u.t.Fatal(err)
	}
	if clashes := log.Clashes(); len(clashes) > 0 {
		u.t.Fatal(clashes)
	}
	timeline, err := log.Replay(fsm.New())
	if err != nil {
		u.t.Fatal(err)
	}
	self := says.GetReplicas()[0]
	st := timeline.AtIndex(self.GetIndex())
	hash, chain := st.Hash(), st.Chain()
	if self.GetRevision() != st.Revision() || !bytes.Equal(self.GetStateHash(), hash[:]) || !bytes.Equal(self.GetChain(), chain[:]) {
		u.t.Fatalf("%v\nthe applied entries lead to revision %d, hash %x, chain %x", self, st.Revision(), hash, chain)
	}
	return timeline
}

// written is when the log says that an instance was registered.
func written(t *testing.T, timeline *oracle.Timeline, id string) time.Time {
	t.Helper()
	for _, step := range timeline.Steps() {
		for _, cmd := range step.Entry.GetCommands() {
			if _, ok := cmd.GetKind().(*raftlogv1.Command_Register); !ok {
				continue
			}
			for _, e := range step.Result.Events {
				if e.Kind == fsm.EventInstance && e.New != nil && e.New.ID() == id {
					return time.UnixMilli(step.Entry.GetTimeUnixMs())
				}
			}
		}
	}
	t.Fatalf("%s is not in the log", id)
	return time.Time{}
}

// A node of three settings: the clock is moved while it runs, and it is killed once it has taken a snapshot.
func TestAnInstrumentedNodeShowsWhatItAppliesAndGoesByItsOwnClock(t *testing.T) {
	nodes.Alone(t)
	dir := t.TempDir()
	applied, clockFile := filepath.Join(dir, "applied"), filepath.Join(dir, "clock")
	clock := NewClock(t, clockFile)
	c := nodes.StartWith(t, 1, nodes.Options{
		Binary: Build(t),
		Env: func(*nodes.Node) []string {
			return []string{
				EnvClock + "=" + clockFile, EnvApplied + "=" + applied,
				EnvSnapshotThreshold + "=20", EnvSnapshotInterval + "=50ms", EnvTrailingLogs + "=5",
			}
		},
	})
	u := user{t, c, c.Nodes()[0]}
	long := u.open(time.Minute)
	u.register("before", long)
	clock.Shift(time.Hour)
	u.register("after", long)
	// Once one that is opened only now has come to its end, all deadlines have been looked at since the shift.
	short := u.open(2 * time.Second)
	c.Wait("the short session to expire", 20*time.Second, func(context.Context) bool { return !u.lives(short) })
	if !u.lives(long) {
		t.Error("a session of a minute has expired as the wall clock was moved by an hour")
	}
	clock.Shift(-2 * time.Hour)
	u.register("back", long)
	timeline := u.replay(applied)
	for id, shift := range map[string]time.Duration{"before": 0, "after": time.Hour, "back": -time.Hour} {
		if off := time.Until(written(t, timeline, id)) - shift; off.Abs() > time.Minute {
			t.Errorf("%s was written %v off the clock that was moved by %v", id, off, shift)
		}
	}

	for i := range 30 {
		u.register(fmt.Sprint(i), long)
	}
	c.Wait("a snapshot", 20*time.Second, func(context.Context) bool {
		list, err := filepath.Glob(filepath.Join(u.n.Dir, "snapshots", "*", "meta.json"))
		return err == nil && len(list) > 0
	})
	u.n.Kill()
	// What the kill can leave: a frame that was not finished.
	f, err := os.OpenFile(applied, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(oracle.AppendEntry(nil, 1000, 1, make([]byte, 100))[:50]); err != nil {
		t.Fatal(err)
	}
	f.Close()
	u.n.Start()
	c.Ready()
	u.register("again", long)
	u.replay(applied)
}

func TestAKeptHistoryIsAsLongAsIsSaid(t *testing.T) {
	nodes.Alone(t)
	for events, want := range map[string]bool{"": true, "100": false} {
		c := nodes.StartWith(t, 1, nodes.Options{
			Binary: Build(t), Env: func(*nodes.Node) []string { return []string{EnvFeedEvents + "=" + events} },
		})
		u := user{t, c, c.Nodes()[0]}
		u.register("first", "")
		first, err := u.n.Registry().Get(u.context(), &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "web", Id: "first"}})
		if err != nil {
			t.Fatal(err)
		}
		req := &apiv1.RegisterBatchRequest{}
		for i := range 300 {
			req.Register = append(req.Register, &registryv1.Instance{Service: "web", Id: fmt.Sprint(i), Address: "127.0.0.1"})
		}
		if _, err = u.n.Registry().RegisterBatch(u.context(), req); err != nil {
			t.Fatal(err)
		}
		u.register("last", "")
		h := first.GetHeader()
		stream, err := u.n.Registry().WatchService(u.context(), &apiv1.WatchServiceRequest{
			Filter: &apiv1.Filter{Service: "web"},
			Resume: &apiv1.ResumePoint{ClusterId: h.GetClusterId(), Epoch: h.GetEpoch(), Revision: h.GetRevision()},
		})
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := m.GetCut() == nil; got != want {
			t.Errorf("with %q events kept, a watch resumes after 301: %v, want %v: %v", events, got, want, m.GetCut().GetReason())
		}
	}
}

func TestASettingThatCannotBeReadEndsTheNode(t *testing.T) {
	nodes.Alone(t)
	c := nodes.StartWith(t, 0, nodes.Options{
		Binary: Build(t), Env: func(*nodes.Node) []string { return []string{EnvTrailingLogs + "=many"} },
	})
	n := c.Add()
	if code := n.WaitEnd(20 * time.Second); code == 0 {
		t.Error("it ended in order")
	}
	if got := n.Log(10); !strings.Contains(got, EnvTrailingLogs+`="many"`) {
		t.Errorf("it does not say why:\n%s", got)
	}
}
