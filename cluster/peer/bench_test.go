package peer_test

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster/peer"
)

// BenchmarkHandshake is a new connection over loopback TCP.
func BenchmarkHandshake(b *testing.B) {
	a, c := onTCP(b, peer.TCP(), "a"), onTCP(b, peer.TCP(), "c")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for conn, err := a.StreamLayer().Accept(); err == nil; conn, err = a.StreamLayer().Accept() {
			conn.Close()
		}
	}()
	b.Cleanup(func() { a.Close(); <-done })
	for b.Loop() {
		conn, err := c.StreamLayer().Dial(raftAddress(a), time.Second)
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}

// BenchmarkAppendEntries is one exchange over loopback TCP with a Raft that answers at once: by the fast path of
// heartbeats, and with an entry of 1 KiB.
func BenchmarkAppendEntries(b *testing.B) {
	from := onTCP(b, peer.TCP(), "from")
	to := onTCP(b, peer.TCP(), "to")
	sender, receiver := peer.NewTransport(from, peer.TransportConfig{}), peer.NewTransport(to, peer.TransportConfig{Following: always})
	b.Cleanup(func() { sender.Close(); receiver.Close() })
	receiver.SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil) })
	respond(b, receiver, func(any) any { return &raft.AppendEntriesResponse{Success: true} })
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("from"), Addr: []byte("from:7401")}
	entry := &raft.Log{Index: 2, Term: 1, Data: make([]byte, 1024)}
	for name, req := range map[string]*raft.AppendEntriesRequest{
		"heartbeat": {RPCHeader: header, Term: 1},
		"entry":     {RPCHeader: header, Term: 1, PrevLogEntry: 1, PrevLogTerm: 1, Entries: []*raft.Log{entry}},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := sender.AppendEntries("to", raftAddress(to), req, &raft.AppendEntriesResponse{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
