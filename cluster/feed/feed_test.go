package feed_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
)

func TestStateIsWhatWasPublishedLast(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	for i := range 3 {
		a.apply(register("web", fmt.Sprint(i)))
		if got := a.feed.State(); got != a.st {
			t.Fatalf("State is at revision %d, want %d", got.Revision(), a.st.Revision())
		}
	}
}

func TestWaitReturnsAsSoonAsReached(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	now := a.st
	if st, err := a.feed.WaitIndex(cancelled(), now.Index()); err != nil || st != now {
		t.Errorf("WaitIndex of the current index = %v, %v", st, err)
	}
	if st, err := a.feed.WaitRevision(cancelled(), now.Revision()); err != nil || st != now {
		t.Errorf("WaitRevision of the current revision = %v, %v", st, err)
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			target := now.Index() + uint64(i%10) + 1
			if st, err := a.feed.WaitIndex(t.Context(), target); err != nil || st.Index() < target {
				t.Errorf("WaitIndex(%d) = %v, %v", target, st, err)
			}
		})
		wg.Go(func() {
			target := now.Revision() + uint64(i%10) + 1
			if st, err := a.feed.WaitRevision(t.Context(), target); err != nil || st.Revision() < target {
				t.Errorf("WaitRevision(%d) = %v, %v", target, st, err)
			}
		})
	}
	for i := range 10 {
		a.apply(register("web", fmt.Sprint(i)))
	}
	wg.Wait()
}

// A waiter that comes at the very moment must not miss it: nothing comes after that would wake it.
func TestWaitMissesNothing(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	for i := range 3000 {
		target := a.st.Index() + 1
		a.next(openSession(fmt.Sprint(i)))
		st := a.st
		published := make(chan struct{})
		go func() {
			defer close(published)
			a.feed.Publish(st, nil)
		}()
		if _, err := a.feed.WaitIndex(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		<-published
	}
}

func TestWaitEndsWithItsContextOrTheFeed(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	if _, err := a.feed.WaitIndex(cancelled(), 99); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitIndex with a cancelled context: %v", err)
	}
	ended := make(chan error, 2)
	go func() { _, err := a.feed.WaitRevision(t.Context(), 99); ended <- err }()
	go func() { _, err := a.feed.HashAt(t.Context(), 99); ended <- err }()
	a.feed.Close()
	a.feed.Close()
	for range 2 {
		if err := <-ended; !errors.Is(err, feed.ErrClosed) {
			t.Errorf("wait on a closed feed: %v", err)
		}
	}
	a.apply(register("web", "1"))
	if st, err := a.feed.WaitIndex(t.Context(), a.st.Index()); err != nil || st != a.st {
		t.Errorf("a closed feed does not show what was published: %v, %v", st, err)
	}
}

func TestHashAtTellsTheHashOfTheIndex(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	var want []feed.HashPoint
	for i := range 5 {
		a.apply(register("web", fmt.Sprint(i)))
		want = append(want, feed.HashPoint{
			Index: a.st.Index(), Revision: a.st.Revision(),
			Hash: a.st.Hash(), Chain: a.st.Chain(), Content: a.st.ContentHash(),
		})
	}
	for _, w := range want {
		got, err := a.feed.HashAt(cancelled(), w.Index)
		if err != nil {
			t.Fatalf("HashAt(%d): %v", w.Index, err)
		}
		if diff := cmp.Diff(w, got); diff != "" {
			t.Errorf("HashAt(%d) (-want +got):\n%s", w.Index, diff)
		}
	}
}

func TestHashAtGivesALaterPointForAnIndexThatIsGone(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	first := a.st.Index()
	for range 5000 {
		a.next(openSession("s"))
		a.feed.Publish(a.st, nil)
	}
	a.next(openSession("s")) // passed in one step
	a.apply(register("web", "1"))
	got, err := a.feed.HashAt(t.Context(), first)
	if err != nil || got.Index <= first {
		t.Errorf("HashAt(%d) of a gone index = %d, %v", first, got.Index, err)
	}
	got, err = a.feed.HashAt(t.Context(), a.st.Index()-1)
	if err != nil || got.Index != a.st.Index() {
		t.Errorf("HashAt(%d) of a passed index = %d, %v", a.st.Index()-1, got.Index, err)
	}
}

func TestKeptStatesAreFound(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	w := a.feed.Watch()
	defer w.Close()
	a.apply(register("web", "1"))
	first := a.st
	a.feed.Keep(first)
	a.feed.Keep(first)
	a.apply(register("web", "2"))
	if got := a.feed.At(first.Epoch(), first.Revision()); got != first {
		t.Errorf("a kept State is not found")
	}
	if got := a.feed.At(first.Epoch()+1, first.Revision()); got != nil {
		t.Errorf("a State of another epoch is found")
	}
	if got := a.feed.At(a.st.Epoch(), a.st.Revision()); got != a.st {
		t.Errorf("the current State is not found")
	}
	for i := range 64 { // as many as are kept
		a.apply(register("web", fmt.Sprint("more", i)))
		a.feed.Keep(a.st)
	}
	if got := a.feed.At(first.Epoch(), first.Revision()); got != nil {
		t.Errorf("the 65th State from the end is still kept")
	}
	last := a.st
	commands := 0
	for a.st.Revision() < last.Revision()+17_000 {
		a.next(openSession(fmt.Sprint("s", commands)))
		commands++
	}
	a.reset()
	a.settled(w)
	if got := a.feed.At(last.Epoch(), last.Revision()); got != nil {
		t.Errorf("a State is kept that is 17,000 revisions behind")
	}
}

func TestSinceGivesWholeRevisionsInPages(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	w := a.feed.Watch()
	defer w.Close()
	before := a.st.Revision()
	a.apply(register("web", "1"), register("db", "1"))
	a.apply(openSession("s"), register("web", "2"))
	a.apply(deregister("web", "1"))
	a.apply(batch(register("many", "1"), register("many", "2"), register("many", "3")), register("many", "4"))
	a.settled(w)
	for _, tc := range []struct {
		name        string
		topic       feed.Topic
		after, upTo uint64
		limit       int
		want        []string
		revision    uint64
	}{
		{"all of a service", service("web"), before, before + 5, 9, []string{"2 web/1", "5 web/2", "6 -web/1"}, before + 5},
		{"a page", service("web"), before, before + 5, 2, []string{"2 web/1", "5 web/2"}, 5},
		{"the next page", service("web"), 5, before + 5, 2, []string{"6 -web/1"}, before + 5},
		{"up to", service("web"), before, 5, 9, []string{"2 web/1", "5 web/2"}, 5},
		{"all services", everything(), before, before + 5, 9, []string{"2 web/1", "3 db/1", "5 web/2", "6 -web/1"}, before + 5},
		{"a service that has not changed", service("db"), 3, before + 5, 9, []string{}, before + 5},
		{"a service that never was", service("none"), before, before + 5, 9, []string{}, before + 5},
		{"a page that ends within a revision", service("many"), before, before + 7, 2, []string{"7 many/1", "7 many/2", "7 many/3"}, 7},
		{"the future", service("web"), 1000, before + 5, 9, []string{}, 1000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			span, ok := a.feed.Since(tc.topic, a.st.Epoch(), tc.after, tc.upTo, tc.limit)
			if !ok || span.Revision != tc.revision {
				t.Errorf("Since = revision %d, %v, want %d", span.Revision, ok, tc.revision)
			}
			if diff := cmp.Diff(tc.want, told(span.Events)); diff != "" {
				t.Errorf("Since (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSinceRefusesAllButInstances(t *testing.T) {
	a := newApplier(t, feed.Limits{})
	w := a.feed.Watch()
	defer w.Close()
	before := a.st.Revision()
	a.apply(openSession("s"))
	a.settled(w)
	if _, ok := a.feed.Since(feed.Topic{Kind: fsm.EventSession}, a.st.Epoch(), before, a.st.Revision(), 10); ok {
		t.Error("Since answers for sessions, whose history is not kept")
	}
}

func TestSinceRefusesHistoryThatIsNotKept(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits feed.Limits
		then   func(a *applier)
		epochs uint64 // how much the epoch asked for differs
		want   bool
	}{
		{name: "kept", want: true},
		{name: "another epoch", epochs: 1},
		{name: "too many events since", limits: feed.Limits{Events: 300}, then: func(a *applier) {
			for i := range 700 {
				a.apply(register("other", fmt.Sprint(i)))
			}
		}},
		{name: "too many bytes since", limits: feed.Limits{Bytes: 100_000}, then: func(a *applier) {
			for i := range 700 {
				a.apply(register("other", fmt.Sprint(i)))
			}
		}},
		{name: "a snapshot was installed since", then: func(a *applier) {
			a.next(register("other", "1"))
			a.reset()
		}},
		{name: "a snapshot was restored since", then: func(a *applier) { a.restore(a.st) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newApplier(t, tc.limits)
			w := a.feed.Watch()
			defer w.Close()
			a.apply(register("web", "1"))
			epoch, revision := a.st.Epoch()+tc.epochs, a.st.Revision()
			a.apply(register("web", "2"))
			if tc.then != nil {
				tc.then(a)
			}
			a.settled(w)
			if _, ok := a.feed.Since(service("web"), epoch, revision, a.st.Revision(), 10); ok != tc.want {
				t.Errorf("Since = %v, want %v", ok, tc.want)
			}
			if _, ok := a.feed.Since(service("web"), a.st.Epoch(), a.st.Revision(), a.st.Revision(), 10); !ok {
				t.Errorf("Since the current revision is refused")
			}
		})
	}
}

func TestHistoryIsBounded(t *testing.T) {
	a := newApplier(t, feed.Limits{Events: 1000})
	w := a.feed.Watch()
	defer w.Close()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(a.feed.Collectors()...)
	for i := range 5000 {
		a.apply(register("web", fmt.Sprint(i%10), fmt.Sprint(i)))
	}
	a.settled(w)
	if got := metric(t, registry, "regd_feed_history_events"); got < 1000-256 || got > 1000 {
		t.Errorf("%v events are kept, want up to 1000", got)
	}
}

// metric sums the values of a metric.
func metric(tb testing.TB, registry prometheus.Gatherer, name string) float64 {
	tb.Helper()
	families, err := registry.Gather()
	if err != nil {
		tb.Fatalf("gather metrics: %v", err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		var sum float64
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		return sum
	}
	tb.Fatalf("there is no metric %s", name)
	return 0
}
