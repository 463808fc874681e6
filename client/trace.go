package client

import (
	"context"
	"errors"
)

// Tracer is told of operations that wait for the registry, as spans need it. Package regdotel has one that makes them. It
// must be safe for concurrent use, and quick.
type Tracer interface {
	// Start is called when an operation begins. The context takes the place of the operation's. What is returned beside it
	// is called once, when the operation has ended, with its error.
	Start(ctx context.Context, op Operation) (context.Context, func(error))
}

// Names of operations.
const (
	// OperationRegister is Client.Register.
	OperationRegister = "register"
	// OperationRestore is a try to register an instance again, by the client itself.
	OperationRestore = "restore"
	// OperationUpdate is Registration.Update.
	OperationUpdate = "update"
	// OperationSetHealth is Registration.SetHealth.
	OperationSetHealth = "set_health"
	// OperationLeave is Registration.Leave. The next three are parts of it.
	OperationLeave = "leave"
	// OperationDrain is Registration.Drain.
	OperationDrain = "drain"
	// OperationAwaitDelivery is waiting until all who watch know of a leave. Its error is Departure.Err.
	OperationAwaitDelivery = "await_delivery"
	// OperationDeregister is Registration.Deregister.
	OperationDeregister = "deregister"
	// OperationFirstView is waiting for the first view of a service in package discovery, by who asks first.
	OperationFirstView = "first_view"
)

// Operation says what is done.
type Operation struct {
	// Name is one of those above.
	Name string
	// Namespace, Service and Instance that it is about. Instance is its id, "" for OperationFirstView.
	Namespace, Service, Instance string
}

// WithTracer has a Tracer told of what is done with registrations. Without one that costs nothing. Default: none.
func WithTracer(tracer Tracer) Option {
	return func(c *config) error {
		if tracer == nil {
			return errors.New("tracer: nil")
		}
		c.tracer = tracer
		return nil
	}
}

// trace begins an operation for who traces, if anybody does.
func (c *Client) trace(ctx context.Context, name string, key Key) (context.Context, func(error)) {
	if c.cfg.tracer == nil {
		return ctx, func(error) {}
	}
	return c.cfg.tracer.Start(ctx, Operation{Name: name, Namespace: key.Namespace, Service: key.Service, Instance: key.ID})
}
