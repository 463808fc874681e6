package discovery_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
)

func TestLastViewIsServedThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 2)
		r.change(put("a")...)
		d, _ := open(t, r, discovery.WithMaxStale(time.Minute))
		forever, _ := open(t, r)
		s, patient := service(t, d, "web"), service(t, forever, "web")
		wantView(t, s, "a")
		wantView(t, patient, "a")
		r.stop()
		time.Sleep(30 * time.Second)
		v := wantView(t, s, "a")
		if v.Source != discovery.SourceCached || v.Age() < 29*time.Second {
			t.Errorf("source %s, age %s: want cached, for about 30s", v.Source, v.Age())
		}
		time.Sleep(31 * time.Second)
		v, err := s.View(t.Context())
		if !errors.Is(err, discovery.ErrStale) || v == nil || told(v) != "a" || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("view %v, error %v: want the view, ErrStale and why", v, err)
		}
		if healthy, err := s.Healthy(t.Context()); !errors.Is(err, discovery.ErrStale) || len(healthy) != 1 {
			t.Errorf("got %v, %v: want the instance and ErrStale", healthy, err)
		}
		time.Sleep(time.Hour)
		wantView(t, patient, "a")
		r.change(put("b")...)
		r.start()
		time.Sleep(11 * time.Second)
		if v := wantView(t, s, "a b"); v.Source != discovery.SourceLive || v.Age() > 10*time.Second {
			t.Errorf("source %s, age %s: want it live", v.Source, v.Age())
		}
		wantView(t, patient, "a b")
	})
}

// TestServicesComeBackOnOneStreamByToken measures what a registry gets from one process after an outage.
func TestServicesComeBackOnOneStreamByToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const services = 200
		r := newRegistry(t, 3)
		r.change(put("a")...)
		var log bytes.Buffer
		d, end := open(t, r, discovery.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		for n := range services {
			service(t, d, fmt.Sprintf("s%d", n))
		}
		s := service(t, d, "web")
		wantView(t, s, "a")
		if streams, _, subs := r.asked(); streams != 1 || len(subs) != services+1 {
			t.Fatalf("%d streams with %d subscriptions at first", streams, len(subs))
		}
		r.stop()
		time.Sleep(10 * time.Minute)
		r.change(put("b")...)
		r.set(func() { r.streams, r.subs = 0, nil })
		r.start()
		begin := time.Now()
		v := view(t, s)
		for v.Source != discovery.SourceLive {
			time.Sleep(10 * time.Millisecond)
			v = view(t, s)
		}
		if took := time.Since(begin); took > 11*time.Second {
			t.Errorf("live again after %s", took)
		}
		wantView(t, s, "a b")
		resumed := 0
		streams, _, subs := r.asked()
		for _, sub := range subs {
			if sub.GetResume().GetRevision() == 2 {
				resumed++
			}
		}
		if streams != 1 || len(subs) != services+1 || resumed != services+1 {
			t.Errorf("%d streams with %d subscriptions, %d of them resumed: want 1 with %d, all of them", streams, len(subs), resumed, services+1)
		}
		end()
		if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != 2 ||
			!strings.Contains(lines[0], "the registry is away") || !strings.Contains(lines[1], "all views are live") {
			t.Errorf("log %s: want one line when the registry goes, and one when it is back", log.String())
		}
		t.Logf("after an outage of 10m: %d stream, %d subscriptions, %d resumed, live %s after the nodes", streams, len(subs), resumed, time.Since(begin))
	})
}

func TestReturnsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients = 40
		r := newRegistry(t, 3)
		r.change(put("a")...)
		var all []*discovery.Service
		for range clients {
			d, _ := open(t, r)
			all = append(all, service(t, d, "web"))
		}
		for _, s := range all {
			view(t, s)
		}
		r.stop()
		time.Sleep(time.Minute) // The waits have long been as long as they get.
		r.set(func() { r.streams = 0 })
		r.start()
		most, last, end := 0, 0, time.Duration(0)
		for begin := time.Now(); last < clients && time.Since(begin) < time.Minute; {
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			streams, _, _ := r.asked()
			most, last = max(most, streams-last), streams
			end = time.Since(begin)
		}
		if last != clients || most > clients/2 || end < 2*time.Second {
			t.Errorf("%d streams, up to %d within 500ms, over %s: want one each, spread", last, most, end)
		}
		t.Logf("%d clients came back over %s, at most %d within 500ms", last, end, most)
	})
}

func TestRefusedWatchIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.change(put("a")...)
		r.set(func() { r.refuse = errRefused })
		d, _ := open(t, r)
		s := service(t, d, "web")
		var said *client.Error
		if v, err := s.View(t.Context()); v != nil || !errors.As(err, &said) {
			t.Errorf("view %v, error %v: want the refusal", v, err)
		}
		time.Sleep(time.Hour)
		if streams, _, _ := r.asked(); streams > 120 || streams < 30 {
			t.Errorf("asked %d times in an hour", streams)
		}
		r.set(func() { r.refuse = nil })
		time.Sleep(2 * time.Minute)
		wantView(t, s, "a")
	})
}
