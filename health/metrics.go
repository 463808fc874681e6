package health

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// The metrics of this package, by name.
const (
	expirationsTotal = "regd_expirations_total"
	suppressedTotal  = "regd_suppressed_expirations_total"
	deadlinesCount   = "regd_deadlines"
	checksCount      = "regd_checks"
	checkSeconds     = "regd_check_seconds"
	checkResults     = "regd_check_results_total"
	abstentionsTotal = "regd_check_abstentions_total"
	withheldTotal    = "regd_check_verdicts_withheld_total"
)

// help is the table of all metrics.
var help = map[string]string{ //nolint:gochecknoglobals // A table of constants.
	expirationsTotal: "What this node ended while it led, by cause: session, lease, check (TTL check without report), critical (for too long).",
	suppressedTotal:  "Deadlines that were extended because this node had not been running when they ended.",
	deadlinesCount:   "Deadlines that this node keeps as leader, by kind. 0 on followers.",
	checksCount:      "Active checks that this node runs as leader, by kind. 0 on followers.",
	checkSeconds:     "Time that probes took, by kind, in seconds.",
	checkResults:     "Results of probes, by kind and result.",
	abstentionsTotal: "How often this node stopped turning checks critical because most hosts failed at once.",
	withheldTotal:    "Verdicts that were not proposed for that reason.",
}

// metrics are those of one Monitor.
type metrics struct {
	m           *Monitor
	expirations [kinds]prometheus.Counter
	suppressed  prometheus.Counter
	seconds     *prometheus.HistogramVec
	results     *prometheus.CounterVec
	abstentions prometheus.Counter
	withheld    prometheus.Counter

	all []prometheus.Collector
}

func newMetrics(m *Monitor) *metrics {
	s := &metrics{m: m}
	counter := func(name string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help[name]})
		s.all = append(s.all, c)
		return c
	}
	counters := func(name string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help[name]}, labels)
		s.all = append(s.all, c)
		return c
	}
	causes := counters(expirationsTotal, "cause")
	for k := range kinds {
		s.expirations[k] = causes.WithLabelValues(k.String())
	}
	s.suppressed = counter(suppressedTotal)
	s.results = counters(checkResults, "kind", "result")
	s.abstentions = counter(abstentionsTotal)
	s.withheld = counter(withheldTotal)
	s.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: checkSeconds, Help: help[checkSeconds],
		Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30},
	}, []string{"kind"})
	s.all = append(s.all, s.seconds, &gauges{
		m:         m,
		deadlines: prometheus.NewDesc(deadlinesCount, help[deadlinesCount], []string{"kind"}, nil),
		checks:    prometheus.NewDesc(checksCount, help[checksCount], []string{"kind"}, nil),
	})
	return s
}

func (s *metrics) collectors() []prometheus.Collector { return s.all }

// observe counts one probe.
func (s *metrics) observe(kind string, status registryv1.CheckStatus, took time.Duration) {
	result := map[registryv1.CheckStatus]string{
		registryv1.CheckStatus_CHECK_STATUS_PASSING: "passing",
		registryv1.CheckStatus_CHECK_STATUS_WARNING: "warning",
	}[status]
	if result == "" {
		result = "critical"
	}
	s.results.WithLabelValues(kind, result).Inc()
	s.seconds.WithLabelValues(kind).Observe(took.Seconds())
}

// gauges count what runs at the moment they are asked.
type gauges struct {
	m                 *Monitor
	deadlines, checks *prometheus.Desc
}

// Describe is for prometheus.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	ch <- g.deadlines
	ch <- g.checks
}

// Collect is for prometheus.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	var deadlines [kinds]int
	checks := map[string]int{}
	if t := g.m.tenure.Load(); t != nil {
		deadlines, checks = t.ledger.counts(), t.prober.counts()
	}
	for k := range kinds {
		ch <- prometheus.MustNewConstMetric(g.deadlines, prometheus.GaugeValue, float64(deadlines[k]), k.String())
	}
	for _, k := range []string{"http", "tcp", "grpc"} {
		ch <- prometheus.MustNewConstMetric(g.checks, prometheus.GaugeValue, float64(checks[k]), k)
	}
}
