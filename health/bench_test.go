package health

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// fill puts sessions, and instances with an active check each, into the State by a few large entries.
func fill(b *testing.B, w *world, sessions, instances int) (ids []string) {
	b.Helper()
	var commands [][]byte
	add := func(cmd *raftlogv1.Command) {
		encoded, err := proto.Marshal(cmd)
		if err != nil {
			b.Fatal(err)
		}
		commands = append(commands, encoded)
	}
	for i := range sessions {
		ids = append(ids, fmt.Sprintf("0190c2a4-%08x-session", uint32(i)*2654435761))
		add(&raftlogv1.Command{Kind: &raftlogv1.Command_OpenSession{
			OpenSession: &raftlogv1.OpenSession{Id: ids[i], TtlMs: 15_000},
		}})
	}
	for i := range instances {
		check := tcpCheck(10*time.Second, 1, 3)
		check.Timeout = durationpb.New(time.Second)
		in, err := proto.Marshal(&registryv1.Instance{
			Namespace: "default", Service: fmt.Sprint("service", i%100), Id: fmt.Sprint("instance", i),
			Address: fmt.Sprint("host", i), Ports: []*registryv1.Port{{Name: "main", Number: 80}},
			Checks: []*registryv1.Check{check},
		})
		if err != nil {
			b.Fatal(err)
		}
		add(&raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: in}}})
	}
	st, _, err := w.st.Apply(fsm.Entry{Index: 1, Term: 1, Data: fsm.AppendEntry(nil, 1, commands)})
	if err != nil {
		b.Fatal(err)
	}
	w.st = st
	w.feed.Publish(st, nil) // Nobody watches yet.
	return ids
}

func BenchmarkRenew(b *testing.B) {
	for _, n := range []int{1, 2500} {
		for _, ahead := range []bool{false, true} {
			b.Run(fmt.Sprintf("ids=%d/ahead=%v", n, ahead), func(b *testing.B) {
				w := newWorld(b, nil)
				ids := fill(b, w, 100_000, 0)
				w.lead()
				if ahead { // The State is ahead of the ledger: each id is looked up in it.
					l := w.m.tenure.Load().ledger
					l.update(func() { l.revision = 0 })
				}
				at := 0
				b.ReportAllocs()
				for b.Loop() {
					request := []*peerv1.Renewals{{Kind: renewSession, Ids: ids[at : at+n]}}
					at = (at + n) % (len(ids) - n)
					if ended, err := w.m.Renew(w.term, time.Now(), request); err != nil || ended != nil {
						b.Fatal(ended, err)
					}
				}
				b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "ids/s")
			})
		}
	}
}

// BenchmarkLead is the time until a new leader keeps all deadlines.
func BenchmarkLead(b *testing.B) {
	for _, size := range []struct{ sessions, checks int }{{100_000, 0}, {100_000, 10_000}} {
		b.Run(fmt.Sprintf("sessions=%d/checks=%d", size.sessions, size.checks), func(b *testing.B) {
			w := newWorld(b, nil)
			fill(b, w, size.sessions, size.checks)
			b.ReportAllocs()
			for b.Loop() {
				w.lead()
				b.StopTimer()
				w.stop()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkOverdue is one look at the queue with 100,000 sessions of which all were renewed: the worst, and once in a TTL.
func BenchmarkOverdue(b *testing.B) {
	w := newWorld(b, nil)
	fill(b, w, 100_000, 0)
	l := newLedger(w.m, 1)
	t := newTracker(l, newProber(w.m, 1), w.m.cfg.Logger)
	l.update(func() { t.load(w.state()) })
	for b.Loop() {
		b.StopTimer()
		l.update(func() {
			for _, d := range l.queue {
				d.at, d.due = 0, l.now()+d.ttl
			}
		})
		b.StartTimer()
		for more := true; more; {
			var verdicts []*verdict
			if verdicts, more = l.overdue(64); verdicts != nil {
				b.Fatal("overdue although renewed")
			}
		}
	}
}

// BenchmarkProbeScheduling is the cost of one probe besides the probe, with 10,000 checks.
func BenchmarkProbeScheduling(b *testing.B) {
	w := newWorld(b, nil)
	fill(b, w, 0, 10_000)
	p := newProber(w.m, 1)
	p.probe = func(context.Context, *plan) result { return passing("ok") }
	l := newLedger(w.m, 1)
	t := newTracker(l, p, w.m.cfg.Logger)
	l.update(func() { t.load(w.state()) })
	for _, c := range p.queue {
		c.status = statusPassing
	}
	b.ReportAllocs()
	for b.Loop() {
		c := p.queue[0]
		p.queue.remove(c)
		p.examine(b.Context(), c)
	}
}
