package rpc

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// known are the instances that a subscription of a follower has, sorted.
func (f *follower) knows(id uint32) []string {
	var keys []string
	for key := range f.subs[id].known {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func TestWatchOfSeveralServicesHasThoseThatTheCallerMaySee(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.enforce(t)
		r.node.identity(t, "reads", rule("*/pay-*", discoverIt))
		r.node.put(t, instance("pay-a", "1"))
		r.node.put(t, instance("secret", "1"))
		f := newFollower(showing(ctx, "reads"), t, r.registry)
		f.subscribe(subscribe(1, ""))
		f.until(r.node.feed.State().Revision())
		if diff := cmp.Diff([]string{"default/pay-a/1"}, f.knows(1)); diff != "" {
			t.Errorf("first (-want +got):\n%s", diff)
		}
		r.node.put(t, instance("secret", "2"))
		r.node.mustApply(t, removal("secret", "1"))
		r.node.put(t, instance("pay-b", "1"))
		f.until(r.node.feed.State().Revision())
		for _, e := range f.events {
			if strings.Contains(e, "secret") {
				t.Errorf("was told of %s", e)
			}
		}

		// More, then less, then nothing but what was given last.
		for _, tt := range []struct {
			place string
			want  []string
		}{
			{"*/*", []string{"default/pay-a/1", "default/pay-b/1", "default/secret/2"}},
			{"*/pay-b", []string{"default/pay-b/1"}},
			{"other/*", nil},
			{"default/secret", []string{"default/secret/2"}},
		} {
			r.node.identity(t, "reads", rule(tt.place, discoverIt))
			f.until(r.node.feed.State().Revision())
			if diff := cmp.Diff(tt.want, f.knows(1)); diff != "" {
				t.Errorf("with %s (-want +got):\n%s", tt.place, diff)
			}
		}
	})
}

func TestSubscriptionEndsWithThePermission(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.enforce(t)
		r.node.identity(t, "reads", rule("default/a", discoverIt), rule("default/b", discoverIt))
		f := newFollower(showing(ctx, "reads"), t, r.registry)
		f.subscribe(subscribe(1, "a"))
		f.subscribe(subscribe(2, "b"))
		f.subscribe(subscribe(3, "c"))
		ended := func() *apiv1.SubscriptionEnded {
			for {
				if m := f.recv().GetEnded(); m != nil {
					return m
				}
			}
		}
		if got := ended(); got.GetSubscriptionId() != 3 || got.GetReason() != "PERMISSION_DENIED" {
			t.Errorf("of three ended %v, want the one that is not allowed", got)
		}
		r.node.identity(t, "reads", rule("default/b", discoverIt))
		if got := ended(); got.GetSubscriptionId() != 1 || got.GetReason() != "PERMISSION_DENIED" {
			t.Errorf("ended %v, want the one that was forbidden", got)
		}
		r.node.put(t, instance("a", "1"))
		r.node.put(t, instance("b", "1"))
		for {
			events := f.recv().GetEvents().GetEvents()
			if len(events) == 0 {
				continue
			}
			if got := events[0].GetEvent().GetInstance().GetService(); got != "b" {
				t.Errorf("was told of %s", got)
			}
			break
		}
	})
}

// Streams end at once with their token, whether or not anything happens on them.
func TestStreamsEndWithTheToken(t *testing.T) {
	deleted := func(t *testing.T, r *rig) {
		r.node.mustApply(t, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_DeleteToken{
			DeleteToken: &raftlogv1.DeleteToken{Id: "reads"},
		}})
	}
	replaced := func(t *testing.T, r *rig) { // By a snapshot in which there is no such token.
		other := newFakeNode(t)
		other.enforce(t)
		if err := r.node.Restore(t.Context(), other.feed.State()); err != nil {
			t.Fatal(err)
		}
	}
	for name, end := range map[string]func(*testing.T, *rig){"deleted": deleted, "restored": replaced} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
				r.node.enforce(t)
				r.node.identity(t, "reads", rule("*/*", discoverIt, seeLock))
				ctx = showing(ctx, "reads")
				watch, err := r.registry.Watch(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if err = watch.Send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: subscribe(1, "web")}}); err != nil {
					t.Fatal(err)
				}
				lock, err := r.locks.WatchLock(ctx, &apiv1.WatchLockRequest{Name: "job"})
				if err != nil {
					t.Fatal(err)
				}
				ends := make(chan error, 2)
				began := time.Now()
				go func() { ends <- untilEnd(watch.Recv) }()
				go func() { ends <- untilEnd(lock.Recv) }()
				synctest.Wait()
				end(t, r)
				for range cap(ends) {
					if err := <-ends; status.Code(err) != codes.Unauthenticated {
						t.Errorf("ended with %v", err)
					}
				}
				if d := time.Since(began); d > 0 {
					t.Errorf("ended after %v, want at once", d)
				}
			})
		})
	}
}

func untilEnd[M any](recv func() (M, error)) error {
	for {
		if _, err := recv(); err != nil {
			return err
		}
	}
}

func TestStreamsEndWhenTheTokenExpires(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.enforce(t)
		r.node.mustApply(t, &raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_CreateToken{
			CreateToken: createToken("short", bootstrapIdentity, time.Now().Add(time.Minute)),
		}})
		watch, err := r.registry.Watch(showing(ctx, "short"))
		if err != nil {
			t.Fatal(err)
		}
		if err = watch.Send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: subscribe(1, "web")}}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err = untilEnd(watch.Recv); status.Code(err) != codes.Unauthenticated {
			t.Errorf("ended with %v", err)
		}
		if d := time.Since(began); d < time.Minute || d > time.Minute+DefaultProgressInterval {
			t.Errorf("ended after %v, want one minute and at most the interval of marks", d)
		}
	})
}

// Who loses the right to see a lock is not told of it any more.
func TestLockWatchEndsWithThePermission(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.enforce(t)
		r.node.identity(t, "reads", rule("default/job", seeLock))
		lock, err := r.locks.WatchLock(showing(ctx, "reads"), &apiv1.WatchLockRequest{Name: "job"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = lock.Recv(); err != nil {
			t.Fatal(err)
		}
		r.node.identity(t, "reads", rule("default/other", seeLock))
		if err = untilEnd(lock.Recv); status.Code(err) != codes.PermissionDenied {
			t.Errorf("ended with %v", err)
		}
	})
}
