// Package election elects one leader among the processes that campaign under a name.
//
// An election is a lock of the registry with a value, so all that is true of a [client.Lock] is true of it: candidates are
// served first come, first served; a leader whose session ends is succeeded at once by the next in line; each leader has a
// fencing token that is larger than those of all before. A Leadership has a context that ends the moment it can no longer
// be proved, which is always before somebody else can lead, by the leader's own clock. A process may be paused between
// looking at that clock and acting, and so the last word has what the leader writes to: give it the token, and have it
// refuse smaller ones than it has seen. By that token there are never two leaders.
//
// A worker of which one shall run needs only Run:
//
//	e := election.New(c, "billing/scheduler")
//	err := e.Run(ctx, []byte("10.0.0.7:8080"), func(ctx context.Context, l *election.Leadership) error {
//		return schedule(ctx, l.Token())
//	})
//
// Others learn from Observe who leads, pushed at each change, or from Leader.
//
// The package starts nothing of its own: what it does ends with the calls and loops of its users.
package election

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Election is the election of one leader under a name. It holds no state: any number of them may be made for one name,
// and all methods are safe for concurrent use.
type Election struct {
	c         *client.Client
	namespace string
	name      string
}

// Option changes an Election.
type Option func(*Election)

// Namespace names the namespace of the election. Default: the client's.
func Namespace(namespace string) Option {
	return func(e *Election) { e.namespace = namespace }
}

// New returns the election of a name, which is the name of a lock: 1 to 256 characters of [A-Za-z0-9._:/@-]. It does no I/O.
func New(c *client.Client, name string, opts ...Option) *Election {
	e := &Election{c: c, name: name}
	for _, opt := range opts {
		opt(e)
	}
	return e
}

// Name returns the name of the election without its namespace.
func (e *Election) Name() string { return e.name }

// Campaign stands for election and waits for it, first come first served, as long as ctx allows. value, at most 1 KiB, is
// what others learn of the leader, such as its address. The client's session stands, so that two campaigns of one client
// follow one another. Whoever has won resigns in the end, also when the leadership was lost.
//
// It fails with the error of ctx, with client.ErrClosed, or with what the registry refused it for, such as
// client.ErrLimitReached when 1,000 sessions stand in line already.
func (e *Election) Campaign(ctx context.Context, value []byte) (*Leadership, error) {
	opts := []client.LockOption{client.LockValue(value)}
	if e.namespace != "" {
		opts = append(opts, client.LockNamespace(e.namespace))
	}
	lock, err := e.c.Lock(ctx, e.name, opts...)
	if err != nil {
		return nil, fmt.Errorf("campaign: %w", err)
	}
	return &Leadership{lock: lock}, nil
}

// Leadership is won by Campaign, and lasts until Resign or until it can no longer be proved. Its methods are safe for
// concurrent use.
type Leadership struct {
	lock *client.Lock
}

// Context ends the moment leadership can no longer be proved, with the cause client.ErrLockLost, or client.ErrClosed when
// the client was closed, and when Resign begins. It carries the values of the context of the campaign, not its end.
func (l *Leadership) Context() context.Context { return l.lock.Context() }

// Token returns the fencing token: larger than that of every leader before. Hand it to what the leader writes to, which
// must refuse smaller ones than it has seen.
func (l *Leadership) Token() uint64 { return l.lock.Token() }

// Value returns what others learn of this leader. It can't be changed: who has another value to tell resigns and campaigns
// again.
func (l *Leadership) Value() []byte { return l.lock.Value() }

// Deadline returns until when leadership is proved at the least, and false once it is lost. It moves on with each renewal
// of the client's session.
func (l *Leadership) Deadline() (time.Time, bool) { return l.lock.Deadline() }

// Resign ends the leadership: the next in line leads at once. It returns an error that matches client.ErrLockLost when the
// leadership had been lost before. When no node confirms it before ctx ends, the client goes on trying in the background.
// ctx may be the leadership's own. Further calls return what the first one did.
func (l *Leadership) Resign(ctx context.Context) error {
	if err := l.lock.Unlock(ctx); err != nil {
		return fmt.Errorf("resign: %w", err)
	}
	return nil
}

// Leader is who leads at one time. The zero value is nobody.
type Leader struct {
	// Session that leads.
	Session string
	// Token is its fencing token, larger than that of every leader before. 0: nobody leads.
	Token uint64
	// Value is what the leader says of itself.
	Value []byte
}

// Elected tells whether somebody leads.
func (l Leader) Elected() bool { return l.Token != 0 }

func leaderOf(lock *registryv1.Lock) Leader {
	return Leader{Session: lock.GetSessionId(), Token: lock.GetToken(), Value: lock.GetValue()}
}

// Leader asks who leads. Without an option the answer is linearizable; client.Bounded or client.Stale make it cheaper.
func (e *Election) Leader(ctx context.Context, opts ...client.ReadOption) (Leader, error) {
	result, err := e.c.GetLock(ctx, e.namespace, e.name, opts...)
	switch {
	case errors.Is(err, client.ErrLockNotFound):
		return Leader{}, nil
	case err != nil:
		return Leader{}, fmt.Errorf("leader: %w", err)
	}
	return leaderOf(result.Lock), nil
}

// Observe yields who leads, first as it is, nobody included, and then each change as it is pushed, whatever becomes of
// connections and nodes. A reader that is slow misses leaders in between, never the last one, and no leader comes after a
// later one. The loop ends with ctx, with the client's Close, and when the registry refuses it; the last pair has the error.
func (e *Election) Observe(ctx context.Context) iter.Seq2[Leader, error] {
	return func(yield func(Leader, error) bool) {
		for result, err := range e.c.WatchLock(ctx, e.namespace, e.name) {
			if err != nil {
				yield(Leader{}, fmt.Errorf("observe: %w", err))
				return
			}
			if !yield(leaderOf(result.Lock), nil) {
				return
			}
		}
	}
}
