// Package regdotel tells OpenTelemetry of a client of regd: metrics of sessions, registrations, views and balancers, and
// spans of what waits for the registry and of calls over HTTP.
//
//	telemetry, err := regdotel.New() // of the global providers
//	...
//	defer telemetry.Close()
//
//	c, err := client.New(endpoints, client.WithTracer(telemetry))
//	d, err := discovery.New(c, discovery.WithTracer(telemetry))
//	web, err := regdhttp.New(d, regdhttp.WithTracer(telemetry))
//	grpc := regdgrpc.NewBuilder(d, regdgrpc.WithTracer(telemetry))
//	...
//	telemetry.ObserveClient(c)
//	telemetry.ObserveDiscovery(d)
//	telemetry.ObserveHTTP(web)
//	telemetry.ObserveGRPC(grpc)
//
// Each of these lines may be left out. The package links OpenTelemetry's API, not its SDK; the client and its other packages
// link neither.
//
// # Metrics
//
// docs/client.md has them all in one table. Their names begin with regd.client, as the semantic conventions have none for
// what they tell. All but one are read from the Stats of what is observed, when a reader collects: calls bear no cost. The
// other one, regd.client.operation.duration, is measured by the Tracer, for operations that wait for the registry.
//
// A series is one of a service, and where it is about states one of each state. Those of single instances are made only if
// WithInstances asks for them. What the process itself registers has its instance id.
//
// With OpenTelemetry's exporter for Prometheus, dots become underscores, counters end with _total and times with _seconds:
// regd_client_view_age_seconds{regd_namespace="default",regd_service="payment"}.
//
// # Traces
//
// A Telemetry is a client.Tracer, a regdhttp.Tracer and a regdgrpc.Tracer.
//
//   - "regd register", "regd leave" and so on: an operation of package client, and "regd first_view" of who waits for the
//     first view of a service. The tries to register again have spans that begin a trace.
//   - "call payment": a request through package regdhttp, from its beginning to the end of the response's body. Below it
//     is a span for each attempt, of the kind client, after the semantic conventions of HTTP: named after the method, with
//     http.request.resend_count, and with the instance, its zone and what the breaker and the balancer made of it. The
//     context of that span is sent along, by the propagator.
//   - gRPC: spans are made by a stats handler, such as otelgrpc.NewClientHandler. The span of a call gets the picked
//     instance, its zone and the state of its breaker as attributes; of several attempts the last one's.
//
// Query and user information of URLs are left out of spans, for they may hold secrets.
package regdotel
