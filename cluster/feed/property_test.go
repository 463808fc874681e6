package feed_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
)

// reader follows a watcher as its users do: it begins with a State, then folds what it takes.
type reader struct {
	rt      *rapid.T
	a       *applier
	topic   feed.Topic
	watcher *feed.Watcher
	from    uint64 // everything up to here is in known
	known   map[feed.Key][]byte
	last    uint64 // revision of the last event
}

// follow begins a reader at the current State.
func follow(rt *rapid.T, a *applier, topic feed.Topic) *reader {
	r := &reader{rt: rt, a: a, topic: topic, watcher: a.feed.Watch(topic)}
	r.lookUp(&feed.Resync{Full: true, State: a.feed.State()})
	return r
}

// resume begins a reader with what another one knows, as a client does that comes from another node. It returns nil if
// the history is gone.
func resume(rt *rapid.T, a *applier, from *reader, epoch uint64) *reader {
	r := &reader{rt: rt, a: a, topic: from.topic, from: from.from, last: from.last, known: map[feed.Key][]byte{}}
	for k, v := range from.known {
		r.known[k] = v
	}
	r.watcher = a.feed.Watch()
	upTo := r.watcher.Add(r.topic)
	for {
		span, ok := a.feed.Since(r.topic, epoch, r.from, upTo, 3)
		if !ok {
			r.watcher.Close()
			return nil
		}
		r.told(span.Events, span.Revision)
		r.from = span.Revision
		if r.from >= upTo {
			return r
		}
	}
}

// take folds what the watcher has, and compares.
func (r *reader) take() {
	t := r.watcher.Take()
	if t.Resync != nil && t.Resync.Revision > r.from {
		if _, concerned := t.Resync.For(r.topic, r.from); concerned {
			r.lookUp(t.Resync)
		}
	}
	r.told(t.Events, t.Revision)
	r.from = max(r.from, t.Revision)
	r.compare()
}

// told folds events, which must be all up to the revision: what came and went is not passed over in silence.
func (r *reader) told(events []*feed.Event, upTo uint64) {
	came, want := 0, 0
	for _, e := range events {
		if e.Revision > r.from {
			came++
		}
	}
	for _, e := range r.a.events {
		if r.from < e.Revision && e.Revision <= upTo && r.concerns(e) {
			want++
		}
	}
	if came != want {
		r.rt.Fatalf("%d of %d events of revisions %d to %d came", came, want, r.from+1, upTo)
	}
	r.fold(events)
}

// fold applies events.
func (r *reader) fold(events []*feed.Event) {
	seen := map[string]bool{}
	counts := map[uint64]int{}
	for _, e := range events {
		if e.Revision <= r.from {
			continue
		}
		if e.Revision < r.last {
			r.rt.Fatalf("revision %d after %d", e.Revision, r.last)
		}
		r.last = e.Revision
		id := fmt.Sprint(e.Revision, e.Key())
		if seen[id] {
			r.rt.Fatalf("event %v came twice", id)
		}
		seen[id] = true
		counts[e.Revision]++
		k := e.Key()
		if have, known := r.known[k]; known != (e.Old != nil) || known && !bytes.Equal(have, e.Old.Encoded()) {
			r.rt.Fatalf("event %v does not follow what is known", id)
		}
		if e.New == nil {
			delete(r.known, k)
		} else {
			r.known[k] = e.New.Encoded()
		}
	}
	for revision, n := range counts {
		want := 0
		for _, e := range r.a.events {
			if e.Revision == revision && r.concerns(e) {
				want++
			}
		}
		if n != want {
			r.rt.Fatalf("%d of %d events of revision %d came", n, want, revision)
		}
	}
}

func (r *reader) concerns(e fsm.Event) bool {
	rec := e.New
	if rec == nil {
		rec = e.Old
	}
	return rec != nil && r.covers(rec)
}

func (r *reader) covers(rec *fsm.Record) bool {
	return (r.topic.Namespace == feed.AnyNamespace || r.topic.Namespace == rec.Namespace()) &&
		(r.topic.Name == "" || r.topic.Name == rec.Service() || r.topic.Prefix && strings.HasPrefix(rec.Service(), r.topic.Name))
}

// lookUp answers a resync from its State.
func (r *reader) lookUp(resync *feed.Resync) {
	st := resync.State
	if resync.Revision > st.Revision() {
		r.rt.Fatalf("a resync up to revision %d comes with a State of %d", resync.Revision, st.Revision())
	}
	if resync.Full {
		r.known = r.all(st)
	}
	for i, k := range resync.Keys {
		if i > 0 && resync.Keys[i-1].Compare(k) >= 0 {
			r.rt.Fatalf("keys are not sorted and unique: %v", resync.Keys)
		}
		if rec := st.Instance(k.Namespace, k.Name, k.ID); rec == nil {
			delete(r.known, k)
		} else if r.covers(rec) {
			r.known[k] = rec.Encoded()
		}
	}
	r.from = st.Revision()
}

func (r *reader) all(st *fsm.State) map[feed.Key][]byte {
	all := map[feed.Key][]byte{}
	st.Services("", "", func(svc *fsm.Service) bool {
		svc.Ascend("", func(rec *fsm.Record) bool {
			if r.covers(rec) {
				all[feed.Key{Kind: fsm.EventInstance, Namespace: rec.Namespace(), Name: rec.Service(), ID: rec.ID()}] = rec.Encoded()
			}
			return true
		})
		return true
	})
	return all
}

// compare checks that what is known is the State of the revision.
func (r *reader) compare() {
	// A revision within an entry stands for the entry: nothing of the topic is in the rest of it.
	i := slices.IndexFunc(r.a.states, func(st *fsm.State) bool { return st.Revision() >= r.from })
	if i < 0 {
		r.rt.Fatalf("revision %d was never published", r.from)
	}
	want := r.all(r.a.states[i])
	for k, v := range want {
		if !bytes.Equal(v, r.known[k]) {
			r.rt.Fatalf("at revision %d, %v differs from the State", r.from, k)
		}
	}
	if len(want) != len(r.known) {
		r.rt.Fatalf("at revision %d, %d instances are known, the State has %d", r.from, len(r.known), len(want))
	}
}

// settle takes until everything has come.
func (r *reader) settle() {
	for deadline := time.Now().Add(10 * time.Second); r.from < r.a.st.Revision(); {
		select {
		case <-r.watcher.Ready():
		case <-time.After(time.Millisecond):
		}
		r.take()
		if time.Now().After(deadline) {
			r.rt.Fatalf("reader has revision %d, want %d", r.from, r.a.st.Revision())
		}
	}
}

// Whatever happens, what a reader knows after each Take is the State of the revision that Take names: nothing is
// missing, comes twice, out of order or in part. Readers that are slow, resume, or live through resets are no exception.
func TestReadersKnowTheState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := newApplier(t, feed.Limits{
			Events:      rapid.SampledFrom([]int{1, 300, 100_000}).Draw(rt, "history"),
			QueueEvents: rapid.IntRange(1, 30).Draw(rt, "queue"),
			DirtyKeys:   rapid.IntRange(1, 10).Draw(rt, "keys"),
		})
		defer a.feed.Close()
		var readers []*reader
		defer func() {
			for _, r := range readers {
				r.watcher.Close()
			}
		}()
		name := rapid.SampledFrom([]string{"a", "b", "ab"})
		topic := rapid.Custom(func(rt *rapid.T) feed.Topic {
			return feed.Topic{
				Kind:      fsm.EventInstance,
				Namespace: rapid.SampledFrom([]string{"a", "b", "*"}).Draw(rt, "namespace"),
				Name:      rapid.SampledFrom([]string{"a", "b", ""}).Draw(rt, "service"),
				Prefix:    rapid.Bool().Draw(rt, "prefix"),
			}
		})
		change := func() {
			for range rapid.IntRange(1, 4).Draw(rt, "commands") {
				if rapid.IntRange(0, 3).Draw(rt, "batch") == 0 {
					ns, svc := name.Draw(rt, "namespace"), name.Draw(rt, "service")
					a.buffer(batch(registerIn(ns, svc, "a", name.Draw(rt, "tag")), registerIn(ns, svc, "b", name.Draw(rt, "tag")),
						registerIn(ns, "a", "c", name.Draw(rt, "tag"))))
				}
				ns, svc, id := name.Draw(rt, "namespace"), name.Draw(rt, "service"), name.Draw(rt, "id")
				if rapid.Bool().Draw(rt, "register") {
					a.buffer(registerIn(ns, svc, id, name.Draw(rt, "tag")))
				} else {
					a.buffer(deregisterIn(ns, svc, id))
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"publish": func(*rapid.T) { change(); a.flush(true) },
			"skip":    func(*rapid.T) { change(); a.flush(false); a.reset() },
			"restore": func(rt *rapid.T) {
				if rapid.IntRange(0, 4).Draw(rt, "rarely") == 0 {
					a.restore(rapid.SampledFrom(a.states).Draw(rt, "to"))
				}
			},
			"follow": func(rt *rapid.T) { readers = append(readers, follow(rt, a, topic.Draw(rt, "topic"))) },
			"resume": func(rt *rapid.T) {
				if len(readers) == 0 {
					return
				}
				// The epoch is that of the State that the reader knows, which is what a client is told with it.
				from := rapid.SampledFrom(readers).Draw(rt, "reader")
				i := slices.IndexFunc(a.states, func(st *fsm.State) bool { return st.Revision() >= from.from })
				if r := resume(rt, a, from, a.states[i].Epoch()); r != nil {
					readers = append(readers, r)
				}
			},
			"take": func(rt *rapid.T) {
				if len(readers) > 0 {
					rapid.SampledFrom(readers).Draw(rt, "reader").take()
				}
			},
			"settle": func(rt *rapid.T) {
				if len(readers) > 0 {
					rapid.SampledFrom(readers).Draw(rt, "reader").settle()
				}
			},
		})
		for _, r := range readers {
			r.settle()
		}
	})
}
