package regdgrpc

import (
	"context"
	"log/slog"

	"github.com/regd-io/regd/client/balance"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// BuilderOption configures a Builder.
type BuilderOption func(*Builder)

// Tracer is told which instances calls go to, of channels with the policy regd_balance. Package regdotel has one.
type Tracer interface {
	// Picked is called when an attempt of a call is about to be sent to an instance. The context is the attempt's, with what
	// stats handlers (grpc.WithStatsHandler) have put into it, such as a span. Breaker half-open: the call is let through on
	// trial. The instance is shared: do not modify it. It must be safe for concurrent use, and quick.
	Picked(ctx context.Context, instance *registryv1.Instance, breaker balance.BreakerState)
}

// WithTracer has a Tracer told of picks. Without one, or with nil, that costs nothing. Default: none.
func WithTracer(tracer Tracer) BuilderOption {
	return func(b *Builder) { b.tracer = tracer }
}

// WithLogger sets where is logged that breakers open and close and that instances are ejected, see balance.WithLogger.
// Default: nowhere.
func WithLogger(log *slog.Logger) BuilderOption {
	return func(b *Builder) { b.log = log }
}
