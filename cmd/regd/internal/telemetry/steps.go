package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/regd-io/regd/cluster"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// Context implements cluster.Tracer.
func (t *Telemetry) Context(ctx context.Context) *peerv1.TraceContext {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil
	}
	place := &peerv1.TraceContext{}
	propagation.TraceContext{}.Inject(ctx, carrier{place})
	return place
}

// Forward implements cluster.Tracer.
func (t *Telemetry) Forward(ctx context.Context, leader string) (*peerv1.TraceContext, func(error)) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return nil, func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, "regd forward", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(t.node, leaderKey.String(leader)))
	return t.Context(ctx), func(err error) { end(span, err, time.Time{}) }
}

// Entry implements cluster.Tracer.
func (t *Telemetry) Entry(e cluster.TracedEntry) {
	ended := e.Applied
	if ended.IsZero() {
		ended = time.Now()
	}
	index := indexKey.Int64(int64(e.Index))
	spans := make([]trace.Span, len(e.Proposals))
	links := make([]trace.Link, len(e.Proposals))
	for i, p := range e.Proposals {
		spans[i] = t.propose(p, index)
		turns(spans[i], e)
		links[i] = trace.Link{SpanContext: spans[i].SpanContext()}
	}
	ctx, entry := t.tracer.Start(context.Background(), "regd entry", trace.WithTimestamp(e.Taken),
		trace.WithLinks(links...), trace.WithAttributes(t.node, index, commandsKey.Int(e.Commands), bytesKey.Int(e.Bytes)))
	turns(entry, e)
	t.part(ctx, "regd store", e.Storing, e.Stored, index)
	t.part(ctx, "regd apply", e.Committed, e.Applied, index)
	end(entry, e.Err, ended)
	for _, span := range spans {
		span.AddLink(trace.Link{SpanContext: entry.SpanContext()})
		end(span, e.Err, ended)
	}
}

// propose begins the span of a command that waited for an entry.
func (t *Telemetry) propose(p *cluster.TracedProposal, index attribute.KeyValue) trace.Span {
	kind := trace.SpanKindInternal
	if p.Remote {
		kind = trace.SpanKindServer
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), carrier{p.Caller})
	_, span := t.tracer.Start(ctx, "regd propose", trace.WithSpanKind(kind), trace.WithTimestamp(p.Queued),
		trace.WithAttributes(t.node, index, remoteKey.Bool(p.Remote)))
	return span
}

// turns adds an event for each turn that an entry took.
func turns(span trace.Span, e cluster.TracedEntry) {
	for _, turn := range []struct {
		name string
		at   time.Time
	}{{"taken", e.Taken}, {"stored", e.Stored}, {"committed", e.Committed}} {
		if !turn.at.IsZero() {
			span.AddEvent(turn.name, trace.WithTimestamp(turn.at))
		}
	}
}

// part makes the span of a part whose times are known.
func (t *Telemetry) part(ctx context.Context, name string, began, ended time.Time, index attribute.KeyValue) {
	if began.IsZero() || ended.IsZero() {
		return
	}
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(began), trace.WithAttributes(t.node, index))
	end(span, nil, ended)
}

// Read implements cluster.Tracer.
func (t *Telemetry) Read(ctx context.Context, r cluster.TracedRead) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return
	}
	_, span := t.tracer.Start(ctx, "regd read", trace.WithTimestamp(r.Began), trace.WithAttributes(t.node))
	if !r.Confirmed.IsZero() {
		span.SetAttributes(indexKey.Int64(int64(r.Index)))
		span.AddEvent("confirmed", trace.WithTimestamp(r.Confirmed))
	}
	end(span, r.Err, r.Ended)
}

// end ends a span with its error, nil for none. The zero time is now.
func end(span trace.Span, err error, at time.Time) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End(trace.WithTimestamp(at))
}

// carrier is a place in a trace as propagators see it.
type carrier struct{ place *peerv1.TraceContext }

const (
	traceparent = "traceparent"
	tracestate  = "tracestate"
)

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string {
	switch key {
	case traceparent:
		return c.place.GetTraceparent()
	case tracestate:
		return c.place.GetTracestate()
	default:
		return ""
	}
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) {
	switch key {
	case traceparent:
		c.place.Traceparent = value
	case tracestate:
		c.place.Tracestate = value
	}
}

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string { return []string{traceparent, tracestate} }
