package peer_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/peer/peertest"
)

// TestGrantedVoteIsOnRecordBeforeItCanBeCounted holds the answer back on the wire: while the candidate can't have it,
// the voter's term is known already.
func TestGrantedVoteIsOnRecordBeforeItCanBeCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{Timeout: time.Hour})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{HighestTerm: 3})
		defer b.Close()
		warm(t, a, b)
		release := n.HoldFrom("b")
		granted := make(chan bool)
		go func() {
			var resp raft.RequestVoteResponse
			if err := a.RequestVote("b", "b:7401", &raft.RequestVoteRequest{Term: 7}, &resp); err != nil {
				t.Error(err)
			}
			granted <- resp.Granted
		}()
		rpc := <-b.Consumer()
		if a.HighestTerm() != 7 || b.HighestTerm() != 3 {
			t.Errorf("before the answer: candidate %d, voter %d", a.HighestTerm(), b.HighestTerm())
		}
		rpc.Respond(&raft.RequestVoteResponse{Term: 7, Granted: true}, nil)
		synctest.Wait()
		select {
		case <-granted:
			t.Fatal("the answer was not held")
		default:
		}
		if b.HighestTerm() != 7 || b.VotesGranted() != 1 {
			t.Errorf("voter has %d on record, %d votes", b.HighestTerm(), b.VotesGranted())
		}
		release()
		if !<-granted {
			t.Error("the vote was lost on its way")
		}
	})
}

func TestHighestTermNeverFallsAndIgnoresRefusedVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer b.Close()
		for _, step := range []struct {
			term    uint64
			grant   bool
			err     error
			a, want uint64
		}{
			{5, false, nil, 5, 0},
			{5, true, nil, 5, 5},
			{9, true, errors.New("disk"), 9, 9},
			{12, false, nil, 12, 9},
			{11, true, nil, 12, 11},
		} {
			done := make(chan error)
			go func() {
				done <- a.RequestVote("b", "b:7401", &raft.RequestVoteRequest{Term: step.term}, &raft.RequestVoteResponse{})
			}()
			rpc := <-b.Consumer()
			rpc.Respond(&raft.RequestVoteResponse{Granted: step.grant}, step.err)
			if err := <-done; (err != nil) != (step.err != nil) {
				t.Errorf("%+v: %v", step, err)
			}
			if a.HighestTerm() != step.a || b.HighestTerm() != step.want {
				t.Errorf("%+v: candidate %d, voter %d", step, a.HighestTerm(), b.HighestTerm())
			}
		}
	})
}

// slowTerm takes long to store one term.
type slowTerm struct {
	*raft.InmemStore
	term uint64
}

func (s slowTerm) SetUint64(key []byte, v uint64) error {
	if string(key) == "CurrentTerm" && v == s.term {
		time.Sleep(100 * time.Millisecond)
	}
	return s.InmemStore.SetUint64(key, v)
}

// TestNothingIsTakenFromTheTermBeforeAVote has Raft handle the first heartbeat of term 2 while it grants a vote in term
// 3. It ends in term 2, and would acknowledge entries to the leader that the vote has deposed.
func TestNothingIsTakenFromTheTermBeforeAVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		m := start(t, n, "n1", slowTerm{raft.NewInmemStore(), 2}, peer.TransportConfig{Following: always}, func(c *raft.Config) {
			c.HeartbeatTimeout, c.ElectionTimeout = time.Hour, time.Hour
		})
		old := peer.NewTransport(listen(t, n, "n2", "c1"), peer.TransportConfig{})
		defer old.Close()
		next := peer.NewTransport(listen(t, n, "n3", "c1"), peer.TransportConfig{})
		defer next.Close()
		header := func(name string) raft.RPCHeader {
			return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(name), Addr: []byte(name + ":7401")}
		}
		beaten := make(chan error)
		go func() {
			beat := &raft.AppendEntriesRequest{RPCHeader: header("n2"), Term: 2}
			beaten <- old.AppendEntries("n1", "n1:7401", beat, &raft.AppendEntriesResponse{})
		}()
		time.Sleep(10 * time.Millisecond)
		var granted raft.RequestVoteResponse
		vote := &raft.RequestVoteRequest{RPCHeader: header("n3"), Term: 3, LastLogIndex: 1, LastLogTerm: 1}
		if err := next.RequestVote("n1", "n1:7401", vote, &granted); err != nil || !granted.Granted {
			t.Fatalf("vote: %+v, %v", granted, err)
		}
		if err := <-beaten; err != nil {
			t.Fatal(err)
		}
		if term := m.raft.CurrentTerm(); term != 2 || m.transport.HighestTerm() != 3 {
			t.Fatalf("raft is in term %d, the vote on record is of %d: want 2 and 3", term, m.transport.HighestTerm())
		}
		for name, req := range map[string]*raft.AppendEntriesRequest{
			"heartbeat": {RPCHeader: header("n2"), Term: 2},
			"entries": {
				RPCHeader: header("n2"), Term: 2, PrevLogEntry: 1, PrevLogTerm: 1,
				Entries: []*raft.Log{{Index: 2, Term: 2, Data: []byte("lost")}},
			},
		} {
			var resp raft.AppendEntriesResponse
			if err := old.AppendEntries("n1", "n1:7401", req, &resp); err != nil || resp.Success || resp.Term != 3 {
				t.Errorf("%s of the deposed leader: %+v, %v", name, resp, err)
			}
		}
		var second raft.RequestVoteResponse
		late := &raft.RequestVoteRequest{RPCHeader: header("n2"), Term: 2, LastLogIndex: 9, LastLogTerm: 2, LeadershipTransfer: true}
		if err := old.RequestVote("n1", "n1:7401", late, &second); err != nil || second.Granted || second.Term != 3 {
			t.Errorf("vote in the term before: %+v, %v", second, err)
		}
	})
}

// TestElectionIsNotLostToIdleConnections restarts a follower behind the back of the other one, whose pool then holds
// ended connections to it, and stops the leader.
func TestElectionIsNotLostToIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{})
		defer a.Close()
		run := func() (stop func()) {
			m := listen(t, n, "b", "c1")
			b := peer.NewTransport(m, peer.TransportConfig{})
			respond(t, b, func(any) any {
				time.Sleep(time.Millisecond) // all three are under way at once
				return &raft.RequestVoteResponse{Granted: true}
			})
			return func() {
				b.Close()
				m.Close()
			}
		}
		ask := func() error {
			return a.RequestVote("b", "b:7401", &raft.RequestVoteRequest{Term: 1}, &raft.RequestVoteResponse{})
		}
		stop := run()
		var wg sync.WaitGroup
		for range peer.DefaultMaxPool {
			wg.Go(func() {
				if err := ask(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		stop()
		defer run()()
		if err := ask(); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	})
}
