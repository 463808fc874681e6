package workload

import (
	"context"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// lockNames are the locks that are fought for, by programs too.
var lockNames = []string{"one", "two"}

// contend takes locks on a session of its own, holds them, and gives them back: or falls silent while it holds one, and
// comes back with the old token.
func (w *Workload) contend(ctx context.Context, c *caller) {
	for c.pause(ctx) {
		l := c.live(ctx, sessions)
		if l == nil {
			continue
		}
		for range 1 + c.rng.IntN(6) {
			if l.over.Load() || !c.pause(ctx) {
				break
			}
			c.hold(ctx, l)
		}
		if c.rng.IntN(3) == 0 {
			l.leave()
		} else {
			l.finish(ctx, c)
		}
	}
}

// semaphore is a lock of several slots that is fought for.
const semaphore, semaphoreSlots = "several", 2

// hold takes one lock, or a slot of one, for a while.
func (c *caller) hold(ctx context.Context, l *life) {
	name, slots := pick(c.rng, append([]string{semaphore}, lockNames...)), uint32(0)
	if name == semaphore {
		slots = semaphoreSlots
	}
	token, err := c.acquire(ctx, name, slots, l)
	if err != nil {
		if unknown(reasonOf(err)) { // It may own the lock without knowing, or stand in its queue.
			c.release(ctx, name, l.id, 0)
		}
		return
	}
	if c.rng.IntN(4) > 0 {
		sleep(ctx, c.within(0, 4*c.w.cfg.Pause))
		c.release(ctx, name, l.id, token)
		return
	}
	l.silence()
	sleep(ctx, c.within(l.ttl/2, 5*l.ttl/2))
	if c.rng.IntN(2) == 0 { // It believes that it still owns the lock.
		c.release(ctx, name, l.id, token)
	}
	l.speak(ctx)
}

// acquire asks for a lock, and mostly waits for it.
func (c *caller) acquire(ctx context.Context, name string, slots uint32, l *life) (token uint64, err error) {
	defer func(was time.Duration) { c.timeout = was }(c.timeout)
	req := &apiv1.AcquireRequest{Name: name, SessionId: l.id, Value: []byte(c.name), Slots: slots}
	if c.rng.IntN(3) > 0 {
		req.Wait, c.timeout = true, c.within(c.timeout, 4*c.timeout)
	}
	err = c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		req.RequestId = id
		resp, failed := apiv1.NewLockServiceClient(conn).Acquire(ctx, req)
		c.saw(resp.GetHeader())
		token = resp.GetToken()
		return failed
	})
	return token, err
}

// release gives a lock back. Token 0: whatever the session has of it.
func (c *caller) release(ctx context.Context, name, session string, token uint64) {
	_ = c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		_, err := apiv1.NewLockServiceClient(conn).Release(ctx, &apiv1.ReleaseRequest{
			RequestId: id, Name: name, SessionId: session, Token: token,
		})
		return err
	})
}
