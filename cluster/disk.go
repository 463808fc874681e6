package cluster

import (
	"time"

	"github.com/hashicorp/raft"
)

// disk is where Raft keeps its log, term and vote. It is the node's storage.Store; tests put one before it that stalls.
type disk interface {
	Logs() raft.LogStore
	Stable() raft.StableStore
	// AppendStall is for how long the append under way has lasted, 0 when none is.
	AppendStall() time.Duration
}
