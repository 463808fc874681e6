package client_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// watchedLock is what a watch of lock "job" yields.
type watchedLock struct {
	result client.LockResult
	err    error
}

// watchLock watches lock "job" in the background. The channel is closed after the last pair.
func watchLock(ctx context.Context, t *testing.T, c *client.Client) <-chan watchedLock {
	t.Helper()
	out := make(chan watchedLock)
	t.Cleanup(func() {
		for range out {
		}
	})
	go func() {
		defer close(out)
		for result, err := range c.WatchLock(ctx, "", "job") {
			out <- watchedLock{result, err}
		}
	}()
	return out
}

// wantHolder fails unless the session is yielded as the next holder, nobody when it is empty.
func wantHolder(t *testing.T, watch <-chan watchedLock, session string) client.LockResult {
	t.Helper()
	select {
	case got := <-watch:
		if got.err != nil || got.result.Lock.GetSessionId() != session || (got.result.Lock == nil) != (session == "") {
			t.Fatalf("%v, %v; want %q as the holder", got.result.Lock, got.err, session)
		}
		return got.result
	case <-time.After(time.Minute):
		t.Fatalf("nothing was yielded, want %q as the holder", session)
		return client.LockResult{}
	}
}

func wantSilence(t *testing.T, watch <-chan watchedLock, within time.Duration) {
	t.Helper()
	select {
	case got := <-watch:
		t.Fatalf("%v, %v; want nothing", got.result.Lock, got.err)
	case <-time.After(within):
	}
}

func TestWatchLockYieldsEachHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		a, b := f.client(nil), f.client(nil)
		ctx, cancel := context.WithCancel(t.Context())
		watch := watchLock(ctx, t, f.client(nil))
		wantHolder(t, watch, "")
		held, err := a.Lock(t.Context(), "job", client.LockValue([]byte("here")))
		if err != nil {
			t.Fatal(err)
		}
		if got := wantHolder(t, watch, "s1"); got.Lock.GetToken() != held.Token() || string(got.Lock.GetValue()) != "here" || got.Node != "n1" {
			t.Errorf("yielded %+v", got)
		}
		wantSilence(t, watch, time.Hour) // signs of life are no changes
		if err := held.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantHolder(t, watch, "")
		lock(t, b, "job")
		wantHolder(t, watch, "s2")
		cancel()
		if got := <-watch; !errors.Is(got.err, context.Canceled) {
			t.Errorf("the last pair has %v", got.err)
		}
		if _, more := <-watch; more {
			t.Error("the loop went on after its error")
		}
	})
}

func TestWatchLockGoesOnAtAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		watch := watchLock(t.Context(), t, f.client(nil))
		serving := f.nodes[0]
		if wantHolder(t, watch, "").Node == "n2" {
			serving = f.nodes[1]
		}
		serving.stop()
		wantSilence(t, watch, 10*time.Second)
		lock(t, f.client(nil), "job")
		wantHolder(t, watch, "s1")
	})
}

func TestWatchLockLeavesASilentNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		silent := func(stream grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error {
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		n := f.nodes[0]
		n.watchLock = silent
		watch := watchLock(t.Context(), t, f.client(nil))
		wantHolder(t, watch, "")
		lock(t, f.client(f.nodes[1:]), "job")
		wantHolder(t, watch, "s1")
	})
}

// lockAt is a script that tells of the lock at given revisions, and is silent then.
func lockAt(n *fakeNode, staleness time.Duration, tellings ...any) func(grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error {
	return func(stream grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error {
		for i := 0; i < len(tellings); i += 2 {
			header := &apiv1.ResponseHeader{
				ClusterId: "cluster", Epoch: 1, Revision: uint64(tellings[i].(int)), //nolint:gosec // Small.
				Node: strings.TrimSuffix(n.address, ":7400"), Staleness: durationpb.New(staleness),
			}
			var l *registryv1.Lock
			if session := tellings[i+1].(string); session != "" {
				l = &registryv1.Lock{SessionId: session, Token: header.GetRevision()}
			}
			if err := stream.Send(&apiv1.WatchLockResponse{Header: header, Lock: l}); err != nil {
				return err
			}
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}
}

// Nobody may come back who was succeeded, because the next node lags behind the last one.
func TestWatchLockNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		ahead, behind := f.nodes[0], f.nodes[1]
		behind.watchLock = func(grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error {
			return reason(apiv1.Reason_REASON_STARTING)
		}
		ahead.watchLock = lockAt(ahead, 0, 110, "a", 120, "b")
		watch := watchLock(t.Context(), t, f.client(nil))
		wantHolder(t, watch, "a")
		wantHolder(t, watch, "b")
		behind.set(func(n *fakeNode) { n.watchLock = lockAt(n, 0, 105, "", 110, "a", 120, "b", 121, "c") })
		ahead.stop()
		wantHolder(t, watch, "c")
	})
}

// A node that is cut off from its leader gives signs of life, and shows what was.
func TestWatchLockLeavesANodeThatIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		off := f.nodes[0]
		off.watchLock = lockAt(off, time.Minute, 50, "old")
		f.nodes[1].watchLock = lockAt(f.nodes[1], 0, 60, "new")
		watch := watchLock(t.Context(), t, f.client(nil))
		for {
			got := <-watch
			if got.err != nil {
				t.Fatal(got.err)
			}
			if got.result.Lock.GetSessionId() == "new" {
				return
			}
			if got.result.Staleness != time.Minute {
				t.Errorf("%v is said to be %v old", got.result.Lock, got.result.Staleness)
			}
		}
	})
}

func TestWatchLockTellsWhyNothingComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].watchLock = func(grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error {
			return reasonAs(codes.Unavailable, apiv1.Reason_REASON_STARTING)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got := <-watchLock(ctx, t, f.client(nil))
		if !errors.Is(got.err, context.DeadlineExceeded) || !errors.Is(got.err, client.ErrStarting) {
			t.Errorf("error %v, want the deadline and that the node is starting", got.err)
		}
	})
}

func TestWatchLockEndsWhenItIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].watchLock = func(grpc.ServerStreamingServer[apiv1.WatchLockResponse]) error {
			return reasonAs(codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		}
		watch := watchLock(t.Context(), t, f.client(nil))
		if got := <-watch; !errors.Is(got.err, client.ErrInvalidArgument) {
			t.Errorf("error %v, want that the argument is invalid", got.err)
		}
		if _, more := <-watch; more {
			t.Error("the loop went on")
		}
	})
}

func TestCloseEndsWatchLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		c := f.client(nil)
		watch := watchLock(t.Context(), t, c)
		wantHolder(t, watch, "")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if got := <-watch; !errors.Is(got.err, client.ErrClosed) {
			t.Errorf("error %v, want that the client is closed", got.err)
		}
		if got := <-watchLock(t.Context(), t, c); !errors.Is(got.err, client.ErrClosed) {
			t.Errorf("a watch of a closed client: %v", got.err)
		}
	})
}

// A reader may take its time: no sign of life is missed meanwhile, and what it gets then is what is.
func TestWatchLockWaitsForItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		watch := watchLock(t.Context(), t, f.client(nil))
		wantHolder(t, watch, "")
		c := f.client(nil)
		lock(t, c, "job")
		time.Sleep(10 * time.Minute)
		wantHolder(t, watch, "s1")
		wantSilence(t, watch, time.Minute)
		if n := len(f.calls("WatchLock")); n != 1 {
			t.Errorf("%d streams, want 1", n)
		}
	})
}
