package regdotel

import (
	"context"
	"errors"
	"strconv"
	"strings"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// errorType returns the value of error.type for an error: few of them, and never a text with names in it. What the registry
// gave as a reason is that reason, in lower case.
func errorType(err error) string {
	for _, known := range []struct {
		sentinel error
		name     string
	}{
		{client.ErrClosed, "closed"},
		{client.ErrSuperseded, "superseded"},
		{client.ErrUndelivered, "undelivered"},
		{client.ErrOutcomeUnknown, "outcome_unknown"},
		{client.ErrAlreadyExists, "already_exists"},
		{client.ErrInvalidArgument, "invalid_argument"},
		{discovery.ErrNoSuchService, "no_such_service"},
		{discovery.ErrStale, "stale"},
		{balance.ErrNoneHealthy, "none_healthy"},
		{balance.ErrNoInstances, "no_instances"},
		{balance.ErrNoMatch, "no_match"},
		{context.Canceled, "canceled"},
	} {
		if errors.Is(err, known.sentinel) {
			return known.name
		}
	}
	if _, ok := errors.AsType[*client.UnreachableError](err); ok {
		return "unreachable"
	}
	if e, ok := errors.AsType[*regdhttp.Error](err); ok && len(e.Attempts) > 0 {
		return errorType(e.Attempts[len(e.Attempts)-1].Err)
	}
	if e, ok := errors.AsType[*regdhttp.StatusError](err); ok {
		return strconv.Itoa(e.Code)
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.Reason != apiv1.Reason_REASON_UNSPECIFIED {
		return strings.ToLower(strings.TrimPrefix(e.Reason.String(), "REASON_"))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return semconv.ErrorType(err).Value.AsString()
}
