package storage

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestStallShowsWhileTheAppendHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		thaw := make(chan struct{})
		w := wrap(&faulty{InmemStore: raft.NewInmemStore(), write: func() error { <-thaw; return nil }})
		s := &Store{logs: w.logs}
		if got := s.AppendStall(); got != 0 {
			t.Errorf("before: %v", got)
		}
		done := make(chan error)
		go func() { done <- s.Logs().StoreLog(entry(1)) }()
		synctest.Wait()
		for _, want := range []time.Duration{time.Second, 2 * time.Second} {
			time.Sleep(time.Second)
			if got := s.AppendStall(); got < want-time.Microsecond || got > want {
				t.Errorf("after %v: %v", want, got)
			}
		}
		close(thaw)
		check(t, <-done)
		if got := s.AppendStall(); got != 0 {
			t.Errorf("after it ended: %v", got)
		}
		if p50, p99 := s.AppendLatency(); p50 != 2*time.Second || p99 != 2*time.Second {
			t.Errorf("latency %v, %v", p50, p99)
		}
	})
}

func TestLatencyIsOfTheLast512Appends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var took time.Duration
		w := wrap(&faulty{InmemStore: raft.NewInmemStore(), write: func() error { time.Sleep(took); return nil }})
		s := &Store{logs: w.logs}
		if p50, p99 := s.AppendLatency(); p50 != 0 || p99 != 0 {
			t.Errorf("before the first: %v, %v", p50, p99)
		}
		for i := range uint64(1000) {
			took = time.Duration(i) * time.Millisecond
			check(t, s.Logs().StoreLog(entry(i+1)))
		}
		p50, p99 := s.AppendLatency() // of 488 to 999 ms
		if p50 != 743*time.Millisecond || p99 != 993*time.Millisecond {
			t.Errorf("p50 %v, p99 %v", p50, p99)
		}
	})
}

func TestFullHasAWatermarkAndHysteresis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free, looks := uint64(1000), 0
		var broken error
		s := &Store{space: &space{
			look:      func() (uint64, uint64, error) { looks++; return free, 4000, broken },
			logger:    slog.New(slog.DiscardHandler),
			start:     time.Now(),
			watermark: 400,
		}}
		for _, step := range []struct {
			free uint64
			full bool
		}{{1000, false}, {400, false}, {399, true}, {450, true}, {499, true}, {500, false}, {420, false}, {0, true}, {600, false}} {
			free = step.free
			time.Sleep(spaceEvery)
			if got := s.Full(); got != step.full || s.DiskFree() != step.free {
				t.Errorf("%d free: full %v, free %d", step.free, got, s.DiskFree())
			}
		}

		before := looks
		free = 0
		for range 10 {
			if s.Full() {
				t.Error("looked again too early")
			}
			time.Sleep(spaceEvery / 11)
		}
		if looks != before {
			t.Errorf("%d looks within %v", looks-before, spaceEvery)
		}

		free = 1000
		s.space.refused() // by a quota, which the figures don't show
		if !s.Full() {
			t.Error("not full although a write was refused")
		}
		time.Sleep(spaceEvery)
		if s.Full() {
			t.Error("full although there is space again")
		}

		broken, free = errors.New("statfs failed"), 0
		time.Sleep(spaceEvery)
		if s.Full() || s.DiskFree() != 1000 {
			t.Error("an unknown figure was believed")
		}
	})
}

func TestDefaultWatermark(t *testing.T) {
	for total, want := range map[uint64]uint64{0: 64 << 20, 1 << 30: 64 << 20, 20 << 30: 20 << 30 / 100, 10 << 40: 1 << 30} {
		if got := defaultWatermark(total); got != want {
			t.Errorf("of %d: %d, want %d", total, got, want)
		}
	}
}

func TestLongCheckSaysHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		step := progress(slog.New(slog.NewTextHandler(&out, nil)), "raft.db")
		for i := range uint64(10) {
			step(i, 10)
			time.Sleep(2 * time.Second)
		}
		if got := strings.Count(out.String(), "file=raft.db"); got != 3 || !strings.Contains(out.String(), "done_bytes=3 total_bytes=10") {
			t.Errorf("%d lines:\n%s", got, out.String())
		}
	})
}
