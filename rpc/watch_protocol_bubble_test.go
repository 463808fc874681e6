package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestBadSubscriptionEndsAlone(t *testing.T) {
	for _, tc := range []struct {
		name, message string
		sub           *apiv1.Subscribe
	}{
		{"service", "filter.service", &apiv1.Subscribe{Filter: &apiv1.Filter{Service: "/"}}},
		{"namespace", "filter.namespace", &apiv1.Subscribe{Filter: &apiv1.Filter{Namespace: "A"}}},
		{"interval", "progress_interval", &apiv1.Subscribe{ProgressInterval: durationpb.New(time.Millisecond)}},
		{"long interval", "progress_interval", &apiv1.Subscribe{ProgressInterval: durationpb.New(time.Hour)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				f := newFollower(ctx, t, r.registry)
				f.subscribe(subscribe(1, "web"))
				tc.sub.SubscriptionId = 2
				f.subscribe(tc.sub)
				f.until(r.node.feed.State().Revision())
				for len(f.ended) == 0 {
					f.recv()
				}
				got := f.ended[0]
				if got.GetSubscriptionId() != 2 || got.GetReason() != "INVALID_ARGUMENT" || !strings.Contains(got.GetMessage(), tc.message) {
					t.Errorf("ended: %v, want a message about %s", got, tc.message)
				}
				f.subscribe(subscribe(2, "web")) // The number is free again.
				r.node.put(t, instance("web", "1"))
				f.until(r.node.feed.State().Revision())
				f.equal(r.node.feed.State())
			})
		})
	}
}

func TestUnsubscribeEndsASubscription(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		for id := range uint32(3) {
			f.subscribe(subscribe(id+1, "web"))
		}
		f.until(r.node.feed.State().Revision())
		f.unsubscribe(2)
		f.unsubscribe(9)
		for range 2 {
			f.recv()
		}
		want := []*apiv1.SubscriptionEnded{{SubscriptionId: 2}, {SubscriptionId: 9}}
		if diff := cmp.Diff(want, f.ended, protocmp.Transform()); diff != "" {
			t.Errorf("ended (-want +got):\n%s", diff)
		}
		r.node.put(t, instance("web", "1"))
		revision := r.node.feed.State().Revision()
		f.until(revision)
		if diff := cmp.Diff([]string{fmt.Sprintf("%d +web/1 [1 3]", revision)}, f.events); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		f.unsubscribe(1)
		f.unsubscribe(3)
		for len(f.subs) > 0 {
			f.recv()
		}
		r.node.put(t, instance("web", "2"))
		if f.recv().GetProgress() == nil {
			t.Errorf("events without a subscription: %v", f.events)
		}
	})
}

func TestSubscriptionsOfAStreamAreLimited(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		for i := range uint32(MaxSubscriptions) {
			f.subscribe(subscribe(i+1, "none"))
			f.recv() // Cut.
			f.recv() // Synced.
		}
		f.subscribe(subscribe(MaxSubscriptions+1, "none"))
		f.recv()
		if got := f.ended[0]; got.GetReason() != "LIMIT_REACHED" || got.GetSubscriptionId() != MaxSubscriptions+1 {
			t.Errorf("ended: %v", got)
		}
	})
}

func TestBrokenProtocolEndsTheStream(t *testing.T) {
	for _, tc := range []struct {
		name string
		req  *apiv1.WatchRequest
	}{
		{"no action", &apiv1.WatchRequest{}},
		{"no number", &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: &apiv1.Subscribe{}}}},
		{"a number twice", &apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: subscribe(1, "web")}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				f := newFollower(ctx, t, r.registry)
				f.subscribe(subscribe(1, "web"))
				f.until(r.node.feed.State().Revision())
				f.send(tc.req)
				if err := endOf(f); status.Code(err) != codes.InvalidArgument {
					t.Errorf("the stream ended with %v", err)
				}
			})
		})
	}
}

// endOf takes messages in until the stream ends.
func endOf(f *follower) error {
	for {
		m, err := f.stream.Recv()
		if err != nil {
			return err
		}
		f.take(m)
	}
}

func reasonOf(tb testing.TB, err error) string {
	tb.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	tb.Errorf("no reason in %v", err)
	return ""
}

func TestLeavingNodeSendsItsClientsElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		began := time.Now()
		down := make(chan error, 1)
		go func() { down <- r.server.Shutdown(ctx) }()
		f.recv()
		if f.moved.GetLeader() != "n1:7400" {
			t.Errorf("go elsewhere: %v", f.moved)
		}
		r.node.put(t, instance("web", "1")) // Still served.
		f.until(r.node.feed.State().Revision())
		if err := endOf(f); status.Code(err) != codes.Unavailable || reasonOf(t, err) != "SHUTTING_DOWN" {
			t.Errorf("the stream ended with %v", err)
		}
		if err := <-down; err != nil || time.Since(began) > 2*leavingGrace {
			t.Errorf("Shutdown took %v: %v", time.Since(began), err)
		}
	})
}

func TestClientThatLeavesAtOnceDoesNotHoldUpShutdown(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		ctx, cancel := context.WithCancel(ctx)
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		began := time.Now()
		down := make(chan error, 1)
		go func() { down <- r.server.Shutdown(t.Context()) }()
		f.recv()
		cancel()
		if err := <-down; err != nil || time.Since(began) != 0 {
			t.Errorf("Shutdown took %v: %v", time.Since(began), err)
		}
	})
}

func TestWatchEndsWithTheReasonOfTheNode(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		r.node.set(func() {
			r.node.onView = func(context.Context, cluster.Freshness) error { return cluster.ErrRemoved }
		})
		if err := endOf(f); reasonOf(t, err) != "REMOVED" {
			t.Errorf("the stream ended with %v", err)
		}
	})
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
		r.node.feed.Close()
		if err := endOf(f); reasonOf(t, err) != "SHUTTING_DOWN" {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

func TestStreamLivesOnAfterTheLastRequest(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		f := newFollower(ctx, t, r.registry)
		f.subscribe(subscribe(1, "web"))
		if err := f.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		f.until(r.node.feed.State().Revision())
		r.node.put(t, instance("web", "1"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
	})
}

// A client that only wants one subscription gets the same messages.
func TestWatchServiceIsAWatchWithOneSubscription(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.put(t, instance("web", "1"))
		ctx, cancel := context.WithCancel(ctx)
		stream, err := r.registry.WatchService(ctx, &apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: "web"}})
		if err != nil {
			t.Fatal(err)
		}
		recv := func() *apiv1.WatchServiceResponse {
			t.Helper()
			m, recvErr := stream.Recv()
			if recvErr != nil {
				t.Fatal(recvErr)
			}
			return m
		}
		if c := recv().GetCut(); c.GetSubscriptionId() != 1 || len(c.GetInstances()) != 1 {
			t.Errorf("cut %v", c)
		}
		synced := recv().GetSynced().GetHeader()
		if synced.GetRevision() != r.node.feed.State().Revision() {
			t.Errorf("synced %v", synced)
		}
		r.node.put(t, instance("web", "2"))
		if e := recv().GetEvents(); len(e.GetEvents()) != 1 || !slices.Equal(e.GetEvents()[0].GetSubscriptionIds(), []uint32{1}) {
			t.Errorf("events %v", e)
		}
		if p := recv().GetProgress(); p.GetHeader().GetRevision() != r.node.feed.State().Revision() {
			t.Errorf("progress %v", p)
		}
		cancel()
		if _, err = stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("after the client cancelled: %v", err)
		}

		bad, err := r.registry.WatchService(t.Context(), &apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: "/"}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := bad.Recv()
		if err != nil || m.GetEnded().GetReason() != "INVALID_ARGUMENT" {
			t.Errorf("a bad filter gives %v, %v", m, err)
		}
		if _, err = bad.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("after its subscription ended the stream goes on: %v", err)
		}
	})
}

func TestWatchesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.MaxWatches = 2 })
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 {
			f := newFollower(ctx, t, r.registry)
			f.subscribe(subscribe(1, "web"))
			f.until(r.node.feed.State().Revision())
		}
		refused := newFollower(t.Context(), t, r.registry)
		if err := endOf(refused); reasonOf(t, err) != "OVERLOADED" {
			t.Errorf("one watch too many ended with %v", err)
		}
		if used, limit := limitUse(t, r.server, "watches"); used != 2 || limit != 2 {
			t.Errorf("metrics say that %v of %v watches are open", used, limit)
		}
		cancel()
		synctest.Wait()
		if used, _ := limitUse(t, r.server, "watches"); used != 0 {
			t.Errorf("metrics say that %v watches are open once all have ended", used)
		}
		f := newFollower(t.Context(), t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(r.node.feed.State().Revision())
	})
}
