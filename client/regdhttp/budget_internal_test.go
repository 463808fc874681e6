package regdhttp

import (
	"net/http"
	"testing"
	"time"
)

// TestBudgetWindow checks that what is older than the window counts no more.
func TestBudgetWindow(t *testing.T) {
	t.Parallel()
	b := &budget{share: 0.5, floor: 2}
	for range 10 {
		b.request(3 * time.Second)
	}
	for i, c := range []struct {
		at   time.Duration
		want bool
	}{
		{3 * time.Second, true},
		{4 * time.Second, true},
		{5 * time.Second, true},
		{6 * time.Second, true},
		{7 * time.Second, true},
		{8 * time.Second, true},
		{9 * time.Second, true}, // 10/2 + 2
		{12 * time.Second, false},
		{13 * time.Second, false}, // The requests have gone, and one of the retries: 6 against 2.
		{16 * time.Second, false}, // 3 against 2
		{18 * time.Second, true},  // 1 against 2
		{18 * time.Second, false},
		{time.Hour, true},
		{time.Hour, true},
		{time.Hour, false},
	} {
		if got := b.retry(c.at); got != c.want {
			t.Errorf("call %d at %s: %t; %d requests, %d retries", i, c.at, got, b.requests, b.retries)
		}
	}
}

// TestRetryAfter reads headers.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999": 0,
		now.Add(3 * time.Second).Format(http.TimeFormat): 3 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}
