package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Raft counts entries, of which there are few here.
func TestARestartAppliesLittleOfALogOfLargeEntriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		applied := 0
		c := clustertest.New(t, 1, func(cfg *cluster.Config) {
			cfg.Applied = func(_, _ uint64, data []byte) { applied += len(data) }
		})
		c.Ready()
		const large = 60_000
		for i := range 400 {
			in := &registryv1.Instance{
				Namespace: "default", Service: "web", Id: "1", Metadata: map[string]string{"large": strings.Repeat(fmt.Sprint(i%10), large)},
			}
			data, err := proto.Marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Leader().Propose(within(t, 10*time.Second), &raftlogv1.Command{
				Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: data}},
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		before := applied
		applied = 0
		name := c.Names()[0]
		c.Stop(name)
		c.Start(name)
		c.Ready()
		if before < 400*large || applied > before/2 {
			t.Errorf("%d of %d bytes of the log were applied again", applied, before)
		}
	})
}
