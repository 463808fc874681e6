package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// errorDomain is the domain of regd's google.rpc.ErrorInfo.
const errorDomain = "regd.io"

// leaderKey is the metadata key of an error under which a node says where it believes the leader to be.
const leaderKey = "leader"

// Sentinels of the client itself.
var (
	// ErrClosed says that the Client, Watch or Registration was closed.
	ErrClosed = errors.New("closed")
	// ErrSuperseded says that a newer registration of the same instance id, by another session, owns the instance.
	ErrSuperseded = errors.New("superseded by a newer registration")
	// ErrLockLost says that ownership of a lock could no longer be proved: its session ended, or was not renewed in time.
	ErrLockLost = errors.New("lock lost")
)

// Sentinels of the registry, one for each apiv1.Reason. Every *Error matches its own with errors.Is.
var (
	ErrInvalidArgument   = errors.New("invalid argument")
	ErrInstanceNotFound  = errors.New("instance not found")
	ErrServiceNotFound   = errors.New("service not found")
	ErrSessionNotFound   = errors.New("session not found")
	ErrLeaseNotFound     = errors.New("lease not found")
	ErrLockNotFound      = errors.New("lock not found")
	ErrCheckNotFound     = errors.New("check not found")
	ErrMemberNotFound    = errors.New("member not found")
	ErrAlreadyExists     = errors.New("already exists")
	ErrStaleIncarnation  = errors.New("stale incarnation")
	ErrRevisionMismatch  = errors.New("revision mismatch")
	ErrLockHeld          = errors.New("lock held by another session")
	ErrLockNotHeld       = errors.New("lock not held")
	ErrRequestReused     = errors.New("request id reused for another request")
	ErrRequestTooOld     = errors.New("request id too old")
	ErrNotLeader         = errors.New("not the leader")
	ErrNoLeader          = errors.New("no leader")
	ErrOutcomeUnknown    = errors.New("outcome unknown")
	ErrOverloaded        = errors.New("overloaded")
	ErrTooStale          = errors.New("too stale")
	ErrPageExpired       = errors.New("page expired")
	ErrShuttingDown      = errors.New("shutting down")
	ErrDiskFull          = errors.New("disk full")
	ErrRemoved           = errors.New("node removed from the cluster")
	ErrMembershipRefused = errors.New("membership change refused")
	ErrBadSnapshot       = errors.New("bad snapshot")
	ErrLimitReached      = errors.New("limit reached")
	ErrInternal          = errors.New("internal error")
	ErrStarting          = errors.New("node is starting")
	ErrSlotsMismatch     = errors.New("lock has another number of slots")
	ErrUnauthenticated   = errors.New("unknown token")
	ErrPermissionDenied  = errors.New("permission denied")
	ErrBootstrapped      = errors.New("access control was bootstrapped before")
	ErrFeatureLevel      = errors.New("a member of the cluster is too old for that")
	ErrQuotaExceeded     = errors.New("quota of the namespace exceeded")
	ErrKeyNotFound       = errors.New("key not found")
	ErrKeyExists         = errors.New("key exists")
	ErrRateLimited       = errors.New("the namespace writes more than its quota allows")
)

// verdict says what to do after a failed attempt.
type verdict int

const (
	// giveUp: repeating cannot help.
	giveUp verdict = iota
	// elsewhere: another node may do it, at once.
	elsewhere
	// later: any node, after a pause.
	later
)

// reasonRow is what the client knows of a reason.
type reasonRow struct {
	reason   apiv1.Reason
	sentinel error
	verdict  verdict
	// shun says that the node itself is unfit for a while, whatever it is asked.
	shun bool
}

// reasonTable maps each reason to its sentinel and to what to do about it.
func reasonTable() []reasonRow {
	return []reasonRow{
		{apiv1.Reason_REASON_INVALID_ARGUMENT, ErrInvalidArgument, giveUp, false},
		{apiv1.Reason_REASON_INSTANCE_NOT_FOUND, ErrInstanceNotFound, giveUp, false},
		{apiv1.Reason_REASON_SERVICE_NOT_FOUND, ErrServiceNotFound, giveUp, false},
		{apiv1.Reason_REASON_SESSION_NOT_FOUND, ErrSessionNotFound, giveUp, false},
		{apiv1.Reason_REASON_LEASE_NOT_FOUND, ErrLeaseNotFound, giveUp, false},
		{apiv1.Reason_REASON_LOCK_NOT_FOUND, ErrLockNotFound, giveUp, false},
		{apiv1.Reason_REASON_CHECK_NOT_FOUND, ErrCheckNotFound, giveUp, false},
		{apiv1.Reason_REASON_MEMBER_NOT_FOUND, ErrMemberNotFound, giveUp, false},
		{apiv1.Reason_REASON_ALREADY_EXISTS, ErrAlreadyExists, giveUp, false},
		{apiv1.Reason_REASON_STALE_INCARNATION, ErrStaleIncarnation, giveUp, false},
		{apiv1.Reason_REASON_REVISION_MISMATCH, ErrRevisionMismatch, giveUp, false},
		{apiv1.Reason_REASON_LOCK_HELD, ErrLockHeld, giveUp, false},
		{apiv1.Reason_REASON_LOCK_NOT_HELD, ErrLockNotHeld, giveUp, false},
		{apiv1.Reason_REASON_REQUEST_REUSED, ErrRequestReused, giveUp, false},
		{apiv1.Reason_REASON_REQUEST_TOO_OLD, ErrRequestTooOld, giveUp, false},
		{apiv1.Reason_REASON_NOT_LEADER, ErrNotLeader, elsewhere, false},
		{apiv1.Reason_REASON_NO_LEADER, ErrNoLeader, elsewhere, false},
		{apiv1.Reason_REASON_OUTCOME_UNKNOWN, ErrOutcomeUnknown, later, false},
		{apiv1.Reason_REASON_OVERLOADED, ErrOverloaded, later, false},
		{apiv1.Reason_REASON_TOO_STALE, ErrTooStale, elsewhere, false},
		{apiv1.Reason_REASON_PAGE_EXPIRED, ErrPageExpired, giveUp, false},
		{apiv1.Reason_REASON_SHUTTING_DOWN, ErrShuttingDown, elsewhere, true},
		{apiv1.Reason_REASON_DISK_FULL, ErrDiskFull, elsewhere, false},
		{apiv1.Reason_REASON_REMOVED, ErrRemoved, elsewhere, true},
		{apiv1.Reason_REASON_MEMBERSHIP_REFUSED, ErrMembershipRefused, giveUp, false},
		{apiv1.Reason_REASON_BAD_SNAPSHOT, ErrBadSnapshot, giveUp, false},
		{apiv1.Reason_REASON_LIMIT_REACHED, ErrLimitReached, giveUp, false},
		{apiv1.Reason_REASON_INTERNAL, ErrInternal, giveUp, false},
		{apiv1.Reason_REASON_STARTING, ErrStarting, elsewhere, true},
		{apiv1.Reason_REASON_UNAUTHENTICATED, ErrUnauthenticated, giveUp, false},
		{apiv1.Reason_REASON_PERMISSION_DENIED, ErrPermissionDenied, giveUp, false},
		{apiv1.Reason_REASON_BOOTSTRAPPED, ErrBootstrapped, giveUp, false},
		{apiv1.Reason_REASON_FEATURE_LEVEL, ErrFeatureLevel, giveUp, false},
		{apiv1.Reason_REASON_QUOTA_EXCEEDED, ErrQuotaExceeded, giveUp, false},
		{apiv1.Reason_REASON_RATE_LIMITED, ErrRateLimited, later, false},
		{apiv1.Reason_REASON_KEY_NOT_FOUND, ErrKeyNotFound, giveUp, false},
		{apiv1.Reason_REASON_KEY_EXISTS, ErrKeyExists, giveUp, false},
		{apiv1.Reason_REASON_SLOTS_MISMATCH, ErrSlotsMismatch, giveUp, false},
	}
}

// rowOf finds the row of a reason.
func rowOf(reason apiv1.Reason) (reasonRow, bool) {
	for _, row := range reasonTable() {
		if row.reason == reason {
			return row, true
		}
	}
	return reasonRow{}, false
}

// Error is what a node answered. errors.Is matches it with the sentinel of its Reason.
type Error struct {
	// Reason from the closed list. REASON_UNSPECIFIED: the failure does not come from regd (the connection, a proxy, TLS)
	// or has a reason that this client is too old to know.
	Reason apiv1.Reason
	// Code is the gRPC status code.
	Code codes.Code
	// Message for people.
	Message string
	// Metadata has the facts of the message under fixed names.
	Metadata map[string]string
	// Violations names every bad field of an invalid request.
	Violations []Violation
	// RetryAfter is the pause that the node asked for. 0: none.
	RetryAfter time.Duration
}

// Violation is one bad field of a request.
type Violation struct {
	// Field is its path in the request, such as "instance.ports[0].number".
	Field string
	// Description says what is wrong with it.
	Description string
}

// Error returns the message, and the violations unless the message names them.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, v := range e.Violations {
		if !strings.Contains(e.Message, v.Description) {
			fmt.Fprintf(&b, "; %s: %s", v.Field, v.Description)
		}
	}
	return b.String()
}

// Is tells whether target is the sentinel of the error's reason.
func (e *Error) Is(target error) bool {
	row, ok := rowOf(e.Reason)
	return ok && row.sentinel == target
}

// Retryable tells whether the client repeats a call that fails so, elsewhere or later. A call has been repeated until its
// context ended before it returns such an error.
func (e *Error) Retryable() bool {
	return e.verdict() != giveUp
}

// verdict judges by reason, and by code where there is none.
func (e *Error) verdict() verdict {
	if row, ok := rowOf(e.Reason); ok {
		return row.verdict
	}
	switch e.Code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return elsewhere
	default:
		return giveUp
	}
}

// shuns tells whether the node that said it should be left alone for a while.
func (e *Error) shuns() bool {
	if row, ok := rowOf(e.Reason); ok {
		return row.shun
	}
	return e.verdict() == elsewhere
}

// ambiguous tells whether a request that got this error may have been carried out all the same.
func (e *Error) ambiguous() bool {
	if e.Reason != apiv1.Reason_REASON_UNSPECIFIED {
		return e.Reason == apiv1.Reason_REASON_OUTCOME_UNKNOWN
	}
	return e.verdict() == elsewhere
}

// leavesOpen tells whether this error, as the final one, says nothing of what became of earlier attempts: it is not about
// the request, or what is known of the request is forgotten.
func (e *Error) leavesOpen() bool {
	return e.verdict() == giveUp &&
		(e.Reason == apiv1.Reason_REASON_UNSPECIFIED || e.Reason == apiv1.Reason_REASON_REQUEST_TOO_OLD)
}

// Attempt is what one address said in the end.
type Attempt struct {
	// Address that was tried, host:port.
	Address string
	// Err is its last answer, or why there was none.
	Err error
}

// UnreachableError says that no node did what was asked before the context ended. It matches with errors.Is the error of
// the context, whatever the nodes said, and ErrOutcomeUnknown when a write may have been applied all the same.
type UnreachableError struct {
	// Op says what was attempted.
	Op string
	// Attempts has every address that was tried, with its last word, in the order of the first try.
	Attempts []Attempt
	// Cause is the error of the context.
	Cause error
	// OutcomeUnknown is set when a write reached a node and its outcome was not told.
	OutcomeUnknown bool
}

// Error lists each address and what it said.
func (e *UnreachableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: no node could do it", e.Op)
	if e.OutcomeUnknown {
		b.WriteString(" (or none could say so: the outcome is unknown)")
	}
	for i, a := range e.Attempts {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s: %v", sep, a.Address, a.Err)
	}
	fmt.Fprintf(&b, " (%v)", e.Cause)
	return b.String()
}

// Unwrap returns the context's error and those of all attempts.
func (e *UnreachableError) Unwrap() []error {
	errs := []error{e.Cause}
	if e.OutcomeUnknown {
		errs = append(errs, ErrOutcomeUnknown)
	}
	for _, a := range e.Attempts {
		errs = append(errs, a.Err)
	}
	return errs
}

// fromStatus turns the error of a gRPC call into an *Error.
func fromStatus(err error) *Error {
	st := statusOf(err)
	e := &Error{Code: st.Code(), Message: plainMessage(st.Message())}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				e.Reason = apiv1.Reason(apiv1.Reason_value["REASON_"+d.GetReason()])
				e.Metadata = d.GetMetadata()
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e.Violations = append(e.Violations, Violation{Field: v.GetField(), Description: v.GetDescription()})
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	return e
}

// statusOf returns the gRPC status of an error, also of one that is a bare context error.
func statusOf(err error) *status.Status {
	if st, ok := status.FromError(err); ok {
		return st
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return status.FromContextError(err)
	}
	return status.New(codes.Unavailable, err.Error())
}

// plainMessage takes gRPC's wrapping off the text of a connection error. It only serves people's eyes.
func plainMessage(message string) string {
	if _, quoted, ok := strings.Cut(message, `desc = "`); ok {
		if inner, err := strconv.Unquote(`"` + quoted); err == nil {
			message = inner
		}
	}
	message = strings.TrimPrefix(message, "transport: ")
	return strings.TrimPrefix(message, "Error while dialing: ")
}
