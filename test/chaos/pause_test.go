package chaos_test

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// probe is an instance that carries a growing number: reads that begin after a number was acknowledged must see it.
type probe struct {
	acked atomic.Int64 // the largest acknowledged number
	reads atomic.Int64 // answered linearizable reads
	stale atomic.Int64 // of them older than what was acknowledged before they began
}

func (p *probe) key() *apiv1.InstanceKey { return &apiv1.InstanceKey{Service: "probe", Id: "p"} }

// write sets the number through a node, trying again until it is acknowledged.
func (p *probe) write(ctx context.Context, t *testing.T, n *nodes.Node, number int64) {
	t.Helper()
	req := &apiv1.RegisterRequest{
		RequestId: &apiv1.RequestID{ClientId: "probe", Sequence: uint64(number), AnsweredBelow: uint64(number)},
		Instance: &registryv1.Instance{
			Service: "probe", Id: "p", Address: "127.0.0.1", Metadata: map[string]string{"n": strconv.FormatInt(number, 10)},
		},
	}
	for {
		callCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := n.Registry().Register(callCtx, req)
		cancel()
		if err == nil {
			p.acked.Store(number)
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("write %d through %s: %v", number, n.Name, err)
		}
	}
}

// read makes one linearizable read and judges it. It returns whether it was answered.
func (p *probe) read(ctx context.Context, client apiv1.RegistryServiceClient) bool {
	before := p.acked.Load()
	reply, err := client.Get(ctx, &apiv1.GetRequest{Key: p.key()})
	if err != nil {
		return false
	}
	p.reads.Add(1)
	number, err := strconv.ParseInt(reply.GetInstance().GetMetadata()["n"], 10, 64)
	if err != nil || number < before {
		p.stale.Add(1)
	}
	return true
}

// TestAPausedLeaderAnswersNoStaleRead: the leader is stopped where it is, another is elected and acknowledges a write,
// reads are sent to the stopped one, and it is let go on. Whatever it answers, it must not be the old value (G2).
func TestAPausedLeaderAnswersNoStaleRead(t *testing.T) {
	const readsPerRound, conns = 24, 8
	c := nodes.Start(t, 3, "--heartbeat-timeout", "250ms")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	p := &probe{}
	p.write(ctx, t, c.Leader(), 1)

	// Readers on all nodes, all the time: what holds for the paused node holds for the others too.
	var wg sync.WaitGroup
	background, stop := context.WithCancel(ctx)
	defer wg.Wait()
	defer stop()
	for i := range 12 {
		client := c.Nodes()[i%3].Registry()
		wg.Go(func() {
			for background.Err() == nil {
				callCtx, cancel := context.WithTimeout(background, time.Second)
				p.read(callCtx, client)
				cancel()
				time.Sleep(3 * time.Millisecond) // Else they keep all processors busy.
			}
		})
	}
	var answered atomic.Int64
	number := int64(1)
	for range rounds(t, 6) {
		old := c.Leader()
		var warm []apiv1.RegistryServiceClient
		for range conns {
			conn := old.Dial()
			defer conn.Close()
			client := apiv1.NewRegistryServiceClient(conn)
			p.read(ctx, client)
			warm = append(warm, client)
		}
		old.Pause()
		next := c.Leader(old)
		number++
		p.write(ctx, t, next, number)
		var sent, begun sync.WaitGroup
		begun.Add(readsPerRound)
		for i := range readsPerRound {
			sent.Go(func() {
				callCtx, cancel := context.WithTimeout(ctx, 3*time.Second)
				defer cancel()
				begun.Done()
				if p.read(callCtx, warm[i%conns]) {
					answered.Add(1)
				}
			})
		}
		begun.Wait()
		for range 20 { // By the time that these are answered those have been put on the wire.
			p.read(ctx, next.Registry())
		}
		old.Resume()
		sent.Wait()
	}
	stop()
	wg.Wait()
	t.Logf("%d linearizable reads answered, %d of them of those sent to a paused leader, %d stale",
		p.reads.Load(), answered.Load(), p.stale.Load())
	if p.stale.Load() > 0 {
		t.Errorf("%d of %d linearizable reads were stale", p.stale.Load(), p.reads.Load())
	}
	if sent := (number - 1) * readsPerRound; answered.Load() < sent/2 {
		t.Errorf("of %d reads sent to a paused leader only %d were answered: too few to prove anything", sent, answered.Load())
	}
}
