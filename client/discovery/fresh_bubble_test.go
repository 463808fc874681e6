package discovery_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client/discovery"
)

// wantDoubt checks that for a time there is no view, and that the error says why.
func wantDoubt(t *testing.T, s *discovery.Service, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	v, err := s.View(ctx)
	if v != nil || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, discovery.ErrNoSuchService) ||
		!strings.Contains(err.Error(), "could not make sure") {
		t.Fatalf("got %v, %v: want no view, and why", v, err)
	}
}

// TestNoSuchServiceHasToBeProved: a node without a leader lists nothing. It may lag.
func TestNoSuchServiceHasToBeProved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.set(func() { r.unled = true })
		d, _ := open(t, r)
		s := service(t, d, "web")
		wantDoubt(t, s, time.Minute)
		r.stop() // Nor does it become true by nobody answering.
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if v, err := s.View(ctx); v != nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v, %v: want no view, and why", v, err)
		}
		r.start()
		wantDoubt(t, s, 10*time.Second)
		r.set(func() { r.unled = false })
		if v, err := s.View(t.Context()); !errors.Is(err, discovery.ErrNoSuchService) || v == nil {
			t.Errorf("got %v, %v: want an empty view and ErrNoSuchService", v, err)
		}
		r.set(func() { r.unled = true }) // What was proved once stays so.
		r.stop()
		r.start()
		time.Sleep(10 * time.Second)
		if _, err := s.View(t.Context()); !errors.Is(err, discovery.ErrNoSuchService) {
			t.Errorf("got %v", err)
		}
		r.change(put("a")...)
		wantView(t, s, "a")
	})
}

// TestNodeThatLagsHidesNoService: the service was registered before it was asked for, and the node has not heard of it.
func TestNodeThatLagsHidesNoService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.set(func() { r.nodes[0].held = 1 })
		r.change(put("a")...)
		d, _ := open(t, r)
		s := service(t, d, "web")
		wantDoubt(t, s, time.Minute)
		r.set(func() { r.nodes[0].held = 0 })
		wantView(t, s, "a")
	})
}

// TestListWithoutALeaderIsServed: it may be old, and beats none.
func TestListWithoutALeaderIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a")...)
		r.set(func() { r.unled, r.nodes[0].held = true, 2 })
		r.change(put("b")...)
		d, _ := open(t, r)
		s := service(t, d, "web")
		wantView(t, s, "a")
		r.set(func() { r.unled, r.nodes[0].held = false, 0 })
		wantView(t, s, "a b")
		r.change(del(deregistered, "a", "b")...)
		wantView(t, s, "") // It was there: no error.
	})
}
