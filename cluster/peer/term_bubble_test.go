package peer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cluster/peer"
)

// A heartbeat of term 2 is being handled, and hangs on the disk, while Raft takes entries of term 3 from its successor,
// for whom this node never voted.
func TestNothingIsTakenFromTheTermBeforeEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := clustertest.NewNet()
		store := raft.NewInmemStore()
		start(t, n, "n1", slowTerm{store, 2}, peer.TransportConfig{}, func(c *raft.Config) {
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
