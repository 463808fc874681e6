package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// maxFormer bounds the ids of earlier sessions that are remembered.
const maxFormer = 64

// Session describes the client's session at the registry.
type Session struct {
	// ID at the registry.
	ID string
	// TTL after the last acknowledged renewal.
	TTL time.Duration
	// Deadline until which the session is provably alive: the time at which the last acknowledged renewal was sent, plus
	// the TTL, by this process's monotonic clock. Once it has passed, the session may have ended.
	Deadline time.Time
}

// session is one session at the registry. The keeper guards its fields but the first three, which never change.
type session struct {
	id  string
	ttl time.Duration
	ctx context.Context // ends when the session is over

	end      context.CancelFunc
	deadline time.Time
	tenure   *tenure // nil while the session cannot be proved to be alive
	expiry   *time.Timer
	trouble  error // why it was not renewed of late
	doubted  bool  // a tenure has ended, and none has begun since
}

// tenure is a stretch of time during which a session was provably alive without a break. What was won in one tenure (a
// lock) counts as lost when it ends, even if the session turns out to have survived.
type tenure struct {
	session string
	ctx     context.Context
	end     context.CancelCauseFunc
}

// keeper keeps the client's session alive, and the registrations on it.
//
// Invariant: a tenure ends, at the latest, when the session's deadline passes.
type keeper struct {
	c       *Client
	opening chan struct{} // has one place, held by who opens or closes the session

	mu            sync.Mutex // guards the fields below; taken before a Registration's
	session       *session   // nil: none is open
	changed       chan struct{}
	registrations map[Key]*Registration
	former        []string // ids of earlier sessions, newest last

	sessionsOpened, sessionsLost, renewals, failedRenewals uint64
}

func newKeeper(c *Client) *keeper {
	return &keeper{
		c:             c,
		opening:       make(chan struct{}, 1),
		changed:       make(chan struct{}),
		registrations: make(map[Key]*Registration),
	}
}

// Session returns the client's session, and false when it has none now. A session is opened when the first instance is
// registered or the first lock is asked for.
func (c *Client) Session() (Session, bool) {
	k := c.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session == nil {
		return Session{}, false
	}
	return Session{ID: k.session.id, TTL: k.session.ttl, Deadline: k.session.deadline}, true
}

// opening makes a session at the registry, by a call of its own or together with what is to hang on it.
type opening func(context.Context) (*registryv1.Session, error)

// acquire returns the present tenure. It opens a session when there is none, and waits while the one that there is
// cannot be renewed.
func (k *keeper) acquire(ctx context.Context, by opening) (*tenure, error) {
	for {
		k.mu.Lock()
		s, changed := k.session, k.changed
		if s != nil && s.tenure != nil {
			defer k.mu.Unlock()
			return s.tenure, nil
		}
		var trouble error
		if s != nil {
			trouble = s.trouble
		}
		k.mu.Unlock()
		if s == nil {
			if err := k.open(ctx, by); err != nil {
				return nil, err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := fmt.Errorf("renew session %s: %w", s.id, context.Cause(ctx))
			if trouble != nil {
				err = fmt.Errorf("%w: %w", err, trouble)
			}
			return nil, err
		}
	}
}

// open opens a session unless one is open.
func (k *keeper) open(ctx context.Context, by opening) error {
	select {
	case k.opening <- struct{}{}:
		defer func() { <-k.opening }()
	case <-ctx.Done():
		return fmt.Errorf("open session: %w", context.Cause(ctx))
	}
	if _, ok := k.c.Session(); ok {
		return nil
	}
	// Whichever attempt opened the session, it was not sent before this.
	sent := time.Now()
	made, err := by(ctx)
	if err != nil {
		return err
	}
	ttl := made.GetTtl().AsDuration()
	if ttl <= 0 {
		ttl = k.c.cfg.sessionTTL
	}
	k.opened(made.GetId(), ttl, sent)
	return nil
}

// alone opens a session by a call of its own.
func (k *keeper) alone(ctx context.Context) (*registryv1.Session, error) {
	id, done, err := k.c.requests.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	defer done()
	req := &apiv1.OpenRequest{RequestId: id, ClientName: k.c.cfg.name, Ttl: durationpb.New(k.c.cfg.sessionTTL)}
	resp, err := invoke(ctx, k.c, method{op: "open session", repeat: sameID},
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.OpenResponse, error) {
			return apiv1.NewSessionServiceClient(conn).Open(ctx, req, opts...)
		})
	return resp.GetSession(), err
}

// wish asks for a session together with what is to hang on it.
func (k *keeper) wish() *apiv1.NewSession {
	return &apiv1.NewSession{ClientName: k.c.cfg.name, Ttl: durationpb.New(k.c.cfg.sessionTTL)}
}

// opened starts to keep a new session.
func (k *keeper) opened(id string, ttl time.Duration, sent time.Time) {
	s := &session{id: id, ttl: ttl, deadline: sent.Add(ttl)}
	s.ctx, s.end = context.WithCancel(k.c.life)
	k.mu.Lock()
	k.session = s
	k.sessionsOpened++
	s.expiry = time.AfterFunc(time.Until(s.deadline), func() { k.expired(s) })
	if time.Now().Before(s.deadline) {
		k.prove(s)
	}
	k.notify()
	k.mu.Unlock()
	k.c.cfg.log.Info("session opened", "session_id", id, "ttl", ttl)
	k.c.start(func(ctx context.Context) { k.run(ctx, s) })
	k.restore()
}

// run keeps a session until it is over, and then opens the next one if instances need it. Locks open one when asked for.
func (k *keeper) run(ctx context.Context, s *session) {
	k.attach(s) //nolint:contextcheck // The session's own context ends with the client's.
	var p pause
	for ctx.Err() == nil && k.needed() {
		openCtx, cancel := context.WithTimeout(ctx, k.c.cfg.requestTimeout)
		err := k.open(openCtx, k.alone)
		cancel()
		if err == nil {
			return
		}
		k.c.cfg.log.Warn("cannot open a session", "err", err)
		p.wait(ctx, 0)
	}
}

// needed tells whether a session is missing.
func (k *keeper) needed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.session == nil && len(k.registrations) > 0
}

// acknowledged notes that a renewal that was sent at the given time has been confirmed.
func (k *keeper) acknowledged(s *session, sent time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session != s {
		return
	}
	s.trouble = nil
	k.renewals++
	now := time.Now()
	if !now.Before(s.deadline) {
		k.doubt(s) // the timer may be late, as after a pause of the process
	}
	if deadline := sent.Add(s.ttl); deadline.After(s.deadline) {
		s.deadline = deadline
	}
	if now.Before(s.deadline) {
		s.expiry.Reset(s.deadline.Sub(now))
		k.prove(s)
	}
}

// expired is called when the deadline may have passed.
func (k *keeper) expired(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session != s {
		return
	}
	if rest := time.Until(s.deadline); rest > 0 {
		s.expiry.Reset(rest)
		return
	}
	k.doubt(s)
}

// prove begins a tenure unless there is one. The caller holds mu.
func (k *keeper) prove(s *session) {
	if s.tenure != nil {
		return
	}
	t := &tenure{session: s.id}
	t.ctx, t.end = context.WithCancelCause(s.ctx)
	s.tenure = t
	if s.doubted {
		s.doubted = false
		k.c.cfg.log.Info("session renewed after all", "session_id", s.id)
	}
	for _, r := range k.registrations {
		r.shift(s.id, StateLost, StateRegistered)
	}
	k.notify()
}

// doubt ends the tenure: the session may have ended. The caller holds mu.
func (k *keeper) doubt(s *session) {
	if s.tenure == nil {
		return
	}
	s.doubted = true
	k.c.cfg.log.Warn("session not renewed in time", "session_id", s.id, "err", s.trouble)
	k.lose(s)
}

// lose ends the tenure, if there is one. The caller holds mu.
func (k *keeper) lose(s *session) {
	if s.tenure == nil {
		return
	}
	k.sessionsLost++
	s.tenure.end(ErrLockLost)
	s.tenure = nil
	for _, r := range k.registrations {
		r.shift(s.id, StateRegistered, StateLost)
	}
	k.notify()
}

// over notes that the registry has ended a session. Sessions that are not the present one are ignored.
func (k *keeper) over(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.session
	if s == nil || s.id != id {
		return
	}
	k.c.cfg.log.Warn("session has ended", "session_id", id)
	k.leave(s)
}

// restored gives the present session up, as the registry's content was replaced by a snapshot. Even if the session is in
// that, what hangs on it there is of another time: locks may be another's by now or be back that were released, and so may
// instances be that were deregistered. What this client wants is made anew on the next session; what it does not ends with
// this one, which is no longer renewed.
func (k *keeper) restored() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session != nil {
		k.c.cfg.log.Warn("session is given up: the registry was restored from a snapshot", "session_id", k.session.id)
		k.leave(k.session)
	}
}

// leave is the end of the present session. The caller holds mu.
func (k *keeper) leave(s *session) {
	k.lose(s)
	k.drop()
	k.notify()
}

// drop forgets the present session. The caller holds mu.
func (k *keeper) drop() {
	s := k.session
	s.expiry.Stop()
	s.end()
	k.session = nil
	k.former = append(k.former, s.id)
	if len(k.former) > maxFormer {
		k.former = slices.Delete(k.former, 0, 1)
	}
}

// troubled notes why a node did not renew the session.
func (k *keeper) troubled(s *session, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.trouble = err
	if !errors.Is(err, errGoElsewhere) {
		k.failedRenewals++
	}
}

// provableUntil returns the deadline of a tenure, and false once it has ended.
func (k *keeper) provableUntil(t *tenure) (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session == nil || k.session.tenure != t {
		return time.Time{}, false
	}
	return k.session.deadline, time.Now().Before(k.session.deadline)
}

// owned tells whether a session is, or was, this client's.
func (k *keeper) owned(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.session != nil && k.session.id == id || slices.Contains(k.former, id)
}

// notify wakes all who wait for a change of the session. The caller holds mu.
func (k *keeper) notify() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// close ends the session at the registry. The client's life has ended before, so nobody opens another one.
func (k *keeper) close() error {
	k.opening <- struct{}{}
	defer func() { <-k.opening }()
	k.mu.Lock()
	s := k.session
	if s != nil {
		k.drop()
	}
	registrations := k.registrations
	k.registrations = nil
	k.mu.Unlock()
	for _, r := range registrations {
		r.finish(StateEnded, ErrClosed)
	}
	if s == nil {
		return nil
	}
	// Cleanup outlives its cause: the contexts of the client are over.
	ctx, cancel := context.WithTimeout(context.Background(), k.c.cfg.closeTimeout)
	defer cancel()
	id, done, err := k.c.requests.begin(ctx)
	if err != nil {
		return fmt.Errorf("close session: %w", err)
	}
	defer done()
	req := &apiv1.CloseRequest{RequestId: id, SessionId: s.id}
	_, err = invoke(ctx, k.c, method{op: "close session", repeat: sameID},
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.CloseResponse, error) {
			return apiv1.NewSessionServiceClient(conn).Close(ctx, req, opts...)
		})
	if errors.Is(err, ErrSessionNotFound) {
		return nil
	}
	return err
}
