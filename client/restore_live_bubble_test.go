package client_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/election"
	"github.com/regd-io/regd/client/internal/livetest"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// seen are the views that a service has shown.
type seen struct {
	mu    sync.Mutex
	views []*discovery.View
}

func record(t *testing.T, s *discovery.Service) *seen {
	t.Helper()
	all := &seen{}
	go func() {
		for v, err := range s.All(t.Context()) {
			if err != nil {
				return
			}
			all.mu.Lock()
			all.views = append(all.views, v)
			all.mu.Unlock()
		}
	}()
	return all
}

// check fails when a view shows an older state than the one before, and tells what has been shown.
func (s *seen) check(t *testing.T) (lists map[string]bool) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	lists = make(map[string]bool)
	var last client.ResumePoint
	incarnations := make(map[string]uint64)
	for _, v := range s.views {
		if p := v.Point; p.Epoch < last.Epoch || p.Revision < last.Revision {
			t.Errorf("a view at %+v came after one at %+v", p, last)
		}
		if v.Point.Epoch > last.Epoch {
			clear(incarnations)
		}
		for _, i := range v.Instances {
			if i.GetIncarnation() < incarnations[i.GetId()] {
				t.Errorf("%s went back to incarnation %d within one epoch", i.GetId(), i.GetIncarnation())
			}
			incarnations[i.GetId()] = i.GetIncarnation()
		}
		last, lists[listed(v)] = v.Point, true
	}
	return lists
}

// TestLiveRestoreOfAnOlderSnapshot: after a snapshot was saved, instances come, change, are deregistered and lost, and a
// leadership changes hands. Then the snapshot is restored. Discovery shows what the registry has; what lives comes back by
// itself, and what does not goes; nobody goes on leading who was elected meanwhile, and who resigned meanwhile blocks nobody.
func TestLiveRestoreOfAnOlderSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		operator, _ := l.Client()
		owner, _ := l.Client()
		dying, _ := l.Client()
		kept, left := register(t, owner, "kept"), register(t, owner, "left")
		dead := register(t, dying, "dead")
		elections := func() (*client.Client, *election.Election) {
			c, _ := l.Client()
			return c, election.New(c, "billing")
		}
		_, first := elections()
		resigned, err := first.Campaign(t.Context(), []byte("first"))
		if err != nil {
			t.Fatal(err)
		}
		consumer, _ := l.Client()
		s := discover(t, consumer, "web")
		views := record(t, s)
		var snapshot bytes.Buffer
		if _, err = operator.Cluster().SaveSnapshot(t.Context(), &snapshot, nil); err != nil {
			t.Fatal(err)
		}

		if err = resigned.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, second := elections()
		elected, err := second.Campaign(t.Context(), []byte("second"))
		if err != nil {
			t.Fatal(err)
		}
		late := register(t, owner, "late")
		if err = kept.Update(t.Context(), func(i *registryv1.Instance) { i.Weight = 7 }); err != nil {
			t.Fatal(err)
		}
		if err = errors.Join(left.Deregister(t.Context()), dying.Close()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		before, err := s.View(t.Context())
		if err != nil || listed(before) != "kept late" {
			t.Fatalf("before the restore: %v, %v", before, err)
		}

		if _, err = operator.Cluster().RestoreSnapshot(t.Context(), &snapshot, nil); err != nil {
			t.Fatal(err)
		}
		_, third := elections()
		next, err := third.Campaign(t.Context(), []byte("third")) // The first one's session has it, and nobody there wants it.
		if err != nil {
			t.Fatal(err)
		}
		if elected.Context().Err() == nil || next.Token() <= elected.Token() {
			t.Errorf("the second leads on (%v) beside the third; tokens %d and %d", elected.Context().Err(), elected.Token(), next.Token())
		}
		if err = elected.Resign(t.Context()); !errors.Is(err, client.ErrLockLost) {
			t.Errorf("the second resigned with %v, want ErrLockLost", err)
		}
		if next.Context().Err() != nil {
			t.Error("that ended the third's leadership")
		}

		time.Sleep(20 * time.Second) // Longer than a TTL and a grace.
		after, err := s.View(t.Context())
		if err != nil || listed(after) != "kept late" || len(after.Protected) > 0 {
			t.Fatalf("after the restore: %s, %v protected, %v", listed(after), after.Protected, err)
		}
		if after.Point.Epoch <= before.Point.Epoch || after.Point.Revision <= before.Point.Revision {
			t.Errorf("the view is of %+v, and was of %+v before", after.Point, before.Point)
		}
		result, err := operator.Instances(t.Context(), client.Filter{Service: "web"})
		if err != nil || fmt.Sprint(result.Instances) != fmt.Sprint(after.Instances) {
			t.Errorf("the registry lists %v, %v; the view %v", result.Instances, err, after.Instances)
		}
		for _, reg := range []*client.Registration{kept, late} {
			wantState(t, reg, client.StateRegistered)
			if i := after.Instance(reg.Key().ID); i.GetIncarnation() != reg.Incarnation() {
				t.Errorf("%v has incarnation %d, its owner %d", i, i.GetIncarnation(), reg.Incarnation())
			}
			if had := before.Instance(reg.Key().ID).GetIncarnation(); reg.Incarnation() <= had {
				t.Errorf("%s came back with incarnation %d, and had %d", reg.Key(), reg.Incarnation(), had)
			}
		}
		if got := after.Instance("kept").GetWeight(); got != 7 {
			t.Errorf("weight %d came back", got)
		}
		wantState(t, left, client.StateEnded)
		wantState(t, dead, client.StateEnded)
		if lists := views.check(t); !lists["dead kept left"] && !lists["dead kept late left"] {
			t.Errorf("the restored state was never shown: %v", lists)
		}
	})
}
