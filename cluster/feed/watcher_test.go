package feed_test

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestWatcherGetsTheEventsOfItsTopicsOnce(t *testing.T) {
	for _, tc := range []struct {
		name   string
		topics []feed.Topic
		want   []string
	}{
		{"none", nil, []string{}},
		{"a service", []feed.Topic{service("web")}, []string{"2 web/1", "6 -web/1"}},
		{"twice the same", []feed.Topic{service("web"), service("web")}, []string{"2 web/1", "6 -web/1"}},
		{"a namespace", []feed.Topic{{Kind: fsm.EventInstance, Namespace: "default"}}, []string{"2 web/1", "3 db/1", "6 -web/1"}},
		{"a name in all namespaces", []feed.Topic{{Kind: fsm.EventInstance, Namespace: "*", Name: "web"}}, []string{"2 web/1", "4 web/1", "6 -web/1"}},
		{"all instances", []feed.Topic{everything()}, []string{"2 web/1", "3 db/1", "4 web/1", "6 -web/1"}},
		{"what begins alike", []feed.Topic{{Kind: fsm.EventInstance, Namespace: "default", Name: "we", Prefix: true}}, []string{"2 web/1", "6 -web/1"}},
		{"what begins alike in all namespaces", []feed.Topic{{Kind: fsm.EventInstance, Namespace: "*", Name: "web", Prefix: true}}, []string{"2 web/1", "4 web/1", "6 -web/1"}},
		{"what begins otherwise", []feed.Topic{{Kind: fsm.EventInstance, Namespace: "default", Name: "webs", Prefix: true}}, []string{}},
		{"a name and what begins so", []feed.Topic{service("web"), {Kind: fsm.EventInstance, Namespace: "default", Name: "web", Prefix: true}}, []string{"2 web/1", "6 -web/1"}},
		{"overlapping", []feed.Topic{everything(), service("web"), service("db")}, []string{"2 web/1", "3 db/1", "4 web/1", "6 -web/1"}},
		{"sessions", []feed.Topic{{Kind: fsm.EventSession}}, []string{"5 s/"}},
		{"one session", []feed.Topic{{Kind: fsm.EventSession, Name: "s"}}, []string{"5 s/"}},
		{"another session", []feed.Topic{{Kind: fsm.EventSession, Name: "other"}}, []string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newApplier(t, feed.Limits{})
			w := a.feed.Watch(tc.topics...)
			defer w.Close()
			a.apply(register("web", "1"), register("db", "1"))
			a.apply(registerIn("other", "web", "1"), openSession("s"))
			a.apply(deregister("web", "1"))
			got := a.settled(w)
			if got.Resync != nil {
				t.Errorf("resync %+v", got.Resync)
			}
			if diff := cmp.Diff(tc.want, told(got.Events)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTopicsComeAndGo(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	w := a.feed.Watch()
	defer w.Close()
	others := make([]*feed.Watcher, 3)
	for i := range others {
		others[i] = a.feed.Watch(service("web"))
	}
	if got := w.Add(service("web")); got > a.st.Revision() {
		t.Errorf("Add says that revision %d is not delivered, the current one is %d", got, a.st.Revision())
	}
	others[0].Close() // From the middle of the list.
	a.apply(register("web", "1"))
	if diff := cmp.Diff([]string{"2 web/1"}, told(a.settled(w).Events)); diff != "" {
		t.Errorf("events after Add (-want +got):\n%s", diff)
	}
	w.Remove(service("web"))
	w.Remove(service("web"))
	a.apply(register("web", "2"))
	if diff := cmp.Diff([]string{}, told(a.settled(w).Events)); diff != "" {
		t.Errorf("events after Remove (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"2 web/1", "3 web/2"}, told(a.settled(others[2]).Events)); diff != "" {
		t.Errorf("events of another watcher (-want +got):\n%s", diff)
	}
	for _, o := range others {
		o.Close()
		o.Close()
	}
	others[1].Add(service("web"))
	a.apply(register("web", "3"))
	if got := others[1].Take(); len(got.Events) > 0 || !got.Closed {
		t.Errorf("a closed watcher took %+v", got)
	}
}

func TestSlowReaderGetsWhatChangedInsteadOfTheSteps(t *testing.T) {
	a := newApplier(t, feed.Limits{QueueEvents: 4, DirtyKeys: 3})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(a.feed.Collectors()...)
	slow, fast := a.feed.Watch(service("web")), a.feed.Watch(service("web"))
	defer slow.Close()
	defer fast.Close()
	for i := range 9 {
		a.apply(register("web", fmt.Sprint(i%3), fmt.Sprint(i)))
		if got := a.settled(fast); len(got.Events) != 1 {
			t.Fatalf("the fast reader got %v", told(got.Events))
		}
	}
	want := &feed.Resync{
		Reason: feed.ReasonSlowReader, State: a.st, Revision: a.st.Revision(),
		Keys: []feed.Key{key("web", "0"), key("web", "1"), key("web", "2")},
	}
	states := cmp.Comparer(func(a, b *fsm.State) bool { return a == b })
	if diff := cmp.Diff(want, a.settled(slow).Resync, states); diff != "" {
		t.Errorf("resync (-want +got):\n%s", diff)
	}
	a.apply(register("web", "again"))
	got := a.settled(slow)
	if diff := cmp.Diff([]string{"11 web/again"}, told(got.Events)); diff != "" || got.Resync != nil {
		t.Errorf("after the resync: %+v, events (-want +got):\n%s", got.Resync, diff)
	}
	for i := range 9 {
		a.apply(register("web", fmt.Sprint("more", i)))
	}
	a.dispatched()
	want = &feed.Resync{Reason: feed.ReasonSlowReader, State: a.st, Revision: a.st.Revision(), Full: true}
	if diff := cmp.Diff(want, a.settled(slow).Resync, states, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("resync beyond the keys that are kept (-want +got):\n%s", diff)
	}
	if got := metric(t, registry, "regd_resyncs_total"); got != 3 { // The fast one did not read the last nine either.
		t.Errorf("%v resyncs are counted, want 3", got)
	}
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	a := newApplier(t, feed.Limits{QueueBytes: 10_000})
	w := a.feed.Watch(service("web"))
	defer w.Close()
	for i := range 100 {
		a.apply(register("web", fmt.Sprint(i)))
	}
	a.dispatched()
	if got := w.Take(); got.Resync == nil || len(got.Resync.Keys) != 100 {
		t.Errorf("100 events of more than 100 bytes are queued in 10,000: %d events", len(got.Events))
	}
}

func TestResetTellsWhatDiffers(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	a.apply(register("web", "old"), register("web", "kept"), register("db", "1"), openSession("s"))
	web, db, all := a.feed.Watch(service("web")), a.feed.Watch(service("db")), a.feed.Watch(everything())
	job := a.feed.Watch(service("job"))
	sessions := a.feed.Watch(feed.Topic{Kind: fsm.EventSession})
	for _, w := range []*feed.Watcher{web, db, all, job, sessions} {
		defer w.Close()
		a.settled(w)
	}
	a.apply(register("web", "queued"))
	before := a.st.Revision()
	a.next(deregister("web", "old"), register("web", "new"), register("cache", "1"), register("job", "1"), deregister("job", "1"))
	a.reset()
	a.apply(register("web", "later"))

	keys := []feed.Key{key("cache", "1"), key("web", "new"), key("web", "old")}
	got := a.settled(web)
	// What was queued before it either comes as events or is among the keys.
	if got.Resync == nil || got.Resync.Reason != feed.ReasonSkipped || got.Resync.Full ||
		got.Resync.Revision != a.st.Revision()-1 && got.Resync.Revision != a.st.Revision() {
		t.Fatalf("resync %+v", got.Resync)
	}
	for _, k := range keys {
		if !slices.Contains(got.Resync.Keys, k) {
			t.Errorf("the keys of the resync lack %v: %v", k, got.Resync.Keys)
		}
	}
	if slices.Contains(got.Resync.Keys, key("web", "kept")) || slices.Contains(got.Resync.Keys, key("db", "1")) {
		t.Errorf("the keys of the resync have what did not change: %v", got.Resync.Keys)
	}
	if got := a.settled(db); got.Resync != nil {
		t.Errorf("the reset is told to a watcher whom it doesn't concern: %+v", got.Resync)
	}
	switch got := a.settled(job).Resync; {
	case got == nil || got.Full:
		t.Errorf("watcher of a service that came and went: resync %+v", got)
	default:
		if keys, concerned := got.For(service("job"), before); !concerned || len(keys) > 0 {
			t.Errorf("the resync concerns who watches a service that came and went: %v, with keys %v", concerned, keys)
		}
		if keys, concerned := got.For(service("db"), before); concerned {
			t.Errorf("the resync concerns a service that did not change, with keys %v", keys)
		}
		if keys, concerned := got.For(service("web"), before); !concerned || !slices.Equal(keys, []feed.Key{key("web", "new"), key("web", "old")}) {
			t.Errorf("the resync concerns a service that changed: %v, with keys %v", concerned, keys)
		}
	}
	if got := a.settled(all); got.Resync == nil || got.Resync.Full {
		t.Errorf("watcher of everything: resync %+v", got.Resync)
	}
	if got := a.settled(sessions); got.Resync == nil || !got.Resync.Full {
		t.Errorf("watcher of sessions: resync %+v, want a full one", got.Resync)
	}
}

func TestEveryWatcherHearsOfARestore(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	a.apply(register("web", "1"))
	before := a.st
	w, none := a.feed.Watch(service("web")), a.feed.Watch(service("none"))
	defer w.Close()
	defer none.Close()
	a.apply(register("web", "2"))
	a.restore(before)
	for _, w := range []*feed.Watcher{w, none} {
		got := a.settled(w).Resync
		if got == nil || !got.Full || got.Reason != feed.ReasonRestored || got.Revision != a.st.Revision() {
			t.Errorf("resync after a restore to revision %d: %+v", a.st.Revision(), got)
		}
	}
	a.apply(register("web", "3"))
	if got := a.settled(w); len(got.Events) != 1 || got.Resync != nil {
		t.Errorf("after the restore: %+v", got)
	}
}

func TestManySkipsBecomeOneFullResync(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	w := a.feed.Watch(service("web"))
	defer w.Close()
	for i := range 3 {
		a.next(register("web", fmt.Sprint(i)))
		a.reset()
		a.dispatched()
	}
	if got := w.Take().Resync; got.Full || len(got.Keys) != 3 {
		t.Errorf("resync after three skips: %+v", got)
	}
	for i := range 10 {
		a.next(register("web", fmt.Sprint("more", i)))
		a.reset()
		a.dispatched()
	}
	if got := w.Take().Resync; !got.Full {
		t.Errorf("resync after ten skips has keys: %+v", got)
	}
}

func TestClosedFeedWakesWatchers(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	w := a.feed.Watch(service("web"))
	defer w.Close()
	a.feed.Close()
	<-w.Ready()
	if !w.Take().Closed {
		t.Errorf("Take does not say that the feed is closed")
	}
	late := a.feed.Watch(service("web"))
	defer late.Close()
	<-late.Ready()
	if !late.Take().Closed {
		t.Errorf("Take of a watcher that came late does not say that the feed is closed")
	}
}

// Old States are large: neither an idle nor a stuck watcher may hold on to one.
func TestWatchersHoldNoState(t *testing.T) {
	a := newApplier(t, feed.Limits{QueueEvents: 10})
	idle, stuck := a.feed.Watch(everything()), a.feed.Watch(everything())
	defer idle.Close()
	defer stuck.Close()
	var old []weak.Pointer[fsm.State]
	for i := range 50 {
		a.apply(register("web", fmt.Sprint(i)))
		a.settled(idle)
		old = append(old, weak.Make(a.st))
		if i == 40 {
			a.next(register("web", "skipped"))
			a.reset()
			a.settled(idle)
		}
	}
	a.states = nil
	old = old[:len(old)-1] // The last one is current.
	deadline := time.Now().Add(10 * time.Second)
	for {
		runtime.GC()
		alive := 0
		for _, p := range old {
			if p.Value() != nil {
				alive++
			}
		}
		if alive == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d old States are alive", alive, len(old))
		}
	}
}

func TestEventsEncodeAsTheGeneratedMessages(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	w := a.feed.Watch(service("web"))
	defer w.Close()
	a.apply(register("web", "1", "a"))
	a.apply(register("web", "1", "b"))
	a.apply(deregister("web", "1"))
	for _, e := range a.settled(w).Events {
		identity := func(r *fsm.Record) *registryv1.Instance {
			return &registryv1.Instance{
				Namespace: r.Namespace(), Service: r.Service(), Id: r.ID(), Incarnation: r.Incarnation(),
			}
		}
		known := e.Old
		if known == nil {
			known = e.New
		}
		check(t, e, e.AppendDelete(nil), e.DeleteSize(), registryv1.EventType_EVENT_TYPE_DELETE, identity(known))
		if e.New == nil {
			continue
		}
		instance, err := e.New.Proto()
		if err != nil {
			t.Fatal(err)
		}
		check(t, e, e.AppendPut(nil), e.PutSize(), registryv1.EventType_EVENT_TYPE_PUT, instance)
	}
}

func check(t *testing.T, e *feed.Event, b []byte, size int, kind registryv1.EventType, in *registryv1.Instance) {
	t.Helper()
	if len(b) != size {
		t.Errorf("%v of revision %d has %d bytes, its size is said to be %d", kind, e.Revision, len(b), size)
	}
	got := &registryv1.Event{}
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatalf("decode %v: %v", kind, err)
	}
	want := &registryv1.Event{Type: kind, Revision: e.Revision, Instance: in, Cause: e.Cause}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

// With the race detector this shows that nothing is shared that should not be.
func TestWatchersComeAndGoWhileEventsFlow(t *testing.T) {
	a := newApplier(t, feed.Limits{QueueEvents: 16, DirtyKeys: 16})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				w := a.feed.Watch(service(fmt.Sprint(n % 5)))
				w.Add(everything())
				last := uint64(0)
				for range i * 10 {
					select {
					case <-w.Ready():
					case <-stop:
					}
					taken := w.Take()
					for _, e := range taken.Events {
						if e.Revision < last {
							t.Errorf("revision %d after %d", e.Revision, last)
						}
						last = e.Revision
					}
					w.Remove(everything())
					w.Add(everything())
				}
				w.Close()
				a.feed.Since(everything(), a.feed.State().Epoch(), last, a.feed.State().Revision(), 10)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 2000 {
		switch {
		case i%500 == 499:
			a.restore(a.st)
		case i%100 == 99:
			a.next(register(fmt.Sprint(i%5), "skipped", fmt.Sprint(i)))
			a.reset()
		default:
			a.apply(register(fmt.Sprint(i%5), fmt.Sprint(i%50), fmt.Sprint(i)), register("x", "y", fmt.Sprint(i)))
		}
	}
	close(stop)
	wg.Wait()
}
