package client_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// lock takes a lock.
func lock(t *testing.T, c *client.Client, name string) *client.Lock {
	t.Helper()
	l, err := c.Lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// wantOwner fails unless a session holds the lock and nobody waits.
func wantOwner(t *testing.T, f *fakeCluster, name, session string) {
	t.Helper()
	synctest.Wait()
	if owner, queue := f.owner(name); owner != session || len(queue) != 0 {
		t.Errorf("lock %s is owned by %q, %v wait: want %q and nobody", name, owner, queue, session)
	}
}

func TestLockPassesFromClientToClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		a, b := f.client(nil), f.client(nil)
		type key struct{}
		held, err := a.Lock(context.WithValue(t.Context(), key{}, "v"), "job", client.LockValue([]byte("a")))
		if err != nil {
			t.Fatal(err)
		}
		if held.Context().Value(key{}) != "v" || string(held.Value()) != "a" || held.Name() != "job" {
			t.Error("the lock lost what it was made with")
		}
		if _, err := b.TryLock(t.Context(), "job"); !errors.Is(err, client.ErrLockHeld) {
			t.Errorf("TryLock of a held lock: %v", err)
		}
		next := make(chan *client.Lock)
		go func() { next <- lock(t, b, "job") }()
		time.Sleep(10 * time.Minute) // longer than any timeout of a call
		if n := len(f.calls("Acquire")); n != 3 {
			t.Errorf("%d acquisitions were sent: a waiting one lost its place", n)
		}
		select {
		case <-next:
			t.Fatal("two owners")
		case <-held.Lost():
			t.Fatal("lost")
		default:
		}
		if err := held.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if held.Context().Err() == nil {
			t.Error("the context outlived Unlock")
		}
		second := <-next
		if second.Token() <= held.Token() {
			t.Errorf("token %d after %d", second.Token(), held.Token())
		}
		select {
		case <-held.Lost():
			t.Error("an unlocked lock is not a lost one")
		default:
		}
		if err := second.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := second.Unlock(t.Context()); err != nil {
			t.Errorf("second Unlock: %v", err)
		}
		wantOwner(t, f, "job", "")
	})
}

// TestLockExcludesWithinOneClient checks what the registry cannot: to it, one client is one owner.
func TestLockExcludesWithinOneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		var mu sync.Mutex
		inside, most := 0, 0
		tokens := make(map[uint64]bool)
		var users sync.WaitGroup
		for range 10 {
			users.Go(func() {
				l := lock(t, c, "job")
				mu.Lock()
				inside++
				most = max(most, inside)
				tokens[l.Token()] = true
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				inside--
				mu.Unlock()
				if err := l.Unlock(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if _, err := c.TryLock(t.Context(), "job"); !errors.Is(err, client.ErrLockHeld) {
			t.Errorf("TryLock beside another holder in the client: %v", err)
		}
		other := lock(t, c, "other")
		users.Wait()
		if most != 1 || len(tokens) != 10 {
			t.Errorf("%d held it at once with %d tokens, want 1 and 10", most, len(tokens))
		}
		if err := other.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestLockIsLostWhenItsSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		l := lock(t, c, "job")
		f.endSession("s1")
		select {
		case <-l.Lost():
		case <-time.After(6 * time.Second):
			t.Fatal("not lost at the next renewal")
		}
		synctest.Wait()
		if !errors.Is(context.Cause(l.Context()), client.ErrLockLost) {
			t.Errorf("the context ended with %v", context.Cause(l.Context()))
		}
		if _, held := l.Deadline(); held {
			t.Error("a deadline of a lost lock")
		}
		if err := l.Unlock(t.Context()); !errors.Is(err, client.ErrLockLost) {
			t.Errorf("Unlock: %v, want ErrLockLost", err)
		}
		again := lock(t, c, "job")
		if again.Token() <= l.Token() {
			t.Errorf("token %d after %d", again.Token(), l.Token())
		}
		wantOwner(t, f, "job", "s2")
	})
}

// TestLockContextEndsAtTheDeadline checks that nobody believes in a lock longer than the registry guarantees it, to the
// moment, though no node answers.
func TestLockContextEndsAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		c := f.client(nil)
		l := lock(t, c, "job")
		time.Sleep(time.Minute)
		for _, n := range f.nodes {
			n.set(func(n *fakeNode) { n.attach = silent })
		}
		time.Sleep(8 * time.Second)
		deadline, held := l.Deadline()
		if !held {
			t.Fatal("lost too early")
		}
		<-l.Context().Done()
		if late := time.Since(deadline); late != 0 {
			t.Errorf("ended %s after the deadline", late)
		}
		<-l.Lost()
		// The session survived, and with it the old ownership. It must not be handed out again.
		for _, n := range f.nodes {
			n.set(func(n *fakeNode) { n.attach = nil })
		}
		time.Sleep(10 * time.Second)
		wantOwner(t, f, "job", "s1")
		if err := l.Unlock(t.Context()); !errors.Is(err, client.ErrLockLost) {
			t.Errorf("Unlock: %v, want ErrLockLost", err)
		}
		if again := lock(t, c, "job"); again.Token() <= l.Token() {
			t.Errorf("token %d after %d", again.Token(), l.Token())
		}
	})
}

func TestGivingUpLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		a, b := f.client(nil), f.client(nil)
		held := lock(t, a, "job")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := b.Lock(ctx, "job"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline", err)
		}
		wantOwner(t, f, "job", "s1") // the fake keeps the places of callers that are gone, as when their node dies
		if err := held.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantOwner(t, f, "job", "")
		lock(t, b, "job")
	})
}

func TestLostAnswerToAnAcquisitionIsAskedForUnderANewID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].after = failing("Acquire", status.Error(codes.Unavailable, "reset"))
		l := lock(t, f.client(nil), "job")
		calls := f.calls("Acquire")
		if len(calls) != 2 || l.Token() != 1 {
			t.Fatalf("%d attempts gave token %d, want 2 and 1", len(calls), l.Token())
		}
		one, two := calls[0].req.(*apiv1.AcquireRequest).GetRequestId(), calls[1].req.(*apiv1.AcquireRequest).GetRequestId()
		if one.GetClientId() != two.GetClientId() || two.GetAnsweredBelow() <= one.GetSequence() {
			t.Errorf("ids %v and %v: the second must fence off the first", one, two)
		}
	})
}

// TestLateAcquisitionIsFencedOff plays an acquisition that reaches the registry after its caller has given up.
func TestLateAcquisitionIsFencedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		n := f.nodes[0]
		n.before = func(method string, _ proto.Message) error {
			if method == "Acquire" {
				return status.Error(codes.Unavailable, "under way")
			}
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := f.client(nil).Lock(ctx, "job"); err == nil {
			t.Fatal("no error")
		}
		time.Sleep(time.Second)
		n.set(func(n *fakeNode) { n.before = nil })
		for _, late := range f.calls("Acquire") {
			if _, err := n.Acquire(t.Context(), late.req.(*apiv1.AcquireRequest)); err == nil {
				t.Fatalf("a late %v was carried out", late.req)
			}
		}
		wantOwner(t, f, "job", "")
	})
}

func TestLongWaitHoldsUpNoOtherWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		a, b := f.client(nil), f.client(nil)
		held := lock(t, a, "job")
		got := make(chan *client.Lock)
		go func() { got <- lock(t, b, "job") }()
		synctest.Wait()
		for range 200 {
			if _, err := b.RegisterDetached(t.Context(), web("a")); err != nil {
				t.Fatal(err)
			}
		}
		if err := held.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-got
	})
}

func TestUnlockGoesOnInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		l := lock(t, c, "job")
		f.nodes[0].set(func(n *fakeNode) {
			n.before = func(method string, _ proto.Message) error {
				if method == "Release" {
					return reason(apiv1.Reason_REASON_NO_LEADER)
				}
				return nil
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Unlock(ctx); !errors.Is(err, client.ErrNoLeader) || errors.Is(err, client.ErrLockLost) {
			t.Errorf("Unlock: %v, want ErrNoLeader", err)
		}
		wantOwner(t, f, "job", "s1")
		f.nodes[0].set(func(n *fakeNode) { n.before = nil })
		time.Sleep(15 * time.Second)
		wantOwner(t, f, "job", "")
	})
}

func TestSemaphoreIsALockOfSeveralSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		for _, take := range []func() (*client.Lock, error){
			func() (*client.Lock, error) { return c.Lock(t.Context(), "job") },
			func() (*client.Lock, error) { return c.Semaphore(t.Context(), "pool", 3) },
			func() (*client.Lock, error) { return c.TrySemaphore(t.Context(), "pool", 1000) },
		} {
			l, err := take()
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Unlock(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var slots []uint32
		for _, call := range f.calls("Acquire") {
			slots = append(slots, call.req.(*apiv1.AcquireRequest).GetSlots())
		}
		if !slices.Equal(slots, []uint32{0, 3, 1000}) {
			t.Errorf("slots %v were asked for, want none, 3 and 1000", slots)
		}
		for _, bad := range []int{-1, 0, 1001} {
			if _, err := c.Semaphore(t.Context(), "pool", bad); err == nil {
				t.Errorf("%d slots were accepted", bad)
			}
		}
		f.nodes[0].before = failing("Acquire", reason(apiv1.Reason_REASON_SLOTS_MISMATCH))
		if _, err := c.Semaphore(t.Context(), "pool", 2); !errors.Is(err, client.ErrSlotsMismatch) {
			t.Errorf("error %v, want that the slots differ", err)
		}
	})
}

func TestUnlockUnderTheContextOfTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		l := lock(t, f.client(nil), "job")
		ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
		defer cancel()
		if err := l.Unlock(ctx); err != nil {
			t.Error(err)
		}
		if owner, _ := f.owner("job"); owner != "" {
			t.Errorf("%q owns the lock after Unlock", owner)
		}
	})
}

func TestCloseLosesLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		l := lock(t, c, "job")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		<-l.Lost()
		if !errors.Is(context.Cause(l.Context()), client.ErrClosed) {
			t.Errorf("the context ended with %v", context.Cause(l.Context()))
		}
		if err := l.Unlock(t.Context()); !errors.Is(err, client.ErrLockLost) {
			t.Errorf("Unlock: %v", err)
		}
		wantOwner(t, f, "job", "")
		if _, err := c.Lock(t.Context(), "job"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("Lock after Close: %v", err)
		}
	})
}

func TestLockOptionsAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(t, 1).client(nil)
		if _, err := c.TryLock(t.Context(), "job", client.LockValue(make([]byte, 1025)), client.LockNamespace("")); err == nil {
			t.Error("bad options were accepted")
		}
	})
}

// Whether the node or the client notices first that the time is up: the caller hears that it is.
func TestLockThatIsWaitedForInVainIsATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		defer lock(t, f.client(nil), "job").Unlock(t.Context()) //nolint:errcheck // It is not about this one.
		node := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if method != apiv1.LockService_Acquire_FullMethodName {
				return invoke(ctx, method, req, reply, cc, opts...)
			}
			<-ctx.Done()
			return reason(apiv1.Reason_REASON_LOCK_HELD)
		}
		for name, c := range map[string]*client.Client{
			"client": f.client(nil), "node": f.client(nil, client.WithDialOptions(grpc.WithUnaryInterceptor(node))),
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := c.Lock(ctx, "job"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the %s notices first: %v, want that the deadline was exceeded", name, err)
			}
			cancel()
		}
	})
}
