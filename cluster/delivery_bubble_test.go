package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster/clustertest"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// Every member is asked, whoever is asked first, and one that can't be reached is named and holds up nobody.
func TestDeliveryIsAskedOfAllMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 3)
		c.Ready()
		for _, n := range c.Nodes() {
			if n.Info().Name == "n3" {
				continue // It does not serve watches yet.
			}
			n.ServeDelivery(func(_ context.Context, req *peerv1.AwaitDeliveryRequest) (*apiv1.NodeDelivery, error) {
				if req.GetService() == "refused" {
					return nil, fmt.Errorf("not by %s", n.Info().Name)
				}
				return &apiv1.NodeDelivery{Revision: req.GetRevision(), Streams: uint32(len(n.Info().Name))}, nil
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ask := func(name, service string) string {
			var said []string
			for _, d := range c.Node(name).AwaitDelivery(ctx, &peerv1.AwaitDeliveryRequest{Service: service, Revision: 7}) {
				if d.GetProblem() != "" {
					said = append(said, d.GetNode()+": "+d.GetProblem())
				} else {
					said = append(said, fmt.Sprintf("%s at %d, %d streams", d.GetNode(), d.GetRevision(), d.GetStreams()))
				}
			}
			return strings.Join(said, "; ")
		}
		const starting = "n3: could not be asked: the node is starting"
		for _, name := range c.Names() {
			if got, want := ask(name, "web"), "n1 at 7, 2 streams; n2 at 7, 2 streams; "+starting; got != want {
				t.Errorf("%s says %q, want %q", name, got, want)
			}
			if got, want := ask(name, "refused"), "n1: could not be asked: not by n1; n2: could not be asked: not by n2; "+starting; got != want {
				t.Errorf("%s says %q, want %q", name, got, want)
			}
		}
		c.Stop("n2")
		began := time.Now()
		got := ask("n1", "web")
		if !strings.HasPrefix(got, "n1 at 7, 2 streams; n2: could not be asked: ") || !strings.HasSuffix(got, starting) {
			t.Errorf("with n2 down: %q", got)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("a member that is down held the answer up for %v", took)
		}
	})
}
