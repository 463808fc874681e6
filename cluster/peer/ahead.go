package peer

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ahead is what the leader sends to followers while it still writes to its own disk, so that a write takes as long as the
// slower of two disks and not as both (Ongaro, "Consensus: Bridging Theory and Practice", 10.2.1). Raft itself sends only
// after its LogStore has returned. What it sends then is not sent again: it gets the answer to what was sent ahead, which
// is to it an answer like any other, only a quick one. Its own entry it counts when that is durable, as ever.
//
// Sent ahead is only what a follower lacks, by its last answer, and one request at a time: nothing is sent twice but after
// a failure, and a slow follower is left to Raft's own pace.
//
// A leader whose own write fails steps down, and so never makes another entry with that index in that term. The followers
// may have the failed one, and the next leader may commit it: the outcome of such a write is unknown.
type ahead struct {
	mu        sync.Mutex
	followers map[raft.ServerID]*follower
	closed    bool
}

// follower is what a leader knows of one by its last answer.
type follower struct {
	target raft.ServerAddress
	header raft.RPCHeader // the same in all requests of a term
	term   uint64         // of the leader; 0: nothing is known
	// index and indexTerm are those of the last entry that the follower has as the leader has it.
	index, indexTerm uint64
	sent             *sentAhead // nil: nothing, or its answer was used
}

// sentAhead is a request and, once done is closed, its answer.
type sentAhead struct {
	request  raft.AppendEntriesRequest
	done     chan struct{}
	answer   raft.AppendEntriesResponse
	answered time.Time
	err      error
}

func (s *sentAhead) underWay() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// SendAhead begins to send entries to the followers of which it is known that they lack just these. The caller is about to
// write them to its own log; if it does so as a follower, nobody gets them. Nothing of them may change any more. commit is
// the leader's commit index. It does not block.
func (t *Transport) SendAhead(entries []*raft.Log, commit uint64) {
	if len(entries) == 0 || t.pass() != nil {
		return
	}
	t.ahead.mu.Lock()
	defer t.ahead.mu.Unlock()
	for id, f := range t.ahead.followers {
		next := entries[0]
		if t.ahead.closed || f.term != next.Term || f.index != next.Index-1 || f.sent != nil && f.sent.underWay() {
			continue
		}
		s := &sentAhead{done: make(chan struct{}), request: raft.AppendEntriesRequest{
			RPCHeader: f.header, Term: f.term, PrevLogEntry: f.index, PrevLogTerm: f.indexTerm,
			Entries: entries, LeaderCommitIndex: commit,
		}}
		f.sent = s
		target := f.target
		t.wg.Go(func() {
			s.err = t.NetworkTransport.AppendEntries(id, t.resolve(id, target), &s.request, &s.answer)
			s.answered = time.Now()
			close(s.done)
		})
	}
}

// answeredAhead waits for the answer to args if they were sent ahead, and reports whether there is one. Raft takes an
// answer for a sign of life: an old one is none.
func (t *Transport) answeredAhead(id raft.ServerID, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) bool {
	s := t.ahead.take(id, args)
	if s == nil {
		return false
	}
	<-s.done // It takes as long as an exchange may, or until the transport is closed.
	if s.err != nil || time.Since(s.answered) > t.cfg.AheadFor {
		return false
	}
	*resp = s.answer
	return true
}

// take returns what was sent ahead if args are the same, once. Entries of one term and index are the same.
func (a *ahead) take(id raft.ServerID, args *raft.AppendEntriesRequest) *sentAhead {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.followers[id]
	if f == nil || f.sent == nil {
		return nil
	}
	s := f.sent
	if r := &s.request; r.Term != args.Term || r.PrevLogEntry != args.PrevLogEntry || r.PrevLogTerm != args.PrevLogTerm ||
		len(r.Entries) != len(args.Entries) {
		return nil
	}
	f.sent = nil
	return s
}

// note keeps what the answer to a request of Raft tells of a follower.
func (a *ahead) note(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, success bool) {
	if len(args.Entries) == 0 && args.PrevLogEntry == 0 {
		return // A heartbeat, which says nothing about the log.
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.followers[id]
	if f == nil {
		f = &follower{}
		a.followers[id] = f
	}
	if !success {
		f.term = 0
		return
	}
	f.target, f.header, f.term = target, args.RPCHeader, args.Term
	f.index, f.indexTerm = args.PrevLogEntry, args.PrevLogTerm
	if n := len(args.Entries); n > 0 {
		f.index, f.indexTerm = args.Entries[n-1].Index, args.Entries[n-1].Term
	}
}

// close sends nothing ahead any more.
func (a *ahead) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
}
