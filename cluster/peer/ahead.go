package peer

import (
	"time"

	"github.com/hashicorp/raft"
)

// sentAhead is a request that was sent before Raft made it and, once done is closed, its answer.
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
// write them to its own log: so a write takes as long as the slower of two disks and not as both (Ongaro, "Consensus:
// Bridging Theory and Practice", 10.2.1). If it writes them as a follower, nobody gets them. Nothing of them may change any
// more. commit is the leader's commit index. It does not block.
//
// What Raft sends then is not sent again: it gets the answer to what was sent ahead, which is to it an answer like any
// other, only a quick one. Its own entry it counts when that is durable, as ever. Nothing is sent twice but after a failure,
// and a slow follower is left to Raft's own pace.
//
// A leader whose own write fails steps down, and so never makes another entry with that index in that term. The followers
// may have the failed one, and the next leader may commit it: the outcome of such a write is unknown.
func (t *Transport) SendAhead(entries []*raft.Log, commit uint64) {
	if len(entries) == 0 || t.pass() != nil {
		return
	}
	t.followers.mu.Lock()
	defer t.followers.mu.Unlock()
	for id, f := range t.followers.byID {
		first := entries[0]
		if t.followers.closed || t.followers.term != first.Term || f.next.PrevLogEntry != first.Index-1 ||
			f.ahead != nil && f.ahead.underWay() {
			continue
		}
		s := &sentAhead{done: make(chan struct{}), request: f.next}
		s.request.Entries, s.request.LeaderCommitIndex = entries, commit
		f.ahead = s
		target := f.target
		t.wg.Go(func() {
			s.err = t.NetworkTransport.AppendEntries(id, t.resolve(id, target), &s.request, &s.answer)
			s.answered = time.Now()
			close(s.done)
		})
	}
}

// answeredAhead waits for the answer to args if they were sent ahead, and returns what was sent, nil if there is no answer:
// the commit index in it was that of then. Raft takes an answer for a sign of life: an old one is none.
func (t *Transport) answeredAhead(
	id raft.ServerID, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse,
) *raft.AppendEntriesRequest {
	s := t.followers.takeAhead(id, args)
	if s == nil {
		return nil
	}
	<-s.done // It takes as long as an exchange may, or until the transport is closed.
	if s.err != nil || time.Since(s.answered) > t.cfg.AheadFor {
		return nil
	}
	*resp = s.answer
	return &s.request
}

// takeAhead returns what was sent ahead if args are the same, once. Entries of one term and index are the same.
func (f *followers) takeAhead(id raft.ServerID, args *raft.AppendEntriesRequest) *sentAhead {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.byID[id]
	if one == nil || one.ahead == nil {
		return nil
	}
	s := one.ahead
	if r := &s.request; r.Term != args.Term || r.PrevLogEntry != args.PrevLogEntry || r.PrevLogTerm != args.PrevLogTerm ||
		len(r.Entries) != len(args.Entries) {
		return nil
	}
	one.ahead = nil
	return s
}
