package discovery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/regd-io/regd/client"
)

// minRetry and maxRetry bound the wait before a watch that was refused is asked for again.
const (
	minRetry = time.Second
	maxRetry = time.Minute
)

// follower keeps the view of one service: one watch, one goroutine, any number of users.
type follower struct {
	d      *Discovery
	name   name
	log    *slog.Logger
	before *follower // of the same service, which has to end first
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended
	begun  time.Time
	mirror *mirror // run's alone

	users  int         // guarded by d.mu, as are the next three
	linger *time.Timer // runs while there is no user
	idle   time.Time   // since when there is none
	ending bool

	current atomic.Pointer[View] // nil: none yet
	written written              // guarded by d.disk

	lookups, waits atomic.Uint64
	counts         counts
	firstSync      atomic.Int64 // nanoseconds after begun; 0: not yet

	mu      sync.Mutex    // guards the fields below
	changed chan struct{} // closed and replaced when there is news for those who wait
	refused error         // why the watch ended; nil: it runs
	trouble error         // why the view is not live; nil: it is
	doubt   error         // why there is no view although a node has answered; nil: there is
	loops   map[*loop]struct{}
	owed    []debt // by list
}

// stopLinger stops the timer. The caller holds d.mu.
func (f *follower) stopLinger() {
	if f.linger != nil {
		f.linger.Stop()
		f.linger = nil
	}
}

// expire ends the follower. The caller holds d.mu.
func (f *follower) expire() {
	f.ending = true
	f.cancel()
}

// run keeps the view until ctx ends or the client is closed.
func (f *follower) run(ctx context.Context) {
	defer close(f.done)
	defer f.d.forget(f)
	defer f.cancel()
	if f.before != nil {
		<-f.before.done
		f.before = nil
	}
	f.load()
	defer f.save(closingAge)
	defer f.settle(nil, nil)
	for pause := minRetry; ; pause = min(2*pause, maxRetry) {
		synced, err := f.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		f.refuse(err)
		if errors.Is(err, client.ErrClosed) { // the client's end: what there is is served on
			<-ctx.Done()
			return
		}
		if synced {
			pause = minRetry
		}
		f.log.Warn("service: watch was refused", "err", err)
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return
		}
	}
}

// watch watches until the watch or ctx ends. It tells whether the registry has answered.
func (f *follower) watch(ctx context.Context) (answered bool, err error) {
	f.mirror.begin()
	opts := []client.WatchOption{client.WatchStalls(), client.WatchFresh(), client.WatchAccepts()}
	if v := f.mirror.view; v != nil && v.Point.Revision > 0 {
		opts = append(opts, client.WatchFrom(v.Point, v.list.live))
	}
	w, err := f.d.c.Watch(ctx, client.Filter{Namespace: f.name.namespace, Service: f.name.service}, opts...)
	if err != nil {
		return false, err
	}
	defer w.Close()
	for {
		change, err := f.next(ctx, w)
		switch {
		case errors.Is(err, errReleased):
			if f.mirror.release(time.Now()) {
				if f.publish(); !f.mirror.guard.on {
					f.log.Info("service: no instance is kept any more", "left", len(f.mirror.view.list.live))
				}
			}
		case err != nil:
			return answered, err
		case change.Kind == client.ChangeSynced:
			answered = true
			f.sync(change, w.ResumePoint())
			f.owe(w.Accepter())
		case change.Kind == client.ChangeStalled:
			f.stall(change.Err)
		default:
			f.mirror.take(change)
		}
	}
}

// errReleased says that it is time to let suspects go.
var errReleased = errors.New("suspects are to be released")

// next is w.Next, or errReleased.
func (f *follower) next(ctx context.Context, w *client.Watch) (client.Change, error) {
	end := f.mirror.guard.next()
	if end.IsZero() {
		return w.Next(ctx)
	}
	until, cancel := context.WithDeadlineCause(ctx, end, errReleased)
	defer cancel()
	return w.Next(until)
}

// sync makes what has come a view.
func (f *follower) sync(mark client.Change, point client.ResumePoint) {
	did := f.mirror.sync(mark, point)
	v := f.mirror.view
	if did.foreign {
		f.log.Warn("service: the registry is another one than the view was of", "cluster_id", point.ClusterID)
	}
	if did.resynced {
		f.counts.resyncs.Add(1)
	}
	if did.protected {
		f.counts.protections.Add(1)
		f.log.Warn("service: the registry lost most instances; they are kept for now", "left", len(v.list.live), "kept", len(v.Protected))
	}
	if did.released {
		f.log.Info("service: no instance is kept any more", "left", len(v.list.live))
	}
	if f.firstSync.Load() == 0 {
		f.firstSync.Store(max(1, int64(mark.Received.Sub(f.begun))))
	}
	f.d.cluster.Store(&point.ClusterID)
	f.settle(nil, nil)
	f.doubted()
	f.publish()
}

// errUnproved says why it is not said that there is no such service.
var errUnproved = errors.New("a node lists no instance, and could not make sure at a leader that it has the newest state")

// doubted notes whether the view must not be shown.
func (f *follower) doubted() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.doubt = nil
	if f.mirror.unproved() {
		f.doubt = errUnproved
	}
}

// stall notes that the view is no longer kept current.
func (f *follower) stall(trouble error) {
	f.mirror.stall(trouble)
	f.settle(trouble, nil)
	f.publish()
}

// refuse notes that the watch has ended for now.
func (f *follower) refuse(err error) {
	f.mirror.stall(err)
	f.settle(err, err)
	f.publish()
	f.wake()
}

// settle notes why the view is not live, nil if it is, and why the watch has ended, if it has.
func (f *follower) settle(trouble, refused error) {
	f.mu.Lock()
	before := f.trouble
	f.trouble, f.refused = trouble, refused
	f.mu.Unlock()
	if before == nil && trouble != nil {
		f.counts.stalls.Add(1)
		f.d.stalled(1, trouble)
	}
	if before != nil && trouble == nil {
		f.d.stalled(-1, nil)
	}
}

// publish shows the mirror's view, and wakes who waits when the lists have changed. That there is no such service is said
// only once it is proved.
func (f *follower) publish() {
	v := f.mirror.view
	last := f.current.Load()
	if v == nil || v == last || f.mirror.unproved() {
		return
	}
	changed := last == nil || last.list != v.list
	if changed {
		v.list.number = 1
		if last != nil {
			v.list.number += last.list.number
		}
	}
	f.current.Store(v)
	if changed {
		f.counts.changes.Add(1)
		f.wake()
	}
}

// wake wakes who waits.
func (f *follower) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.changed)
	f.changed = make(chan struct{})
}

// news returns what is closed at the next change, and why the watch was refused.
func (f *follower) news() (<-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed, f.refused
}

// unwell returns why the view is not live, or why there is none yet.
func (f *follower) unwell() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cmp.Or(f.trouble, f.doubt)
}
