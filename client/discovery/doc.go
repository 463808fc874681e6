// Package discovery is the view of services that an application calls: who serves "payment" now, answered from memory.
//
// A Discovery keeps one watch for each service that is in use, however many users it has. Reading a view is loading a
// pointer. Make one Discovery per process and ask it for services by name:
//
//	d, err := discovery.New(c, discovery.WithFile("/var/cache/shop/discovery"))
//	...
//	defer d.Close()
//
//	payment, err := d.Service("payment")
//	...
//	defer payment.Close()
//
//	instances, err := payment.Healthy(ctx) // for each call
//
//	for view, err := range payment.All(ctx) { // or be told of every change
//		balancer.Update(view.Instances)
//	}
//
// The first call waits for the registry, one round trip; Service itself does no I/O. After that a call never waits.
//
// # What a view is
//
// A View is the state of a service as of one revision of the registry, never a half of one. It does not change; a newer
// one takes its place. It tells where it comes from (Source), when the registry last confirmed that nothing is missing
// (Age), and how old the registry's own state could be then (Staleness).
//
// The first view holds every change that the registry had acknowledged before the service was first asked for, also if the
// node that serves it lags. Without a leader who could vouch for that, it is what a node has after some seconds. That there is
// no such service is not concluded from such a list: who asks waits until it is sure, or its context ends.
//
// Ages go by the monotonic clock: setting the wall clock changes none. A process that was paused, for a second and a half or
// more, knows that its views are as old as that; shorter pauses may be missing in the age.
//
// # When the registry can't be reached
//
// The last view is served on, with Source SourceCached and an age that grows. By default that has no end: that the registry
// is away says nothing about the services, and a bound would turn its outage into one of everything at a time that nobody
// chose. Who must not act on old news sets WithMaxStale; then errors match ErrStale, and come with the view.
//
// WithFile keeps views across restarts. Until the registry answers they are served as SourceFile; the watch goes on from
// where they are, so that a restart costs the registry no more than what has changed since.
//
// # Protection against empty lists
//
// Instances that leave by themselves or by an operator's order are gone at once. Instances that only fell silent, whose
// lease expired say, may as well be victims of a fault between them and the registry. When such losses leave a service with
// no instance, or with less than 30 % of what it had within five minutes, the lost ones stay in the view, named in
// View.Protected, until they come back, others register in their place, or five minutes have passed. WithProtection
// changes that.
//
// # Errors
//
// ErrNoSuchService: the registry provably knows no such service, and had none since this Discovery first asked. ErrNoneHealthy:
// there are instances or were, but none that can serve. ErrStale: as above. ErrTooManyServices: see WithMaxServices.
// Others say why there is no view yet: that of the context together with why no node answered, or what the registry
// refused the watch for. A refused watch is asked for again, from time to time.
package discovery
