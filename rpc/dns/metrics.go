package dns

import (
	miekg "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the door. All series exist from the start, so that a query looks none up.
type metrics struct {
	queries   *prometheus.CounterVec
	took      prometheus.Histogram
	truncated *prometheus.CounterVec
	dropped   *prometheus.CounterVec
	stale     prometheus.Counter
	denied    prometheus.Counter
	forwarded prometheus.Counter
	conns     prometheus.Gauge

	byType  [len(countedTypes) + 1][len(countedCodes) + 1]prometheus.Counter // the last are the others
	cut     [2]prometheus.Counter                                            // UDP, TCP
	reasons [reasonCount]prometheus.Counter
}

// Types and codes that are counted apart.
var (
	countedTypes = [...]uint16{ //nolint:gochecknoglobals // a constant table
		miekg.TypeA, miekg.TypeAAAA, miekg.TypeSRV, miekg.TypeTXT, miekg.TypePTR, miekg.TypeSOA, miekg.TypeNS, miekg.TypeANY,
	}
	countedCodes = [...]int{ //nolint:gochecknoglobals // a constant table
		miekg.RcodeSuccess, miekg.RcodeFormatError, miekg.RcodeServerFailure, miekg.RcodeNameError,
		miekg.RcodeNotImplemented, miekg.RcodeRefused, miekg.RcodeBadVers,
	}
)

// reason is why something was not answered.
type reason int

const (
	reasonMalformed reason = iota // no query
	reasonRate
	reasonConnections
	reasonForwards
	reasonFault
	reasonCount
)

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vector := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		queries: vector("regd_dns_queries_total", "DNS queries answered, by type and code.", "type", "rcode"),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "regd_dns_query_seconds", Help: "How long DNS queries took, forwarded ones aside.",
			Buckets: []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .05},
		}),
		truncated: vector("regd_dns_truncated_total",
			"DNS answers that lack records: by UDP the client was asked to come by TCP, by TCP it got a part.", "transport"),
		dropped: vector("regd_dns_dropped_total", "DNS queries and connections that got no answer, by reason.", "reason"),
		stale:   counter("regd_dns_stale_total", "DNS answers from a state that was older than allowed, or of unknown age."),
		denied:  counter("regd_dns_denied_total", "DNS queries for what the identity anonymous may not see."),

		forwarded: counter("regd_dns_forwarded_total", "DNS queries that were forwarded."),
		conns:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "regd_dns_connections", Help: "TCP connections for DNS."}),
	}
	for i := range m.byType {
		for j := range m.byType[i] {
			name, code := "other", "other"
			if i < len(countedTypes) {
				name = miekg.TypeToString[countedTypes[i]]
			}
			if j < len(countedCodes) {
				code = miekg.RcodeToString[countedCodes[j]]
			}
			if j < len(countedCodes) && countedCodes[j] == miekg.RcodeBadVers {
				code = "BADVERS" // The library calls it by its other name, BADSIG.
			}
			m.byType[i][j] = m.queries.WithLabelValues(name, code)
		}
	}
	for i, transport := range []string{"udp", "tcp"} {
		m.cut[i] = m.truncated.WithLabelValues(transport)
	}
	for r, name := range map[reason]string{
		reasonMalformed: "malformed", reasonRate: "rate", reasonConnections: "connections", reasonForwards: "forwards", reasonFault: "fault",
	} {
		m.reasons[r] = m.dropped.WithLabelValues(name)
	}
	return m
}

// answered counts an answer.
func (m *metrics) answered(qtype uint16, rcode int) {
	i, j := 0, 0
	for i < len(countedTypes) && countedTypes[i] != qtype {
		i++
	}
	for j < len(countedCodes) && countedCodes[j] != rcode {
		j++
	}
	m.byType[i][j].Inc()
}

// partial counts an answer that lacks records.
func (m *metrics) partial(stream bool) {
	if stream {
		m.cut[1].Inc()
	} else {
		m.cut[0].Inc()
	}
}

func (m *metrics) drop(r reason) { m.reasons[r].Inc() }

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.queries, m.took, m.truncated, m.dropped, m.stale, m.denied, m.forwarded, m.conns}
}
