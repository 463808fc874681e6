package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestKeysAreGivenUp(t *testing.T) {
	k := newKeyring("k", 10)
	rng := rand.New(rand.NewPCG(1, 1))
	picked := map[string]int{}
	for range 1000 {
		picked[k.pick(rng).GetId()]++
	}
	if len(picked) < 100 || len(picked) > 100+liveKeys {
		t.Errorf("%d instances for 1,000 operations of 10 each", len(picked))
	}
	for id, n := range picked {
		if n > 10 {
			t.Errorf("%s was picked %d times", id, n)
		}
	}
}

// TestAViewNotices feeds a view what a watch must never deliver.
func TestAViewNotices(t *testing.T) {
	a := client.Key{Namespace: "default", Service: "s", ID: "a"}
	put := func(revision uint64) client.Change {
		return client.Change{
			Kind: client.ChangePut, Key: a, Revision: revision, Instance: &registryv1.Instance{ModifyRevision: revision},
		}
	}
	gone := func(revision uint64) client.Change {
		return client.Change{Kind: client.ChangeDelete, Key: a, Revision: revision}
	}
	synced := func(revision uint64) client.Change {
		return client.Change{Kind: client.ChangeSynced, Revision: revision}
	}
	for _, test := range []struct {
		name    string
		changes []client.Change
		wrong   string
	}{
		{"nothing wrong", []client.Change{put(1), synced(1), put(2), gone(3), synced(5), put(6)}, ""},
		{"a repeat", []client.Change{put(2), put(2)}, "came with revision 2 after 2"},
		{"an end without a beginning", []client.Change{synced(1), gone(2)}, "had not been there"},
		{"two ends", []client.Change{put(1), gone(2), gone(3)}, "had not been there"},
		{"a step back", []client.Change{put(2), synced(1)}, "revision 1 came after 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := &view{state: map[client.Key]uint64{}}
			var wrong string
			for _, change := range test.changes {
				if err := v.take(change); err != nil {
					wrong = err.Error()
				}
			}
			if wrong == "" != (test.wrong == "") || !strings.Contains(wrong, test.wrong) {
				t.Errorf("found %q, want %q", wrong, test.wrong)
			}
		})
	}
}

func TestAViewEqualsOnlyWhatThereIs(t *testing.T) {
	a := client.Key{Namespace: "default", Service: "s", ID: "a"}
	v := &view{state: map[client.Key]uint64{a: 3}, synced: 5}
	for _, test := range []struct {
		revision uint64
		state    map[client.Key]uint64
		equal    bool
	}{
		{5, map[client.Key]uint64{a: 3}, true},
		{4, map[client.Key]uint64{a: 3}, true},
		{6, map[client.Key]uint64{a: 3}, false},
		{5, map[client.Key]uint64{a: 4}, false},
		{5, map[client.Key]uint64{}, false},
	} {
		if got := v.equals(test.revision, test.state); got != test.equal {
			t.Errorf("equals(%d, %v) is %v", test.revision, test.state, got)
		}
	}
}

// heldLock is a lock that somebody holds until its context ends.
type heldLock struct {
	token uint64
	ctx   context.Context
}

func (l heldLock) Token() uint64            { return l.token }
func (l heldLock) Context() context.Context { return l.ctx }

func TestTwoOwnersOfALockAreNoticed(t *testing.T) {
	lost, lose := context.WithCancel(t.Context())
	lose()
	for _, test := range []struct {
		name          string
		first, second heldLock
		gave          bool // the first gives it back
		wrong         string
	}{
		{"given back", heldLock{1, t.Context()}, heldLock{2, t.Context()}, true, ""},
		{"lost", heldLock{1, lost}, heldLock{2, t.Context()}, false, ""},
		{"won too late", heldLock{1, t.Context()}, heldLock{2, lost}, false, ""},
		{"two owners", heldLock{1, t.Context()}, heldLock{2, t.Context()}, false, "has two owners"},
		{"the token again", heldLock{1, t.Context()}, heldLock{1, t.Context()}, true, "token 1 after 1"},
		{"a smaller token", heldLock{2, lost}, heldLock{1, t.Context()}, false, "token 1 after 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newExclusion()
			if err := e.took("l", test.first); err != nil {
				t.Fatal(err)
			}
			if test.gave {
				e.gave("l", test.first)
			}
			err := e.took("l", test.second)
			if (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("found %v, want %q", err, test.wrong)
			}
		})
	}
}

// TestWhoIsToldNothingMayHaveDoneIt goes through the whole list of reasons: a new one has to be thought of here.
func TestWhoIsToldNothingMayHaveDoneIt(t *testing.T) {
	for number := range apiv1.Reason_name {
		switch reason := apiv1.Reason(number); reason {
		case apiv1.Reason_REASON_UNSPECIFIED, apiv1.Reason_REASON_OUTCOME_UNKNOWN, apiv1.Reason_REASON_INTERNAL:
			if !unknown(reason) || !passing(reason) {
				t.Errorf("%v: unknown %v, passing %v", reason, unknown(reason), passing(reason))
			}
		default:
			if unknown(reason) {
				t.Errorf("%v: nothing was done, and it is taken for unknown", reason)
			}
		}
	}
}

func TestClientsDrawFromTheSeedAndTheirNames(t *testing.T) {
	draw := func(seed uint64, name string) string {
		w := &Workload{cfg: Config{Seed: seed}}
		rng := w.random(name)
		return fmt.Sprint(rng.Uint64(), rng.Uint64())
	}
	first := draw(1, "a")
	if again := draw(1, "a"); again != first {
		t.Errorf("one client of one seed draws %s, then %s", first, again)
	}
	if first == draw(1, "b") || first == draw(2, "a") {
		t.Errorf("two clients, or two seeds, draw %s", first)
	}
}
