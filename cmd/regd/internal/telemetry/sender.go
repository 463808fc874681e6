package telemetry

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// sender sends batches of spans, counts them, and says once that a collector fails. Nobody waits for it: the SDK keeps up to
// 2,048 spans for it and drops what is more.
type sender struct {
	sdktrace.SpanExporter

	to      string
	log     *slog.Logger
	failing atomic.Bool
	ended   context.Context //nolint:containedctx // Lives as long as the sender: it ends what is still being sent.
	cancel  context.CancelFunc
	sending chan struct{} // has room while no batch is sent: the SDK sends one at a time

	made         tally
	sent, failed prometheus.Counter
}

func newSender(exporter sdktrace.SpanExporter, to string, log *slog.Logger) *sender {
	s := &sender{SpanExporter: exporter, to: to, log: log, sending: make(chan struct{}, 1)}
	s.ended, s.cancel = context.WithCancel(context.Background()) // Until end.
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	s.made = tally{counter("regd_trace_spans_total", "Spans that this node has made to be sent to the collector of traces.")}
	s.sent = counter("regd_trace_spans_sent_total", "Spans that the collector of traces has taken.")
	s.failed = counter("regd_trace_send_failures_total", "Times that the collector of traces has not taken a batch of spans, which were dropped.")
	return s
}

func (s *sender) collectors() []prometheus.Collector {
	return []prometheus.Collector{s.made, s.sent, s.failed}
}

// ExportSpans implements sdktrace.SpanExporter. It has no error to return: the SDK would print it.
func (s *sender) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	s.sending <- struct{}{}
	defer func() { <-s.sending }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ended, cancel)() //nolint:contextcheck // It is the sender's own end that cuts off.
	if err := s.SpanExporter.ExportSpans(ctx, spans); err != nil {
		s.failed.Inc()
		if !s.failing.Swap(true) {
			s.log.Warn("the collector of traces takes no spans: they are dropped until it does", "collector", s.to, "err", err)
		}
		return nil
	}
	s.sent.Add(float64(len(spans)))
	if s.failing.Swap(false) {
		s.log.Info("the collector of traces takes spans again", "collector", s.to)
	}
	return nil
}

// end cuts off what is still being sent, and waits for its end.
func (s *sender) end() {
	s.cancel()
	s.sending <- struct{}{}
	<-s.sending
}

// tally is a sdktrace.SpanProcessor that counts the spans that are recorded.
type tally struct{ prometheus.Counter }

// OnEnd implements sdktrace.SpanProcessor.
func (t tally) OnEnd(span sdktrace.ReadOnlySpan) {
	if span.SpanContext().IsSampled() {
		t.Inc()
	}
}

// OnStart implements sdktrace.SpanProcessor.
func (t tally) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// ForceFlush implements sdktrace.SpanProcessor.
func (t tally) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdktrace.SpanProcessor.
func (t tally) Shutdown(context.Context) error { return nil }
