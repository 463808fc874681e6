package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// ErrorDomain is the domain of every ErrorInfo.
const ErrorDomain = "regd.io"

// Errors that arise in the API itself.
var (
	// ErrInvalid is what every *InvalidError is.
	ErrInvalid = errors.New("the request is invalid")
	// ErrServiceNotFound: no instance of the service is registered.
	ErrServiceNotFound = errors.New("no such service")
	// ErrLockNotFound: nobody holds the lock or waits for it.
	ErrLockNotFound = errors.New("no such lock")
	// ErrPageExpired: the revision of a page token is no longer kept.
	ErrPageExpired = errors.New("the revision of this list is no longer kept")
	// ErrOverloaded: the server works on as many calls as it may.
	ErrOverloaded = errors.New("the node has more to do than it can")
	// ErrInternal: a bug.
	ErrInternal = errors.New("internal error")
)

// Is makes an InvalidError an ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// Fault is a row of the error table: what a kind of error is to a client.
type Fault struct {
	// Err is the sentinel that the error is or wraps.
	Err error
	// Code is its gRPC code.
	Code codes.Code
	// Reason is its reason.
	Reason apiv1.Reason
	// Retryable tells whether the same call can succeed later, or at another node.
	Retryable bool
	// Hint says what to do.
	Hint string
}

// Faults returns the table of errors. An error is what the first row says whose sentinel it is or wraps.
func Faults() []Fault {
	const again, final = true, false
	return []Fault{
		// These two wrap their cause, which has a row of its own: they come first.
		{cluster.ErrUnknownOutcome, codes.Aborted, apiv1.Reason_REASON_OUTCOME_UNKNOWN, again, "a retry under the same request id is safe"},
		{cluster.ErrTooStale, codes.Unavailable, apiv1.Reason_REASON_TOO_STALE, again, "allow more time, or an older answer"},
		{ErrInvalid, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT, final, "correct the fields that are named"},
		{fsm.ErrInvalid, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT, final, "correct the fields that are named"},
		{ErrUnauthenticated, codes.Unauthenticated, apiv1.Reason_REASON_UNAUTHENTICATED, final, "show a token that exists and has not expired: regd access whoami"},
		{fsm.ErrDenied, codes.PermissionDenied, apiv1.Reason_REASON_PERMISSION_DENIED, final, "whoever administers access can grant a policy that allows it"},
		{cluster.ErrFeatureLevel, codes.FailedPrecondition, apiv1.Reason_REASON_FEATURE_LEVEL, again, "upgrade all members first"},
		{ErrBootstrapped, codes.FailedPrecondition, apiv1.Reason_REASON_BOOTSTRAPPED, final, "use a token that administers access"},
		{ErrLockNotFound, codes.NotFound, apiv1.Reason_REASON_LOCK_NOT_FOUND, final, "nobody holds the lock: acquire it"},
		{ErrKeyNotFound, codes.NotFound, apiv1.Reason_REASON_KEY_NOT_FOUND, final, "check namespace and key"},
		{ErrKeyExists, codes.AlreadyExists, apiv1.Reason_REASON_KEY_EXISTS, final, "read it and decide anew"},
		{ErrServiceNotFound, codes.NotFound, apiv1.Reason_REASON_SERVICE_NOT_FOUND, final, "check namespace and name"},
		{fsm.ErrSessionNotFound, codes.NotFound, apiv1.Reason_REASON_SESSION_NOT_FOUND, final, "open a new session and register again"},
		{fsm.ErrLeaseNotFound, codes.NotFound, apiv1.Reason_REASON_LEASE_NOT_FOUND, final, "grant a new lease"},
		{fsm.ErrCheckNotFound, codes.NotFound, apiv1.Reason_REASON_CHECK_NOT_FOUND, final, "name a TTL check of the instance"},
		{fsm.ErrNotFound, codes.NotFound, apiv1.Reason_REASON_INSTANCE_NOT_FOUND, final, "check namespace, service and id"},
		{cluster.ErrMemberNotFound, codes.NotFound, apiv1.Reason_REASON_MEMBER_NOT_FOUND, final, "list the members"},
		{fsm.ErrAlreadyExists, codes.AlreadyExists, apiv1.Reason_REASON_ALREADY_EXISTS, final, "another session owns the id: choose another one, or register without if_absent"},
		{fsm.ErrStale, codes.FailedPrecondition, apiv1.Reason_REASON_STALE_INCARNATION, final, "somebody newer owns it: read it again"},
		{fsm.ErrRevisionMismatch, codes.FailedPrecondition, apiv1.Reason_REASON_REVISION_MISMATCH, final, "read it again and decide anew"},
		{fsm.ErrLockHeld, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_HELD, final, "wait for it, or ask again later with a new request id"},
		{fsm.ErrLockNotHeld, codes.FailedPrecondition, apiv1.Reason_REASON_LOCK_NOT_HELD, final, "the lock was released or lost: acquire it again"},
		{fsm.ErrSlotsMismatch, codes.FailedPrecondition, apiv1.Reason_REASON_SLOTS_MISMATCH, final, "name the number of slots that the lock has, or wait until nobody holds it"},
		{fsm.ErrRequestReused, codes.FailedPrecondition, apiv1.Reason_REASON_REQUEST_REUSED, final, "use a new sequence for each request"},
		{fsm.ErrRequestTooOld, codes.FailedPrecondition, apiv1.Reason_REASON_REQUEST_TOO_OLD, final, "read what is there and decide anew; keep at most 64 requests open"},
		{fsm.ErrLimit, codes.ResourceExhausted, apiv1.Reason_REASON_LIMIT_REACHED, again, "remove what is no longer needed"},
		{fsm.ErrQuota, codes.ResourceExhausted, apiv1.Reason_REASON_QUOTA_EXCEEDED, final, "remove what the namespace no longer needs, or have whoever administers raise its quota: regd namespaces put"},
		{ErrRateLimited, codes.ResourceExhausted, apiv1.Reason_REASON_RATE_LIMITED, again, "come back after the given delay; whoever administers can raise the quota: regd namespaces put"},
		{cluster.ErrNotLeader, codes.Unavailable, apiv1.Reason_REASON_NOT_LEADER, again, "ask another node"},
		{cluster.ErrNoLeader, codes.Unavailable, apiv1.Reason_REASON_NO_LEADER, again, "a majority of the voters must be reachable; stale reads still work"},
		{cluster.ErrOverloaded, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED, again, "come back after the given delay"},
		{ErrOverloaded, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED, again, "come back after the given delay"},
		{ErrPageExpired, codes.OutOfRange, apiv1.Reason_REASON_PAGE_EXPIRED, final, "list again from the start"},
		{cluster.ErrDiskFull, codes.ResourceExhausted, apiv1.Reason_REASON_DISK_FULL, again, "free space on the leader's disk; reads and deregistrations go on"},
		{cluster.ErrRemoved, codes.Unavailable, apiv1.Reason_REASON_REMOVED, again, "ask another node"},
		{cluster.ErrClosed, codes.Unavailable, apiv1.Reason_REASON_SHUTTING_DOWN, again, "ask another node"},
		{feed.ErrClosed, codes.Unavailable, apiv1.Reason_REASON_SHUTTING_DOWN, again, "ask another node"},
		{cluster.ErrStarting, codes.Unavailable, apiv1.Reason_REASON_STARTING, again, "ask another node, or wait"},
		{cluster.ErrMembership, codes.FailedPrecondition, apiv1.Reason_REASON_MEMBERSHIP_REFUSED, final, "look at the status of the cluster first"},
		{cluster.ErrBadSnapshot, codes.InvalidArgument, apiv1.Reason_REASON_BAD_SNAPSHOT, final, "use another snapshot"},
		{fsm.ErrBadSnapshot, codes.InvalidArgument, apiv1.Reason_REASON_BAD_SNAPSHOT, final, "use another snapshot"},
		// A call whose time was over before anything was done.
		{context.DeadlineExceeded, codes.DeadlineExceeded, apiv1.Reason_REASON_OVERLOADED, again, "allow more time"},
		{context.Canceled, codes.Canceled, apiv1.Reason_REASON_OVERLOADED, again, "the call was given up"},
		{ErrInternal, codes.Internal, apiv1.Reason_REASON_INTERNAL, final, "this is a bug: the node's log says more under the id"},
	}
}

// detailed is an error with the facts of its message.
type detailed struct {
	err   error
	what  string
	facts map[string]string
}

func (e *detailed) Error() string { return e.what + ": " + e.err.Error() }
func (e *detailed) Unwrap() error { return e.err }

// explain says what was attempted when err came up, in words and as facts (key, value, key, value ...). It returns nil
// for nil.
func explain(err error, what string, facts ...string) error {
	if err == nil {
		return nil
	}
	m := make(map[string]string, len(facts)/2)
	for i := 0; i+1 < len(facts); i += 2 {
		if facts[i+1] != "" {
			m[facts[i]] = facts[i+1]
		}
	}
	return &detailed{err: err, what: what, facts: m}
}

// faultOf returns the row of the table for an error, and false when it has none.
func faultOf(table []Fault, err error) (Fault, bool) {
	i := slices.IndexFunc(table, func(f Fault) bool { return errors.Is(err, f.Err) })
	if i < 0 {
		return Fault{}, false
	}
	return table[i], true
}

// toStatus makes an error fit for a client. leader is the client address of the leader, as far as known.
func toStatus(fault Fault, err error, leader string) *status.Status {
	info := &errdetails.ErrorInfo{
		Reason:   reasonName(fault.Reason),
		Domain:   ErrorDomain,
		Metadata: factsOf(err),
	}
	info.Metadata["retryable"] = fmt.Sprint(fault.Retryable)
	info.Metadata["hint"] = fault.Hint
	if leader != "" {
		info.Metadata["leader"] = leader
	}
	details := []protoadapt.MessageV1{info}
	var bad *InvalidError
	if errors.As(err, &bad) {
		violations := &errdetails.BadRequest{}
		for _, v := range bad.Violations {
			violations.FieldViolations = append(violations.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		}
		details = append(details, violations)
	}
	if fault.Reason == apiv1.Reason_REASON_OVERLOADED {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(overloadRetry)})
	}
	var limited *rateError
	if errors.As(err, &limited) {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(limited.after)})
	}
	st := status.New(fault.Code, err.Error())
	with, detailErr := st.WithDetails(details...)
	if detailErr != nil { // Only for codes.OK, which the table doesn't have.
		return st
	}
	return with
}

// factsOf gathers the facts of an error and of all that it wraps; the outermost one wins.
func factsOf(err error) map[string]string {
	facts := make(map[string]string)
	gatherFacts(facts, err)
	return facts
}

func gatherFacts(facts map[string]string, err error) {
	switch e := err.(type) { //nolint:errorlint // Each link of the chain is looked at.
	case *detailed:
		for key, value := range e.facts {
			if _, known := facts[key]; !known {
				facts[key] = value
			}
		}
	case *fsm.Error:
		if e.Subject != "" {
			facts["subject"] = e.Subject
		}
	}
	switch e := err.(type) { //nolint:errorlint // Likewise.
	case interface{ Unwrap() error }:
		gatherFacts(facts, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, wrapped := range e.Unwrap() {
			gatherFacts(facts, wrapped)
		}
	}
}

// reasonName is a reason as it travels in ErrorInfo and in SubscriptionEnded.
func reasonName(r apiv1.Reason) string { return strings.TrimPrefix(r.String(), "REASON_") }

// RetryAfter is after how long it is worth to try again what an error has refused, 0 if the error does not say.
func RetryAfter(err error) time.Duration {
	var limited *rateError
	switch {
	case errors.As(err, &limited):
		return limited.after
	case errors.Is(err, ErrOverloaded), errors.Is(err, cluster.ErrOverloaded):
		return overloadRetry
	default:
		return 0
	}
}
