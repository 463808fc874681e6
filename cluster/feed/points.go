package feed

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/regd-io/regd/fsm"
)

// HashPoint is what the hashes of the State were at an index.
type HashPoint struct {
	// Index is the last applied index.
	Index uint64
	// Revision is the revision there.
	Revision uint64
	// Hash is State.Hash.
	Hash [16]byte
	// Chain is State.Chain.
	Chain [16]byte
	// Content is State.ContentHash.
	Content [16]byte
}

// pointsKept is how many hash points are kept: some seconds of a busy cluster.
const pointsKept = 4096

// points is a ring of the last hash points, by growing index.
type points struct {
	mu    sync.Mutex // guards the next two
	ring  []HashPoint
	start int // the oldest, once the ring is full
}

// put adds the point of st. A State that is not newer than the last one (only a restore brings one) starts anew.
func (p *points) put(st *fsm.State) {
	pt := HashPoint{
		Index: st.Index(), Revision: st.Revision(),
		Hash: st.Hash(), Chain: st.Chain(), Content: st.ContentHash(),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.ring); n > 0 && p.at(n-1).Index >= pt.Index {
		p.ring, p.start = p.ring[:0], 0
	}
	if len(p.ring) < pointsKept {
		p.ring = append(p.ring, pt)
		return
	}
	p.ring[p.start] = pt
	p.start = (p.start + 1) % pointsKept
}

// at returns the i-th oldest. p.mu is held.
func (p *points) at(i int) HashPoint { return p.ring[(p.start+i)%len(p.ring)] }

// from returns the first point at the index or later.
func (p *points) from(index uint64) (HashPoint, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := sort.Search(len(p.ring), func(i int) bool { return p.at(i).Index >= index })
	if i == len(p.ring) {
		return HashPoint{}, false
	}
	return p.at(i), true
}

// HashAt returns the hashes at the index, once it is applied. When that index is no longer kept, or was passed in one
// step, it returns the first later point that is. Its errors are those of ctx and ErrClosed.
func (f *Feed) HashAt(ctx context.Context, index uint64) (HashPoint, error) {
	for {
		if _, err := f.WaitIndex(ctx, index); err != nil {
			return HashPoint{}, fmt.Errorf("hash of the state: %w", err)
		}
		// The point is put before the State is stored: it is there, unless an older State has just replaced all.
		if pt, ok := f.points.from(index); ok {
			return pt, nil
		}
	}
}

const (
	// keptMax is how many States are kept for lists that go on.
	keptMax = 64
	// keptRevisions is how far behind the current revision a kept State may fall. It bounds the memory that old States
	// hold on to: about 5 kB for each change since.
	keptRevisions = 16_384
)

// keptStates are States that page tokens refer to, oldest first.
type keptStates struct {
	mu     sync.Mutex // guards states
	states []*fsm.State
}

// Keep holds on to a State, so that At finds it while a list over several pages goes on. It is kept until 64 others
// were, or the registry is 16,384 revisions further.
func (f *Feed) Keep(st *fsm.State) {
	k := &f.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.find(st.Epoch(), st.Revision()) != nil {
		return
	}
	if len(k.states) == keptMax {
		k.states = slices.Delete(k.states, 0, 1)
	}
	k.states = append(k.states, st)
}

// At returns the State of the epoch and revision: the current one or a kept one. Nil when it is gone.
func (f *Feed) At(epoch, revision uint64) *fsm.State {
	if st := f.State(); st.Epoch() == epoch && st.Revision() == revision {
		return st
	}
	f.kept.mu.Lock()
	defer f.kept.mu.Unlock()
	return f.kept.find(epoch, revision)
}

// find returns a kept State. k.mu is held.
func (k *keptStates) find(epoch, revision uint64) *fsm.State {
	for _, st := range k.states {
		if st.Epoch() == epoch && st.Revision() == revision {
			return st
		}
	}
	return nil
}

// expire drops what has fallen too far behind the revision.
func (k *keptStates) expire(revision uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.states = slices.DeleteFunc(k.states, func(st *fsm.State) bool {
		return st.Revision()+keptRevisions < revision
	})
}
