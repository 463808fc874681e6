package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// maxSlots bounds the slots of a semaphore.
const maxSlots = 1000

// lockOptions is what the options made.
type lockOptions struct {
	namespace string
	value     []byte
}

// LockOption changes how a lock is taken.
type LockOption func(*lockOptions) error

// LockValue publishes what the owner says of itself, such as the address of an elected leader, at most 1 KiB.
func LockValue(value []byte) LockOption {
	return func(o *lockOptions) error {
		if len(value) > 1<<10 {
			return fmt.Errorf("lock value of %d bytes: need at most %d", len(value), 1<<10)
		}
		o.value = value
		return nil
	}
}

// LockNamespace names the lock's namespace. Default: the client's.
func LockNamespace(namespace string) LockOption {
	return func(o *lockOptions) error {
		if namespace == "" {
			return errors.New("lock namespace: empty")
		}
		o.namespace = namespace
		return nil
	}
}

// Lock is a lock that this client took, or a slot of a semaphore. It is held until Unlock, or until ownership can no longer
// be proved.
type Lock struct {
	c       *Client
	name    lockName
	gate    *gate
	token   uint64
	value   []byte
	tenure  *tenure
	ctx     context.Context // handed out by Context
	cancel  context.CancelCauseFunc
	lost    chan struct{}
	unwatch func() bool

	unlocking sync.Once
	unlockErr error
}

// Lock takes a lock and waits for it, first come first served, as long as ctx allows. The client's session owns it, so
// within one client too only one holds it at a time. Unlock it in any case, also when it was lost.
func (c *Client) Lock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	return c.lock(ctx, name, 1, true, opts)
}

// Semaphore takes one of the slots of a semaphore, 1 to 1,000 of them, and waits for it as Lock does: a Lock is a semaphore
// of one slot. Each owner has a fencing token of its own, larger than those before; there is one queue for all slots. The
// client's session owns the slot, so a client has one at most, and its others wait for that one.
//
// The first owner decides how many slots there are. As long as anybody owns one, another number fails with
// ErrSlotsMismatch, which names both.
func (c *Client) Semaphore(ctx context.Context, name string, slots int, opts ...LockOption) (*Lock, error) {
	return c.lock(ctx, name, slots, true, opts)
}

// TryLock is Lock without waiting: a lock that is held, also by this client, makes it fail with ErrLockHeld.
func (c *Client) TryLock(ctx context.Context, name string, opts ...LockOption) (*Lock, error) {
	ctx, cancel, err := c.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	defer cancel()
	return c.lock(ctx, name, 1, false, opts)
}

// TrySemaphore is Semaphore without waiting: when no slot is free, or this client has one, it fails with ErrLockHeld.
func (c *Client) TrySemaphore(ctx context.Context, name string, slots int, opts ...LockOption) (*Lock, error) {
	ctx, cancel, err := c.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	defer cancel()
	return c.lock(ctx, name, slots, false, opts)
}

func (c *Client) lock(ctx context.Context, name string, slots int, wait bool, opts []LockOption) (*Lock, error) {
	o := lockOptions{namespace: c.cfg.namespace}
	var errs []error
	if slots < 1 || slots > maxSlots {
		errs = append(errs, fmt.Errorf("%d slots: need 1 to %d", slots, maxSlots))
	}
	for _, opt := range opts {
		errs = append(errs, opt(&o))
	}
	full := lockName{namespace: o.namespace, name: name}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("lock %s: %w", full, err)
	}
	if c.life.Err() != nil {
		return nil, fmt.Errorf("lock %s: %w", full, ErrClosed)
	}
	values := context.WithoutCancel(ctx)
	ctx, unbind := c.bind(ctx)
	defer unbind()
	g, err := c.locks.enter(ctx, full, wait)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", full, err)
	}
	a := acquisition{c: c, name: full, gate: g, wait: wait, value: o.value, slots: uint32(slots)} //nolint:gosec // Checked above.
	token, t, err := a.run(ctx)
	if err != nil {
		a.undo()
		return nil, err
	}
	l := &Lock{c: c, name: full, gate: g, token: token, value: o.value, tenure: t, lost: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(values)
	l.unwatch = context.AfterFunc(t.ctx, func() { //nolint:contextcheck // It is the tenure that ends the lock, not the call.
		l.cancel(context.Cause(t.ctx))
		close(l.lost)
	})
	return l, nil
}

// Name returns the lock's name without its namespace.
func (l *Lock) Name() string { return l.name.name }

// Token returns the fencing token: larger than that of every earlier owner of any lock. Hand it to what the lock
// protects, which must refuse smaller ones than it has seen; that alone is safe against an owner who does not know yet
// that it lost the lock.
func (l *Lock) Token() uint64 { return l.token }

// Value returns what was published by LockValue.
func (l *Lock) Value() []byte { return l.value }

// Context ends the moment ownership can no longer be proved, with the cause ErrLockLost, or ErrClosed when the client was
// closed, and when Unlock begins. It carries the values of the context that the lock was taken with, not its end.
func (l *Lock) Context() context.Context { return l.ctx }

// Lost is closed when ownership can no longer be proved: the session was not renewed by its deadline, or has ended.
func (l *Lock) Lost() <-chan struct{} { return l.lost }

// Deadline returns until when ownership is proved at the least, and false once the lock is lost. It moves on with each
// renewal of the session.
func (l *Lock) Deadline() (time.Time, bool) { return l.c.keeper.provableUntil(l.tenure) }

// Unlock gives the lock back; the next in the queue owns it at once. It returns an error that matches ErrLockLost when the
// lock had been lost before. When no node confirms it before ctx ends, the client goes on trying in the background. ctx may
// be the lock's own, or come from it. Further calls return what the first one did.
func (l *Lock) Unlock(ctx context.Context) error {
	l.unlocking.Do(func() {
		_, proved := l.Deadline()
		held := l.unwatch() && proved
		ended := ctx.Err() != nil
		l.cancel(context.Canceled)
		if !ended && ctx.Err() != nil { // It ends with the lock's, which must not end the unlocking.
			ctx = context.WithoutCancel(ctx)
		}
		bounded, cancel, err := l.c.begin(ctx)
		if err == nil {
			defer cancel()
			err = l.c.release(bounded, l.gate, l.name, l.tenure.session, l.token)
		}
		if err != nil {
			l.c.releaseLater(l.gate, l.name, l.tenure.session, l.token)
		} else {
			l.c.locks.leave(l.gate)
		}
		if !held {
			err = errors.Join(ErrLockLost, err)
		}
		if err != nil {
			l.unlockErr = fmt.Errorf("unlock %s: %w", l.name, err)
		}
	})
	return l.unlockErr
}

// acquisition is the taking of one lock.
type acquisition struct {
	c     *Client
	name  lockName
	gate  *gate
	wait  bool
	value []byte
	slots uint32
	maybe string // session that may own the lock, or wait for it, without anybody knowing
}

// run asks until it is the owner, or is refused.
//
// Each attempt that may have been carried out is followed by one with a new request id. To acquire a lock again is
// harmless; the same id would be answered by what was remembered when the session began to wait.
func (a *acquisition) run(ctx context.Context) (uint64, *tenure, error) {
	var p pause
	for {
		t, err := a.c.keeper.acquire(ctx, a.c.keeper.alone)
		if err != nil {
			return 0, nil, fmt.Errorf("lock %s: %w", a.name, err)
		}
		a.maybe = t.session
		token, err := a.ask(ctx, t.session)
		switch {
		case err == nil && t.ctx.Err() == nil:
			return token, t, nil
		case err == nil: // won, but at a time that proves nothing: see whether the session is still there
			continue
		case errors.Is(err, ErrSessionNotFound):
			a.maybe = ""
			a.c.keeper.over(t.session)
		case errors.Is(err, ErrLockHeld) && a.wait: // The node's patience ended first: whether ours has, the next attempt tells.
		case ctx.Err() != nil:
			return 0, nil, err
		case errors.Is(err, ErrOutcomeUnknown):
		default:
			if e := (*Error)(nil); errors.As(err, &e) && !e.ambiguous() {
				a.maybe = ""
			}
			return 0, nil, err
		}
		p.wait(ctx, 0)
	}
}

// ask sends one acquisition under a request id of its own.
func (a *acquisition) ask(ctx context.Context, session string) (uint64, error) {
	id, done, err := a.gate.requests.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	req := &apiv1.AcquireRequest{
		RequestId: id, Namespace: a.name.namespace, Name: a.name.name, SessionId: session, Wait: a.wait, Value: a.value,
	}
	if a.slots > 1 { // A node that is older knows locks only.
		req.Slots = a.slots
	}
	m := method{op: "lock " + a.name.String(), repeat: ifUndone, patient: a.wait}
	resp, err := invoke(ctx, a.c, m,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.AcquireResponse, error) {
			return apiv1.NewLockServiceClient(conn).Acquire(ctx, req, opts...)
		})
	return resp.GetToken(), err
}

// undo makes sure that a failed acquisition leaves nothing behind, and opens the gate then.
func (a *acquisition) undo() {
	if a.maybe == "" {
		a.c.locks.leave(a.gate)
		return
	}
	a.c.releaseLater(a.gate, a.name, a.maybe, 0)
}

// release gives a lock, or a place in its queue, back. Token 0: whatever the session has of it. That there is nothing to
// give back is success. Its request id also fences off acquisitions through this gate that are still under way.
func (c *Client) release(ctx context.Context, g *gate, name lockName, session string, token uint64) error {
	id, done, err := g.requests.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	req := &apiv1.ReleaseRequest{
		RequestId: id, Namespace: name.namespace, Name: name.name, SessionId: session, Token: token,
	}
	_, err = invoke(ctx, c, method{op: "unlock " + name.String(), repeat: sameID},
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ReleaseResponse, error) {
			return apiv1.NewLockServiceClient(conn).Release(ctx, req, opts...)
		})
	for _, gone := range []error{ErrLockNotHeld, ErrLockNotFound, ErrSessionNotFound, ErrStaleIncarnation} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

// releaseLater releases in the background until it succeeds or the client is closed, which ends the session, and opens
// the gate then.
func (c *Client) releaseLater(g *gate, name lockName, session string, token uint64) {
	started := c.start(func(ctx context.Context) {
		defer c.locks.leave(g)
		var p pause
		for ctx.Err() == nil {
			callCtx, cancel := context.WithTimeout(ctx, c.cfg.requestTimeout)
			err := c.release(callCtx, g, name, session, token)
			cancel()
			if err == nil {
				return
			}
			c.cfg.log.Debug("cannot release a lock", "lock", name.String(), "err", err)
			p.wait(ctx, 0)
		}
	})
	if !started {
		c.locks.leave(g)
	}
}
