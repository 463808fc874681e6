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

// aheadLogs is a raft.LogStore that shows entries to send before it writes them.
type aheadLogs struct {
	raft.LogStore
	send func([]*raft.Log)
}

// StoreLogs implements raft.LogStore.
func (l aheadLogs) StoreLogs(entries []*raft.Log) error {
	l.send(entries)
	return l.LogStore.StoreLogs(entries)
}

// IsMonotonic implements raft.MonotonicLogStore.
func (l aheadLogs) IsMonotonic() bool { return isMonotonic(l.LogStore) }

func isMonotonic(logs raft.LogStore) bool {
	inner, ok := logs.(raft.MonotonicLogStore)
	return ok && inner.IsMonotonic()
}
