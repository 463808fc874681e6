package chaos_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	miekg "github.com/miekg/dns"
)

// acknowledged tells up to which revision writes were acknowledged at a time.
type acknowledged struct {
	times     []time.Time
	revisions []uint64
}

func (f *foreign) acknowledged() acknowledged {
	var states []*chronicled
	for _, c := range f.services {
		states = append(states, c.states...)
	}
	slices.SortFunc(states, func(a, b *chronicled) int { return a.acked.Compare(b.acked) })
	var k acknowledged
	top := uint64(0)
	for _, s := range states {
		top = max(top, s.revision)
		k.times, k.revisions = append(k.times, s.acked), append(k.revisions, top)
	}
	return k
}

func (k acknowledged) by(at time.Time) uint64 {
	n, _ := slices.BinarySearchFunc(k.times, at, func(a, b time.Time) int { return a.Compare(b) })
	if n == 0 {
		return 0
	}
	return k.revisions[n-1]
}

// faults collects what is wrong. Of many of a kind a few say enough.
type faults struct {
	f    *foreign
	seen map[string]int
}

func (x *faults) add(kind, format string, args ...any) {
	x.f.t.Helper()
	if x.seen == nil {
		x.seen = map[string]int{}
	}
	if x.seen[kind]++; x.seen[kind] <= 5 {
		x.f.t.Errorf("%s: %s", kind, fmt.Sprintf(format, args...))
	}
}

func (x *faults) tell() {
	for kind, n := range x.seen {
		x.f.t.Errorf("%s: %d times", kind, n)
	}
}

// judgeWaiters judges each answer of the door for Consul's clients, how soon they were told, and how soon after a kill they were
// told anew.
func (f *foreign) judgeWaiters(goOn time.Duration) {
	f.t.Helper()
	for _, s := range f.scribes {
		if s.failed != nil {
			f.t.Errorf("a writer gave up: %v", s.failed)
		}
	}
	x := &faults{f: f}
	acked := f.acknowledged()
	var answers, timeouts, moved int
	var lags []time.Duration
	for _, w := range f.waiters {
		c := f.services[w.service]
		for k, a := range w.answers {
			answers++
			if a.index == a.given {
				timeouts++
			}
			if k > 0 && w.answers[k-1].node != a.node {
				moved++
			}
			f.judge(x, w, a, acked)
		}
		lags = append(lags, w.lags(x, c, f.killed, goOn)...)
	}
	broken := map[string]int{}
	for _, w := range f.waiters {
		for text, n := range w.errors {
			broken[text] += n
		}
	}
	writes := 0
	for _, c := range f.services {
		writes += len(c.states)
	}
	f.t.Logf("%d writes to %d services; %d queries were answered %d times, %d of these when their time was over, %d at another node than before",
		writes, len(f.services), len(f.waiters), answers, timeouts, moved)
	f.t.Logf("errors that made a client go to the next node: %v", broken)
	f.t.Logf("a client knew of a write, after it was acknowledged: %s", spans(lags))
	if timeouts == 0 || moved == 0 {
		x.add("it proves nothing", "%d answers came when the time was over, %d from another node than before", timeouts, moved)
	}
	for _, killed := range f.killed {
		f.judgeKill(x, killed, goOn)
	}
	x.tell()
}

// judge judges an answer.
func (f *foreign) judge(x *faults, w *waiter, a told, acked acknowledged) {
	f.t.Helper()
	c := f.services[w.service]
	where := fmt.Sprintf("client %d (stale: %t) of %s at n%d, index %d -> %d, revision %d", w.number, w.stale, c.name, a.node+1, a.given, a.index, a.revision)
	if a.index < a.given || a.index == 0 {
		x.add("an index ran back", "%s", where)
		return
	}
	if a.revision < a.index {
		x.add("an index is ahead of its answer", "%s", where)
	}
	byIndex, byRevision := c.at(a.index), c.at(a.revision)
	switch {
	case byIndex == nil || a.content != byIndex.all:
		x.add("a wrong answer", "%s: %s, want %v", where, a.content, byIndex)
	case byRevision != byIndex:
		x.add("an answer lacks what its revision has", "%s: %s, want %s", where, a.content, byRevision.all)
	}
	if a.given > 0 && a.index > a.given {
		return
	}
	// What found nothing new, or asked for the first time, is current.
	since := a.sent
	if a.given > 0 {
		since = since.Add(a.wait)
		if a.got.Before(since) {
			x.add("a query did not wait", "%s: it was answered after %v of %v", where, a.got.Sub(a.sent), a.wait)
		}
	}
	if known := acked.by(since); !w.stale && a.revision < known {
		x.add("an answer is stale", "%s: %d was acknowledged before", where, known)
	}
}

// lags are how long after it was acknowledged the client knew of each write, those apart that were made around a kill.
func (w *waiter) lags(x *faults, c *chronicle, killed []time.Time, goOn time.Duration) []time.Duration {
	var lags []time.Duration
	k := 0
	for _, s := range c.states {
		for k < len(w.answers) && w.answers[k].index < s.revision {
			k++
		}
		if k == len(w.answers) {
			x.add("a client was never told", "client %d (stale: %t) of %s: revision %d", w.number, w.stale, c.name, s.revision)
			return lags
		}
		around := slices.ContainsFunc(killed, func(at time.Time) bool {
			return s.acked.After(at.Add(-time.Second)) && s.acked.Before(at.Add(5*time.Second))
		})
		if lag := w.answers[k].got.Sub(s.acked); k > 0 && !around {
			lags = append(lags, max(lag, 0))
			if lag > goOn {
				x.add("a client was told late", "client %d (stale: %t) of %s: of revision %d %v after it was acknowledged", w.number, w.stale, c.name, s.revision, lag)
			}
		}
	}
	return lags
}

// judgeKill judges how soon after a kill each client was told of a write that was begun after it.
func (f *foreign) judgeKill(x *faults, killed time.Time, goOn time.Duration) {
	f.t.Helper()
	var heard, written []time.Duration
	for _, w := range f.waiters {
		c := f.services[w.service]
		k := slices.IndexFunc(c.states, func(s *chronicled) bool { return s.begun.After(killed) })
		if k < 0 {
			x.add("it proves nothing", "%s was not written after the kill", c.name)
			continue
		}
		written = append(written, c.states[k].acked.Sub(killed))
		n := slices.IndexFunc(w.answers, func(a told) bool { return a.index >= c.states[k].revision })
		if n < 0 {
			continue // It was never told: that is a fault already.
		}
		took := w.answers[n].got.Sub(killed)
		heard = append(heard, took)
		if took > goOn {
			x.add("a client went on late", "client %d (stale: %t) of %s was told of a change %v after the kill, want %v", w.number, w.stale, c.name, took, goOn)
		}
	}
	f.t.Logf("after the kill services were written: %s", spans(written))
	f.t.Logf("after the kill clients were told of it: %s", spans(heard))
}

// spans sums durations up.
func spans(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	slices.Sort(d)
	at := func(part float64) time.Duration { return d[int(part*float64(len(d)-1))].Round(100 * time.Microsecond) }
	return fmt.Sprintf("half within %v, 99 %% within %v, all within %v (%d, the first %v)", at(0.5), at(0.99), at(1), len(d), at(0))
}

// dnsBound is how old an answer by DNS may be. The nodes are told so; one that is not so fresh answers only while there is no leader,
// and then nothing is acknowledged.
const dnsBound = 3 * time.Second

// judgeAskers judges each answer by DNS: it is what the service was at most dnsBound ago, and at one node time does not run back.
func (f *foreign) judgeAskers() {
	f.t.Helper()
	x := &faults{f: f}
	k := f.askers
	slices.SortFunc(k.answers, func(a, b resolved) int { return cmp.Compare(a.got.UnixNano(), b.got.UnixNano()) })
	oldest := time.Duration(0)
	var took []time.Duration
	for _, q := range k.answers {
		took = append(took, q.got.Sub(q.due))
		age, ok := f.services[q.service].age(q)
		if !ok {
			x.add("a wrong answer", "%s of %s at n%d: %q was not so between %v and %v", miekg.TypeToString[q.qtype], f.services[q.service].name, q.node+1,
				q.content, q.sent.Add(-dnsBound).Format("05.000"), q.got.Format("05.000"))
		}
		oldest = max(oldest, age)
	}
	f.backwards(x)
	gap, last := time.Duration(0), time.Time{}
	for _, q := range k.answers {
		if !last.IsZero() {
			gap = max(gap, q.got.Sub(last))
		}
		last = q.got
	}
	all := len(k.answers) + len(k.lost)
	f.t.Logf("%d questions by DNS: %.3f %% were answered; attempts that went on to the next node: %v; longest time without an answer %v",
		all, 100*float64(len(k.answers))/float64(all), k.skipped, gap.Round(time.Millisecond))
	f.t.Logf("answers, since they were due: %s; the oldest lacked a write that was acknowledged %v before it was asked for", spans(took), oldest.Round(time.Millisecond))
	for _, why := range k.lost {
		x.add("a question was not answered", "%s", why)
	}
	x.tell()
}

// age tells how old an answer is: how long before the question the next state was acknowledged.
func (c *chronicle) age(q resolved) (time.Duration, bool) {
	for n := len(c.states) - 1; n >= 0; n-- {
		s := c.states[n]
		if s.begun.After(q.got) || s.text(q.qtype) != q.content {
			continue
		}
		if n == len(c.states)-1 {
			return 0, true
		}
		age := max(0, q.sent.Sub(c.states[n+1].acked))
		return age, age <= dnsBound
	}
	return 0, false
}

func (s *chronicled) text(qtype uint16) string {
	if qtype == miekg.TypeA {
		return s.a
	}
	return s.srv
}

// backwards finds answers of a node that are older than one that it had given before they were asked for. A content may have been
// there several times: the earliest that fits counts.
func (f *foreign) backwards(x *faults) {
	type place struct{ service, node int }
	by := map[place][]resolved{}
	for _, q := range f.askers.answers {
		by[place{q.service, q.node}] = append(by[place{q.service, q.node}], q)
	}
	for _, at := range slices.SortedFunc(maps.Keys(by), func(a, b place) int { return cmp.Or(a.service-b.service, a.node-b.node) }) {
		c := f.services[at.service]
		list := by[at]
		fits := make([]int, len(list))
		for n, q := range list { // In the order of their arrival.
			least := 0
			for m := n - 1; m >= 0; m-- {
				if list[m].got.Before(q.sent) {
					least = max(least, fits[m])
				}
			}
			k := slices.IndexFunc(c.states[least:], func(s *chronicled) bool { return s.text(q.qtype) == q.content })
			if k < 0 {
				x.add("DNS ran back", "%s at n%d: %q", c.name, at.node+1, q.content)
				k = 0
			}
			fits[n] = least + k
		}
	}
}
