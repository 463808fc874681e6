package election_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/election"
)

const name = "billing/scheduler"

// campaign wins the election.
func campaign(t *testing.T, p *process, value string) *election.Leadership {
	t.Helper()
	l, err := election.New(p.Client, name).Campaign(t.Context(), []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// observe observes the election in the background. The channel is closed after the last pair.
func observe(t *testing.T, p *process) <-chan election.Leader {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out := make(chan election.Leader, 100)
	go func() {
		defer close(out)
		for leader, err := range election.New(p.Client, name).Observe(ctx) {
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("observe: %v", err)
				}
				return
			}
			out <- leader
		}
	}()
	t.Cleanup(func() {
		cancel()
		for leader := range out {
			t.Errorf("%q was observed, and not expected", leader.Value)
		}
	})
	return out
}

// wantLeader fails unless the value is the next that is observed, nobody when it is empty.
func wantLeader(t *testing.T, observed <-chan election.Leader, value string) election.Leader {
	t.Helper()
	select {
	case got := <-observed:
		if string(got.Value) != value || got.Elected() != (value != "") {
			t.Fatalf("%+v leads, want %q", got, value)
		}
		return got
	case <-time.After(time.Minute):
		t.Fatalf("nothing was observed, want %q", value)
		return election.Leader{}
	}
}

func TestLeadersFollowOneAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		a, b, c := r.process(), r.process(), r.process()
		observed := observe(t, c)
		wantLeader(t, observed, "")
		if got, err := election.New(c.Client, name).Leader(t.Context()); err != nil || got.Elected() {
			t.Errorf("%+v leads, %v; want nobody", got, err)
		}
		first := campaign(t, a, "a")
		seen := wantLeader(t, observed, "a")
		if seen.Token != first.Token() || string(first.Value()) != "a" {
			t.Errorf("token %d was observed, the leader has %d and value %q", seen.Token, first.Token(), first.Value())
		}
		if got, err := election.New(c.Client, name).Leader(t.Context()); err != nil || got.Session != seen.Session || string(got.Value) != "a" {
			t.Errorf("%+v leads, %v; want %+v", got, err, seen)
		}
		// Elections of another name, or in another namespace, are others.
		for _, e := range []*election.Election{election.New(c.Client, "x"), election.New(c.Client, name, election.Namespace("prod"))} {
			if l, err := e.Campaign(t.Context(), nil); err != nil || l.Resign(t.Context()) != nil {
				t.Errorf("%s: %v", e.Name(), err)
			}
		}
		won := make(chan *election.Leadership)
		go func() { won <- campaign(t, b, "b") }()
		time.Sleep(30 * time.Second)
		select {
		case <-won:
			t.Fatal("two leaders")
		default:
		}
		if _, proved := first.Deadline(); !proved || first.Context().Err() != nil {
			t.Fatal("the leadership is in doubt while its session is kept")
		}
		if err := first.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		second := <-won
		if second.Token() <= first.Token() || first.Context().Err() == nil {
			t.Errorf("token %d after %d; the context of the first: %v", second.Token(), first.Token(), first.Context().Err())
		}
		wantLeader(t, observed, "b")
		if err := second.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantLeader(t, observed, "")
	})
}

// The leader knows that it may have lost before anybody else can lead.
func TestLeaderThatIsCutOffStopsBeforeItsSuccessorBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		a, b := r.process(), r.process()
		first := campaign(t, a, "a")
		won := make(chan *election.Leadership)
		go func() { won <- campaign(t, b, "b") }()
		time.Sleep(2 * time.Second)
		a.Cut()
		<-first.Context().Done()
		stopped := time.Now()
		if !errors.Is(context.Cause(first.Context()), client.ErrLockLost) {
			t.Errorf("the context ended with %v", context.Cause(first.Context()))
		}
		select {
		case <-won:
			t.Fatal("somebody else led while the first could still prove that it does")
		default:
		}
		second := <-won
		if second.Token() <= first.Token() {
			t.Errorf("token %d after %d, %v later", second.Token(), first.Token(), time.Since(stopped))
		}
		a.Mend()
		if err := first.Resign(t.Context()); !errors.Is(err, client.ErrLockLost) {
			t.Errorf("resign: %v", err)
		}
		if err := second.Resign(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestObserveGoesOnWhenNodesFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		a := r.process()
		observed := observe(t, r.process())
		wantLeader(t, observed, "")
		first := campaign(t, a, "a")
		wantLeader(t, observed, "a")
		if err := first.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantLeader(t, observed, "")
		r.Kill(r.Leader().Info().Name)
		time.Sleep(10 * time.Second)
		second := campaign(t, a, "again")
		if got := wantLeader(t, observed, "again"); got.Token != second.Token() {
			t.Errorf("token %d was observed, the leader has %d", got.Token, second.Token())
		}
	})
}

// Three workers run while one after the other loses its network: never two at once, by the token least of all.
func TestRunLeadsAgainAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var tokens []uint64
		var leading atomic.Int32
		var current atomic.Pointer[process]
		var workers sync.WaitGroup
		for i := range 3 {
			p := r.process()
			workers.Go(func() {
				err := election.New(p.Client, name).Run(ctx, fmt.Append(nil, i), func(ctx context.Context, l *election.Leadership) error {
					if n := leading.Add(1); n != 1 {
						t.Errorf("%d lead at once", n)
					}
					defer leading.Add(-1)
					current.Store(p)
					mu.Lock()
					tokens = append(tokens, l.Token())
					mu.Unlock()
					<-ctx.Done()
					return errors.New("half done")
				})
				if err != nil && err.Error() != "half done" {
					t.Errorf("run: %v", err)
				}
			})
		}
		for range 4 {
			time.Sleep(3 * time.Second)
			p := current.Load()
			p.Cut()
			time.Sleep(12 * time.Second)
			p.Mend()
			if current.Load() == p {
				t.Error("the one that is cut off still leads")
			}
		}
		cancel()
		workers.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(tokens) < 5 {
			t.Errorf("%d leaders, want at least 5", len(tokens))
		}
		for i := 1; i < len(tokens); i++ {
			if tokens[i] <= tokens[i-1] {
				t.Errorf("tokens %v do not grow", tokens)
			}
		}
	})
}

func TestRunEnds(t *testing.T) {
	broken := errors.New("broken")
	waits := func(ctx context.Context, _ *election.Leadership) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		p, other := r.process(), r.process()
		e := election.New(p.Client, name)
		for _, tt := range []struct {
			what string
			work func(context.Context, *election.Leadership) error
			want error
		}{
			{"work is done", func(context.Context, *election.Leadership) error { return nil }, nil},
			{"work fails", func(context.Context, *election.Leadership) error { return broken }, broken},
			{"the leader has resigned", func(ctx context.Context, l *election.Leadership) error { return l.Resign(ctx) }, nil},
			{"the context ends", waits, nil},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			began := time.Now()
			if err := e.Run(ctx, []byte("a"), tt.work); !errors.Is(err, tt.want) {
				t.Errorf("%s: Run returned %v, want %v", tt.what, err, tt.want)
			}
			cancel()
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("%s: Run took %v", tt.what, took)
			}
			// It has resigned: another leads at once.
			l, err := election.New(other.Client, name).Campaign(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 7*time.Second {
				t.Errorf("%s: the next leader was elected after %v", tt.what, took)
			}
			if err := l.Resign(t.Context()); err != nil {
				t.Error(err)
			}
		}
		l := campaign(t, other, "b")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := e.Run(ctx, nil, waits); err != nil {
			t.Errorf("Run whose context ended while it stood in line: %v", err)
		}
		if err := l.Resign(t.Context()); err != nil {
			t.Error(err)
		}
		if err := e.Run(t.Context(), make([]byte, 2000), waits); err == nil {
			t.Error("Run with a value that is too large goes on")
		}
		closing := time.AfterFunc(5*time.Second, func() { _ = p.Close() })
		defer closing.Stop()
		if err := e.Run(t.Context(), nil, waits); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Run of a client that was closed: %v", err)
		}
	})
}

// A panic that somebody recovers leaves no leader behind whose session lives on.
func TestRunResignsWhenWorkPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		p := r.process()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = election.New(p.Client, name).Run(t.Context(), nil, func(context.Context, *election.Leadership) error { panic("bug") })
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := election.New(r.process().Client, name).Campaign(ctx, nil); err != nil {
			t.Error(err)
		}
	})
}
