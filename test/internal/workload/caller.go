package workload

import (
	"context"
	"fmt"
	"math/rand/v2"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// caller is a client as the history knows it: it has at most one call under way, and at most one request whose outcome
// is open. When it gives up on an open one it goes on under another name.
type caller struct {
	w      *Workload
	role   string
	name   string
	given  int    // names that it has had before
	pinned string // the node that it asks; empty: any
	at     string // the node that it asks now
	rng    *rand.Rand

	conns    map[string]*grpc.ClientConn
	sequence uint64 // of its last request
	revision uint64 // the largest that it has seen
}

// newCaller returns a caller that is pinned to a node, or roams when that is empty.
func (w *Workload) newCaller(role, pinned string) *caller {
	c := &caller{w: w, role: role, pinned: pinned, at: pinned, rng: w.random(role), conns: map[string]*grpc.ClientConn{}}
	c.name = role
	c.move()
	return c
}

// move turns a roaming caller to another node.
func (c *caller) move() {
	if c.pinned == "" {
		c.at = c.w.cfg.Nodes[c.rng.IntN(len(c.w.cfg.Nodes))]
	}
}

// rename gives up on whatever is open: another client goes on.
func (c *caller) rename() {
	c.close()
	c.given++
	c.name, c.sequence = fmt.Sprintf("%s.%d", c.role, c.given), 0
}

func (c *caller) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
	clear(c.conns)
}

// conn returns the connection to the node that is asked now.
func (c *caller) conn() (*grpc.ClientConn, error) {
	if conn := c.conns[c.at]; conn != nil {
		return conn, nil
	}
	conn, err := c.w.cfg.Dial(c.name, c.at, c.w.cfg.Recorder.DialOptions(c.name, c.at)...)
	if err == nil {
		c.conns[c.at] = conn
	}
	return conn, err
}

// call makes one call, which has its own deadline and no other end. A roaming caller turns elsewhere when it fails.
func (c *caller) call(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) error {
	conn, err := c.conn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.w.cfg.Timeout)
	defer cancel()
	if err = do(ctx, conn); err != nil && goneElsewhere(reasonOf(err)) {
		c.move()
	}
	return err
}

// write makes a call that carries a request id, again and again while its outcome is unknown: mostly until it is known,
// now and then only for a while. nil means that it was answered.
func (c *caller) write(ctx context.Context, do func(context.Context, *grpc.ClientConn, *apiv1.RequestID) error) error {
	c.sequence++
	id := &apiv1.RequestID{ClientId: c.name, Sequence: c.sequence, AnsweredBelow: c.sequence}
	for open := false; ; {
		err := c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error { return do(ctx, conn, id) })
		switch reason := reasonOf(err); {
		case err == nil:
			return nil
		case unknown(reason):
			open = true
		case !open || !goneElsewhere(reason):
			return err
		}
		if !c.pause(ctx) || c.rng.IntN(6) == 0 {
			c.rename()
			return err
		}
	}
}

// saw notes the revision of an answer.
func (c *caller) saw(h *apiv1.ResponseHeader) { c.revision = max(c.revision, h.GetRevision()) }

// reasonOf is the reason of an error of the API, UNSPECIFIED for any other.
func reasonOf(err error) apiv1.Reason {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return apiv1.Reason(apiv1.Reason_value["REASON_"+info.GetReason()])
		}
	}
	return apiv1.Reason_REASON_UNSPECIFIED
}

// unknown tells whether what failed for the reason may have been done.
func unknown(reason apiv1.Reason) bool {
	return reason == apiv1.Reason_REASON_UNSPECIFIED || reason == apiv1.Reason_REASON_OUTCOME_UNKNOWN ||
		reason == apiv1.Reason_REASON_INTERNAL
}

// goneElsewhere tells whether another node, or the same one later, may do what failed for the reason.
func goneElsewhere(reason apiv1.Reason) bool {
	switch reason {
	case apiv1.Reason_REASON_NOT_LEADER, apiv1.Reason_REASON_NO_LEADER, apiv1.Reason_REASON_SHUTTING_DOWN,
		apiv1.Reason_REASON_REMOVED, apiv1.Reason_REASON_STARTING, apiv1.Reason_REASON_OVERLOADED,
		apiv1.Reason_REASON_TOO_STALE:
		return true
	default:
		return unknown(reason)
	}
}
