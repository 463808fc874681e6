package sim

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// TestSilenceIsJudged has a node that was synced at revision 1 say nothing but that it is at revision 3.
func TestSilenceIsJudged(t *testing.T) {
	register := func(id string) *raftlogv1.Command {
		spec, err := proto.Marshal(&registryv1.Instance{Namespace: "default", Service: "s", Id: id, Address: "10.0.0.1", Weight: 100})
		if err != nil {
			t.Fatal(err)
		}
		return &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: spec}}}
	}
	remove := &raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{Deregister: &raftlogv1.Deregister{
		Key: &raftlogv1.Key{Namespace: "default", Service: "s", Id: "b"},
	}}}
	for _, test := range []struct {
		name    string
		third   *raftlogv1.Command // after a and b came
		applied []uint64
		rule    string
	}{
		{"what came and went was skipped", remove, []uint64{1, 4}, ""},
		{"what came and went was applied", remove, []uint64{1, 2, 3, 4}, "W6"},
		{"what came was skipped", register("c"), []uint64{1, 4}, "W14"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := oracle.NewLog()
			for i, cmd := range []*raftlogv1.Command{register("a"), register("b"), test.third, register("z")} {
				data, err := proto.Marshal(cmd)
				if err != nil {
					t.Fatal(err)
				}
				log.Add("n1", uint64(i)+1, 1, fsm.AppendEntry(nil, 1, [][]byte{data}))
			}
			timeline, err := log.Replay(fsm.New())
			if err != nil {
				t.Fatal(err)
			}
			header := func(revision uint64) *apiv1.ResponseHeader {
				return &apiv1.ResponseHeader{Epoch: timeline.Final().Epoch(), Revision: revision}
			}
			h := &history.History{}
			say := func(d history.Direction, body proto.Message) {
				h.Messages = append(h.Messages, history.Message{
					Client: "c", Node: "n1", Method: apiv1.RegistryService_WatchService_FullMethodName, Stream: 1,
					At: time.Duration(len(h.Messages)) * time.Second, Direction: d, Body: body,
				})
			}
			say(history.Opened, nil)
			say(history.Sent, &apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Service: "s"}})
			say(history.Received, &apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Cut{Cut: &apiv1.Cut{
				SubscriptionId: 1, Full: true, Reason: apiv1.CutReason_CUT_REASON_INITIAL,
				Instances: []*registryv1.Instance{decoded(t, timeline.AtRevision(1).Instance("default", "s", "a"))},
			}}})
			say(history.Received, &apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Synced{
				Synced: &apiv1.Synced{SubscriptionId: 1, Header: header(1)},
			}})
			say(history.Received, &apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Progress{
				Progress: &apiv1.Progress{Header: header(3)},
			}})
			lives := []*life{{node: "n1", indexes: test.applied}}
			found := check.All(&check.Run{History: spell(h, lives, timeline), Timeline: timeline})
			var rules []string
			for _, v := range found {
				rules = append(rules, v.Rule)
			}
			if rules = slices.Compact(rules); strings.Join(rules, " ") != test.rule {
				t.Errorf("found %v, want %q", found, test.rule)
			}
		})
	}
}

func decoded(t *testing.T, r *fsm.Record) *registryv1.Instance {
	t.Helper()
	var instance registryv1.Instance
	if err := proto.Unmarshal(r.Encoded(), &instance); err != nil {
		t.Fatal(err)
	}
	return &instance
}
