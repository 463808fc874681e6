package rpc

import (
	"context"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// What the API does to every call, for front doors, whose clients ask in other ways.

// Identify finds out whose token it is that a client shows; node is the one that is asked. [Credential] tells it of the context
// that is returned. It fails with [ErrUnauthenticated], or as a View does. While access control is off every token will do.
func Identify(ctx context.Context, node Node, token string) (context.Context, error) {
	return guard{node}.identify(ctx, "Bearer "+token)
}

// Specification returns an instance as a registration carries it: checked, in canonical form, encoded. It fails with an
// *[InvalidError].
func Specification(in *registryv1.Instance) ([]byte, error) {
	var f faults
	spec := f.instance("instance", in, nil)
	if err := f.err(); err != nil {
		return nil, err
	}
	return encodeSpec(spec)
}

// Act marks a command as that of the caller, whom the state machine judges by the State that it is applied to. st is what the
// node has now.
func Act(ctx context.Context, st *fsm.State, cmd *raftlogv1.Command) {
	if level := st.FeatureLevel(); level >= fsm.AccessLevel {
		cmd.Level, cmd.Actor = max(cmd.GetLevel(), level), credentialOf(ctx)
	}
}
