package peer_test

import (
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/peer/peertest"
)

func TestFollowersAreToldOfCommitsThatTheyHave(t *testing.T) {
	// sent is a request of a leader of a term, after entry 4 of term 1.
	sent := func(term, commit uint64, indexes ...uint64) *raft.AppendEntriesRequest {
		args := &raft.AppendEntriesRequest{Term: term, LeaderCommitIndex: commit, PrevLogEntry: 4, PrevLogTerm: 1}
		for _, i := range indexes {
			args.Entries = append(args.Entries, entry(i, term))
		}
		return args
	}
	told := func(term, previous, previousTerm, commit uint64) raft.AppendEntriesRequest {
		return raft.AppendEntriesRequest{
			Term: term, PrevLogEntry: previous, PrevLogTerm: previousTerm, LeaderCommitIndex: commit,
		}
	}
	for _, tc := range []struct {
		name string
		// answered are the requests that the follower has answered, with or without success.
		answered []*raft.AppendEntriesRequest
		refused  bool // the last of them
		commits  []uint64
		want     []raft.AppendEntriesRequest
	}{
		{"has it", []*raft.AppendEntriesRequest{sent(2, 4, 5)}, false, []uint64{5}, []raft.AppendEntriesRequest{told(2, 5, 2, 5)}},
		{"has more", []*raft.AppendEntriesRequest{sent(2, 4, 5, 6)}, false, []uint64{5}, []raft.AppendEntriesRequest{told(2, 6, 2, 5)}},
		{"lacks it", []*raft.AppendEntriesRequest{sent(2, 4, 5)}, false, []uint64{6}, nil},
		{"has refused", []*raft.AppendEntriesRequest{sent(2, 4, 5), sent(2, 4, 5)}, true, []uint64{5}, nil},
		{"once each", []*raft.AppendEntriesRequest{sent(2, 3, 5)}, false, []uint64{4, 4, 5, 5}, []raft.AppendEntriesRequest{told(2, 5, 2, 4), told(2, 5, 2, 5)}},
		{"was told by Raft", []*raft.AppendEntriesRequest{sent(2, 4)}, false, []uint64{4}, nil},
		{"by a heartbeat nothing is known", []*raft.AppendEntriesRequest{{Term: 2}}, false, []uint64{0, 5}, nil},
		{"an earlier term is no matter", []*raft.AppendEntriesRequest{sent(3, 4, 5), sent(2, 4, 5, 6)}, false, []uint64{6}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := peertest.NewNet()
				a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{})
				b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
				defer b.Close()
				var got []raft.AppendEntriesRequest // in the order of their coming
				left := len(tc.answered)
				respond(t, b, func(cmd any) any {
					if left > 0 {
						left--
						return &raft.AppendEntriesResponse{Success: left > 0 || !tc.refused}
					}
					got = append(got, *cmd.(*raft.AppendEntriesRequest)) //nolint:forcetypeassert // Nothing else is sent.
					return &raft.AppendEntriesResponse{Success: true}
				})
				for _, args := range tc.answered {
					var resp raft.AppendEntriesResponse
					if err := a.AppendEntries("b", "b:7401", args, &resp); err != nil {
						t.Fatal(err)
					}
				}
				left = 0
				for _, index := range tc.commits {
					a.Committed(index)
					synctest.Wait()
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("told (-want +got):\n%s", diff)
				}
				a.Close()
				a.Committed(100) // It does nothing.
			})
		})
	}
}
