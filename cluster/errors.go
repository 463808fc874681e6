package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// What can go wrong. All but ErrUnknownOutcome mean that nothing was done.
var (
	// ErrNotLeader: this node does not lead and could not reach the node that does.
	ErrNotLeader = errors.New("this node does not lead the cluster")
	// ErrNoLeader: nobody leads now, as far as this node knows.
	ErrNoLeader = errors.New("the cluster has no leader")
	// ErrUnknownOutcome: the write may or may not have been applied. Retrying it under its request id is safe.
	ErrUnknownOutcome = errors.New("the outcome of the write is unknown")
	// ErrOverloaded: too many proposals wait.
	ErrOverloaded = errors.New("too many proposals are waiting")
	// ErrDiskFull: the leader's disk is nearly full.
	ErrDiskFull = errors.New("the disk is nearly full")
	// ErrClosed: the node is stopping.
	ErrClosed = errors.New("the node is stopping")
	// ErrRemoved: the node was removed from the cluster.
	ErrRemoved = errors.New("the node was removed from the cluster")
	// ErrStarting: the node has no cluster yet, or is replaying its log.
	ErrStarting = errors.New("the node is starting")
	// ErrTooStale: the freshness that was asked can't be met in time.
	ErrTooStale = errors.New("the freshness asked for can't be met")
	// ErrMembership: the change of membership is refused.
	ErrMembership = errors.New("the membership change is refused")
	// ErrMemberNotFound: no member has this id or name.
	ErrMemberNotFound = errors.New("no such member")
	// ErrFeatureLevel: a member of the cluster is too old for the command.
	ErrFeatureLevel = errors.New("a member of the cluster is too old")
	// ErrTooOld: this version of regd can't apply what the log of its cluster has, or may have. Only a newer one helps.
	ErrTooOld = errors.New("this version of regd is too old for its cluster")
	// ErrBadSnapshot: the snapshot can't be read.
	ErrBadSnapshot = errors.New("the snapshot can't be read")
)

// faultKinds is the one table between sentinels and what crosses between nodes.
var faultKinds = []struct { //nolint:gochecknoglobals // A table.
	kind peerv1.FaultKind
	err  error
}{
	{peerv1.FaultKind_FAULT_KIND_NOT_LEADER, ErrNotLeader},
	{peerv1.FaultKind_FAULT_KIND_NO_LEADER, ErrNoLeader},
	{peerv1.FaultKind_FAULT_KIND_UNKNOWN_OUTCOME, ErrUnknownOutcome},
	{peerv1.FaultKind_FAULT_KIND_OVERLOADED, ErrOverloaded},
	{peerv1.FaultKind_FAULT_KIND_DISK_FULL, ErrDiskFull},
	{peerv1.FaultKind_FAULT_KIND_CLOSED, ErrClosed},
	{peerv1.FaultKind_FAULT_KIND_REMOVED, ErrRemoved},
	{peerv1.FaultKind_FAULT_KIND_MEMBERSHIP, ErrMembership},
	{peerv1.FaultKind_FAULT_KIND_MEMBER_NOT_FOUND, ErrMemberNotFound},
	{peerv1.FaultKind_FAULT_KIND_BAD_SNAPSHOT, ErrBadSnapshot},
	{peerv1.FaultKind_FAULT_KIND_STARTING, ErrStarting},
	{peerv1.FaultKind_FAULT_KIND_TIMEOUT, context.DeadlineExceeded},
}

// toFault makes an error fit to cross to another node.
func toFault(err error) *peerv1.Fault {
	if err == nil {
		return nil
	}
	for _, f := range faultKinds {
		if errors.Is(err, f.err) {
			return &peerv1.Fault{Kind: f.kind, Message: err.Error()}
		}
	}
	return &peerv1.Fault{Kind: peerv1.FaultKind_FAULT_KIND_OTHER, Message: err.Error()}
}

// fromFault gives the error back, so that errors.Is holds on this side too.
func fromFault(f *peerv1.Fault) error {
	if f == nil {
		return nil
	}
	for _, k := range faultKinds {
		if k.kind == f.GetKind() {
			return &remoteError{sentinel: k.err, message: f.GetMessage()}
		}
	}
	return errors.New(f.GetMessage())
}

// remoteError is an error of another node: its text, and the sentinel that it stands for.
type remoteError struct {
	sentinel error
	message  string
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.sentinel }

// applyError says what an error of raft.Apply means to the proposer.
func applyError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader // Not appended: nothing was done.
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrOverloaded // Not even handed to Raft.
	case errors.Is(err, ErrUnknownOutcome):
		return err
	default:
		// Leadership lost, aborted by a restore, shut down: it may be in the log of a majority or nowhere.
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
}
