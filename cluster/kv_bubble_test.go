package cluster_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// The largest transaction goes into the log through every node, and reaches one that was away and reads many of them at once.
func TestTheLargestTransactionIsReplicated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		largest := func(key string) *raftlogv1.Command {
			tx := &raftlogv1.KVTransaction{Namespace: "default"}
			half := bytes.Repeat([]byte(key[:1]), fsm.MaxKVTransactionBytes/2-len(key)-1)
			for _, name := range []string{key + "1", key + "2"} {
				tx.Ops = append(tx.Ops, &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_SET, Key: name, Value: half})
			}
			return &raftlogv1.Command{Level: fsm.KVLevel, Kind: &raftlogv1.Command_KvTransaction{KvTransaction: tx}}
		}
		away := c.Follower().Info().Name
		for _, n := range c.Nodes() {
			outcome, err := n.Propose(within(t, 10*time.Second), largest(n.Info().Name))
			if err != nil || outcome.Err() != nil {
				t.Fatalf("through %s: %+v, %v", n.Info().Name, outcome, err)
			}
		}
		c.Stop(away)
		for i := range 20 {
			outcome, err := c.Leader().Propose(within(t, 10*time.Second), largest(fmt.Sprint(i)))
			if err != nil || outcome.Err() != nil {
				t.Fatalf("%+v, %v", outcome, err)
			}
		}
		c.Start(away)
		want := c.Leader().Feed().State()
		c.Wait(away+" to have it all", func() bool { return c.Node(away).Feed().State().Revision() >= want.Revision() })
		if got := c.Node(away).Feed().State().ContentHash(); got != want.ContentHash() {
			t.Error("the nodes went apart")
		}
	})
}
