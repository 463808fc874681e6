package rpc

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// attach opens an Attach stream.
func (r *rig) attach(tb testing.TB) apiv1.SessionService_AttachClient {
	tb.Helper()
	ctx, cancel := context.WithCancel(bg)
	tb.Cleanup(cancel)
	stream, err := r.sessions.Attach(ctx)
	if err != nil {
		tb.Fatalf("Attach: %v", err)
	}
	return stream
}

func TestAttachAnswersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		id := r.openSession(t)
		stream := r.attach(t)
		for sequence := range uint64(3) {
			if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{id, "gone"}, Sequence: sequence}); err != nil {
				t.Fatal(err)
			}
			resp, err := stream.Recv()
			if err != nil || resp.GetSequence() != sequence || !slices.Equal(resp.GetEnded(), []string{"gone"}) {
				t.Fatalf("answer %d: %v, %v", sequence, resp, err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("after the last request: %v, want the end", err)
		}
	})
}

// What comes while a renewal is under way is renewed at once, and has one answer.
func TestRenewalsThatWaitAreMadeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var calls [][]string
		free := make(chan struct{})
		r.node.set(func() {
			r.node.onRenew = func(_ context.Context, _ peerv1.RenewKind, ids []string) ([]string, error) {
				calls = append(calls, ids)
				if len(calls) == 1 {
					<-free
				}
				return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id != "gone" }), nil
			}
		})
		stream := r.attach(t)
		sent := [][]string{{"first"}, {"a", "gone"}, {"b"}, {}}
		for i, ids := range sent {
			if err := stream.Send(&apiv1.AttachRequest{SessionIds: ids, Sequence: uint64(i)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		close(free)
		for _, want := range []*apiv1.AttachResponse{{Epoch: 1}, {Sequence: 3, Ended: []string{"gone"}, Epoch: 1}} {
			resp, err := stream.Recv()
			if err != nil || !proto.Equal(resp, want) {
				t.Fatalf("answer %v, %v; want %v", resp, err, want)
			}
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("after the last answer: %v, want the end", err)
		}
		if want := [][]string{{"first"}, {"a", "gone", "b"}}; !cmp.Equal(calls, want) {
			t.Errorf("renewed %q, want %q", calls, want)
		}
	})
}

// A client that sends and never reads must not fill the node's memory.
func TestFewRenewalsOfAStreamWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pending := newPendingRenewals()
		received := 0
		go pending.gather(renewStream{recv: func() ([]string, uint64, error) {
			received++
			return []string{"a"}, uint64(received), nil
		}})
		synctest.Wait()
		if received != maxPending {
			t.Errorf("%d messages of an id each wait, want %d", received, maxPending)
		}
		batch, _ := pending.take()
		synctest.Wait()
		if len(batch.ids) != maxPending || received != 2*maxPending {
			t.Errorf("after %d were taken %d have been received, want %d", len(batch.ids), received, 2*maxPending)
		}
		close(pending.done)
	})
}

func TestAttachOutlastsAnOutage(t *testing.T) {
	for name, failure := range map[string]error{
		"no leader":  cluster.ErrNoLeader,
		"not leader": cluster.ErrNotLeader,
		"overload":   cluster.ErrOverloaded,
		"deadline":   context.DeadlineExceeded,
		"a bug":      errors.New("bug"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				id := r.openSession(t)
				const outage = 10 * time.Second
				began := time.Now()
				attempts := 0
				r.node.set(func() {
					r.node.onRenew = func(context.Context, peerv1.RenewKind, []string) ([]string, error) {
						attempts++
						if time.Since(began) < outage {
							return nil, failure
						}
						return nil, nil
					}
				})
				stream := r.attach(t)
				if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{id}, Sequence: 7}); err != nil {
					t.Fatal(err)
				}
				resp, err := stream.Recv()
				if err != nil || resp.GetSequence() != 7 || resp.GetGoElsewhere() {
					t.Fatalf("answer %v, %v", resp, err)
				}
				if took := time.Since(began); took < outage || took > outage+maxRenewPause {
					t.Errorf("the answer took %v, want %v and at most a pause", took, outage)
				}
				if attempts < 5 || attempts > 50 {
					t.Errorf("%d attempts", attempts)
				}
			})
		})
	}
}

func TestAttachWaitsForAPlaceAmongCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(cfg *Config) { cfg.MaxInFlight = 3 })
		stream := r.attach(t)
		inFlight := &r.server.core.admission.inFlight
		inFlight.Store(3)
		time.AfterFunc(10*time.Second, func() { inFlight.Add(-3) })
		began := time.Now()
		if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{"s"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil || time.Since(began) < 10*time.Second {
			t.Errorf("answered after %v, %v", time.Since(began), err)
		}
		if n := inFlight.Load(); n != 0 {
			t.Errorf("%d calls in flight after the answer", n)
		}
	})
}

func TestAttachDoesNotHangOnOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		attempts := 0
		r.node.set(func() {
			r.node.onRenew = func(ctx context.Context, _ peerv1.RenewKind, _ []string) ([]string, error) {
				if attempts++; attempts == 1 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return nil, nil
			}
		})
		stream := r.attach(t)
		if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{"s"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAttachEndsWithItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		attempts := 0
		r.node.set(func() {
			r.node.onRenew = func(context.Context, peerv1.RenewKind, []string) ([]string, error) {
				attempts++
				return nil, cluster.ErrNoLeader
			}
		})
		ctx, cancel := context.WithCancel(bg)
		stream, err := r.sessions.Attach(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{"s"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		cancel()
		synctest.Wait()
		before := attempts
		time.Sleep(time.Minute)
		if attempts != before {
			t.Errorf("%d attempts after the client had gone", attempts-before)
		}
	})
}

func TestRenewalsSayGoElsewhereWhenTheNodeIsOut(t *testing.T) {
	for name, failure := range map[string]error{"removed": cluster.ErrRemoved, "stopping": cluster.ErrClosed} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.node.set(func() {
					r.node.info.LeaderAddress = "n2:7400"
					r.node.onRenew = func(context.Context, peerv1.RenewKind, []string) ([]string, error) { return nil, failure }
				})
				stream := r.attach(t)
				if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{"s"}}); err != nil {
					t.Fatal(err)
				}
				resp, err := stream.Recv()
				if err != nil || !resp.GetGoElsewhere() || resp.GetLeader() != "n2:7400" {
					t.Fatalf("answer %v, %v", resp, err)
				}
				if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
					t.Errorf("after go-elsewhere: %v, want the end", err)
				}
			})
		})
	}
}

func TestAttachRefusesMalformedIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stream := r.attach(t)
		if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{"a b"}}); err != nil {
			t.Fatal(err)
		}
		_, err := stream.Recv()
		wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	})
}

func TestKeepAliveRenewsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		granted, err := r.leases.Grant(bg, &apiv1.GrantRequest{Ttl: durationpb.New(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		stream, err := r.leases.KeepAlive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		id := granted.GetLease().GetId()
		if err = stream.Send(&apiv1.KeepAliveRequest{LeaseIds: []string{id, "gone"}, Sequence: 3}); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil || resp.GetSequence() != 3 || !slices.Equal(resp.GetEnded(), []string{"gone"}) {
			t.Fatalf("answer %v, %v", resp, err)
		}
		if got := r.node.renewed(peerv1.RenewKind_RENEW_KIND_LEASE); !slices.Equal(got, []string{id, "gone"}) {
			t.Errorf("renewed %v", got)
		}
	})
}
