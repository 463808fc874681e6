package balance

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestCountsAndLog checks that what guards do is counted and logged, once for each time, and that a pick tells of the
// breaker.
func TestCountsAndLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := balancer(t, RoundRobin(), fleet(1, false), WithBreaker(Breaker{ConsecutiveFailures: 2, OpenTime: time.Second}),
			WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: withoutTime}))))
		id := b.members[0].id.String()
		for range 2 {
			call(t, b, Failure)
		}
		time.Sleep(time.Second)
		trial, err := b.Pick(Request{})
		if err != nil || trial.Breaker() != BreakerHalfOpen {
			t.Fatalf("breaker %s, %v", trial.Breaker(), err)
		}
		trial.Done(Failure)
		if trial.Breaker() != BreakerOpen {
			t.Errorf("breaker %s after a trial in vain", trial.Breaker())
		}
		time.Sleep(time.Second)
		call(t, b, Success)
		call(t, b, Neutral)
		want := "level=WARN msg=\"breaker opened\" instance=" + id + " consecutive_failures=2 for=1s\n" +
			"level=INFO msg=\"breaker closed\" instance=" + id + "\n"
		if log.String() != want {
			t.Errorf("logged\n%swant\n%s", log.String(), want)
		}
		if got, want := b.Counts(), (Counts{Calls: 4, Failures: 3, Openings: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
	})
}

func TestEjectionsAreCountedAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := balancer(t, RoundRobin(), fleet(2, false), WithEjection(Ejection{ConsecutiveFailures: 1, BaseTime: time.Minute}),
			WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: withoutTime}))))
		for range 3 { // The one that is left is not ejected.
			call(t, b, Failure)
		}
		if got := strings.Count(log.String(), `level=WARN msg="instance ejected" instance=`); got != 1 ||
			!strings.HasSuffix(log.String(), " for=1m0s times_in_a_row=1\n") {
			t.Errorf("logged\n%s", log.String())
		}
		if got, want := b.Counts(), (Counts{Calls: 3, Failures: 3, Ejections: 1}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
	})
}

// TestCountsNeverFall checks that calls to instances that have left, or have come back as others, stay counted.
func TestCountsNeverFall(t *testing.T) {
	instances := fleet(2, false)
	b := balancer(t, RoundRobin(), instances)
	for range 4 {
		call(t, b, Failure)
	}
	again := proto.CloneOf(instances[1])
	again.Incarnation++
	b.Update([]*registryv1.Instance{again})
	call(t, b, Success)
	b.Update(nil)
	if got, want := b.Counts(), (Counts{Calls: 5, Failures: 4}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
