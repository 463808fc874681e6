package cluster

import (
	"bytes"
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/fsm"
)

// restoreHere restores on the leader. What is under way is aborted: its outcome is unknown to its proposers.
func (n *Node) restoreHere(ctx context.Context, st *fsm.State) error {
	if !n.leads() {
		return ErrNotLeader
	}
	if err := n.pilot.lock(ctx); err != nil {
		return err
	}
	defer n.pilot.unlock()
	r := n.raft.Load()
	rebased := fsm.Rebase(st, n.feed.State())
	var buf bytes.Buffer
	if err := rebased.WriteSnapshot(&buf, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrBadSnapshot, err)
	}
	meta := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, Index: rebased.Index(), Term: rebased.Term(), Size: int64(buf.Len()),
	}
	if err := r.Restore(meta, &buf, changeTimeout); err != nil {
		return changeError(err)
	}
	// An entry of its own puts the new State at an index above all that was read before.
	return n.setMember(ctx, n.knownSelf())
}
