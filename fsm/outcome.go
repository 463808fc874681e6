package fsm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// Errors of Apply. The state machine cannot go on after them: the node must stop, its last State stays valid.
var (
	// ErrUnknownCommand says that an entry needs a newer version of the software.
	ErrUnknownCommand = errors.New("unknown command")
	// ErrBadEntry says that an entry is not one, or does not follow the state it is applied to.
	ErrBadEntry = errors.New("bad entry")
)

// Sentinels of [Outcome.Err], one a code.
var (
	// ErrNotFound is CODE_NOT_FOUND.
	ErrNotFound = errors.New("not found")
	// ErrSessionNotFound is CODE_SESSION_NOT_FOUND.
	ErrSessionNotFound = errors.New("session not found")
	// ErrLeaseNotFound is CODE_LEASE_NOT_FOUND.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrAlreadyExists is CODE_ALREADY_EXISTS.
	ErrAlreadyExists = errors.New("already exists")
	// ErrStale is CODE_STALE.
	ErrStale = errors.New("stale")
	// ErrRevisionMismatch is CODE_REVISION_MISMATCH.
	ErrRevisionMismatch = errors.New("revision mismatch")
	// ErrLockHeld is CODE_LOCK_HELD.
	ErrLockHeld = errors.New("lock held")
	// ErrLockNotHeld is CODE_LOCK_NOT_HELD.
	ErrLockNotHeld = errors.New("lock not held")
	// ErrSlotsMismatch is CODE_SLOTS_MISMATCH.
	ErrSlotsMismatch = errors.New("lock has another number of slots")
	// ErrRequestReused is CODE_REQUEST_REUSED.
	ErrRequestReused = errors.New("request id reused")
	// ErrRequestTooOld is CODE_REQUEST_TOO_OLD.
	ErrRequestTooOld = errors.New("request too old")
	// ErrInvalid is CODE_INVALID.
	ErrInvalid = errors.New("invalid command")
	// ErrCheckNotFound is CODE_CHECK_NOT_FOUND.
	ErrCheckNotFound = errors.New("check not found")
	// ErrLimit is CODE_LIMIT.
	ErrLimit = errors.New("limit reached")
	// ErrDenied is CODE_DENIED.
	ErrDenied = errors.New("denied")
	// ErrQuota is CODE_QUOTA; see [Error.Quota].
	ErrQuota = errors.New("quota exceeded")
	// ErrUnknownCode is what a code of a newer version turns into.
	ErrUnknownCode = errors.New("unknown outcome code")
)

// Outcome is what a command led to.
type Outcome struct {
	// Code is CODE_UNSPECIFIED when the command was applied or there was nothing to do.
	Code raftlogv1.Code
	// Revision is that of the change, or the current one when nothing changed.
	Revision uint64
	// Changed says whether the command changed something.
	Changed bool
	// ID is what the command created: a session or a lease. For InitCluster, the id of the cluster; for a batch, the last
	// session that it opened.
	ID string
	// Number is the incarnation of a registration or the fencing token of a lock; 0 while waiting for a lock.
	Number uint64
	// Subject is what a code is about: the session, lease, owner, check, limit or malformed field.
	Subject string
}

// Err returns nil, or an *[Error] that wraps the sentinel of the code.
func (o Outcome) Err() error {
	if o.Code == raftlogv1.Code_CODE_UNSPECIFIED {
		return nil
	}
	return &Error{Code: o.Code, Subject: o.Subject}
}

// Proto returns the outcome as a message.
func (o Outcome) Proto() *raftlogv1.Outcome {
	return &raftlogv1.Outcome{
		Code:     o.Code,
		Revision: o.Revision,
		Changed:  o.Changed,
		Id:       o.ID,
		Number:   o.Number,
		Subject:  o.Subject,
	}
}

// OutcomeFromProto is the reverse of [Outcome.Proto].
func OutcomeFromProto(p *raftlogv1.Outcome) Outcome {
	return Outcome{
		Code:     p.GetCode(),
		Revision: p.GetRevision(),
		Changed:  p.GetChanged(),
		ID:       p.GetId(),
		Number:   p.GetNumber(),
		Subject:  p.GetSubject(),
	}
}

// append encodes the outcome as a raftlogv1.Outcome, fields in order.
func (o *Outcome) append(b []byte) []byte {
	b = appendUint(b, 1, uint64(uint32(o.Code)))
	b = appendUint(b, 2, o.Revision)
	b = appendBool(b, 3, o.Changed)
	b = appendString(b, 4, o.ID)
	b = appendUint(b, 5, o.Number)
	return appendString(b, 6, o.Subject)
}

// Error is a command that the state machine refused.
type Error struct {
	// Code says why.
	Code raftlogv1.Code
	// Subject is what the code is about, may be empty.
	Subject string
}

// Error returns the reason and its subject.
func (e *Error) Error() string {
	if e.Subject == "" {
		return e.Unwrap().Error()
	}
	return fmt.Sprintf("%v: %s", e.Unwrap(), e.Subject)
}

// Unwrap returns the sentinel of the code.
//
//nolint:gocyclo // A table of the codes.
func (e *Error) Unwrap() error {
	switch e.Code {
	case raftlogv1.Code_CODE_NOT_FOUND:
		return ErrNotFound
	case raftlogv1.Code_CODE_SESSION_NOT_FOUND:
		return ErrSessionNotFound
	case raftlogv1.Code_CODE_LEASE_NOT_FOUND:
		return ErrLeaseNotFound
	case raftlogv1.Code_CODE_ALREADY_EXISTS:
		return ErrAlreadyExists
	case raftlogv1.Code_CODE_STALE:
		return ErrStale
	case raftlogv1.Code_CODE_REVISION_MISMATCH:
		return ErrRevisionMismatch
	case raftlogv1.Code_CODE_LOCK_HELD:
		return ErrLockHeld
	case raftlogv1.Code_CODE_LOCK_NOT_HELD:
		return ErrLockNotHeld
	case raftlogv1.Code_CODE_SLOTS_MISMATCH:
		return ErrSlotsMismatch
	case raftlogv1.Code_CODE_REQUEST_REUSED:
		return ErrRequestReused
	case raftlogv1.Code_CODE_REQUEST_TOO_OLD:
		return ErrRequestTooOld
	case raftlogv1.Code_CODE_INVALID:
		return ErrInvalid
	case raftlogv1.Code_CODE_CHECK_NOT_FOUND:
		return ErrCheckNotFound
	case raftlogv1.Code_CODE_LIMIT:
		return ErrLimit
	case raftlogv1.Code_CODE_DENIED:
		return ErrDenied
	case raftlogv1.Code_CODE_QUOTA:
		return ErrQuota
	default:
		return ErrUnknownCode
	}
}

// refuse is the outcome of a command that was refused. The subject is cut, as it is remembered for retries.
func refuse(code raftlogv1.Code, subject string) Outcome {
	return Outcome{Code: code, Subject: cut(subject, MaxNameBytes)}
}

// The append functions below encode one field and, as proto3 does, leave out a zero value.

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return append(b, 1)
}

func appendString(b []byte, field protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, v)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}
