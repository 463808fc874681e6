package rpc

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// lockStream is a client's side of WatchLock.
type lockStream struct {
	t *testing.T
	grpc.ServerStreamingClient[apiv1.WatchLockResponse]
}

// watchLock watches lock "l".
func (r *rig) watchLock(ctx context.Context, t *testing.T, req *apiv1.WatchLockRequest) *lockStream {
	t.Helper()
	req.Name = "l"
	stream, err := r.locks.WatchLock(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return &lockStream{t, stream}
}

// want fails unless the next message says that the session holds the lock with the token, nobody when it is empty.
func (s *lockStream) want(session string, token uint64) *apiv1.ResponseHeader {
	s.t.Helper()
	m, err := s.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	if m.GetLock().GetSessionId() != session || m.GetLock().GetToken() != token || (m.GetLock() == nil) != (session == "") {
		s.t.Fatalf("the lock is %v, want it held by %q with token %d", m.GetLock(), session, token)
	}
	return m.GetHeader()
}

func TestWatchedLockIsToldAtEachChangeOfOwner(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		a, b := r.openSession(t), r.openSession(t)
		s := r.watchLock(ctx, t, &apiv1.WatchLockRequest{})
		began := time.Now()
		first := s.want("", 0)
		want := &apiv1.ResponseHeader{
			ClusterId: "c1", Epoch: 1, Revision: r.node.feed.State().Revision(), Staleness: durationpb.New(time.Millisecond),
			Mode: apiv1.Mode_MODE_STALE, Node: "n1", Leader: "n1:7400",
		}
		if diff := cmp.Diff(want, first, protocmp.Transform()); diff != "" {
			t.Errorf("header (-want +got):\n%s", diff)
		}
		if _, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: a, Value: []byte("here")}); err != nil {
			t.Fatal(err)
		}
		held := r.node.feed.State().Lock("default", "l")
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(held.Proto(), m.GetLock(), protocmp.Transform()); diff != "" {
			t.Errorf("lock (-want +got):\n%s", diff)
		}
		// The queue is nothing to those who watch, nor are other locks.
		waiting := r.acquire(bg, b, nil)
		synctest.Wait()
		if _, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "other", SessionId: a}); err != nil {
			t.Fatal(err)
		}
		r.release(t, a, held.Token)
		next := (<-waiting).token
		s.want(b, next)
		if _, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: b}); err != nil {
			t.Fatal(err)
		}
		if last := s.want("", 0); last.GetRevision() != r.node.feed.State().Revision() {
			t.Errorf("told at revision %d, want %d", last.GetRevision(), r.node.feed.State().Revision())
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v: changes are pushed, not polled", took)
		}
	})
}

func TestIdleWatchOfALockRepeatsWhatIs(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		a := r.openSession(t)
		token := r.mustAcquire(t, a)
		usual := r.watchLock(ctx, t, &apiv1.WatchLockRequest{})
		often := r.watchLock(ctx, t, &apiv1.WatchLockRequest{ProgressInterval: durationpb.New(time.Second)})
		usual.want(a, token)
		often.want(a, token)
		began := time.Now()
		r.openSession(t) // moves the revision on
		for i := range 10 {
			if h := often.want(a, token); h.GetRevision() != r.node.feed.State().Revision() || time.Since(began) != time.Duration(i+1)*time.Second {
				t.Errorf("repetition %d after %v at revision %d", i, time.Since(began), h.GetRevision())
			}
		}
		usual.want(a, token)
		usual.want(a, token)
		if time.Since(began) != 2*DefaultProgressInterval {
			t.Errorf("two repetitions after %v", time.Since(began))
		}
	})
}

func TestSlowWatcherOfALockGetsTheLastState(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		a := r.openSession(t)
		s := r.watchLock(ctx, t, &apiv1.WatchLockRequest{})
		s.want("", 0)
		const changes = 1000
		for range changes / 2 {
			resp, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: a, Value: make([]byte, MaxLockValueLen)})
			if err != nil {
				t.Fatal(err)
			}
			r.release(t, a, resp.GetToken())
			synctest.Wait()
		}
		token := r.mustAcquire(t, a)
		var last, largest uint64
		told := 0
		for last < token {
			m, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			told++
			if last = m.GetLock().GetToken(); last != 0 && last < largest {
				t.Fatalf("token %d after %d", last, largest)
			}
			largest = max(largest, last)
		}
		if told > changes/2 {
			t.Errorf("%d messages for %d changes: nothing was left out for a client that did not read", told, changes)
		}
	})
}

func TestWatchOfALockEndsWhenItsClientDoesNotRead(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		a := r.openSession(t)
		s := r.watchLock(ctx, t, &apiv1.WatchLockRequest{})
		for range 200 {
			resp, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: a, Value: make([]byte, MaxLockValueLen)})
			if err != nil {
				t.Fatal(err)
			}
			r.release(t, a, resp.GetToken())
			synctest.Wait()
		}
		if open := len(r.server.core.watches); open != 1 {
			t.Fatalf("%d watches are open, want 1", open)
		}
		time.Sleep(stuckAfter)
		synctest.Wait()
		if open := len(r.server.core.watches); open != 0 {
			t.Errorf("%d watches are open, want none", open)
		}
		for {
			if _, err := s.Recv(); err != nil {
				wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED)
				return
			}
		}
	})
}

func TestWatchesOfLocksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.MaxWatches = 1 })
		ctx, cancel := context.WithCancel(t.Context())
		r.watchLock(ctx, t, &apiv1.WatchLockRequest{}).want("", 0)
		_, err := r.watchLock(t.Context(), t, &apiv1.WatchLockRequest{}).Recv()
		wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED)
		cancel()
		synctest.Wait()
		r.watchLock(t.Context(), t, &apiv1.WatchLockRequest{}).want("", 0)
		for range r.server.core.admission.limit {
			_ = r.server.core.admission.enter(classRenew)
		}
		_, err = r.watchLock(t.Context(), t, &apiv1.WatchLockRequest{}).Recv()
		if info := wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED); info.GetMetadata()["class"] != "resync" {
			t.Errorf("refused as %v, want the class of watches", info.GetMetadata())
		}
	})
}

func TestWatchOfALockEndsWithTheNode(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		s := r.watchLock(ctx, t, &apiv1.WatchLockRequest{})
		s.want("", 0)
		if err := r.server.Shutdown(bg); err != nil {
			t.Fatal(err)
		}
		_, err := s.Recv()
		wantReason(t, err, codes.Unavailable, apiv1.Reason_REASON_SHUTTING_DOWN)
	})
}

// A restored snapshot, or one that was installed, is told as what the lock is now.
func TestWatchOfALockSurvivesARestore(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		a := r.openSession(t)
		before := r.node.feed.State()
		token := r.mustAcquire(t, a)
		s := r.watchLock(ctx, t, &apiv1.WatchLockRequest{})
		s.want(a, token)
		if err := r.node.Restore(bg, before); err != nil {
			t.Fatal(err)
		}
		if h := s.want("", 0); h.GetEpoch() != 2 {
			t.Errorf("epoch %d, want 2", h.GetEpoch())
		}
	})
}

func TestWatchOfALockIsValidated(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		for _, req := range []*apiv1.WatchLockRequest{
			{},
			{Namespace: "*", Name: "l"},
			{Name: "l", ProgressInterval: durationpb.New(time.Millisecond)},
		} {
			stream, err := r.locks.WatchLock(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		}
	})
}
