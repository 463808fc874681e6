package client_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/internal/livetest"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// follower collects what a watch delivers, and fails on any gap, repeat or step back that can be seen.
type follower struct {
	t     *testing.T
	watch *client.Watch

	mu     sync.Mutex // guards the fields below
	synced uint64
	state  map[client.Key]uint64
}

func follow(t *testing.T, c *client.Client) *follower {
	t.Helper()
	f := &follower{t: t, watch: watch(t, c), state: make(map[client.Key]uint64)}
	go func() {
		var last uint64
		for change, err := range f.watch.All(t.Context()) {
			if err != nil {
				return
			}
			f.mu.Lock()
			if change.Revision < last {
				t.Errorf("revision %d after %d", change.Revision, last)
			}
			last = change.Revision
			_, known := f.state[change.Key]
			switch change.Kind {
			case client.ChangePut:
				if f.state[change.Key] == change.Instance.GetModifyRevision() {
					t.Errorf("%s at revision %d came twice", change.Key, change.Revision)
				}
				f.state[change.Key] = change.Instance.GetModifyRevision()
			case client.ChangeDelete:
				if !known {
					t.Errorf("delete of %s, which never came", change.Key)
				}
				delete(f.state, change.Key)
			case client.ChangeSynced:
				f.synced = change.Revision
			}
			f.mu.Unlock()
		}
	}()
	return f
}

// wantEqual waits until the watch shows what a linearizable list shows.
func (f *follower) wantEqual(c *client.Client) {
	f.t.Helper()
	result, err := c.Instances(f.t.Context(), client.Filter{Service: "web"})
	if err != nil {
		f.t.Fatal(err)
	}
	want := make(map[client.Key]uint64)
	for _, i := range result.Instances {
		want[client.Key{Namespace: i.GetNamespace(), Service: i.GetService(), ID: i.GetId()}] = i.GetModifyRevision()
	}
	for range 100 {
		f.mu.Lock()
		equal, synced := maps.Equal(f.state, want), f.synced
		f.mu.Unlock()
		if equal && synced >= result.ServiceRevision {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	f.t.Fatalf("watch has %v at %d, the list %v at %d", f.state, f.synced, want, result.Revision)
}

func TestLiveClientOutlivesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		c, _ := l.Client()
		reg := register(t, c, "kept")
		w := follow(t, c)
		for round := range 2 {
			leader := l.Leader().Info().Name
			l.Kill(leader)
			for i := range 5 {
				if _, err := c.RegisterDetached(t.Context(), web(fmt.Sprintf("i%d-%d", round, i))); err != nil {
					t.Fatal(err)
				}
			}
			wantState(t, reg, client.StateRegistered)
			w.wantEqual(c)
			time.Sleep(5 * time.Second)
			l.Revive(leader)
			time.Sleep(5 * time.Second)
			wantState(t, reg, client.StateRegistered)
		}
		if got := reg.Incarnation(); got != 1 {
			t.Errorf("incarnation %d: the registration was made anew", got)
		}
		if err := reg.Deregister(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.wantEqual(c)
	})
}

func TestLiveRegistrationSurvivesTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		c, _ := l.Client()
		reg := register(t, c, "kept")
		w := follow(t, c)
		w.wantEqual(c)
		names := l.Names()
		for _, name := range names {
			l.Kill(name)
		}
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateLost)
		for _, name := range names {
			l.Revive(name)
		}
		l.Ready()
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		w.wantEqual(c)
	})
}

func TestLiveExpiredInstanceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		a, cable := l.Client()
		b, _ := l.Client()
		reg := register(t, a, "kept")
		w := follow(t, b)
		cable.Cut()
		time.Sleep(2 * time.Second) // under the TTL
		if _, err := b.Instance(t.Context(), reg.Key()); err != nil {
			t.Errorf("gone before its TTL: %v", err)
		}
		time.Sleep(3 * time.Second) // above it
		wantState(t, reg, client.StateLost)
		if _, err := b.Instance(t.Context(), reg.Key()); !errors.Is(err, client.ErrInstanceNotFound) {
			t.Errorf("still there after its TTL: %v", err)
		}
		w.wantEqual(b)
		cable.Mend()
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		if reg.Incarnation() < 2 {
			t.Error("came back with the old incarnation")
		}
		w.wantEqual(b)
	})
}

func TestLiveLockNeverHasTwoOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		a, cable := l.Client()
		b, _ := l.Client()
		var tokens []uint64
		for round := range 2 {
			held := lock(t, a, "job")
			next := make(chan *client.Lock, 1)
			go func() { next <- lock(t, b, "job") }()
			time.Sleep(5 * time.Second)
			cable.Cut()
			if round > 0 {
				l.Kill(l.Leader().Info().Name)
			}
			other := <-next
			if held.Context().Err() == nil {
				t.Fatal("two owners")
			}
			if err := held.Unlock(t.Context()); !errors.Is(err, client.ErrLockLost) {
				t.Errorf("Unlock: %v, want ErrLockLost", err)
			}
			tokens = append(tokens, held.Token(), other.Token())
			cable.Mend()
			for _, name := range []string{"n1", "n2", "n3"} {
				if l.Node(name) == nil {
					l.Revive(name)
				}
			}
			if err := other.Unlock(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		if !slices.IsSorted(tokens) || len(slices.Compact(tokens)) != 4 {
			t.Errorf("tokens %v do not grow", tokens)
		}
	})
}

func TestLiveRestoreBringsRegistrationsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		c, _ := l.Client()
		old := register(t, c, "old")
		w := follow(t, c)
		var snapshot bytes.Buffer
		if _, err := c.Cluster().SaveSnapshot(t.Context(), &snapshot, nil); err != nil {
			t.Fatal(err)
		}
		late := register(t, c, "late")
		if err := old.Update(t.Context(), func(i *registryv1.Instance) { i.Weight = 7 }); err != nil {
			t.Fatal(err)
		}
		w.wantEqual(c)
		point := w.watch.ResumePoint()
		if _, err := c.Cluster().RestoreSnapshot(t.Context(), &snapshot, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		for _, reg := range []*client.Registration{old, late} {
			wantState(t, reg, client.StateRegistered)
			found, err := c.Instance(t.Context(), reg.Key())
			if err != nil || found.Instance.GetIncarnation() != reg.Incarnation() {
				t.Errorf("%s is %v, %v: want incarnation %d", reg.Key(), found.Instance, err, reg.Incarnation())
			}
		}
		if got := old.Instance().GetWeight(); got != 7 {
			t.Errorf("weight %d came back", got)
		}
		w.wantEqual(c)
		if now := w.watch.ResumePoint(); now.Epoch <= point.Epoch || now.Revision <= point.Revision {
			t.Errorf("resume point %+v after %+v", now, point)
		}
	})
}

func TestLiveOperatorsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		c, _ := l.Client()
		register(t, c, "a")
		lock(t, c, "job")
		o := c.Cluster()
		time.Sleep(time.Second) // any node may tell the status, also one that lags
		if status, err := o.Status(t.Context()); err != nil || status.GetVoters() != 3 || status.GetInstances() != 1 || status.GetLocks() != 1 {
			t.Errorf("status %v, %v", status, err)
		}
		if members, err := o.Members(t.Context()); err != nil || len(members.GetMembers()) != 3 {
			t.Errorf("members %v, %v", members, err)
		}
		for _, s := range o.LocalStatuses(t.Context()) {
			if s.Err != nil {
				t.Errorf("%s: %v", s.Address, s.Err)
			}
		}
		if verified, err := o.Verify(t.Context()); err != nil || !verified.GetEqual() {
			t.Errorf("verify %v, %v", verified, err)
		}
		before := l.Leader().Info().Name
		if moved, err := o.TransferLeadership(t.Context(), ""); err != nil || moved.GetLeader() == before {
			t.Errorf("transfer from %s: %v, %v", before, moved, err)
		}
		if demoted, err := o.Demote(t.Context(), before); err != nil || !demoted.GetChanged() {
			t.Errorf("demote: %v, %v", demoted, err)
		}
		if promoted, err := o.Promote(t.Context(), before); err != nil || !promoted.GetChanged() {
			t.Errorf("promote: %v, %v", promoted, err)
		}
		if _, err := o.Remove(t.Context(), "n9", false); !errors.Is(err, client.ErrMemberNotFound) {
			t.Errorf("remove of nobody: %v", err)
		}
		if sessions, err := c.Sessions(t.Context()); err != nil || len(sessions.Sessions) != 1 {
			t.Errorf("sessions %v, %v", sessions, err)
		}
		if locks, err := c.Locks(t.Context(), ""); err != nil || len(locks.Locks) != 1 {
			t.Errorf("locks %v, %v", locks, err)
		}
		if found, err := c.GetLock(t.Context(), "", "job"); err != nil || found.Lock.GetSessionId() == "" {
			t.Errorf("lock %v, %v", found.Lock, err)
		}
		if leases, err := c.Leases(t.Context()); err != nil || len(leases.Leases) != 0 {
			t.Errorf("leases %v, %v", leases, err)
		}
		services, err := c.Services(t.Context(), client.ServiceFilter{Prefix: "w"}, client.Bounded(time.Second))
		if err != nil || len(services.Services) != 1 || services.Services[0].GetName() != "web" {
			t.Errorf("services %v, %v", services.Services, err)
		}
	})
}
