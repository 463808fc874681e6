// Package lifecycle runs the servers of a process from their first request to their last, with its registration around them:
// nobody is sent to a server that does not accept yet, and nobody is cut off.
//
//	web := lifecycle.HTTP("http", &http.Server{Handler: mux}, listener)
//	err := lifecycle.Run(ctx, lifecycle.Config{
//		Servers:   []lifecycle.Server{web},
//		Register:  lifecycle.Register(c, &registryv1.Instance{Service: "payment", Id: id, Address: host}),
//		Readiness: ready, // mux.Handle("/readyz", ready)
//	})
//
// Run goes through this order, and knows no other:
//
//  1. All servers serve, on listeners that are bound already.
//  2. Config.Ready has nothing to wait for.
//  3. The process is registered; readiness and gRPC health say that it serves.
//  4. SIGTERM, SIGINT or the end of the context: they say no longer.
//  5. The instance leaves (client.Registration.Leave): it is draining, all who watch it have been told, it is
//     deregistered. The servers serve on, and for a tenth of a second more: for requests that were on their way.
//  6. The servers finish the requests under way and stop.
//
// A second signal cuts waiting short, in 5 and 6. When a server fails, the instance is deregistered at once and the other
// servers finish.
package lifecycle
