package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// open makes a Discovery of a client of its own, both closed with the test, or before by the function.
func open(t *testing.T, r *registry, opts ...discovery.Option) (*discovery.Discovery, func()) {
	t.Helper()
	c := r.client()
	d, err := discovery.New(c, opts...)
	if err != nil {
		t.Fatal(err)
	}
	end := func() {
		d.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	return d, end
}

func service(t *testing.T, d *discovery.Discovery, name string) *discovery.Service {
	t.Helper()
	s, err := d.Service(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// view returns the view as of now.
func view(t *testing.T, s *discovery.Service) *discovery.View {
	t.Helper()
	synctest.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v, err := s.View(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// told is a view in short: its ids, those that are protected in brackets.
func told(v *discovery.View) string {
	var ids []string
	for _, i := range v.Instances {
		id := i.GetId()
		for _, p := range v.Protected {
			if p == id {
				id = "(" + id + ")"
			}
		}
		ids = append(ids, id)
	}
	return strings.Join(ids, " ")
}

func wantView(t *testing.T, s *discovery.Service, want string) *discovery.View {
	t.Helper()
	v := view(t, s)
	if got := told(v); got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	return v
}

func TestViewFollowsTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 3)
		r.change(put("b", "a")...)
		d, _ := open(t, r)
		s := service(t, d, "web")
		begin := time.Now()
		v := wantView(t, s, "a b")
		if took := time.Since(begin); took != 0 {
			t.Errorf("the first view took %s: more than one round trip", took)
		}
		if v.Source != discovery.SourceLive || v.Point != (client.ResumePoint{ClusterID: "cluster", Epoch: 1, Revision: 2}) ||
			v.Staleness != 10*time.Millisecond || v.Node == "" || v.Age() != 0 || v.Namespace != "default" || v.Service != "web" {
			t.Errorf("view %+v", v)
		}
		r.change(append(put("c"), del(deregistered, "a")...)...)
		v = wantView(t, s, "b c")
		if v.Point.Revision != 3 || v.Staleness != 10*time.Millisecond {
			t.Errorf("view %+v, want it at 3", v)
		}
		if v.Instance("c") == nil || v.Instance("a") != nil {
			t.Error("instances are not found by their id")
		}
		for range 10 {
			time.Sleep(time.Minute)
			if age := view(t, s).Age(); age > 5*time.Second {
				t.Fatalf("age %s while the registry is there", age)
			}
		}
	})
}

func TestHandlesShareAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a")...)
		d, _ := open(t, r, discovery.WithLinger(time.Minute))
		one, two := service(t, d, "web"), service(t, d, "web")
		if view(t, one) != view(t, two) {
			t.Error("two views of one service")
		}
		if _, _, subs := r.asked(); len(subs) != 1 {
			t.Errorf("%d subscriptions, want one", len(subs))
		}
		one.Close()
		one.Close()
		if _, err := one.View(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("View after Close: %v", err)
		}
		wantView(t, two, "a")
		two.Close()
		time.Sleep(59 * time.Second)
		three := service(t, d, "web")
		wantView(t, three, "a")
		three.Close()
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if _, open, subs := r.asked(); len(d.Stats()) != 0 || open != 0 || len(subs) != 1 {
			t.Errorf("%d services on %d streams after %d subscriptions: want the one to have ended", len(d.Stats()), open, len(subs))
		}
		wantView(t, service(t, d, "web"), "a")
		if _, open, subs := r.asked(); open != 1 || len(subs) != 2 {
			t.Errorf("%d streams after %d subscriptions, want another one", open, len(subs))
		}
	})
}

func TestServicesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		d, _ := open(t, r, discovery.WithMaxServices(2), discovery.WithLinger(time.Hour))
		one, _ := service(t, d, "one"), service(t, d, "two")
		if _, err := d.Service("three"); !errors.Is(err, discovery.ErrTooManyServices) {
			t.Errorf("error %v, want ErrTooManyServices", err)
		}
		service(t, d, "one").Close()
		one.Close() // lingers, and makes room
		service(t, d, "three")
		synctest.Wait()
		var names []string
		for _, s := range d.Stats() {
			names = append(names, s.Service)
		}
		if diff := cmp.Diff([]string{"three", "two"}, names); diff != "" {
			t.Error(diff)
		}
		if _, err := d.Service("one"); !errors.Is(err, discovery.ErrTooManyServices) {
			t.Errorf("error %v, want ErrTooManyServices", err)
		}
	})
}

func TestUnknownServiceIsToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		d, _ := open(t, r)
		s := service(t, d, "web")
		v, err := s.View(t.Context())
		if !errors.Is(err, discovery.ErrNoSuchService) || v == nil || len(v.Instances) != 0 {
			t.Errorf("view %v, error %v: want ErrNoSuchService and an empty view", v, err)
		}
		sick := put("a")
		sick[0].Instance.Health = registryv1.Health_HEALTH_CRITICAL
		r.change(sick...)
		wantView(t, s, "a")
		if _, err := s.Healthy(t.Context()); !errors.Is(err, discovery.ErrNoneHealthy) {
			t.Errorf("error %v, want ErrNoneHealthy", err)
		}
		r.change(put("b")...)
		synctest.Wait()
		if healthy, err := s.Healthy(t.Context()); err != nil || len(healthy) != 1 || healthy[0].GetId() != "b" {
			t.Errorf("got %v, %v: want b", healthy, err)
		}
		r.change(del(deregistered, "a", "b")...)
		wantView(t, s, "") // no error: it is known
		if _, err := s.Healthy(t.Context()); !errors.Is(err, discovery.ErrNoneHealthy) || errors.Is(err, discovery.ErrNoSuchService) {
			t.Errorf("error %v, want ErrNoneHealthy", err)
		}
	})
}

func TestFirstViewWaitsForTheRegistryAndTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a")...)
		r.stop()
		d, _ := open(t, r)
		s := service(t, d, "web")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		v, err := s.View(ctx)
		if v != nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "n1:7400: connection refused") {
			t.Errorf("view %v, error %v: want the deadline, and why", v, err)
		}
		r.start()
		wantView(t, s, "a")
		stats := d.Stats()[0]
		if stats.Lookups != 2 || stats.Misses != 2 || stats.FirstSync < 3*time.Second || stats.Stalls == 0 || stats.Err != nil ||
			stats.Instances != 1 || stats.Healthy != 1 || stats.Users != 1 || stats.Changes != 1 {
			t.Errorf("stats %+v", stats)
		}
	})
}

func TestNextCoalescesAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a")...)
		d, _ := open(t, r)
		s := service(t, d, "web")
		var got []string
		var last error
		go func() {
			for v, err := range s.All(t.Context()) {
				if err != nil {
					last = err
					return
				}
				got = append(got, told(v))
				time.Sleep(time.Second)
			}
		}()
		synctest.Wait()
		for _, id := range []string{"b", "c", "d"} {
			r.change(put(id)...)
		}
		time.Sleep(time.Minute) // progress is no news
		synctest.Wait()
		r.change(put("e")...)
		time.Sleep(10 * time.Second)
		s.Close()
		synctest.Wait()
		if diff := cmp.Diff([]string{"a", "a b c d", "a b c d e"}, got); diff != "" {
			t.Error(diff)
		}
		if !errors.Is(last, client.ErrClosed) {
			t.Errorf("ended with %v, want ErrClosed", last)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a")...)
		c := r.client()
		d, err := discovery.New(c, discovery.WithLinger(time.Hour), discovery.WithFile(t.TempDir()))
		if err != nil {
			t.Fatal(err)
		}
		s, lingers := service(t, d, "web"), service(t, d, "other")
		wantView(t, s, "a")
		lingers.Close()
		waits, now := make(chan error), view(t, s)
		go func() {
			_, err := s.Next(t.Context(), now)
			waits <- err
		}()
		synctest.Wait()
		d.Close()
		if err := <-waits; !errors.Is(err, client.ErrClosed) {
			t.Errorf("Next ended with %v", err)
		}
		d.Close()
		if _, err := d.Service("web"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Service after Close: %v", err)
		}
		s.Close()
		// The bubble ends only if all goroutines and timers have.
	})
}

func TestViewOutlivesItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a")...)
		c := r.client()
		d, err := discovery.New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s := service(t, d, "web")
		wantView(t, s, "a")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if v := wantView(t, s, "a"); v.Source != discovery.SourceCached {
			t.Errorf("source %s", v.Source)
		}
		if _, err := service(t, d, "other").View(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("error %v, want ErrClosed", err)
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := discovery.New(nil, discovery.WithLogger(nil), discovery.WithMaxStale(time.Second), discovery.WithFile(""),
		discovery.WithProtection(2, 0), discovery.WithLinger(-1), discovery.WithMaxServices(0))
	for _, fault := range []string{"logger", "max stale 1s", "file", "protection of 2", "linger", "max services 0"} {
		if !strings.Contains(fmt.Sprint(err), fault) {
			t.Errorf("error %v does not name %q", err, fault)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		d, _ := open(t, newRegistry(t, 1))
		for _, bad := range [][2]string{{"", "default"}, {"web", ""}, {"web", client.AllNamespaces}} {
			if _, err := d.Service(bad[0], discovery.InNamespace(bad[1])); err == nil {
				t.Errorf("service %q of namespace %q is taken", bad[0], bad[1])
			}
		}
	})
}
