package feed_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// applier is a state machine with a feed, as one node has it.
type applier struct {
	tb   testing.TB
	feed *feed.Feed
	st   *fsm.State
	// states and events are all that was published: states by revision, events in order.
	states   []*fsm.State
	events   []fsm.Event
	buffered []*raftlogv1.Command
}

func newApplier(tb testing.TB, limits feed.Limits) *applier {
	tb.Helper()
	a := &applier{tb: tb, st: fsm.New()}
	a.feed = feed.New(a.st, limits)
	a.states = append(a.states, a.st)
	tb.Cleanup(a.feed.Close)
	a.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_InitCluster{
		InitCluster: &raftlogv1.InitCluster{ClusterId: "c1"},
	}})
	return a
}

// next applies commands as one entry, and publishes nothing.
func (a *applier) next(commands ...*raftlogv1.Command) fsm.Result {
	a.tb.Helper()
	encoded := make([][]byte, len(commands))
	for i, c := range commands {
		b, err := proto.Marshal(c)
		if err != nil {
			a.tb.Fatalf("encode %v: %v", c, err)
		}
		encoded[i] = b
	}
	entry := fsm.Entry{Index: a.st.Index() + 1, Term: 1, Data: fsm.AppendEntry(nil, 1, encoded)}
	st, result, err := a.st.Apply(entry)
	if err != nil {
		a.tb.Fatalf("apply: %v", err)
	}
	a.st = st
	return result
}

// apply applies commands as one entry and publishes what came of it.
func (a *applier) apply(commands ...*raftlogv1.Command) {
	a.tb.Helper()
	result := a.next(commands...)
	a.states = append(a.states, a.st)
	a.events = append(a.events, result.Events...)
	a.feed.Publish(a.st, result.Events)
}

// buffer keeps a command for flush.
func (a *applier) buffer(c *raftlogv1.Command) { a.buffered = append(a.buffered, c) }

// flush applies what is buffered as one entry.
func (a *applier) flush(publish bool) {
	if publish {
		a.apply(a.buffered...)
	} else {
		a.events = append(a.events, a.next(a.buffered...).Events...)
	}
	a.buffered = nil
}

// reset has the feed find out what was applied by next.
func (a *applier) reset() {
	a.states = append(a.states, a.st)
	a.feed.Reset(a.st)
}

// restore replaces the content by that of an older State.
func (a *applier) restore(old *fsm.State) {
	a.st = fsm.Rebase(old, a.st)
	a.reset()
}

// settled waits until the watcher has everything published so far, and returns all that it took, events joined.
func (a *applier) settled(w *feed.Watcher) feed.Taken {
	a.tb.Helper()
	var all feed.Taken
	deadline := time.After(10 * time.Second)
	for {
		t := w.Take()
		all.Events = append(all.Events, t.Events...)
		if t.Resync != nil {
			if all.Resync != nil {
				a.tb.Fatalf("a second resync: %+v after %+v", t.Resync, all.Resync)
			}
			all.Resync = t.Resync
		}
		all.Revision = t.Revision
		if t.Revision >= a.st.Revision() {
			return all
		}
		select {
		case <-w.Ready():
		case <-time.After(time.Millisecond): // Nothing of its topics, perhaps.
		case <-deadline:
			a.tb.Fatalf("watcher has revision %d, want %d", t.Revision, a.st.Revision())
		}
	}
}

func register(service, id string, tags ...string) *raftlogv1.Command {
	return registerIn("default", service, id, tags...)
}

func registerIn(namespace, service, id string, tags ...string) *raftlogv1.Command {
	b, err := proto.Marshal(&registryv1.Instance{
		Namespace: namespace, Service: service, Id: id, Address: "10.0.0.1", Tags: tags,
	})
	if err != nil {
		panic(err)
	}
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: b}}}
}

func deregister(service, id string) *raftlogv1.Command { return deregisterIn("default", service, id) }

func deregisterIn(namespace, service, id string) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{Deregister: &raftlogv1.Deregister{
		Key: &raftlogv1.Key{Namespace: namespace, Service: service, Id: id},
	}}}
}

// batch makes one change, and so one revision, of registrations.
func batch(registrations ...*raftlogv1.Command) *raftlogv1.Command {
	b := &raftlogv1.Batch{}
	for _, c := range registrations {
		b.Register = append(b.Register, c.GetRegister())
	}
	return &raftlogv1.Command{Kind: &raftlogv1.Command_Batch{Batch: b}}
}

func openSession(id string) *raftlogv1.Command {
	return &raftlogv1.Command{Kind: &raftlogv1.Command_OpenSession{
		OpenSession: &raftlogv1.OpenSession{Id: id, TtlMs: 10_000},
	}}
}

func service(name string) feed.Topic {
	return feed.Topic{Kind: fsm.EventInstance, Namespace: "default", Name: name}
}

func everything() feed.Topic {
	return feed.Topic{Kind: fsm.EventInstance, Namespace: feed.AnyNamespace}
}

func key(service, id string) feed.Key {
	return feed.Key{Kind: fsm.EventInstance, Namespace: "default", Name: service, ID: id}
}

// told says events as "revision name/id" or "revision -name/id" for a deletion.
func told(events []*feed.Event) []string {
	out := []string{}
	for _, e := range events {
		k := e.Key()
		sign := ""
		if e.Kind == fsm.EventInstance && e.New == nil {
			sign = "-"
		}
		out = append(out, fmt.Sprintf("%d %s%s/%s", e.Revision, sign, k.Name, k.ID))
	}
	return out
}

// dispatched waits until everything published so far is in the queues.
func (a *applier) dispatched() {
	a.tb.Helper()
	probe := a.feed.Watch()
	defer probe.Close()
	a.settled(probe)
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
