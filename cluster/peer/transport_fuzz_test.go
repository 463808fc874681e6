package peer

import (
	"context"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
)

// The kinds of RPCs on a Raft connection, as raft.NetworkTransport numbers them.
const (
	rpcAppendEntries = iota
	rpcRequestVote
	rpcInstallSnapshot
	rpcTimeoutNow
	rpcRequestPreVote
)

// sentRPC is an RPC as it travels.
func sentRPC(f *testing.F, kind byte, request any) []byte {
	f.Helper()
	var b []byte
	var handle codec.MsgpackHandle
	handle.TimeNotBuiltin = true
	if err := codec.NewEncoderBytes(&b, &handle).Encode(request); err != nil {
		f.Fatal(err)
	}
	return append([]byte{kind}, b...)
}

// FuzzRaftConnection sends arbitrary bytes on an established Raft connection. Whatever they are, the transport ends with
// them, takes no memory for what a length only claims, hands nothing over from a term that this node has left behind, and
// notes the terms of entries and granted votes.
func FuzzRaftConnection(f *testing.F) {
	const term = 5
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n"), Addr: []byte("n:1")}
	entries := []*raft.Log{{Index: 2, Term: term, Data: []byte("data"), AppendedAt: time.Unix(1_700_000_000, 1)}}
	f.Add(sentRPC(f, rpcAppendEntries, &raft.AppendEntriesRequest{RPCHeader: header, Term: term, PrevLogEntry: 1, PrevLogTerm: 1, Entries: entries}))
	f.Add(sentRPC(f, rpcAppendEntries, &raft.AppendEntriesRequest{RPCHeader: header, Term: term - 1}))
	f.Add(append(sentRPC(f, rpcRequestPreVote, &raft.RequestPreVoteRequest{RPCHeader: header, Term: term + 1}),
		sentRPC(f, rpcRequestVote, &raft.RequestVoteRequest{RPCHeader: header, Term: term + 1})...))
	f.Add(append(sentRPC(f, rpcInstallSnapshot, &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: term, Size: 5}), "state"...))
	f.Add(sentRPC(f, rpcInstallSnapshot, &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: term, Size: 1 << 62}))
	f.Add(sentRPC(f, rpcTimeoutNow, &raft.TimeoutNowRequest{RPCHeader: header}))
	f.Add(append([]byte{rpcAppendEntries, 0x81, 0xa7}, "Entries\xdd\xff\xff\xff\xff"...)) // 4 billion entries
	f.Add(append([]byte{rpcRequestVote, 0x81, 0xa9}, "Candidate\xc6\xff\xff\xff\xff"...)) // bytes of 4 GiB
	f.Add([]byte{rpcRequestVote, 0xdf, 0xff, 0xff, 0xff, 0xff})                           // a map of 4 billion
	f.Add(append([]byte{rpcTimeoutNow, 0x81, 0xa1, 'x'}, make([]byte, 1000)...))          // what follows is no RPC
	f.Fuzz(func(t *testing.T, in []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m := node("c1")
		m.life, m.cancel = context.WithCancel(t.Context())
		defer m.cancel()
		tr := NewTransport(m, TransportConfig{HighestTerm: term})
		taken := make(chan uint64, 1)
		go func() { taken <- follow(t, tr) }()
		c := &conn{Conn: newScripted(in), remote: Identity{NodeID: "n", ClusterID: "c1"}}
		closed := make(chan struct{})
		if !m.raft.deliver(t.Context(), c, func() { close(closed) }) {
			t.Fatal("the connection was not taken")
		}
		<-closed
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		if highest := <-taken; tr.HighestTerm() != max(term, highest) {
			t.Fatalf("highest term %d after entries or a vote of term %d", tr.HighestTerm(), highest)
		}
		runtime.ReadMemStats(&after)
		if used, limit := after.TotalAlloc-before.TotalAlloc, uint64(4<<20+1024*len(in)); used > limit {
			t.Fatalf("%d bytes of memory for %d bytes", used, len(in))
		}
	})
}

// follow does what Raft does with RPCs, as far as the transport can tell, until it is closed. It grants every vote, and
// returns the highest term of those and of entries.
func follow(t *testing.T, tr *Transport) (highest uint64) {
	for {
		select {
		case rpc := <-tr.Consumer():
			switch req := rpc.Command.(type) {
			case *raft.AppendEntriesRequest:
				if req.Term < tr.HighestTerm() {
					t.Errorf("entries of term %d were taken after term %d", req.Term, tr.HighestTerm())
				}
				highest = max(highest, req.Term)
				rpc.Respond(&raft.AppendEntriesResponse{Term: req.Term, Success: true}, nil)
			case *raft.RequestVoteRequest:
				highest = max(highest, req.Term)
				rpc.Respond(&raft.RequestVoteResponse{Term: req.Term, Granted: true}, nil)
			case *raft.InstallSnapshotRequest:
				_, err := io.Copy(io.Discard, rpc.Reader)
				rpc.Respond(&raft.InstallSnapshotResponse{Term: req.Term, Success: err == nil}, err)
			case *raft.RequestPreVoteRequest:
				rpc.Respond(&raft.RequestPreVoteResponse{Term: req.Term, Granted: true}, nil)
			default:
				rpc.Respond(&raft.TimeoutNowResponse{}, nil)
			}
		case <-tr.done:
			return highest
		}
	}
}
