package client

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestTenureEndsThoughTheTimerIsLate plays a process that was paused beyond its session's deadline: the acknowledgement
// of a newer renewal is seen before the timer.
func TestTenureEndsThoughTheTimerIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New([]string{"n1:7400"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		k := c.keeper
		s := &session{id: "s1", ttl: time.Second, deadline: time.Now().Add(time.Second)}
		s.ctx, s.end = context.WithCancel(c.life)
		s.expiry = time.AfterFunc(time.Hour, func() { k.expired(s) })
		k.mu.Lock()
		k.session = s
		k.prove(s)
		k.mu.Unlock()
		won := s.tenure
		time.Sleep(2 * time.Second)
		if _, held := k.provableUntil(won); held {
			t.Error("provable after the deadline")
		}
		k.acknowledged(s, time.Now())
		if won.ctx.Err() == nil {
			t.Error("the tenure outlived the deadline")
		}
		if s.tenure == nil || s.tenure == won {
			t.Error("the acknowledgement began no new tenure")
		}
		k.mu.Lock()
		k.drop() // there is no registry to close it at
		k.mu.Unlock()
	})
}
