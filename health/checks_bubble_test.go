package health

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func (w *world) wantStatus(id string, want registryv1.CheckStatus) {
	w.t.Helper()
	if got := w.status(id); got != want {
		w.t.Fatalf("the check of %s is %v, want %v", id, got, want)
	}
}

func TestTTLCheckFollowsReports(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		id := CheckID("default", "web", "a", "ttl")
		w.lead()
		w.register("a", nil, ttlCheck(ttl))
		w.report("a", "ttl", statusPassing)
		for range 5 { // Repeated reports are renewals.
			wait(ttl - time.Millisecond)
			if ended := w.renew(renewCheck, id); ended != nil {
				t.Fatal("the check was not renewed")
			}
		}
		wait(ttl - time.Millisecond)
		w.wantStatus("a", statusPassing)
		wait(late)
		state := w.instance("a").GetCheckStates()[0]
		if state.GetStatus() != statusCritical || state.GetOutput() != "no report for 10s" {
			t.Fatalf("after silence the check is %v", state)
		}
		if ended := w.renew(renewCheck, id); ended == nil {
			t.Fatal("a critical check was renewed: it wants a report")
		}
		w.report("a", "ttl", statusWarning)
		synctest.Wait()
		if ended := w.renew(renewCheck, id); ended != nil {
			t.Fatal("a check that was reported anew was not renewed")
		}
		wait(ttl - time.Millisecond)
		w.wantStatus("a", statusWarning)
		wait(late)
		w.wantStatus("a", statusCritical)
		w.deregister("a")
		if ended := w.renew(renewCheck, id, "nonsense"); len(ended) != 2 {
			t.Fatal("a check that is gone was renewed")
		}
	})
}

func TestCriticalReportNeedsNoDeadline(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.register("a", nil, ttlCheck(ttl))
		synctest.Wait()
		w.report("a", "ttl", statusCritical)
		synctest.Wait()
		if n := w.m.tenure.Load().ledger.counts()[ofReport]; n != 0 {
			t.Error("there is a deadline for a check that is critical")
		}
		if ended := w.renew(renewCheck, CheckID("default", "web", "a", "ttl")); ended == nil {
			t.Error("a critical check was renewed: it wants a report")
		}
	})
}

func TestBreakThatPassedUnseenRestartsCriticalTooLong(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.register("a", func(in *registryv1.Instance) {
			in.DeregisterCriticalAfter = durationpb.New(time.Minute)
		}, ttlCheck(ttl))
		w.report("a", "ttl", statusCritical)
		wait(40 * time.Second)
		w.report("a", "ttl", statusPassing) // Both at once, as far as the tracker sees.
		w.report("a", "ttl", statusCritical)
		wait(time.Minute - time.Millisecond)
		if w.instance("a") == nil {
			t.Fatal("gone before it was critical for a minute without a break")
		}
		wait(late)
		if w.instance("a") != nil {
			t.Fatal("still there")
		}
	})
}

func TestTTLCheckRestartsWithEachChange(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.register("a", nil, ttlCheck(ttl))
		for _, change := range []func(){
			func() { w.report("a", "ttl", statusPassing) },
			func() { w.report("a", "ttl", statusCritical); w.report("a", "ttl", statusPassing) },
			func() { w.register("a", func(in *registryv1.Instance) { in.Weight = 7 }, ttlCheck(ttl)) },
			func() { w.lead() },
		} {
			wait(ttl - time.Millisecond)
			change()
		}
		wait(ttl - time.Millisecond)
		w.wantStatus("a", statusPassing)
		wait(late)
		w.wantStatus("a", statusCritical)
	})
}

func TestReportDuringAFailedVerdictCounts(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.register("a", nil, ttlCheck(ttl))
		w.report("a", "ttl", statusPassing)
		w.set(func() { w.stalled = true })
		wait(ttl + late)
		w.renew(renewCheck, CheckID("default", "web", "a", "ttl"))
		w.set(func() {
			close(w.pending[0].done)
			w.pending, w.stalled = nil, false
		})
		wait(ttl - time.Millisecond)
		w.wantStatus("a", statusPassing)
		wait(late)
		w.wantStatus("a", statusCritical)
	})
}

func TestRiseAndFall(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rise, fall uint32
		found      string // What the probes find, in order: p, w, c.
		want       string // The status after each.
	}{
		{1, 3, "pccpcccp", "pppppp" + "cp"},
		{3, 1, "ppcpppcp", "sscccp" + "cc"},
		{2, 2, "ppwwccww", "spww" + "wc" + "cw"},
		{1, 1, "cpcw", "cpcw"},
		{2, 3, "ccc", "ssc"},
	} {
		t.Run(fmt.Sprintf("rise %d, fall %d: %s", tt.rise, tt.fall, tt.found), func(t *testing.T) {
			t.Parallel()
			letters := map[byte]registryv1.CheckStatus{
				'p': statusPassing, 'w': statusWarning, 'c': statusCritical, 's': statusStarting,
			}
			p := newPlan(&registryv1.Instance{}, tcpCheck(time.Second, tt.rise, tt.fall))
			var tr trend
			status := statusStarting
			for i := range len(tt.found) {
				status = tr.add(p, status, letters[tt.found[i]])
				if want := letters[tt.want[i]]; status != want {
					t.Fatalf("after %q it is %v, want %v", tt.found[:i+1], status, want)
				}
			}
		})
	}
}

func TestChecksProposeOnlyChanges(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		found := w.fakeTargets()
		w.lead()
		w.register("a", nil, tcpCheck(time.Second, 1, 3))
		wait(time.Minute)
		w.wantStatus("a", statusPassing)
		if n := found.count("a.test"); n < 54 || n > 67 {
			t.Errorf("%d probes in a minute at an interval of a second, give or take a tenth", n)
		}
		found.set("a.test", statusCritical)
		wait(1700 * time.Millisecond) // At most two probes.
		w.wantStatus("a", statusPassing)
		wait(1700 * time.Millisecond) // At least three.
		w.wantStatus("a", statusCritical)
		if out := w.instance("a").GetCheckStates()[0].GetOutput(); out != "as told" {
			t.Errorf("the output is %q", out)
		}
		found.set("a.test", statusWarning)
		wait(1200 * time.Millisecond)
		w.wantStatus("a", statusWarning)
		if n := len(w.applied(1)); n != 3 {
			t.Errorf("%d commands for three changes", n)
		}
		for _, c := range w.applied(1) {
			if v := c.GetSetCheck(); v.GetTerm() != w.term || v.GetIncarnation() == 0 {
				t.Errorf("the verdict %v is not fenced", v)
			}
		}
	})
}

func TestVerdictThatWasRefusedIsProposedAgain(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.register("a", nil, tcpCheck(time.Second, 1, 1))
		w.set(func() { w.refuse = errOverloaded })
		wait(10 * time.Second)
		w.wantStatus("a", statusStarting)
		w.set(func() { w.refuse = nil })
		wait(2 * time.Second)
		w.wantStatus("a", statusPassing)
	})
}

func TestDrainingAndMaintenanceAreStillProbed(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		found := w.fakeTargets()
		w.lead()
		w.register("a", nil, tcpCheck(time.Second, 1, 1))
		key := instanceKey{"default", "web", "a"}.proto()
		w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_SetDraining{
			SetDraining: &raftlogv1.SetDraining{Key: key, Draining: true},
		}})
		w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMaintenance{
			SetMaintenance: &raftlogv1.SetMaintenance{Key: key, Maintenance: true},
		}})
		wait(10 * time.Second)
		w.wantStatus("a", statusPassing)
		if found.count("a.test") < 8 {
			t.Error("it is no longer probed")
		}
	})
}

func TestFirstProbeOfANewLeaderCannotDemote(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		found := w.fakeTargets()
		w.lead()
		w.register("a", nil, tcpCheck(time.Second, 1, 1))
		wait(5 * time.Second)
		found.set("a.test", statusCritical) // From where the new leader is, at least.
		w.lead()
		for before := found.count("a.test"); found.count("a.test") == before; {
			wait(10 * time.Millisecond)
		}
		w.wantStatus("a", statusPassing)
		wait(1200 * time.Millisecond)
		w.wantStatus("a", statusCritical) // The second in a row.
		found.set("a.test", statusPassing)
		wait(1200 * time.Millisecond)
		w.wantStatus("a", statusPassing)
		found.set("a.test", statusCritical) // From now on, one is enough again.
		wait(1100 * time.Millisecond)
		w.wantStatus("a", statusCritical)
	})
}

func TestSingleFailureIsBelieved(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		found := w.fakeTargets()
		w.lead()
		for i := range 20 {
			w.register(fmt.Sprint("i", i), nil, tcpCheck(time.Second, 1, 2))
		}
		wait(5 * time.Second)
		for i := range 8 { // Some more, and still less than most.
			found.set(fmt.Sprintf("i%d.test", i), statusCritical)
		}
		wait(3 * time.Second)
		for i := range 20 {
			want := statusPassing
			if i < 8 {
				want = statusCritical
			}
			w.wantStatus(fmt.Sprint("i", i), want)
		}
		if value(t, w.m.stats.abstentions) != 0 {
			t.Error("abstained")
		}
	})
}

func TestMassFailureIsDoubtedForAWhile(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		const hosts = 20
		found := w.fakeTargets()
		all := func(status registryv1.CheckStatus) {
			for i := range hosts {
				found.set(fmt.Sprintf("i%d.test", i), status)
			}
		}
		is := func(want registryv1.CheckStatus) {
			t.Helper()
			for i := range hosts {
				w.wantStatus(fmt.Sprint("i", i), want)
			}
		}
		w.lead()
		for i := range hosts {
			w.register(fmt.Sprint("i", i), nil, tcpCheck(time.Second, 1, 3))
		}
		wait(5 * time.Second)
		for range 2 { // The second time it is doubted again.
			all(statusCritical)
			wait(30 * time.Second)
			is(statusPassing)
			all(statusPassing)
			wait(5 * time.Second)
			is(statusPassing)
		}
		if n := value(t, w.m.stats.abstentions); n != 2 {
			t.Errorf("abstained %v times, want 2", n)
		}
		all(statusCritical)
		wait(time.Minute)
		is(statusPassing)
		wait(5 * time.Second) // A minute after the third probe, which was the first that would have mattered.
		is(statusCritical)
		if n := value(t, w.m.stats.abstentions); n != 3 {
			t.Errorf("abstained %v times, want 3", n)
		}
	})
}

func TestBrokenServiceIsNoBrokenNetwork(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.m.probe = func(_ context.Context, p *plan) result {
			if p.check.GetName() == "tcp" {
				return critical("broken by a release")
			}
			return passing("ok")
		}
		w.lead()
		passingFirst := tcpCheck(time.Second, 1, 3)
		passingFirst.Initial = statusPassing
		other := tcpCheck(time.Second, 1, 3)
		other.Name = "other"
		for i := range 20 {
			w.register(fmt.Sprint("i", i), nil, passingFirst, other)
		}
		wait(10 * time.Second)
		for i := range 20 {
			w.wantStatus(fmt.Sprint("i", i), statusCritical)
		}
	})
}

func TestCriticalTooLongIsDeregistered(t *testing.T) {
	t.Parallel()
	after := func(in *registryv1.Instance) { in.DeregisterCriticalAfter = durationpb.New(time.Minute) }
	bubble(t, nil, func(t *testing.T, w *world) {
		found := w.fakeTargets()
		found.set("a.test", statusCritical)
		found.set("b.test", statusCritical)
		w.lead()
		w.register("a", after, tcpCheck(time.Second, 1, 1))
		w.register("b", nil, tcpCheck(time.Second, 1, 1))
		wait(40 * time.Second)
		found.set("a.test", statusPassing) // Back for a moment.
		wait(2 * time.Second)
		found.set("a.test", statusCritical)
		wait(40 * time.Second)
		w.lead() // A new leader knows only what it sees.
		wait(time.Minute - time.Millisecond)
		if w.instance("a") == nil {
			t.Fatal("gone before it was critical for a minute without a break")
		}
		// Registered again, it is no less critical: only the definition of the check would change that.
		w.register("a", func(in *registryv1.Instance) { after(in); in.Weight = 7 }, tcpCheck(time.Second, 1, 1))
		wait(late)
		if w.instance("a") != nil {
			t.Fatal("still there")
		}
		if w.instance("b") == nil {
			t.Fatal("an instance that did not ask for it is gone")
		}
		last := w.applied(0)
		if d := last[len(last)-1].GetDeregister(); d.GetTerm() != w.term || d.GetIncarnation() == 0 ||
			d.GetCause() != registryv1.Cause_CAUSE_CRITICAL_TOO_LONG {
			t.Errorf("the command %v is not fenced", d)
		}
	})
}

func TestCheckRestartsOnlyWhenItsDefinitionChanges(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		found := w.fakeTargets()
		w.lead()
		w.register("a", nil, tcpCheck(time.Minute, 1, 1))
		wait(6 * time.Second) // A new check is probed within a tenth of its interval.
		if found.count("a.test") != 1 {
			t.Fatalf("%d probes", found.count("a.test"))
		}
		w.register("a", func(in *registryv1.Instance) { in.Tags = []string{"v2"} }, tcpCheck(time.Minute, 1, 1))
		wait(12 * time.Second)
		if found.count("a.test") != 1 {
			t.Fatal("another tag restarted the check")
		}
		w.register("a", nil, tcpCheck(time.Minute, 1, 2))
		wait(6 * time.Second)
		if found.count("a.test") != 2 {
			t.Fatal("another definition did not restart the check")
		}
		w.register("a", func(in *registryv1.Instance) { in.Address = "moved.test" }, tcpCheck(time.Minute, 1, 2))
		wait(6 * time.Second)
		if found.count("moved.test") != 1 {
			t.Fatal("another address did not restart the check")
		}
		w.register("a", nil, ttlCheck(time.Hour))
		synctest.Wait()
		tenure := w.m.tenure.Load()
		if tenure.prober.counts()["tcp"] != 0 || tenure.ledger.counts()[ofReport] != 1 {
			t.Fatal("another kind did not take the place of the check")
		}
		w.register("a", nil, tcpCheck(time.Minute, 1, 2))
		w.deregister("a")
		before := found.count("a.test")
		wait(time.Hour)
		if found.count("a.test") != before || tenure.ledger.counts() != [kinds]int{} {
			t.Fatal("the checks of an instance that is gone go on")
		}
	})
}

func TestResultForAnEarlierIncarnationIsDropped(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		begun, end := make(chan struct{}), make(chan struct{})
		w.m.probe = func(context.Context, *plan) result {
			begun <- struct{}{}
			<-end
			return critical("of the old one")
		}
		w.lead()
		w.register("a", nil, tcpCheck(time.Second, 1, 2))
		<-begun
		w.register("a", func(in *registryv1.Instance) { in.Tags = []string{"v2"} }, tcpCheck(time.Second, 1, 2))
		synctest.Wait()
		for _, want := range []registryv1.CheckStatus{statusStarting, statusStarting, statusCritical} {
			end <- struct{}{}
			wait(blink)
			w.wantStatus("a", want)
			<-begun
		}
		end <- struct{}{}
	})
}

func TestProbesAreBoundedAndFailingOnesLeaveRoom(t *testing.T) {
	t.Parallel()
	few := func(c *Config) { c.MaxProbes, c.Abstain = 8, 0 }
	bubble(t, few, func(t *testing.T, w *world) {
		found := w.fakeTargets()
		quick := w.m.probe
		running, most := 0, 0
		w.m.probe = func(ctx context.Context, p *plan) result {
			found.mu.Lock()
			hangs := found.status[p.host] == statusCritical
			running++
			most = max(most, running)
			found.mu.Unlock()
			if hangs {
				time.Sleep(p.timeout)
			}
			r := quick(ctx, p)
			found.mu.Lock()
			running--
			found.mu.Unlock()
			return r
		}
		w.lead()
		w.register("good", nil, tcpCheck(time.Second, 1, 1))
		wait(2 * time.Second)
		for i := range 100 { // None of them waits for a first probe at the expense of the good one, either.
			id := fmt.Sprint("hangs", i)
			found.set(id+".test", statusCritical)
			w.register(id, nil, tcpCheck(time.Second, 1, 1))
		}
		before := found.count("good.test")
		wait(2 * time.Minute)
		if n := found.count("good.test") - before; n < 105 {
			t.Errorf("%d probes of a good target in two minutes: those that hang take its place", n)
		}
		for i := range 100 {
			if id := fmt.Sprint("hangs", i); w.status(id) != statusCritical || found.count(id+".test") < 3 {
				t.Errorf("%s is %v after %d probes", id, w.status(id), found.count(id+".test"))
			}
		}
		if most < maxRetries(8) || most > 8 {
			t.Errorf("%d probes at once, of at most 8", most)
		}
	})
}

func TestProbeThatWasUnderWayAtTheEndHasNoEffect(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.m.probe = func(ctx context.Context, _ *plan) result {
			<-ctx.Done()
			return critical("interrupted")
		}
		w.lead()
		w.register("a", nil, tcpCheck(time.Second, 1, 1))
		wait(time.Second)
		w.stop()
		w.wantStatus("a", statusStarting)
	})
}
