package rpc

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// core is what all services of one server share.
type core struct {
	guard
	log       *slog.Logger
	admission *admission
	// quotas are those of namespaces, as far as each node holds them.
	quotas quotas
	// lockWaiters bounds the Acquire calls that wait: one token each.
	lockWaiters chan struct{}
	// watches bounds the watch streams: one token each.
	watches chan struct{}
	// workers serve the watch streams.
	workers workers
	// deliveries are awaited of the watch streams.
	deliveries deliveries
	// watchMessages counts what was sent on watch streams.
	watchMessages atomic.Uint64

	// unready makes the health service say NOT_SERVING, while everything else goes on.
	unready atomic.Bool
	// leaving is closed when the server begins to shut down: streams say "go elsewhere" and end.
	leaving chan struct{}
	// tasks are goroutines that end with their stream, but only after its handler returned; Shutdown waits for them.
	tasks sync.WaitGroup
}

// propose applies a command on behalf of the caller; a refusal by the state machine is an error.
//
// What is remembered for retries is the caller's own: under another identity the same request id is another request.
func (c *core) propose(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	st := c.node.Feed().State()
	if err := c.quotas.write(st, cmd); err != nil {
		return fsm.Outcome{}, err
	}
	if level := st.FeatureLevel(); level >= fsm.AccessLevel {
		cmd.Level, cmd.Actor = max(cmd.GetLevel(), level), credentialOf(ctx)
		// From fsm.KVLevel on the state machine does it, which is never behind.
		identity, _ := st.Identity(cmd.GetActor())
		if cmd.GetLevel() < fsm.KVLevel && cmd.GetRequest() != nil && identity != fsm.Anonymous {
			cmd.Request.BodyHash ^= xxh3.HashString(identity)
		}
	}
	out, err := c.node.Propose(ctx, cmd)
	if err != nil {
		return fsm.Outcome{}, err
	}
	return out, explainQuota(out.Err())
}

// view returns a state to answer a read from, together with the header of the answer.
func (c *core) view(ctx context.Context, fresh cluster.Freshness) (*fsm.State, *apiv1.ResponseHeader, error) {
	v, err := c.node.View(ctx, fresh)
	if err != nil {
		return nil, nil, err
	}
	return v.State, c.readHeader(v), nil
}
