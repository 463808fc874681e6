package rpc

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// callMetrics are the metrics of calls, with the names and labels that gRPC servers commonly have for them, those of
// go-grpc-middleware. That library looks a call up in five tables, and its chain of wrappers is a tenth of what a small
// read costs; here a call has one look-up, and all series exist from the start.
type callMetrics struct {
	started, handled, received, sent *prometheus.CounterVec
	took                             *prometheus.HistogramVec
	methods                          map[string]*methodMetrics // by full name
}

// methodMetrics are the series of one method.
type methodMetrics struct {
	started, received, sent prometheus.Counter
	handled                 [codes.Unauthenticated + 1]prometheus.Counter
	took                    prometheus.Observer
}

// newCallMetrics returns the metrics of all methods of the services.
func newCallMetrics(services map[string]grpc.ServiceInfo) *callMetrics {
	labels := []string{"grpc_type", "grpc_service", "grpc_method"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &callMetrics{
		started:  counter("grpc_server_started_total", "Number of calls begun.", labels...),
		handled:  counter("grpc_server_handled_total", "Number of calls ended, by code.", append(labels[:3:3], "grpc_code")...),
		received: counter("grpc_server_msg_received_total", "Number of messages received in unary calls.", labels...),
		sent:     counter("grpc_server_msg_sent_total", "Number of messages sent in unary calls.", labels...),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "How long calls took in the server.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60},
		}, labels),
		methods: map[string]*methodMetrics{},
	}
	for service, info := range services {
		for _, method := range info.Methods {
			m.methods["/"+service+"/"+method.Name] = m.method(service, method)
		}
	}
	return m
}

func (m *callMetrics) method(service string, method grpc.MethodInfo) *methodMetrics {
	labels := []string{callType(method), service, method.Name}
	one := &methodMetrics{
		started:  m.started.WithLabelValues(labels...),
		received: m.received.WithLabelValues(labels...),
		sent:     m.sent.WithLabelValues(labels...),
		took:     m.took.WithLabelValues(labels...),
	}
	for code := range one.handled {
		one.handled[code] = m.handled.WithLabelValues(append(labels[:3:3], codes.Code(code).String())...)
	}
	return one
}

// callType names a kind of method as go-grpc-middleware does.
func callType(m grpc.MethodInfo) string {
	switch {
	case m.IsClientStream && m.IsServerStream:
		return "bidi_stream"
	case m.IsClientStream:
		return "client_stream"
	case m.IsServerStream:
		return "server_stream"
	default:
		return "unary"
	}
}

// of returns the series of a method, which must be of a service that is served: gRPC itself refuses all others.
func (m *callMetrics) of(method string) *methodMetrics { return m.methods[method] }

// ended counts a call that began at the given time and ends with err, a status or nil.
func (m *methodMetrics) ended(began time.Time, err error) {
	if code := int(status.Code(err)); code < len(m.handled) {
		m.handled[code].Inc()
	}
	m.took.Observe(time.Since(began).Seconds())
}

// Describe implements prometheus.Collector.
func (m *callMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *callMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
}

func (m *callMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.started, m.handled, m.received, m.sent, m.took}
}
