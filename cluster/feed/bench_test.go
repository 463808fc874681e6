package feed_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// step is what a feed is given.
type step struct {
	st     *fsm.State
	events []fsm.Event
}

// steps are n changes of the service "hot".
func steps(b *testing.B, a *applier, n int) []step {
	b.Helper()
	out := make([]step, n)
	for i := range out {
		result := a.next(register("hot", fmt.Sprint(i%100), fmt.Sprint(i)))
		out[i] = step{a.st, result.Events}
	}
	return out
}

// populate registers 100 services of 100 instances.
func populate(a *applier) {
	for s := range 100 {
		var commands []*raftlogv1.Command
		for i := range 100 {
			commands = append(commands, register(fmt.Sprint("cold", s), fmt.Sprint(i), "a", "b"))
		}
		a.apply(commands...)
	}
	a.states, a.events = nil, nil
}

func watchers(b *testing.B, a *applier, n int, topic func(i int) feed.Topic) []*feed.Watcher {
	b.Helper()
	out := make([]*feed.Watcher, n)
	for i := range out {
		out[i] = a.feed.Watch(topic(i))
		b.Cleanup(out[i].Close)
	}
	return out
}

func topics() map[string]func(int) feed.Topic {
	return map[string]func(int) feed.Topic{
		"same":  func(int) feed.Topic { return service("hot") },
		"other": func(i int) feed.Topic { return service(fmt.Sprint("cold", i)) },
		"other_prefix": func(i int) feed.Topic {
			topic := service(fmt.Sprint("cold", i, "/"))
			topic.Prefix = true
			return topic
		},
	}
}

// BenchmarkPublish is what the applier pays. Nobody reads: all queues are full and coalesced, the dispatcher is behind.
func BenchmarkPublish(b *testing.B) {
	for name, topic := range topics() {
		for _, n := range []int{0, 1, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s/watchers=%d", name, n), func(b *testing.B) {
				a := newApplier(b, feed.Limits{})
				populate(a)
				watchers(b, a, n, topic)
				a.dispatched()
				all := steps(b, a, 4096)
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					s := &all[i%len(all)]
					a.feed.Publish(s.st, s.events)
					if i%len(all) == len(all)-1 {
						b.StopTimer()
						runtime.Gosched()
						b.StartTimer()
					}
				}
			})
		}
	}
}

// BenchmarkDispatch is one change from Publish until it is in the queues of all whom it concerns, who are idle before.
func BenchmarkDispatch(b *testing.B) {
	for name, topic := range topics() {
		for _, n := range []int{1, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s/watchers=%d", name, n), func(b *testing.B) {
				a := newApplier(b, feed.Limits{})
				populate(a)
				all := watchers(b, a, n, topic)
				last := a.feed.Watch(service("hot"))
				defer last.Close()
				a.dispatched()
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					b.StopTimer()
					result := a.next(register("hot", fmt.Sprint(i%100), fmt.Sprint(i)))
					for _, w := range all {
						w.Take()
					}
					b.StartTimer()
					a.feed.Publish(a.st, result.Events)
					for last.Take().Revision < a.st.Revision() {
						<-last.Ready()
					}
				}
			})
		}
	}
}

// BenchmarkSince is a subscription that resumes 10,000 events later.
func BenchmarkSince(b *testing.B) {
	a := newApplier(b, feed.Limits{})
	after := a.st.Revision()
	for i := range 10_000 {
		a.apply(register(fmt.Sprint("s", i%100), fmt.Sprint(i), "a"))
	}
	a.dispatched()
	for name, topic := range map[string]feed.Topic{"service": service("s1"), "all": everything(), "gone": service("none")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, ok := a.feed.Since(topic, a.st.Epoch(), after, a.st.Revision(), 1<<20); !ok {
					b.Fatal("history is gone")
				}
			}
		})
	}
}

func BenchmarkAppendPut(b *testing.B) {
	a := newApplier(b, feed.Limits{})
	w := a.feed.Watch(everything())
	defer w.Close()
	a.apply(register("web", "1", "a", "b"))
	e := a.settled(w).Events[0]
	dst := make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for range b.N {
		dst = e.AppendPut(dst[:0])
	}
}
