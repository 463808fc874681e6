package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// maxRestorePause bounds the wait between two tries to register again.
const maxRestorePause = 10 * time.Second

// State is how a Registration stands.
type State int

const (
	// StateLost says that the session may have ended, and the instance with it. The client works on it by itself.
	StateLost State = iota + 1
	// StateRegistered says that the instance is registered, on a session that is provably alive. After StateLost it says
	// that the registration was regained, with a larger incarnation if it had really gone.
	StateRegistered
	// StateSuperseded says that somebody else registered the same instance id. The newest owner wins: the client leaves
	// it alone. Final.
	StateSuperseded
	// StateEnded says that the instance was deregistered, or the client closed. Final.
	StateEnded
)

// String returns the state in lower case.
func (s State) String() string {
	switch s {
	case StateLost:
		return "lost"
	case StateRegistered:
		return "registered"
	case StateSuperseded:
		return "superseded"
	case StateEnded:
		return "ended"
	default:
		return fmt.Sprintf("state(%d)", int(s))
	}
}

// claim says against whom a registration is made.
type claim int

const (
	// newest: whoever has the instance, the newest owner wins.
	newest claim = iota
	// absent: nobody else may have it.
	absent
	// again: nobody else may have it but an older owner, or an earlier session of this client.
	again
)

// report is the last status that was set for a TTL check.
type report struct {
	status registryv1.CheckStatus
	output string
}

// Registration is an instance that this client keeps registered: through lost sessions and restores of the registry, with
// its last specification, draining mark and TTL check reports, until Deregister or the client's Close. It is safe for
// concurrent use; calls that change it run one after the other.
type Registration struct {
	c    *Client
	key  Key
	turn chan struct{} // has one place, held by who works on the instance

	// life ends when the client shall no longer register the instance by itself.
	life context.Context
	stop context.CancelFunc
	done chan struct{} // closed in a final state

	mu          sync.Mutex // guards the fields below
	spec        *registryv1.Instance
	session     string // that it was last registered on
	incarnation uint64
	state       State
	err         error
	restoring   bool // somebody is registering it
	changed     chan struct{}
	draining    bool
	reports     map[string]report // by check

	losses, recoveries uint64
}

// Register registers an instance on the client's session, which it opens in the same call if there is none, and keeps it
// registered. The fields of the specification count (1 to 19); session_id is set by the client, an empty namespace is the
// client's. An instance with this id is taken over, whoever owns it, unless an option says otherwise.
//
// One client registers an id once at a time: change the instance through the Registration.
func (c *Client) Register(ctx context.Context, instance *registryv1.Instance, opts ...RegisterOption) (_ *Registration, err error) {
	spec, key, err := c.specOf(instance)
	if err != nil {
		return nil, err
	}
	ctx, end := c.trace(ctx, OperationRegister, key)
	defer func() { end(err) }()
	options, err := newRegisterOptions(opts)
	if err != nil {
		return nil, fmt.Errorf("register %s: %w", key, err)
	}
	ctx, cancel, err := c.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("register %s: %w", key, err)
	}
	defer cancel()
	r := &Registration{
		c: c, key: key,
		turn:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		spec:    spec,
		state:   StateLost,
		changed: make(chan struct{}),
		reports: make(map[string]report),
		// Cleared by the first success: until then it is this call that works on it.
		restoring: true,
	}
	r.life, r.stop = context.WithCancel(c.life)
	if err := c.keeper.add(r); err != nil {
		r.stop()
		return nil, err
	}
	r.turn <- struct{}{}
	defer r.release()
	if err := r.put(ctx, spec, options.claim); err != nil {
		c.keeper.remove(r)
		r.finish(StateEnded, err)
		return nil, err
	}
	return r, nil
}

// Key returns which instance it is.
func (r *Registration) Key() Key { return r.key }

// Instance returns a copy of the specification that is kept registered.
func (r *Registration) Instance() *registryv1.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return proto.CloneOf(r.spec)
}

// Incarnation returns the number of the newest registration. It grows whenever the instance is registered anew.
func (r *Registration) Incarnation() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.incarnation
}

// State returns how the registration stands.
func (r *Registration) State() State {
	state, _ := r.observe()
	return state
}

// States yields the present state and then each new one, until a final state or until ctx ends. A slow reader misses
// states in between, never the last.
func (r *Registration) States(ctx context.Context) iter.Seq[State] {
	return func(yield func(State) bool) {
		var last State
		for {
			state, changed := r.observe()
			if state != last && !yield(state) {
				return
			}
			last = state
			select {
			case <-r.done:
				if state, _ = r.observe(); state != last {
					yield(state)
				}
				return
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Done is closed when the registration has come to a final state; Err tells why.
func (r *Registration) Done() <-chan struct{} { return r.done }

// Err returns nil while the registration is kept and after Deregister, ErrSuperseded when somebody else took the
// instance over, and ErrClosed when the client was closed.
func (r *Registration) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Update changes the specification: change gets a copy to edit. Namespace, service and id must stay. Nothing is kept of a
// change that fails. Where an error says that the outcome is unknown, the client takes back by itself what may have come
// of it, unless another update is quicker.
func (r *Registration) Update(ctx context.Context, change func(*registryv1.Instance)) error {
	return r.work(ctx, OperationUpdate, func(ctx context.Context) error {
		spec := r.Instance()
		change(spec)
		if keyOf(spec) != r.key {
			return fmt.Errorf("update %s: the change names %s: %w", r.key, keyOf(spec), ErrInvalidArgument)
		}
		before := r.Incarnation()
		if err := r.put(ctx, spec, again); err != nil {
			switch {
			case errors.Is(err, ErrSuperseded):
				r.superseded()
			case errors.Is(err, ErrOutcomeUnknown):
				r.c.keeper.takeBack(r)
			}
			return err
		}
		if r.Incarnation() == before {
			return nil
		}
		_, err := r.remark(ctx) // a new registration is not draining
		return err
	})
}

// SetHealth reports the status of a TTL check. An empty check means the instance's only one. The report is kept, and
// repeated when the instance has to be registered again.
func (r *Registration) SetHealth(ctx context.Context, check string, status registryv1.CheckStatus, output string) error {
	return r.work(ctx, OperationSetHealth, func(ctx context.Context) error {
		r.mu.Lock()
		r.reports[check] = report{status: status, output: output}
		r.mu.Unlock()
		return r.c.setHealth(ctx, r.key, r.Incarnation(), check, report{status: status, output: output})
	})
}

// Drain announces the end of the instance: it stays listed, and consumers send it nothing new. It stays so through
// updates and lost sessions.
//
// It does not wait until they know: Leave does, and deregisters then.
func (r *Registration) Drain(ctx context.Context) error {
	_, err := r.drain(ctx)
	return err
}

// drain is Drain. It returns a revision at which the mark is set.
func (r *Registration) drain(ctx context.Context) (revision uint64, err error) {
	err = r.work(ctx, OperationDrain, func(ctx context.Context) (err error) {
		r.mu.Lock()
		r.draining = true
		r.mu.Unlock()
		revision, err = r.remark(ctx)
		return err
	})
	return revision, err
}

// remark sets the draining mark at the registry if it is wanted, and returns a revision at which it is set.
func (r *Registration) remark(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	draining, incarnation := r.draining, r.incarnation
	r.mu.Unlock()
	if !draining {
		return 0, nil
	}
	resp, err := r.c.drain(ctx, r.key, incarnation, false)
	return resp.GetHeader().GetRevision(), err
}

// Deregister removes the instance. A newer registration of the same id, by a successor, stays. From the call on, the
// client no longer registers the instance by itself, even when Deregister fails; it may then be called again.
func (r *Registration) Deregister(ctx context.Context) error {
	r.stop()
	return r.work(ctx, OperationDeregister, func(ctx context.Context) error {
		if err := r.withdraw(ctx); err != nil {
			return err
		}
		r.c.keeper.remove(r)
		r.finish(StateEnded, nil)
		return nil
	})
}

// withdraw removes what this registration made.
func (r *Registration) withdraw(ctx context.Context) error {
	for incarnation := r.Incarnation(); ; {
		_, err := r.c.deregister(ctx, r.key, incarnation)
		if !errors.Is(err, ErrStaleIncarnation) {
			return err
		}
		// The newer one is a successor's, or made by an update that was never answered.
		found, err := r.c.Instance(ctx, r.key)
		switch {
		case errors.Is(err, ErrInstanceNotFound):
			return nil
		case err != nil:
			return err
		case !r.c.keeper.owned(found.Instance.GetSessionId()):
			return nil
		}
		incarnation = found.Instance.GetIncarnation()
	}
}

// work runs f while nobody else works on the instance. In a final state it fails, except that what has ended as it should
// may be ended again.
func (r *Registration) work(ctx context.Context, verb string, f func(context.Context) error) (err error) {
	ctx, end := r.c.trace(ctx, verb, r.key)
	defer func() { end(err) }()
	ctx, cancel, err := r.c.begin(ctx)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, r.key, err)
	}
	defer cancel()
	if err := r.take(ctx); err != nil {
		return fmt.Errorf("%s %s: %w", verb, r.key, err)
	}
	defer r.release()
	select {
	case <-r.done:
		if err := r.Err(); err != nil {
			return fmt.Errorf("%s %s: %w", verb, r.key, err)
		}
		if verb == OperationDeregister {
			return nil
		}
		return fmt.Errorf("%s %s: deregistered: %w", verb, r.key, ErrClosed)
	default:
		return f(ctx)
	}
}

func (r *Registration) take(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *Registration) release() { <-r.turn }

// observe returns the state and what is closed when it changes.
func (r *Registration) observe() (State, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.changed
}

// shift goes from one state to another if that is its state, on that session.
func (r *Registration) shift(session string, from, to State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == session && r.state == from {
		r.enter(to)
	}
}

// enter changes the state. The caller holds mu.
func (r *Registration) enter(state State) {
	switch {
	case r.state == state:
		return
	case r.state == StateRegistered && state == StateLost:
		r.losses++
	case r.state == StateLost && state == StateRegistered && r.losses > 0:
		r.recoveries++
	}
	r.state = state
	close(r.changed)
	r.changed = make(chan struct{})
}

// finish comes to a final state. Only the first one counts.
func (r *Registration) finish(state State, err error) {
	r.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.done:
	default:
		r.err = err
		r.enter(state)
		close(r.done)
	}
}

// superseded leaves the instance to its newer owner.
func (r *Registration) superseded() {
	r.c.cfg.log.Warn("instance was taken over by a newer registration", "instance", r.key.String())
	r.c.counts.superseded.Add(1)
	r.c.keeper.remove(r)
	r.finish(StateSuperseded, ErrSuperseded)
}

// kept returns what is repeated after the instance was registered again.
func (r *Registration) kept() (incarnation uint64, reports map[string]report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.incarnation, maps.Clone(r.reports)
}
