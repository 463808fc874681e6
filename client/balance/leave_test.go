package balance

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestWhoHasLeftIsNotPicked takes instances away while others pick. Once Update has returned and no call is in flight to the one that
// was taken away, none is begun any more, also by picks that were under way.
func TestWhoHasLeftIsNotPicked(t *testing.T) {
	t.Parallel()
	all := fleet(4, false)
	b := balancer(t, RoundRobin(), all)
	var gone atomic.Pointer[registryv1.Instance]
	var stop atomic.Bool
	var picked, wrong atomic.Int64
	var pickers sync.WaitGroup
	for range 3 {
		pickers.Go(func() {
			for !stop.Load() {
				p, err := b.Pick(Request{})
				if err != nil {
					t.Error(err)
					return
				}
				if p.Instance().GetId() == gone.Load().GetId() {
					wrong.Add(1)
				}
				picked.Add(1)
				p.Done(Success)
			}
		})
	}
	for n := range 40 {
		leaving := clone(all[n%len(all)])
		leaving.Draining = true
		rest := make([]*registryv1.Instance, 0, len(all))
		for k, i := range all {
			if k == n%len(all) {
				i = leaving
			}
			rest = append(rest, i)
		}
		b.Update(rest)
		for b.tracks[newMember(leaving).id].inFlight.Load() != 0 {
			runtime.Gosched()
		}
		gone.Store(leaving)
		for seen := picked.Load(); picked.Load() < seen+3; {
			runtime.Gosched()
		}
		gone.Store(nil)
		b.Update(all)
	}
	stop.Store(true)
	pickers.Wait()
	if n := wrong.Load(); n > 0 || picked.Load() < 40 {
		t.Errorf("%d of %d picks were of instances that had left", n, picked.Load())
	}
}
