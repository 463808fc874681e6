package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// holder keeps a share of the leases alive, as one client would: one stream, all ids in one message, each third of a TTL.
type holder struct {
	nodes []*nodes.Node
	ids   []string
	ttl   time.Duration
	stop  atomic.Bool // it dies: it renews no more

	mu     sync.Mutex
	sent   time.Time // when the last acknowledged renewal was sent, at first: when the first grant was
	acked  time.Time // when its acknowledgement came
	acks   int
	early  []string // leases that were told to have ended before their time
	missed []error
}

// keep renews until ctx ends or the holder dies, at another node when a stream breaks or an answer takes too long.
func (h *holder) keep(ctx context.Context, first int) {
	for k := first; ctx.Err() == nil && !h.stop.Load(); k++ {
		n := h.nodes[k%len(h.nodes)]
		if !n.Running() {
			continue
		}
		if err := h.attach(ctx, n); err != nil && ctx.Err() == nil {
			h.mu.Lock()
			h.missed = append(h.missed, err)
			h.mu.Unlock()
			time.Sleep(20 * time.Millisecond) // As a client would, before it asks the next one.
		}
	}
}

func (h *holder) attach(ctx context.Context, n *nodes.Node) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn := n.Dial()
	defer conn.Close()
	stream, err := apiv1.NewLeaseServiceClient(conn).KeepAlive(ctx)
	if err != nil {
		return err
	}
	for sequence := uint64(1); !h.stop.Load(); sequence++ {
		sent := time.Now()
		if err := stream.Send(&apiv1.KeepAliveRequest{LeaseIds: h.ids, Sequence: sequence}); err != nil {
			return err
		}
		late := time.AfterFunc(h.ttl/3, cancel)
		reply, err := stream.Recv()
		late.Stop()
		if err != nil {
			return err
		}
		if reply.GetGoElsewhere() {
			return errors.New("sent elsewhere")
		}
		h.note(sent, reply)
		select {
		case <-time.After(h.ttl / 3):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (h *holder) note(sent time.Time, reply *apiv1.KeepAliveResponse) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range reply.GetEnded() {
		if now.Before(h.sent.Add(h.ttl)) {
			h.early = append(h.early, fmt.Sprintf("%s was told to have ended %v after the renewal that was acknowledged last",
				id, now.Sub(h.sent)))
		} else {
			h.missed = append(h.missed, fmt.Errorf("%s has ended %v after its last renewal", id, now.Sub(h.sent)))
		}
	}
	h.sent, h.acked = sent, now
	h.acks++
}

// TestLeasesOutliveTheirLeaders: leader after leader is killed while many leases are renewed. None that was renewed
// ends before its time, and all whose holders died are gone at most a TTL and a grace after their last renewal or the
// last change of leader (G5). CHAOS_LEASES sets how many leases (of 10 s then), CHAOS_ROUNDS how many kills.
func TestLeasesOutliveTheirLeaders(t *testing.T) {
	const share, grace = 1000, 2 * time.Second
	total, ttl := 3000, 4*time.Second
	if s := os.Getenv("CHAOS_LEASES"); s != "" {
		k, err := strconv.Atoi(s)
		if err != nil || k < 3*share {
			t.Fatalf("CHAOS_LEASES=%q: must be a number of at least %d", s, 3*share)
		}
		total, ttl = k, 10*time.Second
	}
	c := nodes.Start(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()

	var holders []*holder
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for k := range total / share {
		h := &holder{nodes: c.Nodes(), ttl: ttl, sent: time.Now()}
		h.ids = grantLeases(ctx, t, c.Nodes()[k%3], share, ttl)
		holders = append(holders, h)
		wg.Go(func() { h.keep(ctx, k) })
	}
	kills := rounds(t, 1)
	die := func(round int) *holder { return holders[(len(holders)-1)*(round+1)/(kills+1)] }
	var last time.Time
	for round := range kills {
		old := c.Leader()
		die(round).stop.Store(true)
		old.Kill()
		c.Leader(old)
		last = time.Now()
		old.Start()
		c.Ready()
		c.Wait("renewals after the kill", ttl, func(context.Context) bool {
			for _, h := range holders {
				h.mu.Lock()
				behind := !h.stop.Load() && h.acked.Before(last)
				h.mu.Unlock()
				if behind {
					return false
				}
			}
			return true
		})
	}
	// Whoever died is gone by then.
	deadline := last.Add(ttl + grace)
	c.Wait("the dead to be gone", 60*time.Second, func(context.Context) bool { return time.Now().After(deadline) })
	have := listLeases(ctx, t, c.Leader())
	cancel()
	wg.Wait()
	judgeLeases(t, holders, have)
	verify(t, c)
}

func judgeLeases(t *testing.T, holders []*holder, have map[string]bool) {
	t.Helper()
	var alive, dead, acks int
	for _, h := range holders {
		for _, e := range h.early {
			t.Error(e)
		}
		for _, id := range h.ids {
			if h.stop.Load() {
				dead++
				if have[id] {
					t.Errorf("%s is still there, its holder renewed it last at %v", id, h.acked)
				}
				continue
			}
			alive++
			if !have[id] {
				t.Errorf("%s is gone although it was renewed at %v", id, h.sent)
			}
		}
		acks += h.acks
		for _, err := range h.missed {
			t.Logf("a renewal had to be tried again: %v", err)
		}
	}
	t.Logf("%d leases alive, %d dead, %d acknowledged renewals of %d each", alive, dead, acks, len(holders[0].ids))
	if dead == 0 || acks < len(holders) {
		t.Errorf("%d leases died, %d renewals were acknowledged: too few to prove anything", dead, acks)
	}
}

// grantLeases grants leases through a node, many at a time. It returns before any of them needs renewing.
func grantLeases(ctx context.Context, t *testing.T, n *nodes.Node, count int, ttl time.Duration) []string {
	t.Helper()
	const clients = 50
	conns := make([]*grpc.ClientConn, 4)
	for i := range conns {
		conns[i] = n.Dial()
		defer conns[i].Close()
	}
	ids := make([]string, count)
	var next atomic.Int64
	failed := make(chan error, clients)
	for i := range clients {
		api := apiv1.NewLeaseServiceClient(conns[i%len(conns)])
		go func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= count {
					failed <- nil
					return
				}
				reply, err := api.Grant(ctx, &apiv1.GrantRequest{Ttl: durationpb.New(ttl)})
				if err != nil {
					failed <- err
					return
				}
				ids[k] = reply.GetLease().GetId()
			}
		}()
	}
	for range clients {
		if err := <-failed; err != nil {
			t.Fatalf("grant a lease: %v", err)
		}
	}
	return ids
}

// listLeases reads all leases, linearizably.
func listLeases(ctx context.Context, t *testing.T, n *nodes.Node) map[string]bool {
	t.Helper()
	have := map[string]bool{}
	for token := ""; ; {
		page, err := apiv1.NewLeaseServiceClient(n.Conn()).ListLeases(ctx, &apiv1.ListLeasesRequest{PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, lease := range page.GetLeases() {
			have[lease.GetId()] = true
		}
		if token = page.GetNextPageToken(); token == "" {
			return have
		}
	}
}
