package peer_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/peer/peertest"
)

// always has all heartbeats handled beside Raft's main loop.
func always(uint64) bool { return true }

// A leader hears the first heartbeat of its successor, and the next thing that it hears is a write. It must not append
// that as an entry of its successor's term, who has another one with this index.
func TestALeaderAppendsNothingInTheTermOfItsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		stores := map[string]*raft.InmemStore{}
		var ms []*member
		for _, name := range names {
			m, store := new(atomic.Pointer[member]), raft.NewInmemStore()
			stores[name] = store
			m.Store(start(t, n, name, store, peer.TransportConfig{Following: func(term uint64) bool {
				r := m.Load()
				return r != nil && r.raft.State() == raft.Follower && r.raft.CurrentTerm() == term
			}}))
			ms = append(ms, m.Load())
		}
		old := leader(t, 10*time.Second, ms...)
		if err := old.raft.Barrier(time.Second).Error(); err != nil {
			t.Fatal(err)
		}
		next := peer.NewTransport(listen(t, n, "next", "c1"), peer.TransportConfig{})
		defer next.Close()
		term := old.raft.CurrentTerm() + 1
		header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("next"), Addr: []byte("next:7401")}
		var resp raft.AppendEntriesResponse
		if err := next.AppendEntries(raft.ServerID(old.name), raft.ServerAddress(old.name+":7401"),
			&raft.AppendEntriesRequest{RPCHeader: header, Term: term}, &resp); err != nil || !resp.Success {
			t.Fatalf("heartbeat: %+v, %v", resp, err)
		}
		if err := old.raft.Apply([]byte("late"), time.Second).Error(); err == nil {
			t.Error("the write succeeded")
		}
		last, err := stores[old.name].LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		var entry raft.Log
		if err := stores[old.name].GetLog(last, &entry); err != nil || entry.Term >= term {
			t.Errorf("%v: the last entry of %s is %q of term %d, which is its successor's", err, old.name, entry.Data, entry.Term)
		}
	})
}

// A heartbeat of term 2 is being handled, and hangs on the disk, while Raft takes entries of term 3 from its successor,
// for whom this node never voted.
func TestNothingIsTakenFromTheTermBeforeEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		store := raft.NewInmemStore()
		start(t, n, "n1", slowTerm{store, 2}, peer.TransportConfig{Following: always}, func(c *raft.Config) {
			c.HeartbeatTimeout, c.ElectionTimeout = time.Hour, time.Hour
		})
		old := peer.NewTransport(listen(t, n, "n2", "c1"), peer.TransportConfig{})
		defer old.Close()
		next := peer.NewTransport(listen(t, n, "n3", "c1"), peer.TransportConfig{})
		defer next.Close()
		send := func(by *peer.Transport, name string, term uint64, entries ...*raft.Log) (resp raft.AppendEntriesResponse) {
			req := &raft.AppendEntriesRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(name), Addr: []byte(name + ":7401")}, Term: term,
			}
			if len(entries) > 0 {
				req.PrevLogEntry, req.PrevLogTerm, req.Entries = 1, 1, entries
			}
			if err := by.AppendEntries("n1", "n1:7401", req, &resp); err != nil {
				t.Error(err)
			}
			return resp
		}
		beaten := make(chan raft.AppendEntriesResponse)
		go func() { beaten <- send(old, "n2", 2) }()
		time.Sleep(10 * time.Millisecond)
		if resp := send(next, "n3", 3, &raft.Log{Index: 2, Term: 3, Type: raft.LogCommand, Data: []byte("committed")}); !resp.Success {
			t.Fatalf("entries of term 3: %+v", resp)
		}
		<-beaten
		if resp := send(old, "n2", 2, &raft.Log{Index: 2, Term: 2, Type: raft.LogCommand, Data: []byte("older")}); resp.Success {
			t.Error("entries of term 2 were taken after those of term 3")
		}
		var kept raft.Log
		if err := store.GetLog(2, &kept); err != nil || string(kept.Data) != "committed" {
			t.Errorf("entry 2 is %q, %v: an acknowledged entry was deleted", kept.Data, err)
		}
	})
}
