package client_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/livetest"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// What the guides show does what they say, at a real cluster.
func TestGuidesAtALiveCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		c, _ := l.Client()
		other, _ := l.Client()
		d, err := discovery.New(other)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		payment, err := d.Service("payment")
		if err != nil {
			t.Fatal(err)
		}
		defer payment.Close()
		balancer, err := NewBalancer()
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		followed := make(chan error, 1)
		go func() { followed <- Follow(ctx, payment, balancer) }()

		if err := Register(t.Context(), c, func(ctx context.Context) error {
			time.Sleep(time.Second) // List asks for what is at most 5 s old.
			guidesFindOne(t, other, d, balancer)
			return nil
		}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if instances, err := List(t.Context(), other); len(instances) != 0 || err != nil {
			t.Errorf("after it left: %v, %v", instances, err)
		}
		stop()
		if err := <-followed; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
		if _, gone := other.Instance(t.Context(), client.Key{Service: "payment", ID: "payment-1"}); gone == nil {
			t.Error("it is still registered")
		} else if got := Explain(gone); got != "it is not registered" {
			t.Errorf("Explain: %q", got)
		}
	})
}

// guidesFindOne finds the one instance in all ways that the guides show.
func guidesFindOne(t *testing.T, c *client.Client, d *discovery.Discovery, balancer *balance.Balancer) {
	t.Helper()
	var found []string
	collect := func(address string) { found = append(found, address) }
	instances, err := Discover(t.Context(), d)
	if err != nil || len(instances) != 1 {
		t.Fatalf("Discover: %v, %v", instances, err)
	}
	collect(instances[0].GetAddress())
	instances, err = List(t.Context(), c)
	if err != nil || len(instances) != 1 {
		t.Fatalf("List: %v, %v", instances, err)
	}
	collect(instances[0].GetAddress())
	err = Choose(t.Context(), balancer, func(_ context.Context, address string) error {
		collect(address)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"10.0.0.7", "10.0.0.7", "10.0.0.7:8080"}, found); diff != "" {
		t.Error("-want +got:\n" + diff)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var point client.ResumePoint
	err = Watch(ctx, c, func(n int, revision uint64) {
		if n != 1 {
			t.Errorf("%d instances watched", n)
		}
		point.Revision = revision
		stop()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
	ctx, stop = context.WithCancel(t.Context())
	defer stop()
	puts := 0
	err = WatchAll(ctx, c, func(change client.Change) {
		switch change.Kind {
		case client.ChangePut:
			puts++
		case client.ChangeSynced:
			stop()
		}
	})
	if !errors.Is(err, context.Canceled) || puts != 1 {
		t.Errorf("WatchAll: %d instances, %v", puts, err)
	}
	result, err := c.Instances(t.Context(), client.Filter{Service: "payment"})
	if err != nil {
		t.Fatal(err)
	}
	point.ClusterID, point.Epoch = result.ClusterID, result.Epoch
	w, err := Resume(t.Context(), c, point, result.Instances)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if change, err := w.Next(t.Context()); err != nil || change.Kind != client.ChangeSynced {
		t.Errorf("resumed where nothing has changed: %+v, %v", change, err)
	}
}

// A TTL check in the guides is one of health: who falls silent is critical first, and gone after that.
func TestGuideTTLCheckAtALiveCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		c, _ := l.Client()
		reg, err := RegisterWithTTLCheck(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		wantHealth := func(want registryv1.Health) {
			t.Helper()
			result, err := c.Instance(t.Context(), reg.Key())
			if err != nil {
				t.Fatal(err)
			}
			if got := result.Instance.GetHealth(); got != want {
				t.Errorf("health %v, want %v", got, want)
			}
		}
		wantHealth(registryv1.Health_HEALTH_PASSING)
		time.Sleep(40 * time.Second)
		wantHealth(registryv1.Health_HEALTH_CRITICAL)
	})
}

// Locks, slots and elections of the guides give a context and a token, and are free afterwards.
func TestGuidesCoordinateAtALiveCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		c, _ := l.Client()
		other, _ := l.Client()
		var last uint64
		done := errors.New("done")
		work := func(ctx context.Context, token uint64) error {
			if ctx.Err() != nil || token <= last {
				t.Errorf("token %d after %d, %v", token, last, ctx.Err())
			}
			last = token
			return done
		}
		for range 2 {
			for _, snippet := range []func(context.Context, *client.Client, func(context.Context, uint64) error) error{
				Lock, Semaphore, Elect,
			} {
				if err := snippet(t.Context(), c, work); !errors.Is(err, done) {
					t.Error(err)
				}
			}
		}

		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		if err := Elect(ctx, c, func(ctx context.Context, _ uint64) error {
			return Observe(ctx, other, func(address string) {
				if address != "10.0.0.7:8080" {
					t.Errorf("leader at %q", address)
				}
				stop()
			})
		}); err != nil {
			t.Errorf("Elect, stopped: %v", err)
		}
	})
}
