package rpc

import (
	"cmp"
	"context"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// DefaultTransitions is the number of changes that Explain tells when it is not asked for another.
const DefaultTransitions = 100

// Explain tells what happened to an instance and why.
//
// Who did it is told to whoever may see the sessions of others, which have identities too: who observes the cluster. All else
// is no more than who discovers the service could have seen at the time.
func (s *registryServer) Explain(ctx context.Context, req *apiv1.ExplainRequest) (*apiv1.ExplainResponse, error) {
	var f faults
	key, fresh := f.key("key", req.GetKey()), f.freshness(req.GetFreshness())
	limit := int(req.GetLimit())
	if limit < 0 || limit > MaxPageSize {
		f.add("limit", "must be 0 to %d, is %d", MaxPageSize, limit)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	st, header, err := s.view(ctx, fresh)
	if err != nil {
		return nil, aboutInstance(err, "explain", key)
	}
	resp := &apiv1.ExplainResponse{Header: header}
	resp.AfterRevision, resp.AfterUnixMs, resp.Kept = st.HistoryAfter()
	resp.Transitions, resp.More = st.Transitions(
		key.GetNamespace(), key.GetService(), key.GetId(), cmp.Or(limit, DefaultTransitions))
	if record := st.Instance(key.GetNamespace(), key.GetService(), key.GetId()); record != nil {
		if resp.Instance, err = record.Proto(); err != nil {
			return nil, err
		}
	}
	if !st.Allowed(credentialOf(ctx), registryv1.Action_ACTION_OBSERVE, "", "") {
		resp.IdentitiesWithheld = true
		for _, tr := range resp.GetTransitions() {
			tr.Actor = "" // Each is a message of our own.
		}
	}
	return resp, nil
}
