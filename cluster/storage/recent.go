package storage

import (
	"sync"

	"github.com/hashicorp/raft"
)

// recentBytes bounds what the cache of recent entries holds, whatever their number. It is 32 of the largest: followers
// that keep up want the last few.
const recentBytes = 8 << 20

// recent remembers the last entries appended, which followers are sent next,
// so that they are not read and decoded once for each.
type recent struct {
	mu    sync.RWMutex // guards what follows
	slots []*raft.Log  // the entry with index i, if here, is in slots[i%len]
	bytes int          // of the entries in slots
}

func newRecent(entries int) *recent { return &recent{slots: make([]*raft.Log, entries)} }

func (r *recent) slot(index uint64) **raft.Log { return &r.slots[index%uint64(len(r.slots))] }

func (r *recent) get(index uint64, e *raft.Log) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	found := *r.slot(index)
	if found == nil || found.Index != index {
		return false
	}
	*e = *found
	return true
}

func (r *recent) add(entries []*raft.Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		r.set(r.slot(e.Index), e)
	}
	// The slots after the newest one hold the oldest entries.
	next := entries[len(entries)-1].Index + 1
	for i := uint64(0); i < uint64(len(r.slots)) && r.bytes > recentBytes; i++ {
		r.set(r.slot(next+i), nil)
	}
}

func (r *recent) remove(low, high uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range r.slots {
		if e != nil && low <= e.Index && e.Index <= high {
			r.set(&r.slots[i], nil)
		}
	}
}

func (r *recent) set(slot **raft.Log, e *raft.Log) {
	r.bytes += entrySize(e) - entrySize(*slot)
	*slot = e
}

func entrySize(e *raft.Log) int {
	if e == nil {
		return 0
	}
	return len(e.Data) + len(e.Extensions)
}
