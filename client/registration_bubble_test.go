package client_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestRegistrationComesBackAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		reg := register(t, f.client(nil), "a")
		if err := reg.Update(t.Context(), func(i *registryv1.Instance) { i.Tags = []string{"v2"}; i.Weight = 7 }); err != nil {
			t.Fatal(err)
		}
		if err := reg.SetHealth(t.Context(), "beat", checkPassing, "fine"); err != nil {
			t.Fatal(err)
		}
		if err := reg.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.endSession("s1")
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		got := f.instance("default/web/a")
		if got.GetWeight() != 7 || len(got.GetTags()) != 1 || !got.GetDraining() {
			t.Errorf("came back as %v, want weight 7, tag v2 and draining", got)
		}
		if states := got.GetCheckStates(); len(states) != 1 || states[0].GetStatus() != checkPassing || states[0].GetOutput() != "fine" {
			t.Errorf("checks came back as %v, want the last report", states)
		}
	})
}

func TestUpdateKeepsDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		reg := register(t, f.client(nil), "a")
		before := reg.Incarnation()
		if err := reg.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := reg.Update(t.Context(), func(i *registryv1.Instance) { i.Weight = 7 }); err != nil {
			t.Fatal(err)
		}
		if got := f.instance("default/web/a"); !got.GetDraining() || reg.Incarnation() <= before {
			t.Errorf("instance %v, incarnation %d", got, reg.Incarnation())
		}
		if got := reg.Instance(); got.GetWeight() != 7 || got.GetSessionId() != "" {
			t.Errorf("specification %v", got)
		}
	})
}

func TestUpdateMustKeepTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		reg := register(t, f.client(nil), "a")
		err := reg.Update(t.Context(), func(i *registryv1.Instance) { i.Id = "b" })
		if !errors.Is(err, client.ErrInvalidArgument) || f.instance("default/web/b") != nil {
			t.Errorf("error %v, want ErrInvalidArgument", err)
		}
		if reg.Key() != (client.Key{Namespace: "default", Service: "web", ID: "a"}) {
			t.Errorf("key %s", reg.Key())
		}
	})
}

// TestSuccessorIsNeverTakenOver plays a process that was paused for longer than its TTL while its successor started.
func TestSuccessorIsNeverTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		old := register(t, f.client(nil), "a")
		f.endSession("s1")
		next := register(t, f.client(nil), "a")
		<-old.Done()
		if old.State() != client.StateSuperseded || !errors.Is(old.Err(), client.ErrSuperseded) {
			t.Errorf("old registration is %s with %v, want superseded", old.State(), old.Err())
		}
		for name, call := range map[string]func(context.Context) error{
			"Drain": old.Drain, "Deregister": old.Deregister,
			"Update": func(ctx context.Context) error { return old.Update(ctx, func(*registryv1.Instance) {}) },
		} {
			if err := call(t.Context()); !errors.Is(err, client.ErrSuperseded) {
				t.Errorf("%s: %v, want ErrSuperseded", name, err)
			}
		}
		time.Sleep(time.Minute)
		if got := f.instance("default/web/a"); got.GetIncarnation() != next.Incarnation() || got.GetDraining() {
			t.Errorf("instance %v, want the successor's, incarnation %d", got, next.Incarnation())
		}
	})
}

func TestUpdateDoesNotTakeOverASuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		old := register(t, f.client(nil), "a")
		next := register(t, f.client(nil), "a") // newest wins, while the old session lives
		err := old.Update(t.Context(), func(i *registryv1.Instance) { i.Weight = 7 })
		if !errors.Is(err, client.ErrSuperseded) || old.State() != client.StateSuperseded {
			t.Errorf("Update: %v, state %s: want superseded", err, old.State())
		}
		if got := f.instance("default/web/a").GetIncarnation(); got != next.Incarnation() {
			t.Errorf("incarnation %d, want the successor's %d", got, next.Incarnation())
		}
	})
}

// TestOwnersFromARestore plays a restore to a time at which somebody else, as it seems, owned the instance.
func TestOwnersFromARestore(t *testing.T) {
	for _, test := range []struct {
		name        string
		session     string
		incarnation uint64
		want        client.State
	}{
		{"an earlier session of this client", "s1", 1, client.StateRegistered},
		{"one whose outcome it never learned", "s1", 99, client.StateRegistered},
		{"an older owner", "foreign", 1, client.StateRegistered},
		{"a newer owner", "foreign", 99, client.StateSuperseded},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				reg := register(t, f.client(nil), "a")
				f.endSession("s1")
				time.Sleep(10 * time.Second)
				wantState(t, reg, client.StateRegistered)
				f.mu.Lock()
				f.epoch++
				f.sessions = map[string]bool{test.session: true}
				i := proto.CloneOf(f.instances["default/web/a"])
				i.SessionId, i.Incarnation = test.session, test.incarnation
				f.instances["default/web/a"] = i
				f.mu.Unlock()
				time.Sleep(20 * time.Second)
				wantState(t, reg, test.want)
				owner := f.instance("default/web/a").GetSessionId()
				if mine := owner == "s3"; mine != (test.want == client.StateRegistered) {
					t.Errorf("owned by %s, state %s", owner, reg.State())
				}
			})
		})
	}
}

func TestDeregisterSparesASuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		old := register(t, f.client(nil), "a")
		next := register(t, f.client(nil), "a")
		if err := old.Deregister(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := f.instance("default/web/a"); got.GetIncarnation() != next.Incarnation() {
			t.Errorf("instance %v, want the successor's", got)
		}
		if err := next.Deregister(t.Context()); err != nil || f.instance("default/web/a") != nil {
			t.Errorf("Deregister: %v, instance %v", err, f.instance("default/web/a"))
		}
		if err := next.Deregister(t.Context()); err != nil || next.Err() != nil || next.State() != client.StateEnded {
			t.Errorf("second Deregister: %v, state %s with %v", err, next.State(), next.Err())
		}
		if err := next.Drain(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Drain after Deregister: %v", err)
		}
	})
}

// updateUnanswered updates an instance and must not learn what came of it: from then on the node carries out registrations
// and never says so. The client may have taken the update back when this returns.
func updateUnanswered(t *testing.T, f *fakeCluster, reg *client.Registration) {
	t.Helper()
	var done atomic.Bool
	f.nodes[0].set(func(n *fakeNode) {
		n.after = func(_ string, m proto.Message) error {
			req, ok := m.(*apiv1.RegisterRequest)
			if !ok {
				return nil
			}
			if req.GetInstance().GetWeight() == 7 {
				done.Store(true)
			}
			return status.Error(codes.Unavailable, "reset")
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err := reg.Update(ctx, func(i *registryv1.Instance) { i.Weight = 7 })
	if !errors.Is(err, client.ErrOutcomeUnknown) || !done.Load() {
		t.Fatalf("Update: %v, done: %v; want it done and the outcome unknown", err, done.Load())
	}
}

func TestAnUnansweredUpdateIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		reg := register(t, f.client(nil), "a")
		if err := reg.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		updateUnanswered(t, f, reg)
		f.nodes[0].set(func(n *fakeNode) { n.after = nil })
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		got := f.instance("default/web/a")
		if got.GetIncarnation() != reg.Incarnation() || got.GetWeight() != reg.Instance().GetWeight() || !got.GetDraining() {
			t.Errorf("registered is %v, the client believes incarnation %d of %v", got, reg.Incarnation(), reg.Instance())
		}
		if err := reg.SetHealth(t.Context(), "beat", checkPassing, ""); err != nil {
			t.Errorf("SetHealth: %v", err)
		}
	})
}

func TestDeregisterRemovesWhatAnUnansweredUpdateMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		reg := register(t, f.client(nil), "a")
		updateUnanswered(t, f, reg)
		if err := reg.Deregister(t.Context()); err != nil || f.instance("default/web/a") != nil {
			t.Errorf("Deregister: %v, instance %v is left", err, f.instance("default/web/a"))
		}
		time.Sleep(time.Minute)
		if got := f.instance("default/web/a"); got != nil {
			t.Errorf("%v came back", got)
		}
	})
}

func TestDeregisteredInstanceStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		reg := register(t, c, "a")
		f.nodes[0].set(func(n *fakeNode) {
			n.before = func(method string, _ proto.Message) error {
				if method == "Deregister" {
					return status.Error(codes.Unavailable, "reset")
				}
				return nil
			}
		})
		if err := reg.Deregister(t.Context()); err == nil {
			t.Fatal("no error")
		}
		f.endSession("s1")
		time.Sleep(time.Minute)
		if f.instance("default/web/a") != nil {
			t.Error("was registered again after Deregister had been called")
		}
		f.nodes[0].set(func(n *fakeNode) { n.before = nil })
		if err := reg.Deregister(t.Context()); err != nil {
			t.Error(err)
		}
		register(t, c, "a") // the id is free again
	})
}

func TestOneClientRegistersAnIDOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		register(t, c, "a")
		if _, err := c.Register(t.Context(), web("a")); !errors.Is(err, client.ErrAlreadyExists) {
			t.Errorf("error %v, want ErrAlreadyExists", err)
		}
	})
}

func TestIfAbsentRespectsAnOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		register(t, f.client(nil), "a")
		c := f.client(nil)
		if _, err := c.Register(t.Context(), web("a"), client.IfAbsent()); !errors.Is(err, client.ErrAlreadyExists) {
			t.Errorf("error %v, want ErrAlreadyExists", err)
		}
		register(t, c, "a")
	})
}

func TestRestoreIsTriedUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		reg := register(t, f.client(nil), "a")
		full := reasonAs(codes.ResourceExhausted, 27)
		f.nodes[0].set(func(n *fakeNode) { n.before = failing("Register", full, full, full, full) })
		f.endSession("s1")
		time.Sleep(2 * time.Minute)
		wantState(t, reg, client.StateRegistered)
		if f.instance("default/web/a") == nil {
			t.Error("the instance did not come back")
		}
	})
}

func TestInstanceNeedsServiceAndID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(t, 1).client(nil)
		for _, i := range []*registryv1.Instance{nil, {}, {Service: "web"}, {Id: "a"}} {
			if _, err := c.Register(t.Context(), i); !errors.Is(err, client.ErrInvalidArgument) {
				t.Errorf("Register %v: %v", i, err)
			}
			if _, err := c.RegisterDetached(t.Context(), i); !errors.Is(err, client.ErrInvalidArgument) {
				t.Errorf("RegisterDetached %v: %v", i, err)
			}
		}
	})
}

func TestOrdersOfAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil, client.WithNamespace("prod"))
		made, err := c.RegisterDetached(t.Context(), web("a"))
		if err != nil || made.Key.String() != "prod/web/a" {
			t.Fatalf("%+v, %v", made, err)
		}
		key := client.Key{Service: "web", ID: "a"}
		for _, changes := range []bool{true, false} {
			if changed, err := c.Drain(t.Context(), key); err != nil || changed != changes || !f.instance("prod/web/a").GetDraining() {
				t.Errorf("Drain: %v, %v", changed, err)
			}
		}
		for _, changes := range []bool{true, false} {
			changed, err := c.Undrain(t.Context(), key, client.OnlyIncarnation(made.Incarnation))
			if err != nil || changed != changes || f.instance("prod/web/a").GetDraining() {
				t.Errorf("Undrain: %v, %v", changed, err)
			}
		}
		if err := c.SetHealth(t.Context(), key, "", checkPassing, ""); err != nil {
			t.Errorf("SetHealth: %v", err)
		}
		if _, err := c.Deregister(t.Context(), key, client.OnlyIncarnation(99)); !errors.Is(err, client.ErrStaleIncarnation) {
			t.Errorf("Deregister of another incarnation: %v", err)
		}
		for _, changes := range []bool{true, false} {
			if changed, err := c.Deregister(t.Context(), key); err != nil || changed != changes || f.instance("prod/web/a") != nil {
				t.Errorf("Deregister: %v, %v", changed, err)
			}
		}
		if _, err := c.Instance(t.Context(), key); !errors.Is(err, client.ErrInstanceNotFound) {
			t.Errorf("Instance: %v", err)
		}
		if _, err := c.Deregister(t.Context(), key, client.OnlyIncarnation(0)); err == nil {
			t.Error("incarnation 0 was accepted")
		}
	})
}
