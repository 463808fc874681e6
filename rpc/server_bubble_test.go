package rpc

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

func TestUnaryCallsHaveADeadline(t *testing.T) {
	for _, tt := range []struct {
		name string
		ask  time.Duration // 0: none
		call func(context.Context, *rig) error
		want time.Duration
	}{
		{"none", 0, getWeb, DefaultTimeout},
		{"short", time.Second, getWeb, time.Second},
		{"long", time.Hour, getWeb, MaxTimeout},
		{"Acquire without waiting", 0, acquireNow, DefaultTimeout},
		{"Acquire that waits", 0, acquireWaiting, MaxLockWait},
		{"Acquire that waits for days", 48 * time.Hour, acquireWaiting, MaxLockWait},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				var left time.Duration
				note := func(ctx context.Context) error {
					end, ok := ctx.Deadline()
					if !ok {
						t.Error("the call has no deadline")
					}
					left = time.Until(end)
					return cluster.ErrNoLeader
				}
				r.node.set(func() {
					r.node.onView = func(ctx context.Context, _ cluster.Freshness) error { return note(ctx) }
					r.node.onPropose = func(ctx context.Context, _ *raftlogv1.Command) error { return note(ctx) }
				})
				ctx, cancel := context.WithCancel(bg)
				if tt.ask > 0 {
					ctx, cancel = context.WithTimeout(bg, tt.ask)
				}
				defer cancel()
				wantReason(t, tt.call(ctx, r), codes.Unavailable, apiv1.Reason_REASON_NO_LEADER)
				// The deadline travels as a rounded timeout.
				if left > tt.want || left < tt.want-tt.want/100 {
					t.Errorf("the node has %v, want %v", left, tt.want)
				}
			})
		})
	}
}

func getWeb(ctx context.Context, r *rig) error {
	_, err := r.registry.Get(ctx, &apiv1.GetRequest{Key: webKey("1")})
	return err
}

func acquireNow(ctx context.Context, r *rig) error {
	_, err := r.locks.Acquire(ctx, &apiv1.AcquireRequest{Name: "l", SessionId: "s"})
	return err
}

func acquireWaiting(ctx context.Context, r *rig) error {
	_, err := r.locks.Acquire(ctx, &apiv1.AcquireRequest{Name: "l", SessionId: "s", Wait: true})
	return err
}

func TestShutdownSendsStreamsElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.node.set(func() { r.node.info.LeaderAddress = "n2:7400" })
		attach := r.attach(t)
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		keepAlive, err := r.leases.KeepAlive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- r.server.Shutdown(bg) }()
		a, err := attach.Recv()
		if err != nil || !a.GetGoElsewhere() || a.GetLeader() != "n2:7400" {
			t.Errorf("Attach: %v, %v", a, err)
		}
		k, err := keepAlive.Recv()
		if err != nil || !k.GetGoElsewhere() || k.GetLeader() != "n2:7400" {
			t.Errorf("KeepAlive: %v, %v", k, err)
		}
		if _, err := attach.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("Attach after go-elsewhere: %v, want the end", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

func TestShutdownFinishesCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.node.set(func() {
			r.node.onView = func(ctx context.Context, _ cluster.Freshness) error {
				select {
				case <-time.After(3 * time.Second):
					return cluster.ErrTooStale
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})
		call := make(chan error, 1)
		go func() { call <- getWeb(bg, r) }()
		synctest.Wait()
		began := time.Now()
		if err := r.server.Shutdown(bg); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("Shutdown took %v, want as long as the call", took)
		}
		wantReason(t, <-call, codes.Unavailable, apiv1.Reason_REASON_TOO_STALE)
	})
}

func TestShutdownCutsOffWhatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.node.set(func() {
			r.node.onView = func(ctx context.Context, _ cluster.Freshness) error {
				<-ctx.Done()
				return ctx.Err()
			}
		})
		call := make(chan error, 1)
		go func() { call <- getWeb(bg, r) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		began := time.Now()
		if err := r.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v, want its deadline", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("Shutdown took %v", took)
		}
		if err := <-call; status.Code(err) != codes.Unavailable {
			t.Errorf("the call ended with %v", err)
		}
	})
}

func TestHealthFollowsTheNode(t *testing.T) {
	const serving, notServing = healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		client := healthpb.NewHealthClient(r.conn)
		want := func(ready, live healthpb.HealthCheckResponse_ServingStatus) {
			t.Helper()
			list, err := client.List(bg, &healthpb.HealthListRequest{})
			if err != nil || len(list.GetStatuses()) != 9 {
				t.Fatalf("List: %v, %v", list, err)
			}
			for service, listed := range list.GetStatuses() {
				want := ready
				if service == LivenessService {
					want = live
				}
				got, err := client.Check(bg, &healthpb.HealthCheckRequest{Service: service})
				if err != nil || got.GetStatus() != want || listed.GetStatus() != want {
					t.Errorf("%q: %v (%v), listed as %v, want %v", service, got, err, listed, want)
				}
			}
		}
		want(serving, serving)
		r.node.set(func() { r.node.ready = cluster.ErrNoLeader })
		want(notServing, serving)
		r.node.set(func() { r.node.ready, r.node.live = nil, errors.New("stuck") })
		want(serving, notServing)
		_, err := client.Check(bg, &healthpb.HealthCheckRequest{Service: "nope"})
		if status.Code(err) != codes.NotFound {
			t.Errorf("Check of an unknown service: %v", err)
		}
	})
}

func TestLeavingServerGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		client := healthpb.NewHealthClient(r.conn)
		r.server.Leave()
		for service, want := range map[string]healthpb.HealthCheckResponse_ServingStatus{
			"": healthpb.HealthCheckResponse_NOT_SERVING, LivenessService: healthpb.HealthCheckResponse_SERVING,
		} {
			got, err := client.Check(bg, &healthpb.HealthCheckRequest{Service: service})
			if err != nil || got.GetStatus() != want {
				t.Errorf("%q: %v, %v, want %v", service, got, err, want)
			}
		}
		r.register(t, instance("web", "1"))
	})
}

func TestHealthWatchTellsChangesAndTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stream, err := healthpb.NewHealthClient(r.conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		next := func(want healthpb.HealthCheckResponse_ServingStatus) {
			t.Helper()
			got, failed := stream.Recv()
			if failed != nil || got.GetStatus() != want {
				t.Fatalf("status %v (%v), want %v", got, failed, want)
			}
		}
		next(healthpb.HealthCheckResponse_SERVING)
		time.Sleep(time.Minute) // Nothing is said while nothing changes.
		r.node.set(func() { r.node.ready = cluster.ErrNoLeader })
		next(healthpb.HealthCheckResponse_NOT_SERVING)
		r.node.set(func() { r.node.ready = nil })
		next(healthpb.HealthCheckResponse_SERVING)
		done := make(chan error, 1)
		go func() { done <- r.server.Shutdown(bg) }()
		next(healthpb.HealthCheckResponse_NOT_SERVING)
		_, err = stream.Recv()
		wantReason(t, err, codes.Unavailable, apiv1.Reason_REASON_SHUTTING_DOWN)
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

func TestLowerClassesAreRefusedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 100
		r := newRig(t, func(cfg *Config) { cfg.MaxInFlight = limit })
		session := r.openSession(t)
		r.registerChecked(t, "beat")
		calls := map[class]func() error{
			classRenew: func() error {
				_, err := r.sessions.Renew(bg, &apiv1.RenewRequest{SessionIds: []string{session}})
				return err
			},
			classDeregister: func() error {
				_, err := r.registry.Deregister(bg, &apiv1.DeregisterRequest{Key: webKey("nope")})
				return err
			},
			classHealth: func() error {
				_, err := r.registry.SetMaintenance(bg, &apiv1.SetMaintenanceRequest{Key: webKey("1")})
				return err
			},
			classRegister: func() error {
				_, err := r.registry.Register(bg, &apiv1.RegisterRequest{Instance: instance("web", "2")})
				return err
			},
			classList: func() error {
				_, err := r.registry.ListServices(bg, &apiv1.ListServicesRequest{})
				return err
			},
		}
		for n := range int64(limit + 1) {
			r.server.core.admission.inFlight.Store(n)
			for c, call := range calls {
				err := call()
				if n < limit*c.share()/100 {
					if err != nil {
						t.Errorf("%v with %d in flight: %v", c, n, err)
					}
					continue
				}
				if err == nil {
					t.Errorf("%v with %d in flight was let in", c, n)
					continue
				}
				wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED)
			}
			if got := r.server.core.admission.inFlight.Load(); got != n {
				t.Fatalf("%d calls in flight after all had ended, want %d", got, n)
			}
		}
		r.server.core.admission.inFlight.Store(0)
	})
}

func TestOneRestoreAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		_, data := r.save(t)
		first, err := r.cluster.RestoreSnapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err = first.Send(&apiv1.RestoreSnapshotRequest{Chunk: data[:1]}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, err = r.restore(t, data, len(data))
		wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED)
		if err = first.Send(&apiv1.RestoreSnapshotRequest{Chunk: data[1:]}); err != nil {
			t.Fatal(err)
		}
		if _, err = first.CloseAndRecv(); err != nil {
			t.Errorf("the first one: %v", err)
		}
	})
}
