package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// stage is a process with servers and a registration that note what they are asked.
type stage struct {
	t       *testing.T
	signals chan os.Signal
	cfg     Config
	began   time.Time

	mu     sync.Mutex // guards all below
	events []string

	telling  time.Duration // how long all take to be told
	requests time.Duration // how long requests take to be finished
	failing  map[string]time.Duration
	refusal  error // of the registry
	gone     error // of Deregister
}

var (
	errRefused = errors.New("refused")
	errBroken  = errors.New("broken")
)

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, signals: make(chan os.Signal, 2), began: time.Now(), failing: map[string]time.Duration{}}
	s.cfg = Config{
		Servers: []Server{s.server("a"), s.server("b")}, Readiness: new(Readiness), Signals: s.signals,
		Register: func(ctx context.Context, _ []*registryv1.Port) (Registration, error) {
			s.note("register")
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return s, s.refusal
		},
	}
	return s
}

// note notes an event with the seconds since the beginning, and whether the process is ready.
func (s *stage) note(event string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Readiness.Ready() {
		event += " (ready)"
	}
	s.events = append(s.events, fmt.Sprintf("%v %s", time.Since(s.began).Round(time.Second), event))
}

func (s *stage) server(name string) Server {
	stop := make(chan struct{})
	return Custom(name, nil, func() error {
		var failing <-chan time.Time
		if after := s.failing[name]; after > 0 {
			failing = time.After(after)
		}
		select {
		case <-stop:
			return nil
		case <-failing:
			return errBroken
		}
	}, func(ctx context.Context) error {
		if name == "a" {
			s.note("finish")
		}
		defer func() {
			select {
			case <-stop:
			default:
				close(stop)
			}
		}()
		if wait(ctx, s.requests) {
			return nil
		}
		if name == "a" {
			s.note("cut off")
		}
		return ctx.Err()
	})
}

func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *stage) Leave(ctx context.Context) (client.Departure, error) {
	s.note("leave")
	var d client.Departure
	if !wait(ctx, s.telling) {
		d.Err = client.ErrUndelivered
	}
	return d, s.Deregister(context.WithoutCancel(ctx))
}

func (s *stage) Deregister(ctx context.Context) error {
	if ctx.Err() != nil {
		s.t.Error("the deregistration was given a context that has ended")
	}
	s.note("deregistered")
	return s.gone
}

// at does something after a time.
func (s *stage) at(after time.Duration, do func()) { time.AfterFunc(after, do) }

func (s *stage) signal() { s.signals <- syscall.SIGTERM }

// run runs it, and compares what happened.
func (s *stage) run(ctx context.Context, wantErr error, want ...string) error {
	s.t.Helper()
	err := Run(ctx, s.cfg)
	if wantErr == nil && err != nil || !errors.Is(err, wantErr) {
		s.t.Errorf("Run: %v, want %v", err, wantErr)
	}
	if got, want := strings.Join(s.events, "\n"), strings.Join(want, "\n"); got != want {
		s.t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if s.cfg.Readiness.Ready() {
		s.t.Error("ready in the end")
	}
	return err
}

func TestOrderOfALife(t *testing.T) {
	for name, tt := range map[string]struct {
		arrange func(s *stage, cancel context.CancelFunc)
		err     error
		want    []string
	}{
		"signal": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.telling, s.requests = 2*time.Second, 3*time.Second
		}, nil, []string{"0s register", "10s leave", "12s deregistered", "12s finish"}},
		"context": {func(s *stage, cancel context.CancelFunc) {
			s.at(10*time.Second, cancel)
			s.telling = 2 * time.Second
		}, nil, []string{"0s register", "10s leave", "12s deregistered", "12s finish"}},
		"watchers that lag": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.telling = time.Hour
		}, nil, []string{"0s register", "10s leave", "15s deregistered", "15s finish"}},
		"requests that do not end": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.requests = time.Hour
		}, context.DeadlineExceeded, []string{"0s register", "10s leave", "10s deregistered", "10s finish", "30s cut off"}},
		"hurry while telling": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.at(11*time.Second, s.signal)
			s.telling, s.requests, s.cfg.ServeOn = 3*time.Second, time.Hour, time.Hour
		}, context.Canceled, []string{"0s register", "10s leave", "11s deregistered", "11s finish", "11s cut off"}},
		"hurry while finishing": {func(s *stage, cancel context.CancelFunc) {
			s.at(10*time.Second, cancel)
			s.at(14*time.Second, s.signal)
			s.requests = time.Hour
		}, context.Canceled, []string{"0s register", "10s leave", "10s deregistered", "10s finish", "14s cut off"}},
		"serve on": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.cfg.ServeOn, s.telling = 4*time.Second, time.Second
		}, nil, []string{"0s register", "10s leave", "11s deregistered", "14s finish"}},
		"server fails": {func(s *stage, _ context.CancelFunc) {
			s.failing["b"], s.telling, s.requests = 10*time.Second, time.Hour, 2*time.Second
		}, errBroken, []string{"0s register", "10s deregistered", "10s finish"}},
		"server fails while telling": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.failing["b"], s.telling, s.cfg.ServeOn = 11*time.Second, time.Hour, time.Hour
		}, errBroken, []string{"0s register", "10s leave", "11s deregistered", "11s finish"}},
		"registry refuses": {func(s *stage, _ context.CancelFunc) {
			s.refusal = errRefused
		}, errRefused, []string{"0s register", "0s finish"}},
		"deregistration fails": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.gone = errRefused
		}, errRefused, []string{"0s register", "10s leave", "10s deregistered", "10s finish"}},
		"successor": {func(s *stage, _ context.CancelFunc) {
			s.at(10*time.Second, s.signal)
			s.gone = fmt.Errorf("leave: %w", client.ErrSuperseded)
		}, nil, []string{"0s register", "10s leave", "10s deregistered", "10s finish"}},
		"ready late": {func(s *stage, _ context.CancelFunc) {
			s.cfg.Ready = func(context.Context) error {
				if time.Since(s.began) < 4*time.Second {
					return errBroken
				}
				return nil
			}
			s.at(10*time.Second, s.signal)
		}, nil, []string{"4s register", "10s leave", "10s deregistered", "10s finish"}},
		"never ready": {func(s *stage, _ context.CancelFunc) {
			s.cfg.Ready = func(context.Context) error { return errBroken }
		}, errBroken, []string{"30s finish"}},
		"signal before it is ready": {func(s *stage, _ context.CancelFunc) {
			s.cfg.Ready = func(context.Context) error { return errBroken }
			s.at(10*time.Second, s.signal)
			s.cfg.ServeOn = time.Hour
		}, nil, []string{"10s finish"}},
		"server fails before it is ready": {func(s *stage, _ context.CancelFunc) {
			s.cfg.Ready = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			s.failing["a"] = 3 * time.Second
		}, errBroken, []string{"3s finish"}},
		"nothing to register": {func(s *stage, _ context.CancelFunc) {
			s.cfg.Register = nil
			s.at(10*time.Second, s.signal)
			s.cfg.ServeOn = 3 * time.Second
		}, nil, []string{"13s finish"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				tt.arrange(s, cancel)
				err := s.run(ctx, tt.err, tt.want...)
				if errors.Is(tt.err, context.Canceled) && !strings.Contains(err.Error(), "stop a: ") {
					t.Errorf("the error names no server: %v", err)
				}
			})
		})
	}
}

func TestReadyWhileItServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.at(5*time.Second, func() { s.note("working") })
		s.at(10*time.Second, s.signal)
		s.at(11*time.Second, func() { s.note("telling") })
		s.telling = 2 * time.Second
		_ = s.run(t.Context(), nil, "0s register", "5s working (ready)", "10s leave", "11s telling", "12s deregistered", "12s finish")
	})
}

// TestRequestsOnTheirWayAreServed checks that servers serve on for a moment after the instance has left, and not if there was none.
func TestRequestsOnTheirWayAreServed(t *testing.T) {
	for name, want := range map[string]time.Duration{"registered": 100 * time.Millisecond, "not registered": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				if want == 0 {
					s.cfg.Register = nil
				}
				s.at(10*time.Second, s.signal)
				if err := Run(t.Context(), s.cfg); err != nil {
					t.Fatal(err)
				}
				if got := time.Since(s.began) - 10*time.Second; got != want {
					t.Errorf("the servers served on for %v, want %v", got, want)
				}
			})
		})
	}
}

func TestPortsAreThoseOfTheServers(t *testing.T) {
	port := func(name string, number uint32) *registryv1.Port { return &registryv1.Port{Name: name, Number: number} }
	instance := &registryv1.Instance{Service: "web", Ports: []*registryv1.Port{port("http", 0), port("grpc", 443)}}
	got := withPorts(instance, []*registryv1.Port{port("http", 8080), port("grpc", 9090), port("admin", 7070)})
	want := &registryv1.Instance{
		Service: "web", Ports: []*registryv1.Port{port("http", 8080), port("grpc", 443), port("admin", 7070)},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if instance.GetPorts()[0].GetNumber() != 0 {
		t.Error("the caller's instance was changed")
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	err := Run(t.Context(), Config{LeaveTimeout: -1, Servers: []Server{{}}})
	if err == nil || !strings.Contains(err.Error(), "leave timeout -1ns") || !strings.Contains(err.Error(), "server 0") {
		t.Errorf("Run: %v", err)
	}
	if err = Run(t.Context(), Config{}); err == nil {
		t.Error("nothing to run is no error")
	}
}
