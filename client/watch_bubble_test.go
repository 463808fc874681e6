package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// watch starts a watch of service web.
func watch(t *testing.T, c *client.Client, opts ...client.WatchOption) *client.Watch {
	t.Helper()
	w, err := c.Watch(t.Context(), client.Filter{Service: "web"}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// told is a change in short: +a5 is a put of a at revision 5, -a6 a delete, =7 synced at 7.
func told(c client.Change) string {
	switch c.Kind {
	case client.ChangePut:
		return fmt.Sprintf("+%s%d", c.Key.ID, c.Revision)
	case client.ChangeDelete:
		return fmt.Sprintf("-%s%d", c.Key.ID, c.Revision)
	default:
		return fmt.Sprintf("=%d", c.Revision)
	}
}

// wantChanges reads as many changes as there are words, and compares.
func wantChanges(t *testing.T, w *client.Watch, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []string
	for range strings.Fields(want) {
		change, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("got %v, then %v: want %s", got, err, want)
		}
		got = append(got, told(change))
	}
	if s := strings.Join(got, " "); s != want {
		t.Fatalf("got %s, want %s", s, want)
	}
}

// wantNothing fails if there is a change within a moment.
func wantNothing(t *testing.T, w *client.Watch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if change, err := w.Next(ctx); err == nil {
		t.Fatalf("got %s, want nothing", told(change))
	}
}

// scripts makes a node play one script per stream, the last one over and over.
func (n *fakeNode) scripts(scripts ...func(s *fakeStream) error) {
	next := 0
	n.set(func(n *fakeNode) {
		n.watch = func(s *fakeStream) error {
			n.script.Lock()
			script := scripts[min(next, len(scripts)-1)]
			next++
			n.script.Unlock()
			return script(s)
		}
	})
}

func full(id uint32, instances ...*registryv1.Instance) *apiv1.Cut {
	return &apiv1.Cut{SubscriptionId: id, Full: true, Reason: apiv1.CutReason_CUT_REASON_INITIAL, Instances: instances}
}

// first answers the first subscription with a at 5 and b at 3, as of 10.
func first(s *fakeStream) (uint32, error) {
	sub, err := s.subscribe()
	if err != nil {
		return 0, err
	}
	id := sub.GetSubscriptionId()
	return id, s.cut(full(id, inst("a", 5), inst("b", 3)), 1, 10)
}

var errBroken = status.Error(codes.Unavailable, "broken")

func TestWatchDeliversStateThenEveryChangeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			id, err := first(s)
			return errors.Join(err,
				s.events(12, put("a", 11, id), put("c", 12, id)),
				s.events(12, put("c", 12, id)), // a repeat
				s.events(13, del("b", 13, id), del("x", 13, id)),
				s.events(13, put("b", 12, id)), // another one
				s.progress(20, 3*time.Second), s.idle())
		})
		w := watch(t, f.client(nil))
		wantChanges(t, w, "+b3 +a5 =10 +a11 +c12 =12 -b13")
		if got, want := w.ResumePoint(), (client.ResumePoint{ClusterID: "cluster", Epoch: 1, Revision: 12}); got != want {
			t.Errorf("resume point %+v before the end of revision 13, want %+v", got, want)
		}
		synctest.Wait()
		mark, err := w.Next(t.Context())
		if err != nil || told(mark) != "=20" || mark.Staleness != 3*time.Second || mark.Node != "n1" || mark.Epoch != 1 {
			t.Errorf("mark %+v, %v: want synced at 20, 3s old, by n1", mark, err)
		}
		if got := w.ResumePoint().Revision; got != 20 {
			t.Errorf("resume point at %d, want 20", got)
		}
	})
}

func TestEmptyStateIsSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			sub, err := s.subscribe()
			if err != nil {
				return err
			}
			return errors.Join(s.synced(sub.GetSubscriptionId(), 1, 7), s.idle())
		})
		wantChanges(t, watch(t, f.client(nil)), "=7")
	})
}

func TestWatchesShareOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		streams := 0
		f.nodes[0].scripts(func(s *fakeStream) error {
			streams++
			one, err := first(s)
			if err != nil {
				return err
			}
			sub, err := s.subscribe()
			if err != nil {
				return err
			}
			two := sub.GetSubscriptionId()
			return errors.Join(s.cut(full(two, inst("a", 5)), 1, 10),
				s.events(12, put("a", 11, one, two), put("b", 12, one)), s.idle())
		})
		c := f.client(nil)
		one := watch(t, c)
		wantChanges(t, one, "+b3 +a5 =10")
		two := watch(t, c)
		wantChanges(t, two, "+a5 =10 +a11 =12")
		wantChanges(t, one, "+a11 +b12 =12")
		one.Close()
		synctest.Wait()
		requests := f.calls("Watch")
		last := requests[len(requests)-1].req.(*apiv1.WatchRequest)
		if streams != 1 || len(requests) != 3 || last.GetUnsubscribe().GetSubscriptionId() != 1 {
			t.Errorf("%d streams, last of %d requests %v: want one stream, and the first subscription ended", streams, len(requests), last)
		}
		if _, err := one.Next(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Next after Close: %v", err)
		}
		wantNothing(t, two)
	})
}

func TestSlowReaderGetsTheLastOfEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			id, err := first(s)
			for r := uint64(11); r <= 1000 && err == nil; r++ {
				event := put("a", r, id)
				if r%2 == 0 {
					event = put(fmt.Sprintf("brief%d", r), r, id)
				}
				if r%4 == 3 && r > 11 {
					event = del(fmt.Sprintf("brief%d", r-1), r, id)
				}
				err = s.events(r, event)
			}
			return errors.Join(err, s.events(1001, put("a", 1001, id), del("b", 1001, id)), s.idle())
		})
		w := watch(t, f.client(nil), client.WatchBuffer(4))
		time.Sleep(time.Second)
		var last uint64
		state := make(map[string]uint64)
		n := 0
		for last < 1001 || n == 0 {
			change, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			n++
			if change.Revision < last {
				t.Fatalf("revision %d after %d", change.Revision, last)
			}
			last = change.Revision
			switch change.Kind {
			case client.ChangePut:
				state[change.Key.ID] = change.Revision
			case client.ChangeDelete:
				delete(state, change.Key.ID)
			}
			if change.Kind != client.ChangeSynced {
				last-- // the mark of its revision is still to come
			}
		}
		if state["a"] != 1001 || n > 800 {
			t.Errorf("%d changes, a is at %d: want the last one, and fewer than all", n, state["a"])
		}
		for r := uint64(14); r <= 1000; r += 4 {
			if _, ok := state[fmt.Sprintf("brief%d", r)]; ok {
				t.Errorf("brief%d is still there", r)
			}
		}
	})
}

func TestRefusedWatchFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			id, err := first(s)
			if err != nil {
				return err
			}
			sub, err := s.subscribe()
			return errors.Join(err, s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Ended{
				Ended: &apiv1.SubscriptionEnded{SubscriptionId: sub.GetSubscriptionId(), Reason: "LIMIT_REACHED", Message: "too many"},
			}}), s.events(11, put("a", 11, id)), s.idle())
		})
		c := f.client(nil)
		one := watch(t, c)
		wantChanges(t, one, "+b3 +a5 =10")
		if _, err := watch(t, c).Next(t.Context()); !errors.Is(err, client.ErrLimitReached) {
			t.Errorf("error %v, want ErrLimitReached", err)
		}
		wantChanges(t, one, "+a11 =11")
	})
}

func TestWatchRefusedForNowIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			sub, err := s.subscribe()
			if err != nil {
				return err
			}
			err = s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Ended{
				Ended: &apiv1.SubscriptionEnded{SubscriptionId: sub.GetSubscriptionId(), Reason: "OVERLOADED", Message: "later"},
			}})
			if err != nil {
				return err
			}
			_, err = first(s)
			return errors.Join(err, s.idle())
		})
		wantChanges(t, watch(t, f.client(nil)), "+b3 +a5 =10")
	})
}

func TestWatchThatNobodyWillGrantFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(*fakeStream) error { return status.Error(codes.PermissionDenied, "not for you") })
		_, err := watch(t, f.client(nil)).Next(t.Context())
		var said *client.Error
		if !errors.As(err, &said) || said.Code != codes.PermissionDenied {
			t.Errorf("error %v, want the refusal", err)
		}
	})
}

func TestWatchThatHasAStateOutlivesRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		refuse := func(*fakeStream) error { return status.Error(codes.Unauthenticated, "token expired") }
		f.nodes[0].scripts(
			func(s *fakeStream) error {
				_, err := first(s)
				return errors.Join(err, errBroken)
			}, refuse, refuse, refuse,
			func(s *fakeStream) error {
				sub, err := s.subscribe()
				if err != nil {
					return err
				}
				return errors.Join(s.synced(sub.GetSubscriptionId(), 1, 12), s.idle())
			})
		wantChanges(t, watch(t, f.client(nil)), "+b3 +a5 =10 =12")
	})
}

func TestWatchSaysWhyNothingComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].set(func(n *fakeNode) { n.down = true })
		w := watch(t, f.client(nil))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := w.Next(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "n1:7400: connection refused") {
			t.Errorf("error %v, want the deadline and the reason", err)
		}
	})
}

func TestWatchEndsWithItsContextAndItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			_, err := first(s)
			return errors.Join(err, s.idle())
		})
		c := f.client(nil)
		ctx, cancel := context.WithCancel(t.Context())
		w, err := c.Watch(ctx, client.Filter{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		wantChanges(t, w, "+b3 +a5 =10")
		cancel()
		synctest.Wait()
		if _, err := w.Next(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("Next after the context: %v", err)
		}
		other := watch(t, c)
		wantChanges(t, other, "+b3 +a5 =10")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Next(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Next after Close: %v", err)
		}
		if _, err := c.Watch(t.Context(), client.Filter{}); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Watch after Close: %v", err)
		}
	})
}

func TestWatchOptionsAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(t, 1).client(nil)
		_, err := c.Watch(t.Context(), client.Filter{}, client.WatchBuffer(0), client.WatchFrom(client.ResumePoint{}, nil))
		if err == nil || !strings.Contains(err.Error(), "buffer 0") || !strings.Contains(err.Error(), "resume point") {
			t.Errorf("error %v, want both faults", err)
		}
	})
}

// TestQuietWatchHearsOfABusyStream plays a node that has events for one watch all the time, and so sends no progress.
func TestQuietWatchHearsOfABusyStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			busy, err := first(s)
			if err != nil {
				return err
			}
			sub, err := s.subscribe()
			if err == nil {
				err = s.cut(full(sub.GetSubscriptionId(), inst("a", 5)), 1, 10)
			}
			for r := uint64(11); r <= 1000 && err == nil; r++ {
				time.Sleep(time.Second)
				err = s.events(r, put("b", r, busy))
			}
			return errors.Join(err, s.idle())
		})
		c := f.client(nil)
		wantChanges(t, watch(t, c), "+b3 +a5 =10")
		quiet := watch(t, c)
		wantChanges(t, quiet, "+a5 =10")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for range 5 {
			begin := time.Now()
			mark, err := quiet.Next(ctx)
			if err != nil || mark.Kind != client.ChangeSynced || !mark.Received.Equal(time.Now()) {
				t.Fatalf("got %+v, %v: want a mark that has just come", mark, err)
			}
			if took := time.Since(begin); took > 6*time.Second || took < 4*time.Second {
				t.Errorf("a mark after %s, want one about every 5s", took)
			}
			if got := quiet.ResumePoint().Revision; got != mark.Revision {
				t.Errorf("resume point at %d, want %d", got, mark.Revision)
			}
		}
	})
}

// TestQuietWatchIsNotPassedByWhatWasAnnouncedBefore plays the stream of TestResumeNeverSkipsWhatWasAnnouncedForOthers for
// so long that all watches are told how far they are.
func TestQuietWatchIsNotPassedByWhatWasAnnouncedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			one, err := first(s)
			if err != nil {
				return err
			}
			sub, err := s.subscribe()
			if err != nil {
				return err
			}
			two := sub.GetSubscriptionId()
			err = errors.Join(s.events(15, put("a", 15, one)), s.cut(full(two), 1, 14))
			time.Sleep(6 * time.Second)
			return errors.Join(err, s.events(15, put("b", 15, one)), s.events(15, put("c", 15, two)), s.idle())
		})
		c := f.client(nil)
		one := watch(t, c)
		wantChanges(t, one, "+b3 +a5 =10")
		wantChanges(t, watch(t, c), "=14 +c15 =15")
	})
}

func TestWatchTellsOfEachStallIfAskedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(
			func(s *fakeStream) error {
				id, err := first(s)
				return errors.Join(err, s.events(11, put("a", 11, id)), errBroken)
			},
			func(*fakeStream) error { return status.Error(codes.Unauthenticated, "token expired") },
			func(s *fakeStream) error {
				time.Sleep(3 * time.Second)
				sub, err := s.subscribe()
				if err != nil {
					return err
				}
				return errors.Join(s.synced(sub.GetSubscriptionId(), 1, 12), s.idle())
			})
		c := f.client(nil)
		told, quiet := watch(t, c, client.WatchStalls()), watch(t, c)
		wantChanges(t, told, "+b3 +a5 =10 +a11 =11")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, why := range []string{"broken", "token expired"} {
			stall, err := told.Next(ctx)
			if err != nil || stall.Kind != client.ChangeStalled || !strings.Contains(fmt.Sprint(stall.Err), why) {
				t.Fatalf("got %+v, %v: want a stall, as %s", stall, err, why)
			}
		}
		wantChanges(t, told, "=12")
		quiet.Close()
		for change, err := range quiet.All(t.Context()) {
			if err == nil && change.Kind == client.ChangeStalled {
				t.Errorf("got %+v without asking for it", change)
			}
		}
	})
}
