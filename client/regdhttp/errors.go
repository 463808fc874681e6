package regdhttp

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// Sentinels.
var (
	// ErrBadURL says that a URL with a service's host name can't be called.
	ErrBadURL = errors.New("bad URL of a service")
	// ErrTooManyServices says that WithMaxServices are in use, each with a request under way.
	ErrTooManyServices = errors.New("too many services")
	// ErrAttemptTimeout says that an instance did not begin its answer within WithAttemptTimeout. It is a timeout for
	// net.Error too.
	ErrAttemptTimeout error = attemptTimeoutError{}
)

// attemptTimeoutError is the error ErrAttemptTimeout.
type attemptTimeoutError struct{}

func (attemptTimeoutError) Error() string   { return "no answer within the time of an attempt" }
func (attemptTimeoutError) Timeout() bool   { return true }
func (attemptTimeoutError) Temporary() bool { return true }

// Error says why a request to a service got no response. errors.Is and errors.As see Err and the errors of all attempts:
// the sentinels of the packages discovery and balance, client.ErrClosed, the error of the request's context, and what the
// inner transport said.
type Error struct {
	// Namespace of the service, "" for the client's own.
	Namespace string
	// Service name.
	Service string
	// Attempts are the instances that were tried, in order.
	Attempts []Attempt
	// Err is why there was no further attempt, nil if the error of the last one is all there is to say.
	Err error
}

// Attempt is a request that was made to an instance in vain.
type Attempt struct {
	// Instance is its id.
	Instance string
	// Address is its host:port, "" if it has no such port.
	Address string
	// Err is how the attempt ended. A *StatusError: with a response that called for another attempt.
	Err error
}

// Error names the service and each attempt.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("call service ")
	if e.Namespace != "" {
		b.WriteString(e.Namespace + "/")
	}
	b.WriteString(e.Service)
	for i, a := range e.Attempts {
		fmt.Fprintf(&b, ": attempt %d on %s", i+1, a.Instance)
		if a.Address != "" {
			fmt.Fprintf(&b, " (%s)", a.Address)
		}
		fmt.Fprintf(&b, ": %v", a.Err)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap returns Err and the errors of the attempts.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	for _, a := range e.Attempts {
		errs = append(errs, a.Err)
	}
	return errs
}

// Timeout tells whether time ran out in the end. *url.Error, and through it http.Client, asks for it.
func (e *Error) Timeout() bool {
	last := e.Err
	if n := len(e.Attempts); last == nil && n > 0 {
		last = e.Attempts[n-1].Err
	}
	timeout, ok := errors.AsType[net.Error](last)
	return ok && timeout.Timeout()
}

// StatusError is a response that was given up for another attempt.
type StatusError struct {
	// Code is its HTTP status code.
	Code int
}

// Error returns the status.
func (e *StatusError) Error() string {
	return fmt.Sprintf("status %d %s", e.Code, http.StatusText(e.Code))
}
