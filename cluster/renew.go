package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// renewals gathers what is to be renewed through this node and hands it to the leader in batches: one is under way, the
// rest gathers. There is no timer, so that a lone renewal is not delayed and a thousand cost one message.
type renewals struct {
	send func(context.Context, []*peerv1.Renewals) ([]*peerv1.Renewals, error)

	mu      sync.Mutex
	waiting []*renewal
	sending bool
	wg      sync.WaitGroup
}

type renewal struct {
	kind peerv1.RenewKind
	ids  []string
	done chan renewed // capacity 1
}

type renewed struct {
	ended []string
	err   error
}

const (
	// maxRenewBatch bounds the ids of one message to the leader.
	maxRenewBatch = 20_000
	// renewTimeout bounds one batch, as it serves callers with different deadlines.
	renewTimeout = 2 * time.Second
)

func (b *renewals) renew(ctx context.Context, kind peerv1.RenewKind, ids []string) ([]string, error) {
	r := &renewal{kind: kind, ids: ids, done: make(chan renewed, 1)}
	b.mu.Lock()
	b.waiting = append(b.waiting, r)
	if !b.sending {
		b.sending = true
		b.wg.Go(b.run)
	}
	b.mu.Unlock()
	select {
	case got := <-r.done:
		return got.ended, got.err
	case <-ctx.Done():
		return nil, fmt.Errorf("renew %d ids: %w", len(ids), ctx.Err())
	}
}

// run sends batches until nothing waits.
func (b *renewals) run() {
	for {
		b.mu.Lock()
		batch := b.take()
		if len(batch) == 0 {
			b.sending = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		// The batch is nobody's in particular: it ends by its own time.
		ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
		ended, err := b.send(ctx, merge(batch))
		cancel()
		deliver(batch, ended, err)
	}
}

// take removes a batch from what waits. Called with mu held.
func (b *renewals) take() []*renewal {
	size, k := 0, 0
	for k < len(b.waiting) && (k == 0 || size+len(b.waiting[k].ids) <= maxRenewBatch) {
		size += len(b.waiting[k].ids)
		k++
	}
	batch := slices.Clone(b.waiting[:k])
	b.waiting = slices.Delete(b.waiting, 0, k)
	return batch
}

// merge makes one list for each kind.
func merge(batch []*renewal) []*peerv1.Renewals {
	var lists []*peerv1.Renewals
	size := 0
	for _, r := range batch {
		size += len(r.ids)
	}
	for _, r := range batch {
		i := slices.IndexFunc(lists, func(l *peerv1.Renewals) bool { return l.GetKind() == r.kind })
		if i < 0 {
			lists = append(lists, &peerv1.Renewals{Kind: r.kind, Ids: make([]string, 0, size)})
			i = len(lists) - 1
		}
		lists[i].Ids = append(lists[i].Ids, r.ids...)
	}
	return lists
}

// deliver tells each caller which of its ids have ended.
func deliver(batch []*renewal, lists []*peerv1.Renewals, err error) {
	type key struct {
		kind peerv1.RenewKind
		id   string
	}
	ended := map[key]bool{}
	for _, l := range lists {
		for _, id := range l.GetIds() {
			ended[key{l.GetKind(), id}] = true
		}
	}
	for _, r := range batch {
		got := renewed{err: err}
		if err == nil && len(ended) > 0 {
			for _, id := range r.ids {
				if ended[key{r.kind, id}] {
					got.ended = append(got.ended, id)
				}
			}
		}
		r.done <- got
	}
}

// Renew renews sessions, leases or TTL checks through the leader, and returns those that are unknown or have ended. All
// others are guaranteed for their time-to-live from before Renew returned: the leader recorded them after a round in
// which it proved that it still led. On an error nothing is guaranteed, and renewing again is safe. It waits for a leader
// up to Config.LeaderWait.
func (n *Node) Renew(ctx context.Context, kind peerv1.RenewKind, ids []string) (ended []string, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	err = n.untilLed(ctx, leaderless, func() (err error) {
		ended, err = n.renewals.renew(ctx, kind, ids)
		return err
	})
	return ended, err
}

// sendRenewals renews a batch here or at the leader.
func (n *Node) sendRenewals(ctx context.Context, lists []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
	if n.leads() {
		return n.renewHere(ctx, lists)
	}
	leader, err := n.leaderPeer()
	if err != nil {
		return nil, err
	}
	reply, err := leader.Renew(ctx, &peerv1.RenewRequest{Renewals: lists})
	if err != nil {
		return nil, forwardError(ctx, err)
	}
	return reply.GetEnded(), fromFault(reply.GetFault())
}

// renewHere renews on the leader. The time that counts is taken before the round, so that a leader which was paused
// since, and replaced, acknowledges nothing that its successor doesn't know of: the successor starts all deadlines afresh
// after it was elected, which is after the round.
func (n *Node) renewHere(ctx context.Context, lists []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
	l := n.leadership.Load()
	if l == nil {
		return nil, ErrNotLeader
	}
	taken := time.Now()
	if err := l.rounds.ride(ctx); err != nil {
		return nil, err
	}
	ended, err := n.cfg.Renew(l.term, taken, lists)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return ended, nil
}
