// Package balance chooses among the instances of a service, on the client's side.
//
// A Balancer holds the instances that it was last given by Update, and Pick chooses one of them by a Policy. Every call
// that was made to the pick is reported to its Done:
//
//	b, err := balance.New(balance.LeastRequests())
//	...
//	b.Update(instances) // whenever they change
//
//	pick, err := b.Pick(balance.Request{})
//	...
//	address, err := balance.HostPort(pick.Instance(), "http")
//	...
//	err = call(ctx, address)
//	pick.Done(balance.OutcomeOf(err))
//
// Policies nest. This one prefers instances in the client's own zone, keeps to 20 of them there, and sends 5 % of the
// calls to version 2:
//
//	balance.Local("eu-west", "eu-west-1a",
//		balance.Subset(clientID, 20,
//			balance.Split(0.05, balance.HasMetadata("version", "2"), balance.RoundRobin())))
//
// # Who can be picked
//
// Instances whose health is passing, or at least what WithMinHealth says, share the calls. Where none of
// them is available, those in warning do. Below the threshold of WithPanicThreshold the health that the registry knows is disregarded.
// Instances that drain or are in maintenance are never picked, not even when nothing else is left: who waits for a drained
// instance to fall silent must be able to rely on it, and maintenance is an operator's word.
//
// Two guards watch what Done reports, each switched on by its option. WithBreaker stops calls to an instance that fails,
// and lets a few through after a while to see whether it has recovered. WithEjection puts the instances that do worse than
// the others aside, but never more than a share of them, so that a fault of the client's own can't empty the set. The
// breaker protects the caller whatever the cost in capacity, ejection protects the average call.
//
// What is known of an instance (calls in flight, latency, breaker, ejection) stays across updates as long as its namespace,
// service, id and incarnation do.
//
// Explain says of every instance whether it can be picked, why not, and with which probability it would be.
//
// # Cost
//
// Pick takes no lock and allocates nothing: it reads an immutable plan that is made anew when instances, breakers or
// ejections change. Such a change is carried out by the call that notices it, so the package starts no goroutine and a
// Balancer needs no closing. Update costs n log n in the number of instances: gather what changes at once before a call.
//
// The package knows neither gRPC nor HTTP nor the registry's client, only the registry's messages.
package balance
