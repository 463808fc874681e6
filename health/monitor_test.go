package health

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConfigReportsAllFaults(t *testing.T) {
	t.Parallel()
	if err := testConfig().Validate(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
	err := Config{Abstain: -1}.Validate()
	if err == nil {
		t.Fatal("the zero value is accepted")
	}
	for _, field := range []string{"logger", "max probes", "max expirations", "grace", "propose timeout", "abstain"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%q is not told: %v", field, err)
		}
	}
	if _, err := New(Config{}, nil, nil); err == nil {
		t.Error("New takes a configuration that is not valid")
	}
}

func TestMetricsAreTheTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.lead()
	w.openSession("s", time.Hour)
	w.register("a", nil, tcpCheck(time.Hour, 1, 1))
	if _, err := w.m.feed.WaitRevision(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	w.m.stats.observe("tcp", statusPassing, time.Millisecond)
	registry := prometheus.NewPedanticRegistry()
	for _, c := range w.m.Collectors() {
		if err := registry.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`^regd_[a-z_]+(_total|_seconds|_deadlines|_checks)$|^regd_(deadlines|checks)$`)
	for _, f := range families {
		if help[f.GetName()] == "" || help[f.GetName()] != f.GetHelp() || !name.MatchString(f.GetName()) {
			t.Errorf("%s %q is not as in the table, or has no unit", f.GetName(), f.GetHelp())
		}
	}
	if len(families) != len(help) {
		t.Errorf("%d metrics, and %d in the table", len(families), len(help))
	}
}
