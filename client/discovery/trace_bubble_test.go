package discovery_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// waits is a Tracer that writes down who waited for how long.
type waits struct{ lines []string }

func (w *waits) Start(ctx context.Context, op client.Operation) (context.Context, func(error)) {
	begin := time.Now()
	return ctx, func(err error) {
		w.lines = append(w.lines, fmt.Sprintf("%s of %s/%s took %s: %v", op.Name, op.Namespace, op.Service,
			time.Since(begin).Round(time.Second), err))
	}
}

// TestTracerIsToldOfTheFirstWait checks that who waits for a first view is told of, and nobody later.
func TestTracerIsToldOfTheFirstWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, 1)
		r.stop()
		var trace waits
		d, _ := open(t, r, discovery.WithTracer(&trace))
		s := service(t, d, "web")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := s.View(ctx)
		r.change(put("a")...)
		r.start()
		wantView(t, s, "a")
		wantView(t, s, "a")
		if len(trace.lines) != 2 || trace.lines[0] != fmt.Sprintf("first_view of default/web took 3s: %v", err) ||
			!strings.HasSuffix(trace.lines[1], ": <nil>") {
			t.Errorf("told %q", trace.lines)
		}
	})
}

// TestProtectionIsLogged checks that the beginning and the end of protection are logged once each, whether time ends it or
// who was lost comes back.
func TestProtectionIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r, _, s := protected(t, discovery.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		r.change(del(expired, "c", "d", "e", "f", "g", "h", "i", "j")...)
		wantView(t, s, "a b (c) (d) (e) (f) (g) (h) (i) (j)")
		time.Sleep(6 * time.Minute)
		wantView(t, s, "a b")
		r.change(del(registryv1.Cause_CAUSE_LEASE_EXPIRED, "a", "b")...)
		wantView(t, s, "(a) (b)")
		r.change(put("a")...)
		wantView(t, s, "a (b)")
		r.change(put("b")...)
		wantView(t, s, "a b")
		time.Sleep(6 * time.Minute)
		wantView(t, s, "a b")
		var got []string
		for line := range strings.Lines(log.String()) {
			_, rest, _ := strings.Cut(strings.TrimSpace(line), "level=")
			got = append(got, rest)
		}
		want := []string{
			`WARN msg="service: the registry lost most instances; they are kept for now" service=default/web left=2 kept=8`,
			`INFO msg="service: no instance is kept any more" service=default/web left=2`,
			`WARN msg="service: the registry lost most instances; they are kept for now" service=default/web left=0 kept=2`,
			`INFO msg="service: no instance is kept any more" service=default/web left=2`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error("-want +got:\n" + diff)
		}
	})
}
