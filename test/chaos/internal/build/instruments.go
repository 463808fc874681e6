package build

import _ "embed"

// What a regd of Build reads from its environment. Unset: as without the instruments. What can't be read ends the
// process at its start.
const (
	// EnvApplied names the file to which the node appends each log entry once it has applied it, in the form of
	// oracle.AppendEntry; several starts may share it. It must not be on a disk that is tortured: when the file can't be
	// written the process ends.
	EnvApplied = "REGD_CHAOS_APPLIED"
	// EnvSnapshotThreshold, EnvSnapshotInterval (as in "3s") and EnvTrailingLogs are those of cluster.Config.
	EnvSnapshotThreshold = "REGD_CHAOS_SNAPSHOT_THRESHOLD"
	EnvSnapshotInterval  = "REGD_CHAOS_SNAPSHOT_INTERVAL"
	EnvTrailingLogs      = "REGD_CHAOS_TRAILING_LOGS"
	// EnvMinFreeBytes is that of cluster.Config.
	EnvMinFreeBytes = "REGD_CHAOS_MIN_FREE_BYTES"
	// EnvFeedEvents and EnvFeedBytes bound the history that watches resume from: see feed.Limits. EnvQueueEvents bounds
	// what waits for one slow reader.
	EnvFeedEvents  = "REGD_CHAOS_FEED_EVENTS"
	EnvFeedBytes   = "REGD_CHAOS_FEED_BYTES"
	EnvQueueEvents = "REGD_CHAOS_QUEUE_EVENTS"
)

var (
	//go:embed testdata/regd/zz_chaos.go
	nodeSource []byte
	//go:embed testdata/regd/zz_chaosapply.go
	appliedSource []byte
)

// nodeEdit has regd open its node with what the environment says. The rest is in the files that are added.
func nodeEdit() Edit {
	return Edit{File: "cmd/regd/node.go", Old: "cluster.Open(cluster.Config{", New: "chaosOpen(cluster.Config{"}
}
