package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// caller is a client as the history knows it: it has at most one call under way, and at most one request whose outcome
// is open. When it gives up on an open one it goes on under another name.
type caller struct {
	w       *Workload
	role    string
	name    string
	given   int           // names that it has had before
	pinned  bool          // it never asks another node
	at      string        // the node that it asks now
	timeout time.Duration // of its calls
	rng     *rand.Rand

	conns    map[string]*grpc.ClientConn
	sequence uint64 // of its last request
	revision uint64 // the largest that it has seen
	values   int    // that it has made up
	lives    int    // sessions and leases that it has opened
}

// newCaller returns a caller that is pinned to a node, or roams when that is empty.
func (w *Workload) newCaller(role, node string) *caller { return w.newNamed(w.cfg.Name+role, node) }

// newNamed is newCaller with the whole name, as for who belongs to another caller.
func (w *Workload) newNamed(role, node string) *caller {
	c := &caller{
		w: w, role: role, name: role, pinned: node != "", at: node, timeout: w.cfg.Timeout, rng: w.random(role),
		conns: map[string]*grpc.ClientConn{},
	}
	c.move()
	return c
}

// move turns a roaming caller to another node.
func (c *caller) move() {
	if !c.pinned {
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

// pause waits for about the mean pause. It tells whether ctx is still alive.
func (c *caller) pause(ctx context.Context) bool {
	return sleep(ctx, time.Duration(c.rng.ExpFloat64()*float64(c.w.cfg.Pause)))
}

// within chooses a time between two.
func (c *caller) within(least, most time.Duration) time.Duration {
	return least + time.Duration(c.rng.Int64N(int64(most-least)+1))
}

// call makes one call, which has its own deadline and no other end. A roaming caller turns elsewhere when it fails for
// a reason that lies with the node, and now and then anyway.
func (c *caller) call(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) error {
	conn, err := c.conn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()
	if err = do(ctx, conn); err != nil && passing(reasonOf(err)) || c.rng.IntN(8) == 0 {
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
		case !open || !passing(reason):
			return err
		}
		if !sleep(ctx, c.within(0, c.timeout/4)) || c.rng.IntN(6) == 0 {
			c.rename()
			return err
		}
	}
}

// saw notes the revision of an answer.
func (c *caller) saw(h *apiv1.ResponseHeader) { c.revision = max(c.revision, h.GetRevision()) }

// value makes up a value that nobody else has.
func (c *caller) value() string {
	c.values++
	return fmt.Sprintf("%s-%d", c.role, c.values)
}

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

// passing tells whether another node, or the same one later, may do what failed for the reason.
func passing(reason apiv1.Reason) bool {
	switch reason {
	case apiv1.Reason_REASON_NOT_LEADER, apiv1.Reason_REASON_NO_LEADER, apiv1.Reason_REASON_SHUTTING_DOWN,
		apiv1.Reason_REASON_REMOVED, apiv1.Reason_REASON_STARTING, apiv1.Reason_REASON_OVERLOADED,
		apiv1.Reason_REASON_TOO_STALE, apiv1.Reason_REASON_PAGE_EXPIRED, apiv1.Reason_REASON_DISK_FULL:
		return true
	default:
		return unknown(reason)
	}
}
