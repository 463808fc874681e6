package balance

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// call picks and reports, and returns the id.
func call(t *testing.T, b *Balancer, o Outcome) string {
	t.Helper()
	p, err := b.Pick(Request{})
	if err != nil {
		t.Fatal(err)
	}
	p.Done(o)
	return p.Instance().GetId()
}

// status returns the status of the instance.
func status(t *testing.T, b *Balancer, in *registryv1.Instance) Status {
	t.Helper()
	for _, s := range b.Stats() {
		if s.Instance.GetId() == in.GetId() {
			return s
		}
	}
	t.Fatalf("no status of %s", in.GetId())
	return Status{}
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instances := fleet(1, false)
		b := balancer(t, RoundRobin(), instances, WithBreaker(Breaker{ConsecutiveFailures: 3, OpenTime: 5 * time.Second, Trials: 2}))
		expect := func(state BreakerState, reason Reason, left time.Duration) {
			t.Helper()
			if s := status(t, b, instances[0]); s.Breaker != state || s.Reason != reason || s.For != left {
				t.Fatalf("breaker %v, reason %v for %v; want %v, %v for %v", s.Breaker, s.Reason, s.For, state, reason, left)
			}
		}
		call(t, b, Failure)
		call(t, b, Failure)
		call(t, b, Success)
		call(t, b, Failure)
		call(t, b, Neutral)
		call(t, b, Failure)
		expect(BreakerClosed, ReasonNone, 0)
		late, err := b.Pick(Request{}) // under way while the breaker opens
		if err != nil {
			t.Fatal(err)
		}
		call(t, b, Failure)
		expect(BreakerOpen, ReasonOpen, 5*time.Second)
		var unavailable *UnavailableError
		if _, err = b.Pick(Request{}); !errors.Is(err, ErrNoneHealthy) || !errors.As(err, &unavailable) || unavailable.Open != 1 {
			t.Fatalf("pick from an open breaker: %v, want ErrNoneHealthy with one open", err)
		}
		time.Sleep(5*time.Second - time.Nanosecond)
		expect(BreakerOpen, ReasonOpen, 1)
		time.Sleep(time.Nanosecond)
		expect(BreakerHalfOpen, ReasonNone, 0)
		late.Done(Failure) // says nothing of the instance as it is now
		first, _ := b.Pick(Request{})
		second, err := b.Pick(Request{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = b.Pick(Request{}); !errors.As(err, &unavailable) || unavailable.Probing != 1 {
			t.Fatalf("a third trial at a time: %v, want none", err)
		}
		expect(BreakerHalfOpen, ReasonOpen, 0)
		first.Done(Neutral) // gives its permit back
		first, err = b.Pick(Request{})
		if err != nil {
			t.Fatal(err)
		}
		first.Done(Success)
		second.Done(Failure)
		expect(BreakerOpen, ReasonOpen, 5*time.Second)
		time.Sleep(5 * time.Second)
		call(t, b, Success)
		expect(BreakerHalfOpen, ReasonNone, 0)
		call(t, b, Success)
		expect(BreakerClosed, ReasonNone, 0)
		call(t, b, Failure)
		call(t, b, Failure)
		expect(BreakerClosed, ReasonNone, 0) // counts start again
	})
}

// TestBreakerLostTrials checks that trials that don't end don't keep a breaker half-open for ever, and that calls of an
// earlier state say nothing of the present one.
func TestBreakerLostTrials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := balancer(t, RoundRobin(), fleet(1, false), WithBreaker(Breaker{ConsecutiveFailures: 1, OpenTime: time.Second}))
		expect := func(want BreakerState) {
			t.Helper()
			if s := b.Stats()[0]; s.Breaker != want {
				t.Fatalf("breaker %v, want %v", s.Breaker, want)
			}
		}
		stale, err := b.Pick(Request{})
		if err != nil {
			t.Fatal(err)
		}
		call(t, b, Failure)
		time.Sleep(time.Second)
		lost, err := b.Pick(Request{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = b.Pick(Request{}); err == nil {
			t.Fatal("a second trial beside the first")
		}
		time.Sleep(time.Second)
		trial, err := b.Pick(Request{})
		if err != nil {
			t.Fatal(err)
		}
		lost.Done(Failure) // of a round that is over
		expect(BreakerHalfOpen)
		trial.Done(Success)
		stale.Done(Failure)
		expect(BreakerClosed)
		call(t, b, Failure)
		expect(BreakerOpen)
	})
}

// TestLastOneIsNotEjected checks that ejection spares an instance while the others can't be picked.
func TestLastOneIsNotEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instances := fleet(3, false)
		b := balancer(t, RoundRobin(), instances, WithBreaker(Breaker{ConsecutiveFailures: 3}),
			WithEjection(Ejection{ConsecutiveFailures: 1 << 20, MaxShare: 1}))
		b.mu.Lock()
		b.open(b.members[0].track, b.now())
		b.open(b.members[1].track, b.now())
		b.rebuild()
		if b.eject(b.members[2].track, b.now()) {
			t.Error("the last instance was ejected")
		}
		b.mu.Unlock()
		time.Sleep(5 * time.Second)
		call(t, b, Success) // one of the others at least is on trial
	})
}

func TestBreakerRatio(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := Breaker{ConsecutiveFailures: 1000, FailureRatio: 0.5, MinCalls: 10, Window: 8 * time.Second, OpenTime: time.Second}
		b := balancer(t, RoundRobin(), fleet(1, false), WithBreaker(k))
		for range 4 {
			call(t, b, Failure)
			call(t, b, Success)
		}
		time.Sleep(8 * time.Second) // all of that has left the window
		for range 5 {
			call(t, b, Success)
		}
		time.Sleep(4 * time.Second)
		for range 4 {
			call(t, b, Failure)
		}
		if s := b.Stats()[0]; s.Breaker != BreakerClosed {
			t.Fatalf("breaker %v after 4 failures of 9, want closed", s.Breaker)
		}
		call(t, b, Failure)
		if s := b.Stats()[0]; s.Breaker != BreakerOpen {
			t.Fatalf("breaker %v after 5 failures of 10, want open", s.Breaker)
		}
	})
}

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instances := fleet(10, false)
		b := balancer(t, RoundRobin(), instances, WithEjection(Ejection{ConsecutiveFailures: 2, MaxShare: 0.2}))
		bad := map[string]bool{instances[2].GetId(): true, instances[5].GetId(): true, instances[7].GetId(): true}
		run := func() map[string]int {
			counts := map[string]int{}
			for range 200 {
				p, err := b.Pick(Request{})
				if err != nil {
					t.Fatal(err)
				}
				o := Success
				if bad[p.Instance().GetId()] {
					o = Failure
				}
				p.Done(o)
				counts[p.Instance().GetId()]++
			}
			return counts
		}
		ejected := func() (ids []string) {
			for _, s := range b.Stats() {
				if s.Reason == ReasonEjected {
					ids = append(ids, s.Instance.GetId())
				}
			}
			return ids
		}
		run()
		if out := ejected(); len(out) != 2 {
			t.Fatalf("%v are ejected, want two of three: the ceiling is a fifth of ten", out)
		}
		if counts := run(); len(counts) != 8 {
			t.Fatalf("picks went to %d instances, want 8: %v", len(counts), counts)
		}
		for times, lasts := range []time.Duration{30 * time.Second, 60 * time.Second, 90 * time.Second} {
			if s := status(t, b, instances[2]); s.Reason == ReasonEjected && (s.For != lasts || s.Ejections != times+1) {
				t.Fatalf("ejection %d: lasts %v, counted as %d, want %v", times+1, s.For, s.Ejections, lasts)
			}
			time.Sleep(lasts)
			if out := ejected(); len(out) != 0 {
				t.Fatalf("after %v: %v still ejected", lasts, out)
			}
			run()
			if out := ejected(); len(out) != 2 {
				t.Fatalf("%v are ejected, want two", out)
			}
		}
		bad = nil
		b.Update(instances[:3]) // the ceiling is now one
		if out := ejected(); len(out) > 1 {
			t.Errorf("of three instances %v are ejected", out)
		}
	})
}

func TestEjectionTimeFalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instances := fleet(2, false)
		b := balancer(t, RoundRobin(), instances, WithEjection(Ejection{ConsecutiveFailures: 1, MaxTime: 45 * time.Second}))
		fail := func() time.Duration {
			for {
				p, err := b.Pick(Request{})
				if err != nil {
					t.Fatal(err)
				}
				if p.Instance() == instances[0] {
					p.Done(Failure)
					return status(t, b, instances[0]).For
				}
				p.Done(Success)
			}
		}
		expect := func(want time.Duration) {
			t.Helper()
			if got := fail(); got != want {
				t.Fatalf("ejected for %v, want %v", got, want)
			}
			if in := call(t, b, Failure); in != instances[1].GetId() {
				t.Fatalf("picked %s", in)
			}
			if s := status(t, b, instances[1]); s.Reason != ReasonNone {
				t.Fatalf("the last instance: %v", s.Reason)
			}
		}
		expect(30 * time.Second)
		time.Sleep(30 * time.Second)
		expect(45 * time.Second) // twice 30 s, but for the limit
		time.Sleep(45*time.Second + 30*time.Second)
		expect(45 * time.Second) // twice again: one was forgiven
		time.Sleep(45*time.Second + 24*time.Hour)
		expect(30 * time.Second) // as at first
	})
}

func TestSuccessRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instances := fleet(10, false)
		b := balancer(t, RoundRobin(), instances, WithEjection(Ejection{ConsecutiveFailures: 1000, SuccessRate: true}))
		seen := map[string]int{}
		for range 2000 {
			p, err := b.Pick(Request{})
			if err != nil {
				t.Fatal(err)
			}
			id := p.Instance().GetId()
			seen[id]++
			if p.Instance() == instances[4] && seen[id]%2 == 0 || seen[id]%20 == 0 {
				p.Done(Failure)
			} else {
				p.Done(Success)
			}
		}
		if s := status(t, b, instances[4]); s.Reason != ReasonNone {
			t.Fatalf("before the interval is over: %v", s.Reason)
		}
		time.Sleep(10 * time.Second)
		for _, s := range b.Stats() {
			want := ReasonNone
			if s.Instance == instances[4] {
				want = ReasonEjected
			}
			if s.Reason != want {
				t.Errorf("%s with %d failures of %d: %v, want %v", s.Instance.GetId(), s.Failures, s.Calls, s.Reason, want)
			}
		}
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := balancer(t, RoundRobin(), fleet(1, false))
		for _, step := range []struct{ took, want time.Duration }{{80, 80}, {160, 90}, {90, 90}} {
			p, err := b.Pick(Request{})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(step.took * time.Millisecond)
			p.Done(Success)
			if got := b.Stats()[0].Latency; got != step.want*time.Millisecond {
				t.Fatalf("after a call of %v: latency %v, want %v", step.took*time.Millisecond, got, step.want*time.Millisecond)
			}
		}
	})
}

// TestGuardsAndPanic checks that a panic readmits the ejected and unhealthy, but no open breaker and nobody who drains.
func TestGuardsAndPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instances := fleet(6, false)
		for i, h := range []registryv1.Health{2, 2, 6, 6, 3, 1} { // critical, critical, passing, passing, draining, maintenance
			instances[i].Health = h
		}
		b := balancer(t, RoundRobin(), instances, WithPanicThreshold(0.5), WithBreaker(Breaker{ConsecutiveFailures: 2}))
		picked := func() string {
			seen := ""
			for i, in := range instances {
				for range 12 {
					if call(t, b, Neutral) == in.GetId() {
						seen += fmt.Sprint(i)
						break
					}
				}
			}
			return seen
		}
		if got := picked(); got != "23" {
			t.Fatalf("at the threshold of two of four: picked %s, want 2 and 3", got)
		}
		for s := status(t, b, instances[2]); s.Breaker == BreakerClosed; s = status(t, b, instances[2]) {
			p, err := b.Pick(Request{})
			if err != nil {
				t.Fatal(err)
			}
			if p.Instance() == instances[2] {
				p.Done(Failure)
			} else {
				p.Done(Success)
			}
		}
		if got := picked(); got != "013" {
			t.Fatalf("one of four left: picked %s, want 0, 1 and 3", got)
		}
		if !b.Explain(Request{}).Panic {
			t.Error("the explanation doesn't speak of a panic")
		}
	})
}

// TestLeastRequestsShunsWhoFailsFast has three of ten instances fail at once, of which ejection may put only one aside, while
// calls to the others take their time. They must not draw the calls, and get their share again once they are well.
func TestLeastRequestsShunsWhoFailsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instances := fleet(10, false)
		b := balancer(t, LeastRequests(), instances, WithEjection(Ejection{}))
		sick := map[*registryv1.Instance]bool{instances[1]: true, instances[4]: true, instances[7]: true}
		// Ten calls begin each millisecond, and take ten where they don't fail.
		run := func(seconds int) (calls, toThree, failed int) {
			var under [10][]Pick
			for ms := range 1000 * seconds {
				for _, p := range under[ms%10] {
					p.Done(Success)
				}
				under[ms%10] = under[ms%10][:0]
				for range 10 {
					p, err := b.Pick(Request{})
					if err != nil {
						t.Fatal(err)
					}
					calls++
					if i := p.Instance(); i == instances[1] || i == instances[4] || i == instances[7] {
						toThree++
					}
					if sick[p.Instance()] {
						failed++
						p.Done(Failure)
						continue
					}
					under[ms%10] = append(under[ms%10], p)
				}
				time.Sleep(time.Millisecond)
			}
			for _, picks := range under {
				for _, p := range picks {
					p.Done(Success)
				}
			}
			return calls, toThree, failed
		}
		if calls, _, failed := run(10); failed*25 > calls {
			// Of the nine that are not put aside two are sick: both are drawn for one pick in 36.
			t.Errorf("%d of %d calls failed, want less than one in 25", failed, calls)
		}
		clear(sick)
		time.Sleep(time.Minute) // ejections end
		if calls, toThree, _ := run(2); toThree*100 < 25*calls {
			t.Errorf("well again, three of ten got %d of %d calls", toThree, calls)
		}
	})
}
