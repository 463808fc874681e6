package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// streaming calls f with each system and wires to a server of it.
func streaming(t *testing.T, f func(t *testing.T, s system, wires []*wire)) {
	for _, s := range []system{&regd{}, &etcd{}} {
		t.Run(s.name(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, dial := serving(t, func(server *grpc.Server) {
					apiv1.RegisterRegistryServiceServer(server, streamingRegistry())
					apiv1.RegisterSessionServiceServer(server, streamingRegistry())
					etcdserverpb.RegisterWatchServer(server, &etcdServer{})
					etcdserverpb.RegisterLeaseServer(server, &etcdServer{})
				})
				wires, done, err := wired(t.Context(), dial, 4, "", "")
				if err != nil {
					t.Fatal(err)
				}
				defer done()
				f(t, s, wires)
			})
		})
	}
}

func TestEachStreamHearsEachChange(t *testing.T) {
	streaming(t, func(t *testing.T, s system, wires []*wire) {
		const streams = 1000
		var heard [4]atomic.Int64
		stop, err := watching(t.Context(), s, wires, streams, alike("web"), func(version int) { heard[version].Add(1) })
		if err != nil {
			t.Fatal(err)
		}
		wait(t.Context(), 2*callTimeout) // It is no call that is given up.
		if err := stop(); err != nil {
			t.Error(err)
		}
		for version, want := range []int64{0, streams, streams, streams} {
			if n := heard[version].Load(); n != want {
				t.Errorf("version %d was heard of %d times, want %d", version, n, want)
			}
		}
	})
}

func TestAStreamThatDoesNotStandIsAnError(t *testing.T) {
	streaming(t, func(t *testing.T, s system, wires []*wire) {
		_, err := watching(t.Context(), s, wires, 10, func(i int) string { return []string{"web", "db"}[i/9] }, func(int) {})
		if err == nil || !strings.Contains(err.Error(), "watched") {
			t.Errorf("a service that cannot be watched: %v", err)
		}
	})
}

// someOwners are owners of both systems.
func someOwners(n int) []owner {
	var list []owner
	for i := range n {
		list = append(list, owner{id: fmt.Sprintf("session %d", i), number: int64(i + 1)})
	}
	return list
}

func TestRenewalsGoOnAsTheyAreAnswered(t *testing.T) {
	streaming(t, func(t *testing.T, s system, wires []*wire) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		var acked atomic.Int64
		stop, err := renew(s, wires, someOwners(100), &acked, cancel)
		if err != nil {
			t.Fatal(err)
		}
		wait(ctx, 2*callTimeout+answering/2)
		err = context.Cause(ctx)
		stop()
		// Each answer, of as many as the system answers at once, takes the server a while.
		atOnce := map[string]int64{"regd": acksAtOnce, "etcd": 1}[s.name()]
		if want := renewalStreams * atOnce * int64(2*callTimeout/answering); err != nil || acked.Load() != want {
			t.Errorf("%d are answered, want %d; %v", acked.Load(), want, err)
		}
		if err = context.Cause(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("stopped streams end with %v", err)
		}
	})
}

func TestAsManyRenewalsAreUnderWayAsTheWindowSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		asked := map[string]int{}
		_, dial := serve(t, registry{attach: func(stream grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error {
			for {
				req, err := stream.Recv()
				if err != nil {
					return err
				}
				mu.Lock()
				asked[req.GetSessionIds()[0]]++
				mu.Unlock()
			}
		}})
		wires, done, err := wired(t.Context(), dial, connections, "")
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		const each = 4 // owners of a stream
		var acked atomic.Int64
		stop, err := renew(&regd{}, wires, someOwners(each*renewalStreams), &acked, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		wait(t.Context(), time.Second)
		stop()
		mu.Lock()
		defer mu.Unlock()
		for id, n := range asked {
			if n != renewalWindow/each {
				t.Errorf("%s was renewed %d times, want %d", id, n, renewalWindow/each)
			}
		}
		if len(asked) != each*renewalStreams || acked.Load() != 0 {
			t.Errorf("%d owners were renewed, %d answers came", len(asked), acked.Load())
		}
	})
}
