package discovery

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/regd-io/regd/client"
)

// Discovery keeps views of services. One per process is enough; it is safe for concurrent use. Close it at the end, before
// its client.
type Discovery struct {
	c   *client.Client
	cfg config

	// life ends with Close. It is kept here since services are asked for long after New.
	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	cluster atomic.Pointer[string] // the registry's UUID, once it has answered
	disk    sync.Mutex             // held while a file is written: one at a time

	mu        sync.Mutex // guards the fields below, and each follower's users and linger
	closed    bool
	followers map[name]*follower
	troubled  int // how many of them have no live view
}

// New returns a Discovery that asks through a client. The error joins all that is wrong with the options, or tells why the
// folder for files can't be made.
func New(c *client.Client, opts ...Option) (*Discovery, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, fmt.Errorf("new discovery: %w", err)
	}
	d := &Discovery{c: c, cfg: cfg, followers: make(map[name]*follower)}
	d.life, d.end = context.WithCancel(context.Background())
	if cfg.dir != "" {
		if err := os.MkdirAll(cfg.dir, 0o700); err != nil {
			return nil, fmt.Errorf("new discovery: folder for files: %w", err)
		}
		d.sweep()
		d.work.Go(d.keepFiles)
	}
	return d, nil
}

// Close ends all watches and writes the files that are due. Services answer with client.ErrClosed afterwards. All
// goroutines have ended when it returns.
func (d *Discovery) Close() {
	d.mu.Lock()
	d.closed = true
	for _, f := range d.followers {
		f.stopLinger()
	}
	d.mu.Unlock()
	d.end()
	d.work.Wait()
}

// Service returns a handle on a service, which need not exist yet. It does no I/O. All handles of one service share a
// watch. Close the handle when it is no longer used. Errors: ErrTooManyServices, client.ErrClosed, and names that are none.
func (d *Discovery) Service(service string, opts ...ServiceOption) (*Service, error) {
	n := name{namespace: d.c.Namespace(), service: service}
	for _, opt := range opts {
		opt(&n)
	}
	if service == "" || n.namespace == "" || n.namespace == client.AllNamespaces {
		return nil, fmt.Errorf("service %q of namespace %q: the names of one service and one namespace are needed", service, n.namespace)
	}
	f, err := d.follower(n)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", n, err)
	}
	return &Service{f: f, done: make(chan struct{})}, nil
}

// follower counts a user in.
func (d *Discovery) follower(n name) (*follower, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, client.ErrClosed
	}
	f := d.followers[n]
	if f == nil || f.ending {
		if !d.makeRoom() {
			return nil, fmt.Errorf("%w: %d are in use", ErrTooManyServices, d.cfg.maxServices)
		}
		f = d.follow(n, f)
	}
	f.stopLinger()
	f.users++
	return f, nil
}

// follow starts a follower, which begins when the one before, if there is one, has ended. The caller holds mu.
func (d *Discovery) follow(n name, before *follower) *follower {
	ctx, cancel := context.WithCancel(d.life)
	f := &follower{
		d: d, name: n, log: d.cfg.log.With("service", n.String()), before: before, cancel: cancel, begun: time.Now(),
		mirror: newMirror(n, d.cfg.keep, d.cfg.hold), changed: make(chan struct{}), done: make(chan struct{}),
	}
	d.followers[n] = f
	d.work.Go(func() { f.run(ctx) })
	return f
}

// makeRoom tells whether one more service may be watched. If need be it drops the one that has lingered for longest. The
// caller holds mu.
func (d *Discovery) makeRoom() bool {
	var oldest *follower
	n := 0
	for _, f := range d.followers {
		if f.ending {
			continue
		}
		n++
		if f.users == 0 && (oldest == nil || f.idle.Before(oldest.idle)) {
			oldest = f
		}
	}
	if n < d.cfg.maxServices || oldest == nil {
		return n < d.cfg.maxServices
	}
	oldest.stopLinger()
	oldest.expire()
	return true
}

// release counts a user out. The last one leaves the follower to linger.
func (d *Discovery) release(f *follower) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.users--; f.users > 0 || d.closed {
		return
	}
	f.idle = time.Now()
	f.linger = time.AfterFunc(d.cfg.linger, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if f.users == 0 {
			f.expire()
		}
	})
}

// forget lets a follower go that has ended, unless another one is in its place.
func (d *Discovery) forget(f *follower) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.followers[f.name] == f {
		delete(d.followers, f.name)
	}
}

// stalled counts services whose view has stopped being live, or is so again. They share a stream: it is logged when the
// first of them stalls and when the last one has recovered, not for each.
func (d *Discovery) stalled(more int, trouble error) {
	d.mu.Lock()
	before := d.troubled
	d.troubled += more
	after, closed := d.troubled, d.closed
	d.mu.Unlock()
	switch {
	case closed:
	case before == 0:
		d.cfg.log.Warn("discovery: the registry is away; views are served as they were", "err", trouble)
	case after == 0:
		d.cfg.log.Info("discovery: all views are live")
	}
}

// all returns the followers, by name.
func (d *Discovery) all() []*follower {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*follower, 0, len(d.followers))
	for _, f := range d.followers {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *follower) int { return strings.Compare(a.name.String(), b.name.String()) })
	return all
}
