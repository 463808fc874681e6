package check

import (
	"bytes"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// ReplicaFigures say what Replica judged.
type ReplicaFigures struct {
	// Hashes of states that nodes told, Indexes at which.
	Hashes, Indexes int
	// Lists that were read linearizably once the run had settled.
	Lists int
}

// Replica judges whether all nodes hold the same.
//
//   - replica-clash: two nodes, or one at two times, applied different entries at one index.
//   - replica-hash: what a node tells of its state at an index is what the log makes of it, so that all are equal.
//   - replica-equal: Verify says that the nodes are equal if, and only if, all answered and are.
//   - replica-final: once the run has settled, linearizable lists show its end.
func Replica(r *Run) ([]Violation, ReplicaFigures) {
	c := &replicas{facts: r.facts()}
	for _, clash := range r.Clashes {
		c.fault("replica-clash", "%s", clash)
	}
	indexes := map[uint64]bool{}
	final := r.Timeline.Final().Revision()
	for i := range r.History.Calls {
		call := &r.History.Calls[i]
		if resp, ok := call.Response.(*apiv1.VerifyResponse); ok {
			c.verified(resp, indexes)
		}
		if _, isList := call.Response.(interface{ GetNextPageToken() string }); isList && r.Settled > 0 && call.Begun >= r.Settled && linearizable(call) {
			c.figures.Lists++
			if got := call.Header().GetRevision(); got != final {
				c.fault("replica-final", "%s shows revision %d, the last one is %d", describeCall(call), got, final)
			}
		}
	}
	c.figures.Indexes = len(indexes)
	return c.list, c.figures
}

type replicas struct {
	*facts
	verdict
	figures ReplicaFigures
}

func (c *replicas) verified(resp *apiv1.VerifyResponse, indexes map[uint64]bool) {
	equal := len(resp.GetReplicas()) > 0
	for _, replica := range resp.GetReplicas() {
		first := resp.GetReplicas()[0]
		equal = equal && replica.GetIndex() > 0 && replica.GetIndex() == first.GetIndex() &&
			bytes.Equal(replica.GetStateHash(), first.GetStateHash()) && bytes.Equal(replica.GetChain(), first.GetChain())
		if replica.GetIndex() == 0 {
			continue
		}
		c.figures.Hashes++
		indexes[replica.GetIndex()] = true
		st := c.run.Timeline.AtIndex(replica.GetIndex())
		hash, chain := st.Hash(), st.Chain()
		if replica.GetRevision() != st.Revision() || !bytes.Equal(replica.GetStateHash(), hash[:]) || !bytes.Equal(replica.GetChain(), chain[:]) {
			c.fault("replica-hash", "%s at index %d: revision %d, hash %x, chain %x; the log makes revision %d, hash %x, chain %x of it",
				replica.GetNode(), replica.GetIndex(), replica.GetRevision(), replica.GetStateHash(), replica.GetChain(),
				st.Revision(), hash, chain)
		}
	}
	if equal != resp.GetEqual() {
		c.fault("replica-equal", "the nodes are equal: %v, Verify says %v of %v", equal, resp.GetEqual(), resp.GetReplicas())
	}
}
