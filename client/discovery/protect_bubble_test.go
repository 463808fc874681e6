package discovery_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// protected is a Discovery of ten instances, a to j.
func protected(t *testing.T, opts ...discovery.Option) (*registry, *discovery.Discovery, *discovery.Service) {
	t.Helper()
	r := newRegistry(t, 1)
	r.change(put("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")...)
	d, _ := open(t, r, opts...)
	s := service(t, d, "web")
	wantView(t, s, "a b c d e f g h i j")
	return r, d, s
}

func TestMassExpiryIsHeldUpForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d, s := protected(t)
		// They fall silent one after the other.
		r.change(del(expired, "a", "b")...)
		wantView(t, s, "c d e f g h i j")
		time.Sleep(time.Minute)
		r.change(del(expired, "c", "d", "e", "f", "g")...)
		wantView(t, s, "h i j")
		r.change(del(expired, "h")...)
		v := wantView(t, s, "(a) (b) (c) (d) (e) (f) (g) (h) i j")
		if len(v.Healthy) != 10 || v.Instance("a").GetAddress() == "" {
			t.Errorf("%d healthy: want those as they were", len(v.Healthy))
		}
		if got := d.Stats()[0]; got.Protections != 1 || got.Protected != 8 || got.Instances != 10 {
			t.Errorf("stats %+v", got)
		}
		r.change(del(expired, "i", "j")...)
		wantView(t, s, "(a) (b) (c) (d) (e) (f) (g) (h) (i) (j)")
		r.change(put("c")...) // comes back
		wantView(t, s, "(a) (b) c (d) (e) (f) (g) (h) (i) (j)")
		r.change(put("x")...) // in the place of the one that is gone for longest
		wantView(t, s, "(b) c (d) (e) (f) (g) (h) (i) (j) x")
		time.Sleep(4*time.Minute - time.Second)
		wantView(t, s, "(b) c (d) (e) (f) (g) (h) (i) (j) x")
		time.Sleep(time.Second)
		wantView(t, s, "c (d) (e) (f) (g) (h) (i) (j) x")
		time.Sleep(time.Minute)
		wantView(t, s, "c x")
		r.change(del(deregistered, "c", "x")...)
		wantView(t, s, "")
	})
}

func TestWhoLeavesIsGone(t *testing.T) {
	for _, cause := range []registryv1.Cause{
		deregistered, registryv1.Cause_CAUSE_SESSION_CLOSED, registryv1.Cause_CAUSE_LEASE_REVOKED,
	} {
		synctest.Test(t, func(t *testing.T) {
			r, _, s := protected(t)
			r.change(del(cause, "a", "b", "c", "d", "e", "f", "g", "h", "i")...)
			wantView(t, s, "j")
			r.change(del(cause, "j")...)
			wantView(t, s, "")
		})
	}
}

func TestLastInstanceIsHeldUp(t *testing.T) {
	for _, test := range []struct {
		keep float64
		hold time.Duration
		want string
	}{{0, time.Minute, "(a)"}, {0.3, time.Minute, "(a)"}, {0.3, 0, ""}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRegistry(t, 1)
			r.change(put("a")...)
			d, _ := open(t, r, discovery.WithProtection(test.keep, test.hold))
			s := service(t, d, "web")
			wantView(t, s, "a")
			r.change(del(registryv1.Cause_CAUSE_LEASE_EXPIRED, "a")...)
			wantView(t, s, test.want)
			time.Sleep(time.Minute)
			wantView(t, s, "")
		})
	}
}

// TestCrashLoopDoesNotPileUp has one instance crash over and over and come back under a new id each time.
func TestCrashLoopDoesNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("p0")...)
		d, _ := open(t, r)
		s := service(t, d, "web")
		wantView(t, s, "p0")
		for n := range 20 {
			r.change(del(expired, fmt.Sprintf("p%d", n))...)
			wantView(t, s, fmt.Sprintf("(p%d)", n))
			time.Sleep(10 * time.Second)
			r.change(put(fmt.Sprintf("p%d", n+1))...)
			wantView(t, s, fmt.Sprintf("p%d", n+1))
		}
	})
}

// TestRedeploymentIsNoLoss replaces all instances while the client is away for so long that history is lost.
func TestRedeploymentIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d, s := protected(t)
		r.stop()
		time.Sleep(time.Minute)
		r.change(del(deregistered, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j")...)
		last := r.change(put("k", "l", "m")...)
		r.set(func() { r.kept = last })
		r.start()
		time.Sleep(11 * time.Second)
		wantView(t, s, "k l m")
		if got := d.Stats()[0]; got.Resyncs != 1 || got.Protections != 0 {
			t.Errorf("stats %+v, want a resync and no protection", got)
		}
	})
}

// TestRestoredRegistryIsDoubted has the registry come back from an old snapshot, without the instances of since then.
func TestRestoredRegistryIsDoubted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, s := protected(t)
		r.stop()
		r.restore(1)
		r.start()
		time.Sleep(11 * time.Second)
		v := wantView(t, s, "(a) (b) (c) (d) (e) (f) (g) (h) (i) (j)")
		if v.Point.Epoch != 2 || v.Source != discovery.SourceLive {
			t.Errorf("view %+v, want it live in epoch 2", v)
		}
		r.change(put("a", "b")...)
		wantView(t, s, "a b (c) (d) (e) (f) (g) (h) (i) (j)")
	})
}

func TestAnotherRegistryIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, s := protected(t)
		r.stop()
		r.set(func() { r.cluster = "other" })
		r.change(del(deregistered, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j")...)
		r.change(put("z")...)
		r.start()
		time.Sleep(11 * time.Second)
		wantView(t, s, "z")
	})
}
