package regdhttp

import (
	"context"
	"errors"
	"net/http"

	"github.com/regd-io/regd/client/balance"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Tracer is told how requests to services go, as net/http/httptrace tells of connections. Package regdotel has one that
// makes spans. It must be safe for concurrent use, and quick. That an attempt or a request has ended may be told in another
// goroutine than that of the request, once each.
type Tracer interface {
	// Call is called when a request to a service begins. The context takes the place of the request's; the CallTracer is
	// told the rest. The request must not be changed.
	Call(req *http.Request, namespace, service string) (context.Context, CallTracer)
}

// CallTracer is told of one request.
type CallTracer interface {
	// Attempt is called before the request is sent to an instance. The header of Sent.Request may be changed, as to have
	// the trace go on at the other side; that of the caller's request is another one. The context takes the place of
	// Sent.Request's. What is returned beside it is called when the attempt has ended.
	Attempt(sent Sent) (context.Context, func(Ended))
	// Done is called when the request has ended: with an error, or when the body of the response has ended or was closed,
	// nil then.
	Done(err error)
}

// Sent is a request that is about to be sent to an instance.
type Sent struct {
	// Request as it is sent: its URL has the instance's address, its Host is the service's name.
	Request *http.Request
	// Instance that is called. It is shared: do not modify it.
	Instance *registryv1.Instance
	// Number of the attempt: 1 for the first.
	Number int
	// Breaker of the instance. Half-open: the request is let through on trial.
	Breaker balance.BreakerState
}

// Ended is how an attempt ended.
type Ended struct {
	// Response, nil without one. Its body has been read, closed or given up.
	Response *http.Response
	// Err that came instead of a response, or broke off its body. The context's: the caller had enough.
	Err error
	// Outcome that the balancer was told.
	Outcome balance.Outcome
	// Breaker of the instance after that.
	Breaker balance.BreakerState
}

// WithTracer has a Tracer told of requests to services. Without one that costs nothing. Default: none.
func WithTracer(tracer Tracer) Option {
	return func(c *config) error {
		if tracer == nil {
			return errors.New("tracer: nil")
		}
		c.tracer = tracer
		return nil
	}
}
