package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// programTimeout bounds what a program does at once, retries of its client included.
const programTimeout = 5 * time.Second

// program uses package client as its users do: it keeps instances registered, takes locks and watches. Besides being
// recorded it judges what the client tells it.
type program struct {
	*caller // for its choices only
	regd    *client.Client
	lanes   *lanes
	kept    [3]*client.Registration
	views   []*view
}

// runPrograms has n programs work until ctx ends. Their clients are closed by Settle, or when watching ends.
func (w *Workload) runPrograms(ctx, watching context.Context, n int) error {
	var errs []error
	for i := range n {
		p := &program{caller: w.newCaller(fmt.Sprintf("program%d", i), "")}
		if err := p.begin(watching); err != nil {
			errs = append(errs, err)
			continue
		}
		w.programs = append(w.programs, p)
		w.work.Go(func() {
			for has := true; has && p.pause(ctx); {
				has = p.act(ctx, watching)
			}
		})
		w.watching.Go(func() {
			<-watching.Done()
			p.end()
		})
	}
	return errors.Join(errs...)
}

// begin makes a client, and watches with it.
func (p *program) begin(watching context.Context) error {
	p.lanes = p.w.newLanes(fmt.Sprintf("%s.%d", p.role, p.given))
	p.given++
	var endpoints []string
	for _, node := range p.w.cfg.Nodes {
		endpoints = append(endpoints, p.w.cfg.Address(node))
	}
	var err error
	p.regd, err = client.New(endpoints, client.WithName(p.role), client.WithDialOptions(p.lanes.options()...),
		client.WithSessionTTL(p.within(p.w.cfg.MinTTL, p.w.cfg.MaxTTL)), client.WithAttemptTimeout(p.w.cfg.Timeout))
	if err != nil {
		return err
	}
	p.kept, p.views = [3]*client.Registration{}, nil
	v, err := p.follow(watching, client.Filter{Namespace: pick(p.rng, []string{namespaces[0], client.AllNamespaces})})
	if err == nil {
		p.views = append(p.views, v)
	}
	return err
}

// end closes the client: its session ends, and its instances and locks with it.
func (p *program) end() {
	_ = p.regd.Close() // Without a node to tell, the session ends by its TTL.
	for _, v := range p.views {
		v.reading.Wait()
	}
	p.lanes.close()
}

// act does one thing. It tells whether the program has a client still.
func (p *program) act(ctx, watching context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), programTimeout)
	defer cancel()
	i := p.rng.IntN(len(p.kept))
	switch n := p.rng.IntN(20); {
	case n < 8:
		p.keep(ctx, i)
	case n < 10 && p.kept[i] != nil:
		_ = p.kept[i].Drain(ctx)
	case n < 12 && p.kept[i] != nil:
		_ = p.kept[i].Deregister(ctx)
		p.kept[i] = nil
	case n < 19:
		p.hold(ctx)
	default:
		p.end()
		if err := p.begin(watching); err != nil {
			p.w.fault("client", "%s: %v", p.role, err)
			return false
		}
	}
	return true
}

// keep registers the i-th instance, or changes it. It has a check that nobody reports: it turns critical.
func (p *program) keep(ctx context.Context, i int) {
	instance := p.fill(&apiv1.InstanceKey{
		Namespace: namespaces[i%len(namespaces)], Service: services[i], Id: fmt.Sprintf("%s-%d", p.role, i),
	})
	if p.kept[i] != nil {
		_ = p.kept[i].Update(ctx, func(spec *registryv1.Instance) { spec.Metadata = instance.GetMetadata() })
		return
	}
	if i == 0 {
		reported(instance, p.w.cfg.MinTTL)
	}
	if reg, err := p.regd.Register(ctx, instance); err == nil {
		p.kept[i] = reg
	}
}

// hold takes a lock for a while.
func (p *program) hold(ctx context.Context) {
	name := pick(p.rng, lockNames)
	take := p.regd.Lock
	if p.rng.IntN(3) == 0 {
		take = p.regd.TryLock
	}
	lock, err := take(ctx, name)
	if err != nil {
		return
	}
	if err := p.w.locks.took(name, lock); err != nil {
		p.w.fault("client-lock", "%s: %v", p.role, err)
	}
	sleep(lock.Context(), p.within(0, 4*p.w.cfg.Pause))
	p.w.locks.gave(name, lock)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), programTimeout)
	defer cancel()
	_ = lock.Unlock(ctx)
}

// exclusion holds locks of programs against each other. That no two own one at a time, is what the client promises as
// long as the owner's context lives, and no more: only of clients on one clock can it be told.
type exclusion struct {
	mu     sync.Mutex // guards the fields below
	owners map[string]held
	tokens map[string]uint64 // the largest
}

// held is a *client.Lock.
type held interface {
	Token() uint64
	Context() context.Context
}

func newExclusion() *exclusion {
	return &exclusion{owners: map[string]held{}, tokens: map[string]uint64{}}
}

// took notes a new owner, and says what is wrong about that.
func (e *exclusion) took(name string, lock held) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	owner, token := e.owners[name], e.tokens[name]
	e.owners[name], e.tokens[name] = lock, max(token, lock.Token())
	switch {
	case owner != nil && owner.Context().Err() == nil && lock.Context().Err() == nil:
		return fmt.Errorf("lock %s has two owners, with tokens %d and %d", name, owner.Token(), lock.Token())
	case lock.Token() <= token:
		return fmt.Errorf("lock %s came with token %d after %d", name, lock.Token(), token)
	}
	return nil
}

// gave notes that an owner is about to give the lock back.
func (e *exclusion) gave(name string, lock held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.owners[name] == lock {
		delete(e.owners, name)
	}
}

// view is what a watch of the client says that there is.
type view struct {
	all     bool // of all namespaces
	reading sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	state    map[client.Key]uint64
	revision uint64 // of the last change
	synced   uint64
}

// follow starts a watch and reads it until it ends with its client.
func (p *program) follow(ctx context.Context, f client.Filter) (*view, error) {
	watch, err := p.regd.Watch(ctx, f)
	if err != nil {
		return nil, err
	}
	v := &view{all: f.Namespace == client.AllNamespaces, state: map[client.Key]uint64{}}
	v.reading.Go(func() {
		for change, err := range watch.All(context.WithoutCancel(ctx)) {
			if err != nil {
				return
			}
			if err := v.take(change); err != nil {
				p.w.fault("client-watch", "%s: %v", p.role, err)
			}
		}
	})
	return v, nil
}

// take takes a change in, and says what is wrong about it.
func (v *view) take(change client.Change) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	before, known := v.state[change.Key]
	last := v.revision
	v.revision = max(last, change.Revision)
	switch change.Kind {
	case client.ChangePut:
		v.state[change.Key] = change.Instance.GetModifyRevision()
		if known && before >= change.Instance.GetModifyRevision() {
			return fmt.Errorf("%s came with revision %d after %d", change.Key, change.Instance.GetModifyRevision(), before)
		}
	case client.ChangeDelete:
		delete(v.state, change.Key)
		if !known {
			return fmt.Errorf("%s was deleted, but had not been there", change.Key)
		}
	case client.ChangeSynced:
		v.synced = change.Revision
	}
	if change.Revision < last {
		return fmt.Errorf("revision %d came after %d", change.Revision, last)
	}
	return nil
}

// equals tells whether the view is at the revision and shows exactly these instances.
func (v *view) equals(revision uint64, instances map[client.Key]uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.synced >= revision && maps.Equal(v.state, instances)
}
