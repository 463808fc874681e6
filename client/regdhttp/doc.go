// Package regdhttp calls services by name over HTTP: a Transport is an http.RoundTripper for URLs such as
// http://payment.service/v1/charge.
//
//	t, err := regdhttp.New(d) // d is a *discovery.Discovery
//	...
//	defer t.Close()
//	web := &http.Client{Transport: t, Timeout: 5 * time.Second}
//
//	resp, err := web.Get("http://payment.service/v1/charges/17")
//
// # Names
//
// Hosts are <service>.service, in the namespace of the client, and <service>.<namespace>.service. A service whose name has
// dots is only named in the second way. All other hosts are passed through. A URL has no port: the registry knows it. It is
// an instance's only one, or the one named as the scheme, "http" or "https"; WithPort says otherwise.
//
// The header Host and the name that a certificate must be for stay those of the URL, whichever instance is called.
//
// # Choice and retries
//
// Each service has a balance.Balancer, which sees every change of its instances at once and learns how each call went. A call
// is in flight until the response's body has been read or closed: always close it, as with any client.
//
// A request is tried again on another instance, never on one that it was tried on, when that is safe:
//
//   - no connection came about, so nothing was sent: every request;
//   - the connection broke, the answer is 502, 503 or 504, or none began in time (WithAttemptTimeout): requests that are
//     idempotent, see IsIdempotent.
//
// A body is sent again only if Request.GetBody can bring it, as it can for what http.NewRequest knows. After a Retry-After
// the next attempt waits, if that is short and the context's time allows. There are at most three attempts, and retries add
// at most 20 % to the load of a service (WithAttempts, WithRetryBudget). What then can't be tried again is returned as it
// is, a response as well as an error.
//
// # Errors
//
// An *Error names the service and what every instance that was tried said. It matches discovery.ErrNoSuchService,
// discovery.ErrStale, balance.ErrNoneHealthy, balance.ErrNoPort, client.ErrClosed, ErrBadURL, ErrTooManyServices, ErrAttemptTimeout and the
// context's error with errors.Is, through http.Client's *url.Error too. (When http.Client.Timeout strikes, the client keeps
// only the text. A deadline of the request's context doesn't have that flaw.)
//
// # Why no library for retries
//
// failsafe-go 0.9.8 has retries for HTTP, and a budget. But it repeats a request through the same round tripper, where nothing
// says which instances to avoid; its budget bounds the retries in flight, not the load that they add over a time; and its
// breaker would be a second one beside that of package balance. What is left is the rule of what is safe, which has to be
// written either way, and sixty lines of a budget after Finagle's RetryBudget.
package regdhttp
