package rpc

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// acquired is the answer to an Acquire that waited.
type acquired struct {
	token uint64
	err   error
	took  time.Duration
}

// acquire waits for lock "l" in the background.
func (r *rig) acquire(ctx context.Context, session string, id *apiv1.RequestID) <-chan acquired {
	out := make(chan acquired, 1)
	began := time.Now()
	go func() {
		resp, err := r.locks.Acquire(ctx, &apiv1.AcquireRequest{Name: "l", SessionId: session, Wait: true, RequestId: id})
		out <- acquired{resp.GetToken(), err, time.Since(began)}
	}()
	return out
}

func (r *rig) mustAcquire(tb testing.TB, session string) uint64 {
	tb.Helper()
	resp, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: session})
	if err != nil {
		tb.Fatalf("Acquire: %v", err)
	}
	return resp.GetToken()
}

func (r *rig) release(tb testing.TB, session string, token uint64) {
	tb.Helper()
	if _, err := r.locks.Release(bg, &apiv1.ReleaseRequest{Name: "l", SessionId: session, Token: token}); err != nil {
		tb.Fatalf("Release: %v", err)
	}
}

// queue is who waits for lock "l"; the owner comes first.
func (r *rig) queue() []string {
	lock := r.node.feed.State().Lock("default", "l")
	if lock == nil {
		return nil
	}
	out := []string{lock.SessionID}
	for _, w := range lock.Waiters {
		out = append(out, w.SessionID)
	}
	return out
}

func TestLockIsHandedOverInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b, c := r.openSession(t), r.openSession(t), r.openSession(t)
		token := r.mustAcquire(t, a)
		forB := r.acquire(bg, b, nil)
		synctest.Wait()
		forC := r.acquire(bg, c, nil)
		synctest.Wait()
		if diff := cmp.Diff([]string{a, b, c}, r.queue()); diff != "" {
			t.Fatalf("queue (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute) // Waiting has no deadline of its own.
		r.release(t, a, token)
		got := <-forB
		if got.err != nil || got.token <= token {
			t.Fatalf("second owner: %+v, want a token above %d", got, token)
		}
		if _, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: b}); err != nil {
			t.Fatal(err)
		}
		last := <-forC
		if last.err != nil || last.token <= got.token {
			t.Fatalf("third owner: %+v, want a token above %d", last, got.token)
		}
	})
}

func TestLockIsHeldUntilTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		r.mustAcquire(t, a)
		ctx, cancel := context.WithTimeout(bg, 5*time.Second)
		defer cancel()
		got := <-r.acquire(ctx, b, nil)
		if info := wantReason(t, got.err, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_HELD); info.GetMetadata()["owner"] != a {
			t.Errorf("metadata %v doesn't name the owner", info.GetMetadata())
		}
		if got.took < 4*time.Second {
			t.Errorf("gave up after %v, want almost 5s", got.took)
		}
		if diff := cmp.Diff([]string{a}, r.queue()); diff != "" {
			t.Errorf("queue (-want +got):\n%s", diff)
		}
	})
}

func TestWhoGivesUpLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		r.mustAcquire(t, a)
		ctx, cancel := context.WithCancel(bg)
		waiting := r.acquire(ctx, b, nil)
		synctest.Wait()
		if diff := cmp.Diff([]string{a, b}, r.queue()); diff != "" {
			t.Fatalf("queue (-want +got):\n%s", diff)
		}
		cancel()
		if got := <-waiting; status.Code(got.err) != codes.Canceled {
			t.Errorf("Acquire: %+v", got)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{a}, r.queue()); diff != "" {
			t.Errorf("queue (-want +got):\n%s", diff)
		}
	})
}

// whenGivingUp has a lock fall to the next in its queue just as b's call gives up its place in it.
func (r *rig) whenGivingUp(b, owner string, token uint64) {
	r.node.set(func() {
		r.node.onPropose = func(_ context.Context, cmd *raftlogv1.Command) error {
			if !cmd.GetReleaseLock().GetWaitingOnly() || cmd.GetReleaseLock().GetSessionId() != b {
				return nil
			}
			_, err := r.node.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_ReleaseLock{ReleaseLock: &raftlogv1.ReleaseLock{
				Namespace: "default", Name: "l", SessionId: owner, Token: token,
			}}})
			return err
		}
	})
}

func TestLockThatComesAtTheDeadlineIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		token := r.mustAcquire(t, a)
		ctx, cancel := context.WithTimeout(bg, 5*time.Second)
		defer cancel()
		waiting := r.acquire(ctx, b, nil)
		synctest.Wait()
		r.whenGivingUp(b, a, token)
		if got := <-waiting; got.err != nil || got.token <= token {
			t.Errorf("Acquire: %+v, want a token above %d: nobody else has the lock", got, token)
		}
	})
}

// A client that was cut off asks again at another node, and has the lock there before the first node gives up.
func TestGivingUpTakesNoLockThatTheSessionHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		token := r.mustAcquire(t, a)
		ctx, cancel := context.WithCancel(bg)
		first := r.acquire(ctx, b, &apiv1.RequestID{ClientId: "c", Sequence: 1})
		synctest.Wait()
		var second acquired
		r.node.set(func() {
			r.node.onPropose = func(_ context.Context, cmd *raftlogv1.Command) error {
				if cmd.GetReleaseLock().GetSessionId() != b {
					return nil
				}
				r.node.set(func() { r.node.onPropose = nil })
				r.release(t, a, token)
				second = <-r.acquire(bg, b, &apiv1.RequestID{ClientId: "c", Sequence: 2})
				return nil
			}
		})
		cancel()
		<-first
		synctest.Wait()
		if second.err != nil || second.token <= token {
			t.Fatalf("second attempt: %+v", second)
		}
		if diff := cmp.Diff([]string{b}, r.queue()); diff != "" {
			t.Errorf("owner (-want +got):\n%s", diff)
		}
	})
}

func TestRetriedAcquireGoesBackToWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		token := r.mustAcquire(t, a)
		id := &apiv1.RequestID{ClientId: "c", Sequence: 1}
		first := r.acquire(bg, b, id)
		synctest.Wait()
		second := r.acquire(bg, b, id)
		synctest.Wait()
		if diff := cmp.Diff([]string{a, b}, r.queue()); diff != "" {
			t.Fatalf("queue (-want +got):\n%s", diff)
		}
		r.release(t, a, token)
		x, y := <-first, <-second
		if x.err != nil || y.err != nil || x.token != y.token || x.token == 0 {
			t.Errorf("answers %+v and %+v, want one token", x, y)
		}
	})
}

func TestRetriedAcquireQueuesAgainAfterItsPlaceWasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		token := r.mustAcquire(t, a)
		id := &apiv1.RequestID{ClientId: "c", Sequence: 1}
		ctx, cancel := context.WithCancel(bg)
		first := r.acquire(ctx, b, id)
		synctest.Wait()
		second := r.acquire(bg, b, id)
		synctest.Wait()
		cancel() // The connection of the first attempt is found to be dead only now.
		<-first
		synctest.Wait()
		if diff := cmp.Diff([]string{a, b}, r.queue()); diff != "" {
			t.Fatalf("queue (-want +got):\n%s", diff)
		}
		r.release(t, a, token)
		if got := <-second; got.err != nil || got.token == 0 {
			t.Errorf("Acquire: %+v", got)
		}
	})
}

func TestWaitEndsWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		r.mustAcquire(t, a)
		waiting := r.acquire(bg, b, nil)
		synctest.Wait()
		if _, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: b}); err != nil {
			t.Fatal(err)
		}
		got := <-waiting
		wantReason(t, got.err, codes.NotFound, apiv1.Reason_REASON_SESSION_NOT_FOUND)
	})
}

func TestWaitEndsWhenTheNodeLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.openSession(t), r.openSession(t)
		r.mustAcquire(t, a)
		waiting := r.acquire(bg, b, nil)
		synctest.Wait()
		if err := r.server.Shutdown(bg); err != nil {
			t.Fatal(err)
		}
		got := <-waiting
		wantReason(t, got.err, codes.Unavailable, apiv1.Reason_REASON_SHUTTING_DOWN)
		if diff := cmp.Diff([]string{a}, r.queue()); diff != "" {
			t.Errorf("queue (-want +got):\n%s", diff)
		}
	})
}

func TestWaitingCostsNoPlaceAmongCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(cfg *Config) { cfg.MaxInFlight, cfg.MaxLockWaiters = 4, 3 })
		token := r.mustAcquire(t, r.openSession(t))
		var waiting []<-chan acquired
		many(3, func(int) {
			waiting = append(waiting, r.acquire(bg, r.openSession(t), nil))
			synctest.Wait()
		})
		if n := r.server.core.admission.inFlight.Load(); n != 0 {
			t.Errorf("%d calls in flight while all wait", n)
		}
		if used, limit := limitUse(t, r.server, "lock_waiters"); used != 3 || limit != 3 {
			t.Errorf("metrics say that %v of %v waiters wait", used, limit)
		}
		late := r.openSession(t)
		got := <-r.acquire(bg, late, nil)
		wantReason(t, got.err, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED)
		if queue := r.queue(); slices.Contains(queue, late) {
			t.Errorf("who was refused is in the queue %v", queue)
		}
		r.release(t, r.queue()[0], token)
		for i, w := range waiting {
			got := <-w
			if got.err != nil {
				t.Fatalf("waiter %d: %v", i, got.err)
			}
			r.release(t, r.queue()[0], got.token)
		}
		r.mustAcquire(t, late)
		last := r.acquire(bg, r.openSession(t), nil)
		synctest.Wait()
		if n := len(r.queue()); n != 2 {
			t.Errorf("%d in the queue, want the owner and one who found a place again", n)
		}
		r.release(t, late, 0)
		if got := <-last; got.err != nil {
			t.Error(got.err)
		}
	})
}

func TestPlaceThatIsNotGivenBackIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lockedLog{}
		r := newRig(t, func(cfg *Config) { cfg.Logger = logTo(log) })
		a, b := r.openSession(t), r.openSession(t)
		r.mustAcquire(t, a)
		waiting := r.acquire(bg, b, nil)
		synctest.Wait()
		r.node.set(func() {
			r.node.onPropose = func(ctx context.Context, _ *raftlogv1.Command) error {
				if _, ok := ctx.Deadline(); !ok || ctx.Err() != nil {
					t.Error("the clean-up has no deadline of its own, or runs in the context of the call")
				}
				return cluster.ErrNoLeader
			}
		})
		if err := r.server.Shutdown(bg); err != nil {
			t.Fatal(err)
		}
		wantReason(t, (<-waiting).err, codes.Aborted, apiv1.Reason_REASON_OUTCOME_UNKNOWN)
		if log.String() == "" {
			t.Error("nothing was logged")
		}
	})
}

// acquireSlot asks for one of the slots of "l" without waiting.
func (r *rig) acquireSlot(session string, slots uint32) (uint64, error) {
	resp, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: session, Slots: slots, Value: []byte(session)})
	return resp.GetToken(), err
}

func TestSemaphoreHasSeveralOwnersAndOneQueue(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		a, b, c, d := r.openSession(t), r.openSession(t), r.openSession(t), r.openSession(t)
		watch := r.watchLock(ctx, t, &apiv1.WatchLockRequest{})
		watch.want("", 0)
		first, err := r.acquireSlot(a, 2)
		if err != nil {
			t.Fatal(err)
		}
		watch.want(a, first)
		second, err := r.acquireSlot(b, 2)
		if err != nil || second <= first {
			t.Fatalf("second owner: token %d after %d, %v", second, first, err)
		}
		if again, failed := r.acquireSlot(a, 2); failed != nil || again != first {
			t.Errorf("the first owner is told token %d, %v; want its own, %d", again, failed, first)
		}
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		want := &registryv1.Lock{
			Namespace: "default", Name: "l", SessionId: a, Token: first, Value: []byte(a), Slots: 2,
			Others: []*registryv1.LockOwner{{SessionId: b, Token: second, Value: []byte(b)}},
		}
		ignore := []cmp.Option{
			protocmp.Transform(), protocmp.IgnoreFields(want, "acquire_revision"),
			protocmp.IgnoreFields(&registryv1.LockOwner{}, "acquire_revision"),
		}
		if diff := cmp.Diff(want, m.GetLock(), ignore...); diff != "" {
			t.Errorf("the watched lock (-want +got):\n%s", diff)
		}
		_, err = r.acquireSlot(c, 2)
		wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_HELD)

		waiting := func(session string) <-chan acquired {
			out := make(chan acquired, 1)
			go func() {
				resp, err := r.locks.Acquire(ctx, &apiv1.AcquireRequest{Name: "l", SessionId: session, Slots: 2, Wait: true})
				out <- acquired{token: resp.GetToken(), err: err}
			}()
			synctest.Wait()
			return out
		}
		forC, forD := waiting(c), waiting(d)
		r.release(t, b, second) // not the oldest: any slot will do
		third := <-forC
		if third.err != nil || third.token <= second {
			t.Fatalf("third owner: %+v, want a token above %d", third, second)
		}
		if _, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: a}); err != nil {
			t.Fatal(err)
		}
		if last := <-forD; last.err != nil || last.token <= third.token {
			t.Fatalf("fourth owner: %+v, want a token above %d", last, third.token)
		}
	})
}

func TestSlotsMustBeTheSameForAll(t *testing.T) {
	r := newRig(t)
	a, b := r.openSession(t), r.openSession(t)
	token, err := r.acquireSlot(a, 3)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.acquireSlot(b, 5)
	info := wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_SLOTS_MISMATCH)
	if info.GetMetadata()["slots"] != "5" || info.GetMetadata()["subject"] != "3" {
		t.Errorf("metadata %v does not name both numbers", info.GetMetadata())
	}
	_, err = r.acquireSlot(b, 0) // a plain lock
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_SLOTS_MISMATCH)
	r.release(t, a, token)
	if _, err = r.acquireSlot(b, 5); err != nil {
		t.Errorf("another number once nobody holds it: %v", err)
	}
	_, err = r.acquireSlot(a, MaxLockSlots+1)
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
}

func TestLockThatIsTakenIsRefused(t *testing.T) {
	r := newRig(t)
	a, b := r.openSession(t), r.openSession(t)
	token := r.mustAcquire(t, a)
	if again := r.mustAcquire(t, a); again != token {
		t.Errorf("the owner got token %d, then %d", token, again)
	}
	_, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: b})
	if info := wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_HELD); info.GetMetadata()["subject"] != a {
		t.Errorf("metadata %v doesn't name the owner", info.GetMetadata())
	}
	_, err = r.locks.Release(bg, &apiv1.ReleaseRequest{Name: "l", SessionId: b})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_NOT_HELD)
	_, err = r.locks.Release(bg, &apiv1.ReleaseRequest{Name: "l", SessionId: a, Token: token + 1})
	wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_STALE_INCARNATION)
	_, err = r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: "gone"})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_SESSION_NOT_FOUND)
}

func TestLockLimits(t *testing.T) {
	r := newRig(t)
	a := r.openSession(t)
	acquire := func(change func(*apiv1.AcquireRequest)) error {
		req := &apiv1.AcquireRequest{Name: "l", SessionId: a}
		change(req)
		_, err := r.locks.Acquire(bg, req)
		return err
	}
	for name, ok := range map[string]func(*apiv1.AcquireRequest){
		"name":  func(req *apiv1.AcquireRequest) { req.Name = long(MaxLockNameLen) },
		"value": func(req *apiv1.AcquireRequest) { req.Value = make([]byte, MaxLockValueLen) },
		"path":  func(req *apiv1.AcquireRequest) { req.Name = "/jobs/nightly" },
	} {
		if err := acquire(ok); err != nil {
			t.Errorf("%s at the limit: %v", name, err)
		}
	}
	for name, bad := range map[string]func(*apiv1.AcquireRequest){
		"no name":       func(req *apiv1.AcquireRequest) { req.Name = "" },
		"long name":     func(req *apiv1.AcquireRequest) { req.Name = long(MaxLockNameLen + 1) },
		"climbing name": func(req *apiv1.AcquireRequest) { req.Name = "a/../b" },
		"large value":   func(req *apiv1.AcquireRequest) { req.Value = make([]byte, MaxLockValueLen+1) },
		"no session":    func(req *apiv1.AcquireRequest) { req.SessionId = "" },
	} {
		t.Run(name, func(t *testing.T) {
			wantReason(t, acquire(bad), codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		})
	}
}

func TestLocksAreShown(t *testing.T) {
	r := newRig(t)
	a := r.openSession(t)
	var want []string
	for _, namespace := range []string{"default", "prod"} {
		many(3, func(i int) {
			name := fmt.Sprint("l", i)
			want = append(want, namespace+"/"+name)
			_, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Namespace: namespace, Name: name, SessionId: a, Value: []byte("v")})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	got, err := r.locks.GetLock(bg, &apiv1.GetLockRequest{Name: "l0"})
	if err != nil {
		t.Fatal(err)
	}
	lock := &registryv1.Lock{Namespace: "default", Name: "l0", SessionId: a, Value: []byte("v")}
	ignore := protocmp.IgnoreFields(lock, "token", "acquire_revision")
	if diff := cmp.Diff(lock, got.GetLock(), protocmp.Transform(), ignore); diff != "" {
		t.Errorf("lock (-want +got):\n%s", diff)
	}
	_, err = r.locks.GetLock(bg, &apiv1.GetLockRequest{Name: "nope"})
	wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_LOCK_NOT_FOUND)
	for namespace, want := range map[string][]string{"*": want, "": want[:3], "prod": want[3:]} {
		for size := int32(0); size < 4; size++ {
			var names []string
			for token, more := "", true; more; {
				resp, err := r.locks.ListLocks(bg, &apiv1.ListLocksRequest{Namespace: namespace, PageSize: size, PageToken: token})
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range resp.GetLocks() {
					names = append(names, l.GetNamespace()+"/"+l.GetName())
				}
				token, more = resp.GetNextPageToken(), resp.GetNextPageToken() != ""
			}
			if diff := cmp.Diff(want, names); diff != "" {
				t.Errorf("locks of %q by %d (-want +got):\n%s", namespace, size, diff)
			}
		}
	}
}
