package election_test

import (
	"testing"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/internal/livetest"
)

// registry is a cluster of three nodes.
type registry struct {
	*livetest.Cluster
}

func newRegistry(t *testing.T) registry {
	t.Helper()
	return registry{livetest.New(t, 3)}
}

// process is a client whose network can be cut.
type process struct {
	*client.Client
	*livetest.Link
}

func (r registry) process() *process {
	c, link := r.Client()
	return &process{c, link}
}
