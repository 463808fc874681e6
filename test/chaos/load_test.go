package chaos_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
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

// writes is a running write load: each writer registers one instance after the other and notes what was acknowledged.
type writes struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	acked   []string // ids
	longest time.Duration
	last    time.Time
	failed  []error
}

// load starts writers, each a client of its own, that register instances of service "load" until stop.
func load(t *testing.T, endpoints []string, writers int) *writes {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &writes{cancel: cancel, last: time.Now()}
	for i := range writers {
		c := newClient(t, endpoints)
		w.wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				id := fmt.Sprintf("w%d-%d", i, k)
				_, err := c.RegisterDetached(ctx, &registryv1.Instance{Service: "load", Id: id, Address: "127.0.0.1"})
				w.note(ctx, id, err)
			}
		})
	}
	t.Cleanup(w.stop)
	return w
}

func (w *writes) note(ctx context.Context, id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			w.failed = append(w.failed, err)
		}
		return
	}
	now := time.Now()
	w.longest = max(w.longest, now.Sub(w.last))
	w.last = now
	w.acked = append(w.acked, id)
}

// count is how many writes were acknowledged so far.
func (w *writes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

func (w *writes) stop() {
	w.cancel()
	w.wg.Wait()
}

// judge stops the load, and fails the test when a write failed or an acknowledged one is missing.
func (w *writes) judge(t *testing.T, c *client.Client) {
	t.Helper()
	w.stop()
	for _, err := range w.failed {
		t.Errorf("a write failed: %v", err)
	}
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
	lost := 0
	for _, id := range w.acked {
		if !there[id] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(w.acked))
	}
	t.Logf("%d writes acknowledged, %d failed, %d lost, longest gap %v", len(w.acked), len(w.failed), lost, w.longest.Round(time.Millisecond))
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

// equals compares the view with what the registry says, once it has caught up, and reports every broken promise.
func (v *view) equals(t *testing.T, c *client.Client, wait func(what string, d time.Duration, f func(context.Context) bool)) {
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
	for _, f := range v.faults {
		t.Error(f)
	}
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
