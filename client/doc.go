// Package client is the Go client of regd, a replicated service registry.
//
// A Client talks to a cluster through any of its nodes. It chooses a node, follows hints to the leader, and asks others
// when one fails, until the context of the call ends. Writes carry a request id, so that however often one is sent it is
// applied once. Start with New, Client.Register and Client.Watch:
//
//	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"})
//	...
//	defer c.Close()
//
//	reg, err := c.Register(ctx, &registryv1.Instance{
//		Service: "payment", Id: "payment-1", Address: "10.0.0.7",
//		Ports: []*registryv1.Port{{Name: "http", Number: 8080}},
//	})
//	...
//	defer reg.Leave(ctx) // once all who watch have been told
//
//	w, err := c.Watch(ctx, client.Filter{Service: "payment", MinHealth: registryv1.Health_HEALTH_PASSING})
//	for change, err := range w.All(ctx) {
//		...
//	}
//
// One session stands for the client at the registry. It is opened when the first instance is registered or the first lock
// is taken, and kept alive over one stream. Should it end all the same, instances are registered again by themselves;
// locks are lost, and their contexts have ended by the time the session's deadline has passed. Close ends the session, and
// with it everything that hangs on it, at once.
//
// Package client/election has leader election on top of locks.
//
// Errors of the registry match a sentinel such as ErrInstanceNotFound with errors.Is, and are an *Error with the facts.
// When no node did what was asked, the error is an *UnreachableError that says of each address what it said.
//
// To end an instance without a failed request, call Registration.Leave while it still serves; package lifecycle does so for
// servers, in the right order.
//
// The package links neither raft nor a store, only gRPC and the messages in proto.
package client
