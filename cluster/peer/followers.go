package peer

import (
	"sync"

	"github.com/hashicorp/raft"
)

// followers is what this node, as a leader, knows of the others by their answers in the highest term of these.
type followers struct {
	mu     sync.Mutex // guards all below
	term   uint64
	byID   map[raft.ServerID]*follower
	closed bool // nothing more may be sent
	// committed is the commit index of the last pause, which all are to hear.
	committed uint64
}

// follower is what is known of one.
type follower struct {
	target raft.ServerAddress
	// next is a request without entries after the last that the follower has as the leader has it.
	next  raft.AppendEntriesRequest
	ahead *sentAhead // nil: nothing was sent ahead, or its answer was used
	told  uint64     // commit index
	// telling tells whether it is just being told of a commit.
	telling bool
}

// note keeps what the answer to a request tells. Called with mu held.
func (f *followers) note(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, success bool) {
	if len(args.Entries) == 0 && args.PrevLogEntry == 0 {
		return // A heartbeat, which says nothing about the log.
	}
	if args.Term < f.term {
		return
	}
	if args.Term > f.term {
		f.term, f.byID = args.Term, map[raft.ServerID]*follower{}
	}
	if !success {
		delete(f.byID, id)
		return
	}
	one := f.byID[id]
	if one == nil {
		one = &follower{}
		f.byID[id] = one
	}
	one.target, one.next = target, *args
	if n := len(args.Entries); n > 0 {
		last := args.Entries[n-1]
		one.next.Entries, one.next.PrevLogEntry, one.next.PrevLogTerm = nil, last.Index, last.Term
	}
	one.told = max(one.told, min(args.LeaderCommitIndex, one.next.PrevLogEntry))
}

// close lets nothing more be sent.
func (f *followers) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
}

// Committed tells the followers that the log is committed up to index: those that are known to have the entry at once, the
// others when they have it, and none that knows it. Raft does so with the next entries, else after its CommitTimeout to twice
// that: so much later the last write before a pause would reach who reads or watches at a follower. It is to be called in a
// pause, and does not block.
//
// What is sent is what Raft would: no entries, after the last that the follower has acknowledged in this term. So it is
// true whenever it arrives. Answers are Raft's business, which hears the same sooner or later.
func (t *Transport) Committed(index uint64) {
	t.followers.mu.Lock()
	defer t.followers.mu.Unlock()
	t.followers.committed = max(t.followers.committed, index)
	for id := range t.followers.byID {
		t.tell(id)
	}
}

// tell tells a follower of the commit of the last pause if it has that entry and was not told. Called with mu of the
// followers held.
func (t *Transport) tell(id raft.ServerID) {
	f, index := t.followers.byID[id], t.followers.committed
	if f == nil || t.followers.closed || f.telling || f.told >= index || f.next.PrevLogEntry < index || t.pass() != nil {
		return
	}
	f.telling, f.told = true, index
	target, args := f.target, f.next
	args.LeaderCommitIndex = index
	t.wg.Go(func() {
		// When it fails, Raft tells it later.
		_ = t.NetworkTransport.AppendEntries(id, t.resolve(id, target), &args, &raft.AppendEntriesResponse{})
		t.followers.mu.Lock()
		defer t.followers.mu.Unlock()
		f.telling = false
		t.tell(id) // There may have been another pause meanwhile.
	})
}
