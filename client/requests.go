package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// maxOpenRequests is the number of outcomes that the registry remembers of one client.
const maxOpenRequests = 64

// requests numbers the writes of one client id, so that each is applied once however often it is sent.
//
// Invariant: from the oldest open request to the newest there are at most maxOpenRequests, as the registry forgets the
// outcome of anything older, whether it was answered or not.
type requests struct {
	client string

	mu    sync.Mutex          // guards the fields below
	first uint64              // the oldest open one; next when none is open
	next  uint64              // number of the next one
	open  map[uint64]struct{} // those without an answer
	moved chan struct{}       // closed and replaced when first grows
}

func newRequests(client string) *requests {
	return &requests{client: client, first: 1, next: 1, open: make(map[uint64]struct{}), moved: make(chan struct{})}
}

// begin gives the next request its id. It blocks while too many are open. The caller calls done once the answer is there
// or no longer wanted; from then on the registry refuses copies of the request that are still under way.
func (r *requests) begin(ctx context.Context) (id *apiv1.RequestID, done func(), err error) {
	for {
		r.mu.Lock()
		if r.next-r.first < maxOpenRequests {
			seq := r.next
			r.next++
			r.open[seq] = struct{}{}
			id = &apiv1.RequestID{ClientId: r.client, Sequence: seq, AnsweredBelow: r.first}
			r.mu.Unlock()
			return id, func() { r.finish(seq) }, nil
		}
		moved := r.moved
		r.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for one of %d open requests: %w", maxOpenRequests, context.Cause(ctx))
		}
	}
}

// finish ends a request and lets waiting ones begin.
func (r *requests) finish(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, seq)
	before := r.first
	for r.first < r.next {
		if _, open := r.open[r.first]; open {
			break
		}
		r.first++
	}
	if r.first != before {
		close(r.moved)
		r.moved = make(chan struct{})
	}
}

// newClientID returns a random UUID (version 4).
func newClientID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
