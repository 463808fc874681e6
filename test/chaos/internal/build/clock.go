package build

import (
	_ "embed"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// EnvClock names the file that moves a process's wall clock: see Clock. Unset: nothing moves it.
const EnvClock = "REGD_CHAOS_CLOCK"

//go:embed testdata/time/zz_chaos.go
var clockSource []byte

// clockEdit has package time ask for the offset, in the one place where it reads the wall clock.
func clockEdit() Edit {
	const read = "\tsec, nsec, mono := runtimeNow()\n"
	return Edit{File: "src/time/time.go", Old: read, New: read + "\tsec, nsec = chaosWall(sec, nsec)\n"}
}

// Clock moves the wall clock of the processes that were started with its file in EnvClock, all at one moment. Timers,
// and whatever else goes by monotonic readings, know nothing of it. It is safe for concurrent use.
type Clock struct{ offset *int64 }

// NewClock makes the file: 8 bytes, the offset in nanoseconds in the machine's byte order, 0 at first. The Clock must not
// be used after the test.
func NewClock(tb testing.TB, path string) *Clock {
	tb.Helper()
	c, unmap, err := newClock(path)
	if err != nil {
		tb.Fatalf("make a clock: %v", err)
	}
	tb.Cleanup(unmap)
	return c
}

func newClock(path string) (c *Clock, unmap func(), err error) {
	if err = os.WriteFile(path, make([]byte, 8), 0o600); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := syscall.Mmap(int(f.Fd()), 0, 8, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map %s: %w", path, err)
	}
	c = &Clock{offset: (*int64)(unsafe.Pointer(&data[0]))}
	return c, func() { _ = syscall.Munmap(data) }, nil
}

// Shift moves the wall clock on by d, back if d is negative. It adds up.
func (c *Clock) Shift(d time.Duration) { atomic.AddInt64(c.offset, int64(d)) }

// Offset is by how much the clock is ahead of the machine's.
func (c *Clock) Offset() time.Duration { return time.Duration(atomic.LoadInt64(c.offset)) }
