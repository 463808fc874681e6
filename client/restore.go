package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// put registers a specification on the present session, on the next one should that end, and adopts the outcome. Where
// there is no session, a new registration opens it in the same call; one that is made again waits for that of the keeper,
// which is for all that are. The caller holds the turn.
func (r *Registration) put(ctx context.Context, spec *registryv1.Instance, claim claim) error {
	var p pause
	for {
		instance := proto.CloneOf(spec)
		instance.SessionId = ""
		var resp *apiv1.RegisterResponse // of the registration that opened the session
		var refused error
		by := r.c.keeper.alone
		if claim != again {
			by = func(ctx context.Context) (*registryv1.Session, error) {
				resp, refused = r.c.register(ctx, &apiv1.RegisterRequest{
					Instance: instance, IfAbsent: claim != newest, OpenSession: r.c.keeper.wish(),
				})
				return resp.GetSession(), refused
			}
		}
		t, err := r.c.keeper.acquire(ctx, by)
		switch {
		case refused != nil:
			return refused
		case err != nil:
			return fmt.Errorf("register %s: %w", r.key, err)
		}
		if resp.GetSession().GetId() != t.session {
			instance.SessionId = t.session
			resp, err = r.c.register(ctx, &apiv1.RegisterRequest{Instance: instance, IfAbsent: claim != newest})
		}
		if claim == again && errors.Is(err, ErrAlreadyExists) {
			resp, err = r.replace(ctx, instance)
		}
		switch {
		case errors.Is(err, ErrSessionNotFound):
			r.c.keeper.over(t.session)
		case claim == again && errors.Is(err, ErrRevisionMismatch): // somebody was quicker: look again
		case err != nil:
			return err
		case r.c.keeper.adopt(r, spec, t.session, resp.GetIncarnation()):
			return nil
		}
		p.wait(ctx, 0)
	}
}

// replace registers over what another session has registered under the same id, if that is older: an earlier session of
// this client, which an operator's restore brought back, or an owner that this registration had superseded. A newer owner
// keeps it.
func (r *Registration) replace(ctx context.Context, instance *registryv1.Instance) (*apiv1.RegisterResponse, error) {
	found, err := r.c.Instance(ctx, r.key)
	if errors.Is(err, ErrInstanceNotFound) {
		return r.c.register(ctx, &apiv1.RegisterRequest{Instance: instance, IfAbsent: true})
	}
	if err != nil {
		return nil, err
	}
	if !r.c.keeper.owned(found.Instance.GetSessionId()) && found.Instance.GetIncarnation() > r.Incarnation() {
		return nil, fmt.Errorf("register %s: %w", r.key, ErrSuperseded)
	}
	return r.c.register(ctx, &apiv1.RegisterRequest{
		Instance: instance, ExpectedRevision: found.Instance.GetModifyRevision(),
	})
}

// restore registers the instance again, however long that takes, unless somebody newer has it.
func (r *Registration) restore() {
	p := pause{limit: maxRestorePause}
	for r.life.Err() == nil {
		err := r.restoreOnce(r.life)
		switch {
		case err == nil:
			r.c.cfg.log.Info("registered again", "instance", r.key.String(), "incarnation", r.Incarnation())
			return
		case errors.Is(err, ErrSuperseded):
			r.superseded()
			return
		case r.life.Err() == nil:
			r.c.cfg.log.Warn("cannot register again", "instance", r.key.String(), "err", err)
		}
		p.wait(r.life, 0)
	}
}

// restoreOnce registers the instance and repeats what is known of its health.
func (r *Registration) restoreOnce(ctx context.Context) (err error) {
	ctx, end := r.c.trace(ctx, OperationRestore, r.key)
	defer func() { end(err) }()
	ctx, cancel := context.WithTimeout(ctx, r.c.cfg.requestTimeout)
	defer cancel()
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.release()
	if err := r.put(ctx, r.Instance(), again); err != nil {
		return err
	}
	if _, err := r.remark(ctx); err != nil {
		return err
	}
	incarnation, reports := r.kept()
	for check, report := range reports {
		if err := r.c.setHealth(ctx, r.key, incarnation, check, report); err != nil && !errors.Is(err, ErrCheckNotFound) {
			return err
		}
	}
	return nil
}

// add makes a registration known, so that it is registered again on every new session.
func (k *keeper) add(r *Registration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.registrations == nil {
		return fmt.Errorf("register %s: %w", r.key, ErrClosed)
	}
	if _, ok := k.registrations[r.key]; ok {
		return fmt.Errorf("register %s: by this client: %w", r.key, ErrAlreadyExists)
	}
	k.registrations[r.key] = r
	return nil
}

// remove is the end of that.
func (k *keeper) remove(r *Registration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.registrations[r.key] == r {
		delete(k.registrations, r.key)
	}
}

// adopt notes the outcome of a registration. It returns false when its session has ended meanwhile: nothing of it is left.
func (k *keeper) adopt(r *Registration, spec *registryv1.Instance, session string, incarnation uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session == nil || k.session.id != session {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spec, r.session, r.incarnation, r.restoring = spec, session, incarnation, false
	select {
	case <-r.done:
	default:
		if k.session.tenure != nil {
			r.enter(StateRegistered)
		} else {
			r.enter(StateLost)
		}
	}
	return true
}

// restore registers again whatever is not registered on the present session.
func (k *keeper) restore() {
	k.mu.Lock()
	var missing []*Registration
	if k.session != nil {
		for _, r := range k.registrations {
			r.mu.Lock()
			if r.session != k.session.id && !r.restoring {
				r.restoring = true
				missing = append(missing, r)
			}
			r.mu.Unlock()
		}
	}
	k.mu.Unlock()
	for _, r := range missing {
		r.c.start(func(context.Context) { r.restore() })
	}
}

// takeBack has a registration made again as it was: what became of its last change is not known.
func (k *keeper) takeBack(r *Registration) {
	k.mu.Lock()
	r.mu.Lock()
	r.session = ""
	r.mu.Unlock()
	k.mu.Unlock()
	k.restore()
}
