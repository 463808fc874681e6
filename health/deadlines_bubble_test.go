package health

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	ttl   = 10 * time.Second
	grace = 500 * time.Millisecond
	// late is how much after its TTL something may still be there: grace, and a look at the queue.
	late = grace + grace/4 + time.Millisecond
	// blink passes time that does not matter, for whatever runs to come to rest.
	blink = time.Microsecond
)

// bubble runs a test in a bubble with a world.
func bubble(t *testing.T, change func(*Config), f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, change)) })
}

// wait lets d pass, and all that is due then happen.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) hasSession(id string) bool { return w.state().Session(id) != nil }

func TestSilenceEndsSessionsAndLeasesInTime(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.grantLease("l", ttl)
		w.register("a", func(in *registryv1.Instance) { in.SessionId = "s" })
		wait(ttl - time.Millisecond)
		if !w.hasSession("s") || w.state().Lease("l") == nil {
			t.Fatal("ended before the TTL was over")
		}
		wait(late)
		if w.hasSession("s") || w.state().Lease("l") != nil || w.instance("a") != nil {
			t.Fatal("still there although the TTL and the grace are over")
		}
		for _, k := range []kind{ofSession, ofLease} {
			if n := value(t, w.m.stats.expirations[k]); n != 1 {
				t.Errorf("%v expirations of kind %v were counted, not 1", n, k)
			}
		}
	})
}

// TestSessionOpenedWithItsInstanceHasADeadline holds that it ends like any other, and not before.
func TestSessionOpenedWithItsInstanceHasADeadline(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		encoded, err := proto.Marshal(&registryv1.Instance{Namespace: "default", Service: "web", Id: "a", SessionId: "s"})
		if err != nil {
			t.Fatal(err)
		}
		w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{
			Instance: encoded, OpenSession: &raftlogv1.OpenSession{Id: "s", TtlMs: uint64(ttl.Milliseconds())},
		}}})
		wait(ttl / 2)
		if got := w.renew(renewSession, "s"); len(got) > 0 {
			t.Fatalf("got %v as ended", got)
		}
		wait(ttl - time.Millisecond)
		if !w.hasSession("s") {
			t.Fatal("ended before the TTL after its renewal was over")
		}
		wait(late)
		if w.hasSession("s") || w.instance("a") != nil {
			t.Fatal("still there although the TTL and the grace are over")
		}
	})
}

func TestRenewedLivesOn(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.grantLease("l", ttl)
		for range 50 {
			wait(ttl - time.Millisecond)
			if ended := append(w.renew(renewSession, "s"), w.renew(renewLease, "l")...); ended != nil {
				t.Fatalf("%v ended although renewed in time", ended)
			}
		}
		wait(ttl + late)
		if w.hasSession("s") || w.state().Lease("l") != nil {
			t.Fatal("still there after the renewals stopped")
		}
	})
}

func TestDeadlineCountsFromWhenTheRenewalWasTaken(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		wait(5 * time.Second)
		taken := time.Now()
		wait(4 * time.Second) // The round takes its time.
		if _, err := w.m.Renew(w.term, taken, []*peerv1.Renewals{{Kind: renewSession, Ids: []string{"s"}}}); err != nil {
			t.Fatal(err)
		}
		wait(6*time.Second - time.Millisecond)
		if !w.hasSession("s") {
			t.Fatal("ended before the TTL after the renewal was over")
		}
		wait(late)
		if w.hasSession("s") {
			t.Fatal("the deadline was counted from later than taken")
		}
	})
}

func TestLateRoundDoesNotTakeBackAPromise(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		early := time.Now()
		wait(5 * time.Second)
		w.renew(renewSession, "s")
		if _, err := w.m.Renew(w.term, early, []*peerv1.Renewals{{Kind: renewSession, Ids: []string{"s"}}}); err != nil {
			t.Fatal(err)
		}
		wait(ttl - time.Millisecond)
		if !w.hasSession("s") {
			t.Fatal("an older renewal moved the deadline back")
		}
	})
}

func TestRenewTellsWhatHasEnded(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		if _, err := w.m.Renew(1, time.Now(), nil); !errors.Is(err, ErrNotLeading) {
			t.Fatalf("a node that does not lead answered %v", err)
		}
		w.lead()
		w.openSession("s", ttl)
		w.openSession("closed", ttl)
		synctest.Wait()
		if _, err := w.m.Renew(w.term-1, time.Now(), nil); !errors.Is(err, ErrNotLeading) {
			t.Fatalf("in another term it answered %v", err)
		}
		// The State is ahead of the ledger: neither the end nor the beginning has reached it.
		w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_CloseSession{
			CloseSession: &raftlogv1.CloseSession{Id: "closed"},
		}})
		w.openSession("new", ttl)
		if got := w.renew(renewSession, "s", "closed", "new", "never"); !slices.Equal(got, []string{"closed", "never"}) {
			t.Errorf("got %v as ended, want closed and never", got)
		}
		got, err := w.m.Renew(w.term, time.Now(), []*peerv1.Renewals{{Ids: []string{"s"}}})
		if err != nil || len(got) != 1 {
			t.Errorf("a kind that is not known was renewed: %v %v", got, err)
		}
		w.stop()
		if _, err := w.m.Renew(w.term, time.Now(), nil); !errors.Is(err, ErrNotLeading) {
			t.Fatalf("after it led it answered %v", err)
		}
	})
}

func TestNewLeaderStartsDeadlinesAfresh(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		for range 3 {
			wait(ttl - time.Millisecond)
			w.lead()
		}
		wait(ttl - time.Millisecond)
		if !w.hasSession("s") {
			t.Fatal("ended before a full TTL of the new leader was over")
		}
		wait(late)
		if w.hasSession("s") {
			t.Fatal("still there a TTL and the grace after the last leader began")
		}
	})
}

func TestExpiryIsBatchedAndFenced(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		for i := range 200 {
			w.openSession(fmt.Sprint("s", i), ttl)
			w.grantLease(fmt.Sprint("l", i), ttl)
		}
		wait(ttl + late)
		ids := 0
		expired := w.applied(400)
		for _, c := range expired {
			e := c.GetExpire()
			if n := len(e.GetSessions()) + len(e.GetLeases()); n == 0 || n > maxExpire || e.GetTerm() != w.term {
				t.Errorf("a command in term %d ends %d ids in term %d", w.term, n, e.GetTerm())
			}
			ids += len(e.GetSessions()) + len(e.GetLeases())
		}
		if n := len(expired); ids != 400 || n > 8 {
			t.Errorf("%d ids were ended by %d commands", ids, n)
		}
	})
}

func TestExpiryOfAnEarlierTermChangesNothing(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.set(func() { w.term++ }) // Another node leads; this one has not noticed.
		wait(ttl + late)
		if len(w.applied(1)) == 0 || !w.hasSession("s") {
			t.Fatal("the command of the old leader was not refused")
		}
	})
}

func TestWhatIsBeingEndedIsNotRenewed(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.set(func() { w.stalled = true })
		wait(ttl + late)
		if !w.hasSession("s") {
			t.Fatal("the command was not held up")
		}
		for range 3 { // Also after the proposal has timed out: it may be in the log.
			if got := w.renew(renewSession, "s"); !slices.Equal(got, []string{"s"}) {
				t.Fatal("renewed although a command that ends it is under way")
			}
			wait(6 * time.Second)
		}
		w.set(w.release)
		wait(blink)
		if w.hasSession("s") {
			t.Fatal("the command was not applied")
		}
		if got := w.renew(renewSession, "s"); !slices.Equal(got, []string{"s"}) {
			t.Fatal("renewed after its end")
		}
	})
}

func TestWhatMayBeEndedIsNotRenewed(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.set(func() { w.stalled = true })
		wait(ttl + late + w.m.cfg.ProposeTimeout) // The proposal has timed out: its outcome is not known.
		w.set(func() { w.refuse = errOverloaded })
		wait(2 * lastBackoff) // And whatever is known of another try says nothing about the first.
		if got := w.renew(renewSession, "s"); got == nil {
			t.Fatal("renewed although a command that ends it may be in the log")
		}
		w.set(w.release)
		wait(blink)
		if w.hasSession("s") {
			t.Fatal("the command was not in the log")
		}
	})
}

func TestProposalsThatFailAreMadeLessOften(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.set(func() { w.refuse = errOverloaded })
		wait(ttl + late + time.Minute)
		w.set(func() {
			if w.refused < 10 || w.refused > 40 {
				t.Errorf("%d tries in a minute", w.refused)
			}
		})
	})
}

func TestChangesAheadOfTheLedgerPostponeAVerdict(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.register("a", nil, ttlCheck(ttl))
		synctest.Wait()
		ledger := w.m.tenure.Load().ledger
		var seen uint64
		ledger.update(func() { seen, ledger.revision = ledger.revision, 0 })
		wait(ttl + late)
		if w.status("a") == statusCritical {
			t.Fatal("judged by what may have changed")
		}
		ledger.update(func() { ledger.revision = seen })
		wait(late)
		if w.status("a") != statusCritical {
			t.Fatal("not judged when the changes were known")
		}
	})
}

func TestRefusedExpiryIsDecidedAgain(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("renewed", ttl)
		w.openSession("silent", ttl)
		w.set(func() { w.refuse = errOverloaded })
		wait(ttl + late)
		if got := w.renew(renewSession, "renewed"); got != nil {
			t.Fatal("not renewed although the command had no effect")
		}
		w.set(func() { w.refuse = nil })
		wait(lastBackoff)
		if !w.hasSession("renewed") || w.hasSession("silent") {
			t.Fatal("only what was not renewed should end")
		}
		wait(ttl + late - lastBackoff)
		if w.hasSession("renewed") {
			t.Fatal("the failure of the first decision moved the deadline")
		}
	})
}

func TestWhatWasToldToHaveEndedEnds(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.set(func() { w.stalled = true })
		wait(ttl + late)
		if got := w.renew(renewSession, "s"); got == nil {
			t.Fatal("renewed although a command that ends it is under way")
		}
		// The command turns out to have been dropped, and the next try is refused.
		w.set(func() {
			close(w.pending[0].done)
			w.pending, w.stalled, w.refuse = nil, false, errOverloaded
		})
		wait(time.Second)
		if got := w.renew(renewSession, "s"); got == nil {
			t.Fatal("renewed although it was told to have ended")
		}
		w.set(func() { w.refuse = nil })
		wait(2 * lastBackoff)
		if w.hasSession("s") {
			t.Fatal("lives on although it was told to have ended")
		}
	})
}

func TestLostAnswerDoesNotMatter(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.set(func() { w.loseAck = true })
		wait(ttl + late + 2*lastBackoff)
		if w.hasSession("s") {
			t.Fatal("still there")
		}
		if n := w.m.tenure.Load().ledger.counts(); n != [kinds]int{} {
			t.Fatalf("the ledger still has %v", n)
		}
	})
}

func TestProposalsAreBoundedAndTheRestCanBeRenewed(t *testing.T) {
	t.Parallel()
	one := func(c *Config) { c.MaxExpirations = 1 }
	bubble(t, one, func(t *testing.T, w *world) {
		w.lead()
		var ids []string
		for i := range maxExpire + 1 {
			ids = append(ids, fmt.Sprintf("s%03d", i))
			w.openSession(ids[i], ttl)
		}
		w.set(func() { w.stalled = true })
		wait(ttl + late)
		w.set(func() {
			if n := len(w.pending); n != 1 {
				t.Fatalf("%d proposals are under way, not 1", n)
			}
		})
		ended := w.renew(renewSession, ids...)
		if len(ended) != maxExpire {
			t.Fatalf("%d of %d are being ended, not %d", len(ended), len(ids), maxExpire)
		}
		w.set(w.release)
		wait(blink)
		if n := w.state().Counts().Sessions; n != 1 {
			t.Fatalf("%d sessions are left, not the one that was renewed", n)
		}
	})
}

func TestInterruptionExtendsDeadlines(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		var stall atomic.Int64
		w.m.state = func() *fsm.State {
			time.Sleep(time.Duration(stall.Swap(0))) // The whole process, as far as the ledger can tell.
			return w.feed.State()
		}
		w.lead()
		w.openSession("s", ttl)
		w.openSession("other", ttl)
		const pause = 30 * time.Second
		wait(ttl - 10*time.Millisecond)
		stall.Store(int64(pause))
		wait(grace/4 + pause + time.Millisecond)
		if got := w.renew(renewSession, "s"); got != nil || !w.hasSession("other") {
			t.Fatal("judged by silence while nothing was heard")
		}
		wait(ttl - time.Millisecond)
		if !w.hasSession("s") {
			t.Fatal("ended before the TTL after the renewal")
		}
		if w.hasSession("other") {
			t.Fatal("still there long after the interruption")
		}
		wait(grace + pause) // A renewal that is counted before the interruption is noticed gains by it.
		if w.hasSession("s") {
			t.Fatal("still there after its TTL, the grace and the interruption")
		}
		if n := value(t, w.m.stats.suppressed); n != 2 {
			t.Errorf("%v deadlines were counted as extended, not 2", n)
		}
	})
}

func TestRestoreStartsAfresh(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(t *testing.T, w *world) {
		w.lead()
		w.openSession("s", ttl)
		w.openSession("long", 2*ttl) // There before and after.
		w.register("a", nil, ttlCheck(ttl), tcpCheck(time.Second, 1, 1))
		wait(time.Second)
		backup := w.state()
		wait(ttl + late)
		if w.hasSession("s") || w.instance("a").GetHealth() != registryv1.Health_HEALTH_CRITICAL {
			t.Fatal("not ended before the restore")
		}
		w.set(func() {
			w.st = fsm.Rebase(backup, w.st)
			w.feed.Reset(w.st)
		})
		wait(ttl - time.Millisecond)
		if !w.hasSession("s") || w.instance("a").GetHealth() == registryv1.Health_HEALTH_CRITICAL {
			t.Fatal("ended before a TTL after the restore")
		}
		wait(late)
		if w.hasSession("s") || w.instance("a").GetHealth() != registryv1.Health_HEALTH_CRITICAL {
			t.Fatal("not ended after the restore")
		}
		wait(ttl - late)
		if !w.hasSession("long") {
			t.Fatal("the time before the restore was counted")
		}
	})
}

func TestMissedEventsAreLookedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		// A queue of one event and no key: nearly everything comes as a resync.
		w.feed.Close()
		w.feed = feed.New(w.st, feed.Limits{QueueEvents: 1, DirtyKeys: 1})
		w.m.feed, w.m.state = w.feed, w.feed.State
		w.lead()
		synctest.Wait()
		open := func(from, to int) {
			for i := from; i < to; i++ {
				w.openSession(fmt.Sprint("s", i), ttl)
				w.grantLease(fmt.Sprint("l", i), ttl)
				w.register(fmt.Sprint("i", i), nil, ttlCheck(ttl), tcpCheck(time.Second, 1, 1))
			}
		}
		open(0, 5)
		synctest.Wait()
		ledger := w.m.tenure.Load().ledger
		ledger.mu.Lock() // The tracker is held up.
		open(5, 10)
		for i := range 5 {
			w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_CloseSession{
				CloseSession: &raftlogv1.CloseSession{Id: fmt.Sprint("s", i)},
			}})
			w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_RevokeLease{
				RevokeLease: &raftlogv1.RevokeLease{Id: fmt.Sprint("l", i)},
			}})
			w.deregister(fmt.Sprint("i", i))
		}
		ledger.mu.Unlock()
		synctest.Wait()
		if got, want := ledger.counts(), [kinds]int{ofSession: 5, ofLease: 5, ofReport: 5}; got != want {
			t.Errorf("deadlines %v, want %v", got, want)
		}
		if got := w.m.tenure.Load().prober.counts()["tcp"]; got != 5 {
			t.Errorf("%d checks, want 5", got)
		}
	})
}
