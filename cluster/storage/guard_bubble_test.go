package storage

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// A program may end itself inside OnFatal. Until it has, Raft must not hear of errors that it would panic on.
func TestWhoFailsLaterWaitsUntilTheFirstErrorIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wrap(&faulty{InmemStore: raft.NewInmemStore(), write: func() error { return syscall.EIO }})
		report := make(chan struct{})
		w.logs.guard.onFatal = func(error) { <-report }
		var ended atomic.Int32
		for _, write := range []func() error{
			func() error { return w.logs.StoreLog(entry(1)) }, func() error { return w.stable.SetUint64([]byte("k"), 1) },
		} {
			go func() {
				if err := write(); !errors.Is(err, ErrSync) {
					t.Errorf("write: %v", err)
				}
				ended.Add(1)
			}()
			synctest.Wait()
		}
		if n := ended.Load(); n > 0 {
			t.Errorf("%d writes have ended before the error was reported", n)
		}
		close(report)
		synctest.Wait()
		if n := ended.Load(); n != 2 {
			t.Errorf("%d of 2 writes have ended", n)
		}
	})
}
