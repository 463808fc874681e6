package consul

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/rpc"
)

// failure is an error with the status that it is answered with.
type failure struct {
	code int
	text string
}

// Error returns the text that the client gets.
func (f *failure) Error() string { return f.text }

func badRequest(format string, args ...any) error {
	return &failure{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &failure{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

// unsupported is the error of what the registry does not have. It is no 404, so that tools say so.
func unsupported(what string) error {
	return &failure{http.StatusNotImplemented, what + " is not implemented by regd: see docs/migrate-from-consul.md"}
}

// noLeader is what Consul says, and what clients look for.
const noLeader = "No cluster leader"

// explain says with which status and text an error is answered. Order matters where an error wraps its cause.
func explain(err error) (code int, text string) {
	var f *failure
	var invalid *rpc.InvalidError
	switch {
	case errors.As(err, &f):
		return f.code, f.text
	case errors.As(err, &invalid):
		return http.StatusBadRequest, invalid.Error()
	case errors.Is(err, fsm.ErrInvalid):
		return http.StatusBadRequest, "Invalid request: " + err.Error()
	case errors.Is(err, cluster.ErrFeatureLevel):
		return http.StatusServiceUnavailable, "some members are too old for this, upgrade all first: " + err.Error()
	case errors.Is(err, rpc.ErrUnauthenticated):
		return http.StatusForbidden, "ACL not found: " + err.Error()
	case errors.Is(err, fsm.ErrDenied):
		return http.StatusForbidden, "Permission denied: " + err.Error()
	case errors.Is(err, cluster.ErrUnknownOutcome):
		return http.StatusInternalServerError, "the outcome of the write is unknown; to repeat it is safe: " + err.Error()
	case errors.Is(err, cluster.ErrNoLeader), errors.Is(err, cluster.ErrNotLeader), errors.Is(err, cluster.ErrTooStale):
		return http.StatusInternalServerError, noLeader
	// As Consul's own limits: 429 where another node may take it, 503 where only the leader could.
	case errors.Is(err, rpc.ErrOverloaded), errors.Is(err, rpc.ErrRateLimited):
		return http.StatusTooManyRequests, "rate limit exceeded, try again later or against a different server: " + err.Error()
	case errors.Is(err, cluster.ErrOverloaded):
		return http.StatusServiceUnavailable, "rate limit exceeded for operation that can only be performed by the leader, try again later: " + err.Error()
	case errors.Is(err, cluster.ErrStarting), errors.Is(err, cluster.ErrClosed), errors.Is(err, cluster.ErrRemoved),
		errors.Is(err, feed.ErrClosed):
		return http.StatusServiceUnavailable, err.Error()
	case errors.Is(err, fsm.ErrNotFound), errors.Is(err, fsm.ErrCheckNotFound):
		return http.StatusNotFound, err.Error()
	case errors.Is(err, fsm.ErrStale), errors.Is(err, fsm.ErrRevisionMismatch), errors.Is(err, fsm.ErrAlreadyExists):
		return http.StatusConflict, err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusInternalServerError, "it took too long: " + err.Error()
	default:
		return http.StatusInternalServerError, err.Error()
	}
}

// retryAfter is after how many seconds a request that failed is worth another try.
func retryAfter(err error) int {
	return max(1, int(math.Ceil(rpc.RetryAfter(err).Seconds())))
}
