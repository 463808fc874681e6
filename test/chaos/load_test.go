package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// newClient is a client of all nodes, closed with the test.
func newClient(t *testing.T, endpoints []string, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.New(endpoints, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// write registers an instance of service "load". It returns nil once that is acknowledged.
type write func(ctx context.Context, id string) error

// writer makes one write after the other.
type writer struct {
	name    string
	acked   []string // ids
	refused []error  // of writes that were surely not done
	unknown []error  // of writes that may have been done
}

// writes is a running write load.
type writes struct {
	done atomic.Bool
	rest atomic.Int64 // for how long, in nanoseconds, each writer rests after a write
	wg   sync.WaitGroup

	mu      sync.Mutex // guards the fields below and all writers
	writers []*writer
	longest time.Duration // without an acknowledged write
	last    time.Time
}

// load starts writers, each a client of its own, that write until stop.
func load(t *testing.T, endpoints []string, writers int) *writes {
	t.Helper()
	w := &writes{last: time.Now()}
	t.Cleanup(w.stop)
	for i := range writers {
		c := newClient(t, endpoints)
		w.start(t, fmt.Sprintf("w%d", i), func(ctx context.Context, id string) error {
			_, err := c.RegisterDetached(ctx, &registryv1.Instance{Service: "load", Id: id, Address: "127.0.0.1"})
			return err
		})
	}
	return w
}

// start starts one more writer. Its name is part of the ids.
func (w *writes) start(t *testing.T, name string, do write) *writer {
	t.Helper()
	writer := &writer{name: name}
	w.mu.Lock()
	w.writers = append(w.writers, writer)
	w.mu.Unlock()
	ctx := t.Context()
	w.wg.Go(func() {
		for k := 0; !w.done.Load() && ctx.Err() == nil; k++ {
			id := fmt.Sprintf("%s-%d", name, k)
			if err := do(ctx, id); err == nil || ctx.Err() == nil {
				w.note(writer, id, err)
			}
			time.Sleep(time.Duration(w.rest.Load()))
		}
	})
	return writer
}

func (w *writes) note(by *writer, id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		now := time.Now()
		w.longest = max(w.longest, now.Sub(w.last))
		w.last = now
		by.acked = append(by.acked, id)
	case errors.Is(err, client.ErrOutcomeUnknown) || exitCode(err) == exitUnknown:
		by.unknown = append(by.unknown, err)
	default:
		by.refused = append(by.refused, err)
	}
}

// count is how many writes were acknowledged so far.
func (w *writes) count() int {
	k := 0
	for _, acked := range w.counts() {
		k += acked
	}
	return k
}

// counts is count for each writer, in the order of their start.
func (w *writes) counts() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := make([]int, len(w.writers))
	for i, by := range w.writers {
		counts[i] = len(by.acked)
	}
	return counts
}

// progress waits until a write of every writer that began after the call is acknowledged.
func (w *writes) progress(c *nodes.Cluster) {
	const some = 2 // One may have been under way.
	before := w.counts()
	c.Wait("every writer to go on", 30*time.Second, func(context.Context) bool {
		for i, acked := range w.counts() {
			if acked < before[i]+some {
				return false
			}
		}
		return true
	})
}

// stop ends the load. Writes under way are waited for.
func (w *writes) stop() {
	w.done.Store(true)
	w.wg.Wait()
}

// judge stops the load, and fails the test when a write failed or an acknowledged one is missing. Failures of the writers
// that are excepted are for the test to judge.
func (w *writes) judge(t *testing.T, c *client.Client, except ...*writer) {
	t.Helper()
	w.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	have, err := c.Instances(ctx, client.Filter{Service: "load"})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, in := range have.Instances {
		there[in.GetId()] = true
	}
	for _, by := range w.writers {
		lost := slices.DeleteFunc(slices.Clone(by.acked), func(id string) bool { return there[id] })
		if len(lost) > 0 {
			t.Errorf("%d of %d acknowledged writes of %s are lost, first %s", len(lost), len(by.acked), by.name, lost[0])
		}
		t.Logf("%s: %d writes acknowledged, %d refused, %d unknown", by.name, len(by.acked), len(by.refused), len(by.unknown))
		for _, err := range slices.Concat(by.refused, by.unknown) {
			if slices.Contains(except, by) {
				t.Logf("%s: %v", by.name, err)
			} else {
				t.Errorf("a write of %s failed: %v", by.name, err)
			}
		}
	}
	t.Logf("%d writes acknowledged in all, longest gap %v", w.count(), w.longest.Round(time.Millisecond))
}

// view is what a watch has told, and whether it kept its promise of order.
type view struct {
	mu        sync.Mutex
	instances map[string]*registryv1.Instance // by service/id
	revision  uint64                          // of the last change
	synced    uint64                          // last revision up to which nothing is missing
	epoch     uint64
	deletes   map[string]int
	changes   int
	faults    []string
}

// observe watches all instances of the default namespace in the background until the test ends.
func observe(t *testing.T, c *client.Client) *view {
	t.Helper()
	w, err := c.Watch(t.Context(), client.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	v := &view{instances: map[string]*registryv1.Instance{}, deletes: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for change, err := range w.All(ctx) {
			if err != nil {
				v.fault(ctx, "the watch ended: %v", err)
				return
			}
			v.take(change)
		}
	})
	t.Cleanup(func() {
		cancel()
		w.Close()
		wg.Wait()
	})
	return v
}

func (v *view) fault(ctx context.Context, format string, args ...any) {
	if ctx.Err() != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.faults = append(v.faults, fmt.Sprintf(format, args...))
}

func (v *view) take(change client.Change) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changes++
	if change.Kind == client.ChangeSynced {
		v.synced, v.epoch = change.Revision, change.Epoch
		return
	}
	key := change.Key.Service + "/" + change.Key.ID
	if v.synced > 0 && change.Revision < v.revision {
		v.faults = append(v.faults, fmt.Sprintf("revision %d of %s came after %d", change.Revision, key, v.revision))
	}
	v.revision = change.Revision
	old := v.instances[key]
	switch change.Kind {
	case client.ChangePut:
		if old != nil && change.Instance.GetModifyRevision() <= old.GetModifyRevision() {
			v.faults = append(v.faults, fmt.Sprintf("%s came twice at revision %d", key, old.GetModifyRevision()))
		}
		v.instances[key] = change.Instance
	default:
		if old == nil {
			v.faults = append(v.faults, key+" was deleted without having been put")
		}
		delete(v.instances, key)
		v.deletes[key]++
	}
}

// reached tells whether the view is complete up to a revision.
func (v *view) reached(revision uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.synced >= revision
}

// equals is shows, and reports every broken promise of order.
func (v *view) equals(t *testing.T, c *client.Client, wait func(what string, d time.Duration, f func(context.Context) bool)) {
	t.Helper()
	v.shows(t, c, wait)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, f := range v.faults {
		t.Error(f)
	}
}

// shows compares the view with what the registry says, once it has caught up.
func (v *view) shows(t *testing.T, c *client.Client, wait func(what string, d time.Duration, f func(context.Context) bool)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	have, err := c.Instances(ctx, client.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	wait("the watch to catch up", 15*time.Second, func(context.Context) bool { return v.reached(have.Revision) })
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(have.Instances) != len(v.instances) {
		t.Errorf("the watch shows %d instances, the registry %d", len(v.instances), len(have.Instances))
	}
	for _, in := range have.Instances {
		got := v.instances[in.GetService()+"/"+in.GetId()]
		if got.GetModifyRevision() != in.GetModifyRevision() {
			t.Errorf("%s/%s: the watch has revision %d, the registry %d", in.GetService(), in.GetId(),
				got.GetModifyRevision(), in.GetModifyRevision())
		}
	}
	t.Logf("%d changes watched up to revision %d", v.changes, v.revision)
}
