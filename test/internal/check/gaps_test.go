package check_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

func TestLiveSeesAClusterThatStaysAway(t *testing.T) {
	for _, tt := range []struct {
		name      string
		recovered time.Duration
		rules     []string
	}{
		{"in time", 4 * time.Second, nil},
		{"late", 4*time.Second + 1, []string{"live"}},
		{"never", 0, []string{"live"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.run.Recovery = time.Second
			w.h.Faults = []history.Fault{{Kind: "kill", From: time.Second, To: 3 * time.Second, Recovered: tt.recovered, Evidence: "yes"}}
			found, _ := check.Live(w.judged())
			expect(t, found, tt.rules...)
			w.run.Recovery = 0
			found, _ = check.Live(w.judged())
			expect(t, found)
		})
	}
}

func TestLiveMeasuresTheTimeWithoutWrites(t *testing.T) {
	w := newWorld(t)
	ms := time.Millisecond
	for _, at := range []time.Duration{5 * ms, 20 * ms, 50 * ms, 400 * ms} { // when they are answered
		w.now = at - 3*ms
		w.register("a", "1", at.String())
	}
	w.get("a", "1")
	fault := func(kind string, from, to, recovered time.Duration, evidence string) history.Fault {
		return history.Fault{Kind: kind, From: from, To: to, Recovered: recovered, Evidence: evidence}
	}
	w.h.Faults = []history.Fault{
		fault("kill", 10*ms, 30*ms, 60*ms, "yes"),  // 10 to 20 to 50 to 60
		fault("kill", 55*ms, 90*ms, 100*ms, "yes"), // nothing
		fault("kill", 45*ms, 60*ms, 0, "yes"),      // 45 to 50 to 60
		fault("cut", 0, 500*ms, 0, "yes"),
		fault("pause", 0, 500*ms, 0, ""), // never happened
	}
	_, got := check.Live(w.judged())
	want := map[string]check.Gap{
		"kill": {Times: 3, Median: 30 * ms, Longest: 45 * ms},
		"cut":  {Times: 1, Median: 350 * ms, Longest: 350 * ms},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("gaps (-want +got):\n%s", diff)
	}
}
