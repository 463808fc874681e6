package regdotel

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/regdhttp"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Further attributes of spans.
const (
	attemptsKey = attribute.Key("regd.attempts")
	outcomeKey  = attribute.Key("regd.outcome")
)

// Start makes the span of an operation, and measures it. It implements client.Tracer.
func (t *Telemetry) Start(ctx context.Context, op client.Operation) (context.Context, func(error)) {
	about := []attribute.KeyValue{operationKey.String(op.Name), namespaceKey.String(op.Namespace), serviceKey.String(op.Service)}
	attributes := about
	if op.Instance != "" {
		attributes = append(about[:3:3], instanceKey.String(op.Instance))
	}
	begin := time.Now()
	ctx, span := t.tracer.Start(ctx, "regd "+op.Name, trace.WithAttributes(attributes...))
	return ctx, func(err error) {
		if err != nil {
			about = append(about, semconv.ErrorTypeKey.String(errorType(err)))
		}
		t.durations.Record(ctx, time.Since(begin).Seconds(), metric.WithAttributes(about...))
		fail(span, err)
		span.End()
	}
}

// fail notes an error, nil for none.
func fail(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
	}
}

// call is a request on its way. It is a regdhttp.CallTracer.
type call struct {
	t        *Telemetry
	span     trace.Span
	attempts int
}

// Call makes the span of a request. It implements regdhttp.Tracer.
func (t *Telemetry) Call(req *http.Request, namespace, service string) (context.Context, regdhttp.CallTracer) {
	ctx, span := t.tracer.Start(req.Context(), "call "+service, trace.WithAttributes(
		namespaceKey.String(namespace), serviceKey.String(service), semconv.ServicePeerName(service),
		methodOf(req), semconv.URLFull(plain(req.URL)),
	))
	return ctx, &call{t: t, span: span}
}

// Attempt makes the span of an attempt, and sends its context along.
func (c *call) Attempt(s regdhttp.Sent) (context.Context, func(regdhttp.Ended)) {
	c.attempts = s.Number
	method := methodOf(s.Request)
	name := method.Value.AsString()
	if name == otherMethod {
		name = "HTTP"
	}
	ctx, span := c.t.tracer.Start(s.Request.Context(), name, trace.WithSpanKind(trace.SpanKindClient))
	c.t.propagator.Inject(ctx, propagation.HeaderCarrier(s.Request.Header))
	if span.IsRecording() {
		host, port := hostPort(s.Request.URL)
		span.SetAttributes(method, semconv.URLFull(plain(s.Request.URL)), semconv.ServerAddress(host), semconv.ServerPort(port),
			semconv.ServicePeerName(s.Instance.GetService()))
		span.SetAttributes(picked(s.Instance, s.Breaker)...)
		if s.Number > 1 {
			span.SetAttributes(semconv.HTTPRequestResendCount(s.Number - 1))
		}
	}
	return ctx, func(e regdhttp.Ended) { ended(span, s.Breaker, e) }
}

// ended ends the span of an attempt.
func ended(span trace.Span, before balance.BreakerState, e regdhttp.Ended) {
	span.SetAttributes(outcomeKey.String(outcome(e.Outcome)))
	if e.Response != nil {
		span.SetAttributes(semconv.HTTPResponseStatusCode(e.Response.StatusCode))
		if e.Response.StatusCode >= http.StatusBadRequest {
			// The conventions of HTTP want no description where the code says it all.
			span.SetStatus(codes.Error, "")
			span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(e.Response.StatusCode)))
		}
	}
	fail(span, e.Err)
	if e.Breaker != before {
		span.AddEvent("breaker changed", trace.WithAttributes(breakerKey.String(breakerState(e.Breaker))))
	}
	span.End()
}

// Done ends the span of the request.
func (c *call) Done(err error) {
	c.span.SetAttributes(attemptsKey.Int(c.attempts))
	fail(c.span, err)
	c.span.End()
}

// Picked tells the span of a call over gRPC, if there is one, where the call goes. It implements regdgrpc.Tracer.
func (t *Telemetry) Picked(ctx context.Context, instance *registryv1.Instance, breaker balance.BreakerState) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(picked(instance, breaker)...)
	}
}

// picked are the attributes of an instance that is called.
func picked(i *registryv1.Instance, breaker balance.BreakerState) []attribute.KeyValue {
	attributes := []attribute.KeyValue{
		namespaceKey.String(i.GetNamespace()), serviceKey.String(i.GetService()), instanceKey.String(i.GetId()),
		breakerKey.String(breakerState(breaker)),
	}
	if i.GetZone() != "" {
		attributes = append(attributes, zoneKey.String(i.GetZone()))
	}
	return attributes
}

// outcome names one.
func outcome(o balance.Outcome) string {
	switch o {
	case balance.Success:
		return "success"
	case balance.Failure:
		return "failure"
	case balance.Unreachable:
		return "unreachable"
	default:
		return "neutral"
	}
}

// otherMethod stands for methods that the conventions don't know, so that nobody can make up new ones without end.
const otherMethod = "_OTHER"

// methodOf returns the attribute of a request's method.
func methodOf(req *http.Request) attribute.KeyValue {
	switch req.Method {
	case "":
		return semconv.HTTPRequestMethodGet
	case http.MethodConnect, http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch,
		http.MethodPost, http.MethodPut, http.MethodTrace:
		return semconv.HTTPRequestMethodKey.String(req.Method)
	default:
		return semconv.HTTPRequestMethodOther
	}
}

// plain returns a URL without what may be secret.
func plain(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// hostPort returns where a request is sent. It is an instance's address, so it has a port.
func hostPort(u *url.URL) (host string, port int) {
	host, number, err := net.SplitHostPort(u.Host)
	if err != nil {
		return u.Host, 0
	}
	port, err = strconv.Atoi(number)
	if err != nil {
		return host, 0
	}
	return host, port
}
