package rpc

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// rawCodec leaves messages undecoded, so that the server shows and not the client.
type rawCodec struct{ codec }

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*[]byte); ok {
		*m = append((*m)[:0], data.Materialize()...)
		return nil
	}
	return newCodec().Unmarshal(data, v)
}

// BenchmarkFanOut is one event from Publish until the last of all streams has it, over loopback, client and server in one
// process.
func BenchmarkFanOut(b *testing.B) {
	for _, tc := range []struct{ conns, streams, subs int }{
		{20, 20, 1}, {20, 1000, 1}, {20, 5000, 1}, {20, 20, 250},
	} {
		b.Run(fmt.Sprintf("conns=%d/streams=%d/subs=%d", tc.conns, tc.streams, tc.streams*tc.subs), func(b *testing.B) {
			node := newFakeNode(b)
			server, err := NewServer(Config{MaxStreams: 10_000, MaxConnsPerIP: 10_000, MaxInFlight: 100_000}, node)
			if err != nil {
				b.Fatal(err)
			}
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() { _ = server.Serve(lis) })
			ctx, cancel := context.WithCancel(b.Context())
			defer func() {
				cancel()
				_ = server.Shutdown(context.Background())
				wg.Wait()
			}()
			got := make(chan struct{}, tc.streams)
			for range tc.conns {
				conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{codec{newCodec()}})))
				if err != nil {
					b.Fatal(err)
				}
				defer conn.Close()
				for range tc.streams / tc.conns {
					openStream(ctx, b, conn, tc.subs, &wg, got)
				}
			}
			for range tc.streams {
				<-got
			}
			b.ReportAllocs()
			b.ResetTimer()
			worst := time.Duration(0)
			for i := range b.N {
				began := time.Now()
				in := instance("web", fmt.Sprint(i%10))
				in.Zone = fmt.Sprint(i) // Another one each time, else nothing changes.
				node.put(b, in)
				for range tc.streams {
					<-got
				}
				worst = max(worst, time.Since(began))
			}
			b.ReportMetric(float64(worst.Microseconds()), "worst-us")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tc.streams), "us/message")
		})
	}
}

// openStream opens a stream with subscriptions to one service; got has a token when all are synced, and for each event.
func openStream(ctx context.Context, b *testing.B, conn *grpc.ClientConn, subs int, wg *sync.WaitGroup, got chan<- struct{}) {
	b.Helper()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		apiv1.RegistryService_Watch_FullMethodName)
	if err != nil {
		b.Fatal(err)
	}
	for id := range subs {
		sub := subscribe(uint32(id+1), "web")
		if err := stream.SendMsg(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: sub}}); err != nil {
			b.Fatal(err)
		}
	}
	wg.Go(func() {
		var m []byte
		for n := 1; stream.RecvMsg(&m) == nil; n++ {
			progress := len(m) > 0 && m[0]>>3 == 4
			if n == 2*subs || n > 2*subs && !progress { // A cut and a synced each, then events.
				got <- struct{}{}
			}
		}
	})
}
