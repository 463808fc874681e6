package rpc

import (
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// writeHeader is the header of an answer to a write that led to the revision.
func (c *core) writeHeader(revision uint64) *apiv1.ResponseHeader {
	return c.header(c.node.Feed().State().Epoch(), revision)
}

// readHeader is the header of an answer read from a view.
func (c *core) readHeader(v cluster.View) *apiv1.ResponseHeader {
	h := c.header(v.State.Epoch(), v.State.Revision())
	h.Mode = modeOf(v.Mode)
	if v.Staleness >= 0 {
		h.Staleness = durationpb.New(v.Staleness)
	}
	return h
}

func (c *core) header(epoch, revision uint64) *apiv1.ResponseHeader {
	info := c.node.Info()
	return &apiv1.ResponseHeader{
		ClusterId: info.ClusterID, Epoch: epoch, Revision: revision, Node: info.Name, Leader: info.LeaderAddress,
	}
}

func modeOf(m cluster.Mode) apiv1.Mode {
	switch m {
	case cluster.ModeLinearizable:
		return apiv1.Mode_MODE_LINEARIZABLE
	case cluster.ModeBounded:
		return apiv1.Mode_MODE_BOUNDED
	case cluster.ModeAtLeast:
		return apiv1.Mode_MODE_AT_LEAST
	case cluster.ModeStale:
		return apiv1.Mode_MODE_STALE
	default:
		return apiv1.Mode_MODE_UNSPECIFIED
	}
}
