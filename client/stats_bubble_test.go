package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/connectivity"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// logged is a log for tests: what was logged, a line each, without times.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// option has a client log here.
func (l *logged) option() client.Option {
	return client.WithLogger(slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
}

// messages returns the messages of the lines that have a level, in order.
func (l *logged) messages(levels ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		level, rest, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "level="), " ")
		if slices.Contains(levels, level) {
			found = append(found, strings.TrimPrefix(rest, "msg="))
		}
	}
	return found
}

// TestSessionThatSurvivesIsCountedAndLogged has a session be doubtful for a while, and looks at what is told of it.
func TestSessionThatSurvivesIsCountedAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		var log logged
		c := f.client(nil, log.option())
		if s := c.Stats(); s.Session.ID != "" || !s.LastRenewal.IsZero() || s.Registrations != nil || s.Calls != 0 {
			t.Errorf("at first: %+v", s)
		}
		reg := register(t, c, "a")
		time.Sleep(20 * time.Second)
		f.nodes[0].stop()
		time.Sleep(20 * time.Second)
		wantState(t, reg, client.StateLost)
		s := c.Stats()
		if since := time.Since(s.LastRenewal); since < 15*time.Second || since > 26*time.Second || s.SessionsLost != 1 ||
			s.Session.ID != "s1" || s.FailedRenewals == 0 {
			t.Errorf("when lost: %+v, last renewal %s ago", s, since)
		}
		if len(s.Registrations) != 1 || s.Registrations[0] != (client.RegistrationStats{
			Key: reg.Key(), State: client.StateLost, Incarnation: reg.Incarnation(), Losses: 1,
		}) {
			t.Errorf("registrations when lost: %+v", s.Registrations)
		}
		if len(s.Endpoints) != 1 || !s.Endpoints[0].Avoided || s.Endpoints[0].Connection == connectivity.Ready {
			t.Errorf("endpoints when lost: %+v", s.Endpoints)
		}
		f.nodes[0].start()
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		s = c.Stats()
		if s.SessionsOpened != 1 || s.SessionsLost != 1 || s.Renewals < 5 || s.Renewals > 12 || time.Since(s.LastRenewal) > 5*time.Second ||
			s.Registrations[0].Losses != 1 || s.Registrations[0].Recoveries != 1 || s.Superseded != 0 {
			t.Errorf("when regained: %+v", s)
		}
		if s.Calls != 1 || s.Attempts != 1 || s.FailedAttempts != 0 {
			t.Errorf("%d calls, %d attempts, %d failed: want the one of the registration", s.Calls, s.Attempts, s.FailedAttempts)
		}
		if len(s.Endpoints) != 1 || s.Endpoints[0] != (client.EndpointStats{Address: f.nodes[0].address, Connection: connectivity.Ready}) {
			t.Errorf("endpoints when regained: %+v", s.Endpoints)
		}
		got := log.messages("WARN", "INFO")
		if len(got) != 3 || got[0] != `"session opened" session_id=s1 ttl=15s` ||
			!strings.HasPrefix(got[1], `"session not renewed in time" session_id=s1 err="renew at `) ||
			got[2] != `"session renewed after all" session_id=s1` {
			t.Errorf("logged\n%s", strings.Join(got, "\n"))
		}
	})
}

// TestSessionThatEndsIsCountedAndLogged has the registry end a session.
func TestSessionThatEndsIsCountedAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		var log logged
		c := f.client(nil, log.option())
		reg := register(t, c, "a")
		f.endSession("s1")
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		if s := c.Stats(); s.SessionsOpened != 2 || s.SessionsLost != 1 || s.Session.ID != "s2" || s.FailedRenewals != 0 ||
			s.Registrations[0].Losses != 1 || s.Registrations[0].Recoveries != 1 {
			t.Errorf("stats %+v", s)
		}
		want := []string{
			`"session opened" session_id=s1 ttl=15s`, `"session has ended" session_id=s1`, `"session opened" session_id=s2 ttl=15s`,
			fmt.Sprintf(`"registered again" instance=default/web/a incarnation=%d`, reg.Incarnation()),
		}
		if diff := cmp.Diff(want, log.messages("WARN", "INFO")); diff != "" {
			t.Error("-want +got:\n" + diff)
		}
		register(t, f.client(nil), "a")
		if err := reg.Update(t.Context(), func(i *registryv1.Instance) { i.Weight = 7 }); !errors.Is(err, client.ErrSuperseded) {
			t.Fatal(err)
		}
		if s := c.Stats(); s.Superseded != 1 || len(s.Registrations) != 0 {
			t.Errorf("after another has taken over: %+v", s)
		}
		if got := log.messages("WARN"); got[len(got)-1] != `"instance was taken over by a newer registration" instance=default/web/a` {
			t.Errorf("logged %v", got)
		}
	})
}

// TestBrokenWatchStreamsAreCounted has the node of a watch go away, once.
func TestBrokenWatchStreamsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].set(func(n *fakeNode) { n.watch = func(s *fakeStream) error { return s.idle() } })
		c := f.client(nil)
		w, err := c.Watch(t.Context(), client.Filter{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := c.Stats()
		f.nodes[0].stop()
		f.nodes[0].start()
		time.Sleep(5 * time.Second)
		if after := c.Stats(); before.Watches != 1 || before.BrokenWatchStreams != 0 || after.BrokenWatchStreams != 1 {
			t.Errorf("%d watches with %d broken streams, then %d", before.Watches, before.BrokenWatchStreams, after.BrokenWatchStreams)
		}
		w.Close()
		if got := c.Stats().Watches; got != 0 {
			t.Errorf("%d watches after its end", got)
		}
	})
}

// spans is a Tracer that writes down what it is told.
type spans struct {
	mu    sync.Mutex
	lines []string
}

type spanKey struct{}

func (s *spans) Start(ctx context.Context, op client.Operation) (context.Context, func(error)) {
	parent, _ := ctx.Value(spanKey{}).(string)
	path := strings.TrimPrefix(parent+" > "+op.Name, " > ")
	return context.WithValue(ctx, spanKey{}, path), func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lines = append(s.lines, fmt.Sprintf("%s %s/%s/%s: %v", path, op.Namespace, op.Service, op.Instance, err))
	}
}

// TestTracer checks that a Tracer is told of what is done with a registration, and what is part of what.
func TestTracer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		var trace spans
		c := f.client(nil, client.WithTracer(&trace))
		reg := register(t, c, "a")
		if _, err := c.Register(t.Context(), web("a")); !errors.Is(err, client.ErrAlreadyExists) {
			t.Error(err)
		}
		if err := reg.Update(t.Context(), func(i *registryv1.Instance) { i.Weight = 7 }); err != nil {
			t.Error(err)
		}
		if err := reg.SetHealth(t.Context(), "beat", checkPassing, "fine"); err != nil {
			t.Error(err)
		}
		f.endSession("s1")
		time.Sleep(10 * time.Second)
		if _, err := reg.Leave(t.Context()); err != nil {
			t.Error(err)
		}
		want := []string{
			"register default/web/a: <nil>",
			"register default/web/a: register default/web/a: by this client: " + client.ErrAlreadyExists.Error(),
			"update default/web/a: <nil>", "set_health default/web/a: <nil>", "restore default/web/a: <nil>",
			"leave > drain default/web/a: <nil>", "leave > await_delivery default/web/a: <nil>",
			"leave > deregister default/web/a: <nil>", "leave default/web/a: <nil>",
		}
		if diff := cmp.Diff(want, trace.lines); diff != "" {
			t.Error("-want +got:\n" + diff)
		}
	})
}
