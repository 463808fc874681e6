// Package regdgrpc has gRPC call services by name: it resolves targets such as regd:///payment, and balances calls.
//
//	conn, err := grpc.NewClient("regd:///payment",
//		grpc.WithResolvers(regdgrpc.NewBuilder(d)), // d is a *discovery.Discovery
//		grpc.WithDefaultServiceConfig(regdgrpc.Config{Policy: "least_requests", Zone: "eu-west-1a"}.ServiceConfig()),
//		grpc.WithTransportCredentials(creds))
//
// Without a service config gRPC sends all calls to one instance, by its policy pick_first.
//
// # Targets
//
// regd:///payment and regd://payment name a service in the client's namespace; parameters say more, as in
// regd:///payment?namespace=prod&port=grpc. The port is by default an instance's only one, or the one named "grpc". The
// authority, and with TLS the name that the certificate must be for, is the name of the service.
//
// # What is resolved
//
// All instances that can serve, each as an endpoint with the instance as an attribute, see Instance. An instance that drains,
// is in maintenance or turns critical leaves at once; gRPC then opens no further streams on its connection, and closes it
// when the last one has ended. Changes are pushed, nothing is polled. While the registry is away the last view stays.
//
// When there is no view, or nobody in it who can serve, the channel is told why. Calls then fail with codes.Unavailable and
// the reason as text, gRPC keeps no more of it; calls that wait for ready wait. Such errors match, where a balancer gets
// them, discovery.ErrNoSuchService, discovery.ErrNoneHealthy, balance.ErrNoPort and others of package discovery. The bound
// of discovery.WithMaxStale isn't applied: connections tell better than an old view who is there.
//
// # The policy regd_balance
//
// It is package balance at work, with the outcome of each call: policies, zones, breaker, ejection. Config, or its JSON in a
// service config, sets it; what is wrong there is told by grpc.NewClient's error.
//
// It connects to every instance and picks among those that are connected, so that a call never waits for a connection while
// there is another. Client-side health checks (healthCheckConfig, with an import of google.golang.org/grpc/health) take
// part. Calls that end with codes.Unavailable, DeadlineExceeded, ResourceExhausted, Internal, Unknown or DataLoss speak
// against the instance; cancelled ones count for nothing. When breakers leave nobody to pick, calls fail at once, and those
// that wait for ready wait until one lets calls through.
//
// gRPC's own round_robin and the like work too. Retries are gRPC's: set a retryPolicy in the service config.
//
// The policy is built on gRPC's packages endpointsharding and pickfirst, which are experimental: gRPC may change them.
package regdgrpc
