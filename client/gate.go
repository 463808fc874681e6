package client

import (
	"context"
	"fmt"
	"sync"
)

// lockName names a lock.
type lockName struct {
	namespace string
	name      string
}

// String returns namespace/name.
func (n lockName) String() string { return n.namespace + "/" + n.name }

// gate lets one user of this client at a time work on a lock. The registry sees sessions only: to it two users of one
// client are the same owner.
type gate struct {
	name lockName
	turn chan struct{} // has one place
	// requests numbers what is sent for this lock apart from the client's other writes, which a long wait would hold up.
	requests *requests
	users    int // holder and waiting ones; guarded by locks
}

// locks has the gates of the locks that the client works on.
type locks struct {
	client string

	mu     sync.Mutex // guards the fields below
	gates  map[lockName]*gate
	serial uint64
}

func newLocks(c *Client) *locks {
	return &locks{client: c.requests.client, gates: make(map[lockName]*gate)}
}

// enter passes the gate of a lock. It waits for it, or fails with ErrLockHeld. Whoever passed must leave.
func (l *locks) enter(ctx context.Context, name lockName, wait bool) (*gate, error) {
	l.mu.Lock()
	g := l.gates[name]
	if g == nil {
		l.serial++
		g = &gate{name: name, turn: make(chan struct{}, 1), requests: newRequests(fmt.Sprintf("%s.%d", l.client, l.serial))}
		l.gates[name] = g
	}
	g.users++
	l.mu.Unlock()
	select {
	case g.turn <- struct{}{}:
		return g, nil
	default:
	}
	err := ErrLockHeld
	if wait {
		select {
		case g.turn <- struct{}{}:
			return g, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	l.part(g)
	return nil, err
}

// leave opens the gate for the next user.
func (l *locks) leave(g *gate) {
	<-g.turn
	l.part(g)
}

// part forgets a gate that nobody uses.
func (l *locks) part(g *gate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.users--; g.users == 0 {
		delete(l.gates, g.name)
	}
}
