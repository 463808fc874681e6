package storage

import (
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spaceEvery is how old a figure of free space may be.
	spaceEvery = 250 * time.Millisecond
	// minFree and maxDefaultFree bound the watermark chosen when none is configured.
	minFree        = 64 << 20
	maxDefaultFree = 1 << 30
)

// space knows how much room the disk has. Nobody waits for another's look at
// the disk: while one looks, the others are told the last figure.
type space struct {
	look      func() (free, total uint64, err error)
	logger    *slog.Logger
	start     time.Time
	watermark uint64 // below it the disk counts as full

	next atomic.Int64 // when to look again, in ns after start
	free atomic.Uint64
	full atomic.Bool
}

func newSpace(dir string, watermark uint64, logger *slog.Logger) (*space, error) {
	look := func() (uint64, uint64, error) { return statfs(dir) }
	free, total, err := look()
	if err != nil {
		return nil, fmt.Errorf("free space of %s: %w", dir, err)
	}
	if watermark == 0 {
		watermark = defaultWatermark(total)
	}
	s := &space{look: look, logger: logger, start: time.Now(), watermark: watermark}
	s.next.Store(int64(spaceEvery))
	s.note(free)
	return s, nil
}

// defaultWatermark is 1 % of the disk, at least 64 MiB and at most 1 GiB.
func defaultWatermark(total uint64) uint64 { return min(max(minFree, total/100), maxDefaultFree) }

func statfs(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	block := uint64(st.Bsize)
	return st.Bavail * block, st.Blocks * block, nil
}

// refresh looks at the disk when the last figure is too old.
func (s *space) refresh() {
	now := int64(time.Since(s.start))
	next := s.next.Load()
	if now < next || !s.next.CompareAndSwap(next, math.MaxInt64) {
		return
	}
	free, _, err := s.look()
	if err != nil {
		s.logger.Warn("free space unknown", "error", err)
	} else {
		s.note(free)
	}
	s.next.Store(int64(time.Since(s.start) + spaceEvery))
}

// note decides. A full disk must gain a quarter above the watermark before it
// counts as usable again, so that the answer doesn't flutter around it.
func (s *space) note(free uint64) {
	s.free.Store(free)
	limit := s.watermark
	if s.full.Load() {
		limit += s.watermark / 4
	}
	full := free < limit
	if s.full.Swap(full) != full {
		s.logger.Warn("disk space", "full", full, "free_bytes", free, "watermark_bytes", s.watermark)
	}
}

// refused notes that a write found no room, whatever the figures say (a quota
// is not in them). The next look decides anew.
func (s *space) refused() {
	s.full.Store(true)
	s.next.Store(int64(time.Since(s.start) + spaceEvery))
}
