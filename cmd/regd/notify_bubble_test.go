package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// patient is a node whose condition the test sets.
type patient struct {
	mu          sync.Mutex
	ready, live error
}

func (p *patient) Ready() error { p.mu.Lock(); defer p.mu.Unlock(); return p.ready }
func (p *patient) Live() error  { p.mu.Lock(); defer p.mu.Unlock(); return p.live }

func (p *patient) becomes(ready, live error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready, p.live = ready, live
}

func TestTheWatchdogIsFedWhileTheNodeIsLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		take := func() []string {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			defer func() { told = nil }()
			return told
		}
		s := &supervisor{log: slog.New(slog.DiscardHandler), watchdog: 30 * time.Second, send: func(states string) error {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, states)
			return nil
		}}
		node := &patient{ready: errors.New("no leader")}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); s.attend(ctx, node) }()

		if diff := cmp.Diff([]string{"READY=1", "STATUS=not ready: no leader", "WATCHDOG=1"}, take()); diff != "" {
			t.Errorf("of a node that waits for others it tells (-want +got):\n%s", diff)
		}
		node.becomes(nil, nil)
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"STATUS=ready", "WATCHDOG=1"}, take()); diff != "" {
			t.Errorf("of one that became ready it tells (-want +got):\n%s", diff)
		}
		time.Sleep(s.watchdog)
		if fed := take(); len(fed) < 2 || slices.ContainsFunc(fed, func(s string) bool { return s != "WATCHDOG=1" }) {
			t.Errorf("within its time the watchdog was told %q, want it fed, and nothing else", fed)
		}
		node.becomes(nil, errors.New("stuck"))
		time.Sleep(s.watchdog)
		if diff := cmp.Diff([]string{"STATUS=failed: stuck"}, take()); diff != "" {
			t.Errorf("of one that is stuck it tells (-want +got):\n%s", diff)
		}
		cancel()
		<-ended
	})
}

func TestWithoutAWatchdogNoneIsFed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &supervisor{log: slog.New(slog.DiscardHandler), send: func(states string) error {
			if states == "WATCHDOG=1" {
				t.Error("it was fed")
			}
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.attend(ctx, &patient{})
	})
}
