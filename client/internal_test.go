package client

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestEveryReasonHasItsSentinel(t *testing.T) {
	seen := make(map[error]apiv1.Reason)
	for number, name := range apiv1.Reason_name {
		reason := apiv1.Reason(number)
		if reason == apiv1.Reason_REASON_UNSPECIFIED {
			continue
		}
		row, ok := rowOf(reason)
		if !ok {
			t.Errorf("%s is not in the table", name)
			continue
		}
		if other, used := seen[row.sentinel]; used {
			t.Errorf("%s and %s have one sentinel", name, other)
		}
		seen[row.sentinel] = reason
		if !errors.Is(&Error{Reason: reason}, row.sentinel) {
			t.Errorf("%s does not match its sentinel", name)
		}
	}
	if len(seen) != len(reasonTable()) {
		t.Errorf("%d reasons, %d rows", len(seen), len(reasonTable()))
	}
}

func TestUnknownReasonIsJudgedByItsCode(t *testing.T) {
	for code, want := range map[codes.Code]verdict{
		codes.Unavailable: elsewhere, codes.DeadlineExceeded: elsewhere, codes.PermissionDenied: giveUp,
		codes.Unimplemented: giveUp, codes.Internal: giveUp, codes.ResourceExhausted: giveUp,
	} {
		if got := fromStatus(status.Error(code, "x")).verdict(); got != want {
			t.Errorf("%s: verdict %d, want %d", code, got, want)
		}
	}
}

func TestConnectionErrorsAreToldPlainly(t *testing.T) {
	for message, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`:                              `dial tcp 127.0.0.1:1: connect: connection refused`,
		`last connection error: connection error: desc = "transport: authentication handshake failed: x509: certificate is valid for \"a\", not b"`: `authentication handshake failed: x509: certificate is valid for "a", not b`,
		`no such thing`: `no such thing`,
	} {
		if got := plainMessage(message); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestRequestsSpanAtMost64 checks the invariant of requests: no open request is ever older than what the registry
// remembers, and answered_below never passes an open one.
func TestRequestsSpanAtMost64(t *testing.T) {
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	rapid.Check(t, func(t *rapid.T) {
		r := newRequests("c")
		open := make(map[uint64]func())
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			if id, done, err := r.begin(impatient); err == nil {
				open[id.GetSequence()] = done
				for seq := range open {
					if seq < id.GetAnsweredBelow() || id.GetSequence()-seq >= maxOpenRequests {
						t.Fatalf("request %d is open while %v is sent", seq, id)
					}
				}
			} else if len(open) == 0 {
				t.Fatalf("blocked with none open: %v", err)
			}
			for seq, done := range open {
				if rapid.IntRange(0, 40).Draw(t, "answered") == 0 {
					done()
					delete(open, seq)
				}
			}
		}
	})
}

// TestQueueKeepsTheMeaning checks that a reader of a queue of any limit, at any pace, ends with the state that was put in,
// sees revisions grow, deletes only what it has, and is told synced only where that is true.
func TestQueueKeepsTheMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := queue{limit: rapid.IntRange(1, 20).Draw(t, "limit")}
		keys := rapid.IntRange(1, 6).Draw(t, "keys")
		truth, seen := map[Key]uint64{}, map[Key]uint64{}
		marked := map[uint64]map[Key]uint64{} // state at each mark
		var last uint64
		read := func() bool {
			e, ok := q.pop()
			if !ok {
				return false
			}
			if e.change.Revision < last {
				t.Fatalf("revision %d after %d", e.change.Revision, last)
			}
			last = e.change.Revision
			switch e.change.Kind {
			case ChangePut:
				seen[e.change.Key] = e.change.Revision
			case ChangeDelete:
				if _, ok := seen[e.change.Key]; !ok {
					t.Fatalf("delete of %s, which the reader has not", e.change.Key)
				}
				delete(seen, e.change.Key)
			case ChangeSynced:
				if !equal(seen, marked[e.change.Revision]) {
					t.Fatalf("synced at %d with %v, want %v", e.change.Revision, seen, marked[e.change.Revision])
				}
			}
			return true
		}
		for revision := uint64(1); revision <= 200; revision++ {
			key := Key{ID: string(rune('a' + rapid.IntRange(0, keys-1).Draw(t, "key")))}
			_, known := truth[key]
			if known && rapid.Bool().Draw(t, "delete") {
				delete(truth, key)
				q.put(entry{change: Change{Kind: ChangeDelete, Key: key, Revision: revision}})
			} else {
				truth[key] = revision
				q.put(entry{change: Change{Kind: ChangePut, Key: key, Revision: revision}, fresh: !known})
			}
			if rapid.IntRange(0, 3).Draw(t, "mark") == 0 {
				state := map[Key]uint64{}
				for k, v := range truth {
					state[k] = v
				}
				marked[revision] = state
				q.put(entry{change: Change{Kind: ChangeSynced, Revision: revision}})
			}
			if n := len(q.entries); n > max(q.limit, 4*(2*keys+1)) {
				t.Fatalf("%d entries for %d keys and a limit of %d", n, keys, q.limit)
			}
			for range rapid.IntRange(0, 2).Draw(t, "reads") {
				read()
			}
		}
		for read() {
		}
		if !equal(seen, truth) {
			t.Fatalf("the reader has %v, want %v", seen, truth)
		}
	})
}

func equal(a, b map[Key]uint64) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}
