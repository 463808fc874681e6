package chaos_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// instance is of the size that the benchmarks speak of: about 230 bytes encoded.
func instance(service, id, session string) *registryv1.Instance {
	return &registryv1.Instance{
		Service: service, Id: id, SessionId: session, Address: "10.1.2.3", Zone: "eu-central-1a", Region: "eu-central-1",
		Ports: []*registryv1.Port{{Name: "http", Number: 8080}}, Tags: []string{"v2", "canary"},
		Metadata: map[string]string{"version": "2.14.3", "commit": "8f3a2b1", "team": "payments", "lang": "go"},
	}
}

// conns opens eight connections, spread over the given nodes.
func conns(b *testing.B, list ...*nodes.Node) []*grpc.ClientConn {
	b.Helper()
	var all []*grpc.ClientConn
	for i := range 8 {
		conn := list[i%len(list)].Dial()
		b.Cleanup(func() { _ = conn.Close() })
		all = append(all, conn)
	}
	return all
}

// closed runs the operation in a closed loop of the given number of clients and reports operations a second.
func closed(b *testing.B, clients int, op func(ctx context.Context, client, k int) error) {
	b.Helper()
	ctx := b.Context()
	var next atomic.Int64
	failed := make(chan error, clients)
	b.ResetTimer()
	for c := range clients {
		go func() {
			for {
				k := int(next.Add(1))
				if k > b.N {
					failed <- nil
					return
				}
				callCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
				err := op(callCtx, c, k)
				cancel()
				if err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	for range clients {
		if err := <-failed; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkRegister registers instances on a live session, on a cluster of three processes with fsync.
func BenchmarkRegister(b *testing.B) {
	c := nodes.Start(b, 3)
	leader := c.Leader()
	session := openSession(b, leader)
	for _, clients := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			list := conns(b, leader)
			closed(b, clients, func(ctx context.Context, client, k int) error {
				in := instance(fmt.Sprintf("s%d", k%1000), fmt.Sprintf("i%d", k%10), session)
				in.Metadata["commit"] = fmt.Sprint(k) // Each one is a change.
				_, err := apiv1.NewRegistryServiceClient(list[client%len(list)]).Register(ctx, &apiv1.RegisterRequest{
					RequestId: requestID(client), Instance: in,
				})
				return err
			})
		})
	}
}

// BenchmarkRead makes linearizable and stale reads of a service of ten instances.
func BenchmarkRead(b *testing.B) {
	c := nodes.Start(b, 3)
	leader := c.Leader()
	session := openSession(b, leader)
	for i := range 10 {
		_, err := leader.Registry().Register(b.Context(), &apiv1.RegisterRequest{
			Instance: instance("web", fmt.Sprint(i), session),
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	var follower *nodes.Node
	for _, n := range c.Nodes() {
		if n != leader {
			follower = n
		}
	}
	for _, mode := range []apiv1.Mode{apiv1.Mode_MODE_LINEARIZABLE, apiv1.Mode_MODE_STALE} {
		for _, at := range []*nodes.Node{leader, follower} {
			for _, clients := range []int{1, 64, 256} {
				where := "follower"
				if at == leader {
					where = "leader"
				}
				b.Run(fmt.Sprintf("mode=%v/at=%s/clients=%d", mode, where, clients), func(b *testing.B) {
					list := conns(b, at)
					closed(b, clients, func(ctx context.Context, client, _ int) error {
						reply, err := apiv1.NewRegistryServiceClient(list[client%len(list)]).ListInstances(ctx,
							&apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web"}, Freshness: &apiv1.Freshness{Mode: mode}})
						if err == nil && len(reply.GetInstances()) != 10 {
							return fmt.Errorf("%d instances, want 10", len(reply.GetInstances()))
						}
						return err
					})
				})
			}
		}
	}
}

// BenchmarkRenew renews one session a message, 64 streams with 16 messages under way each, spread over all nodes.
func BenchmarkRenew(b *testing.B) {
	c := nodes.Start(b, 3)
	leader := c.Leader()
	const streams, window = 64, 16
	list := conns(b, c.Nodes()...)
	var sessions []string
	for range streams {
		sessions = append(sessions, openSession(b, leader))
	}
	b.ResetTimer()
	failed := make(chan error, streams)
	for s := range streams {
		go func() {
			failed <- renewMany(b.Context(), list[s%len(list)], sessions[s], b.N/streams+1, window)
		}()
	}
	for range streams {
		if err := <-failed; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func renewMany(ctx context.Context, conn *grpc.ClientConn, session string, count, window int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := apiv1.NewSessionServiceClient(conn).Attach(ctx)
	if err != nil {
		return err
	}
	under := 0
	for sent, acked := 0, 0; acked < count; {
		for sent < count && under < window {
			sent, under = sent+1, under+1
			if err := stream.Send(&apiv1.AttachRequest{SessionIds: []string{session}, Sequence: uint64(sent)}); err != nil {
				return err
			}
		}
		reply, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(reply.GetEnded()) > 0 {
			return fmt.Errorf("session %s has ended", session)
		}
		done := int(reply.GetSequence()) - acked
		acked, under = acked+done, under-done
	}
	return nil
}

// BenchmarkFailover kills the leader and takes the time to the next acknowledged write, at default timers.
func BenchmarkFailover(b *testing.B) {
	c := nodes.Start(b, 3)
	var total time.Duration
	for b.Loop() {
		old := c.Leader()
		begun := time.Now()
		old.Kill()
		writeSomewhere(b, c, old)
		total += time.Since(begun)
		old.Start()
		c.Ready()
	}
	b.ReportMetric(float64(total.Milliseconds())/float64(b.N), "ms/failover")
}

// writeSomewhere writes through any other node until a write is acknowledged.
func writeSomewhere(b *testing.B, c *nodes.Cluster, dead *nodes.Node) {
	b.Helper()
	for b.Context().Err() == nil {
		for _, n := range c.Nodes() {
			if n == dead {
				continue
			}
			ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
			_, err := n.Registry().Register(ctx, &apiv1.RegisterRequest{Instance: instance("web", fmt.Sprint(seq()), "")})
			cancel()
			if err == nil {
				return
			}
		}
	}
}

var sequence atomic.Uint64

// requestID is the next of a client with one request at a time.
func requestID(client int) *apiv1.RequestID {
	k := seq()
	return &apiv1.RequestID{ClientId: fmt.Sprintf("client-%d", client), Sequence: k, AnsweredBelow: k}
}

func seq() uint64 { return sequence.Add(1) }

func openSession(b *testing.B, n *nodes.Node) string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	reply, err := apiv1.NewSessionServiceClient(n.Conn()).Open(ctx, &apiv1.OpenRequest{
		ClientName: "bench", Ttl: durationpb.New(time.Hour),
	})
	if err != nil {
		b.Fatal(err)
	}
	return reply.GetSession().GetId()
}
