package rpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// deafStream is a watch stream whose client reads nothing: its first message after the header blocks until the handler has
// returned.
type deafStream struct {
	grpc.ServerStream
	ctx   context.Context
	asked bool
}

func (d *deafStream) Context() context.Context   { return d.ctx }
func (*deafStream) SendHeader(metadata.MD) error { return nil }

func (d *deafStream) RecvMsg(m any) error {
	if d.asked {
		return io.EOF
	}
	d.asked = true
	req, err := proto.Marshal(&apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: "web"}})
	*m.(*undecoded) = req
	return err
}

func (d *deafStream) SendMsg(any) error {
	<-d.ctx.Done()
	return d.ctx.Err()
}

func TestWhoDoesNotReadIsCutOffAndHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		server := &registryServer{core: r.server.core}
		began := time.Now()
		var deaf sync.WaitGroup
		defer deaf.Wait()
		for range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			deaf.Go(func() {
				defer cancel() // As gRPC does when a handler has returned.
				if err := server.watchService(&deafStream{ctx: ctx}); !errors.Is(err, ErrOverloaded) {
					t.Errorf("the stream of who does not read ended with %v", err)
				}
				if d := time.Since(began).Truncate(time.Second); d != stuckAfter {
					t.Errorf("it ended after %v, want %v", d, stuckAfter)
				}
			})
		}
		time.Sleep(time.Second)
		f := newFollower(t.Context(), t, r.registry)
		f.subscribe(subscribe(1, "web"))
		f.until(0)
		r.register(t, instance("web", "1"))
		f.until(r.node.feed.State().Revision())
		f.equal(r.node.feed.State())
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("who reads heard of a change after %v", d)
		}
		deaf.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(r.server.core.watches); n != 1 {
			t.Errorf("%d watches are open, want that of who reads", n)
		}
	})
}
