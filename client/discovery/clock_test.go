package discovery

import (
	"strings"
	"testing"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestFileAgesByTheMonotonicClock: the wall clock is an hour ahead, or behind, when a file is read, and is set after that.
func TestFileAgesByTheMonotonicClock(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name string
		ago  time.Duration // by the wall clock at the time of reading
		want time.Duration
	}{
		{"as it should be", time.Minute, time.Minute},
		{"clock set ahead", time.Hour, time.Hour},
		{"clock set a little behind", -30 * time.Second, 0},
		{"clock set behind", -time.Hour, maxFileAge},
	} {
		t.Run(test.name, func(t *testing.T) {
			wall := now.Add(-test.ago).Round(0) // As decode has it.
			s := &stored{syncedAt: wall, lost: []suspect{{instance: &registryv1.Instance{Id: "a"}, since: wall}}}
			if err := (&follower{d: &Discovery{}}).accept(s, now); err != nil {
				t.Fatal(err)
			}
			s.anchor(now)
			for what, at := range map[string]time.Time{"view": s.syncedAt, "suspect": s.lost[0].since} {
				if !strings.Contains(at.String(), " m=") {
					t.Errorf("the time of the %s goes by the wall clock", what)
				}
				if at.After(now) {
					t.Errorf("the time of the %s is of the future", what)
				}
			}
			if age := now.Sub(s.syncedAt); age != test.want {
				t.Errorf("%v old, want %v", age, test.want)
			}
			// The clock is set by an hour: what is compared are monotonic readings, so that the time of now counts for nothing.
			if got := byWall(s.syncedAt, now.Add(time.Hour)); !got.Equal(s.syncedAt) {
				t.Errorf("written as %v, want %v", got, s.syncedAt)
			}
		})
	}
}

func TestFileOfTheFarFutureIsNotUsed(t *testing.T) {
	now := time.Now()
	s := &stored{syncedAt: now.Add(maxFileAge + time.Minute).Round(0)}
	if err := (&follower{d: &Discovery{}}).accept(s, now); err == nil || !strings.Contains(err.Error(), "of the future") {
		t.Errorf("got %v", err)
	}
}
