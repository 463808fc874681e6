package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestEveryReasonHasAnExitCode(t *testing.T) {
	t.Parallel()
	meaning := map[exitCode]string{}
	for _, m := range exitMeanings {
		if meaning[m.code] != "" {
			t.Errorf("exit code %d is explained twice", m.code)
		}
		meaning[m.code] = m.meaning
	}
	for number, name := range apiv1.Reason_name {
		reason := apiv1.Reason(number)
		row, ok := reasonExitOf(reason)
		if reason == apiv1.Reason_REASON_UNSPECIFIED {
			continue
		}
		if !ok || meaning[row.code] == "" || row.code == exitOK {
			t.Errorf("%s has no documented exit code", name)
		}
	}
}

func TestErrorsEndTheProcessWithTheirCode(t *testing.T) {
	t.Parallel()
	refused := client.Attempt{Address: "a:1", Err: &client.Error{Code: codes.Unavailable, Message: "connection refused"}}
	stale := client.Attempt{Address: "b:1", Err: &client.Error{Reason: apiv1.Reason_REASON_TOO_STALE}}
	noLeader := client.Attempt{Address: "b:1", Err: &client.Error{Reason: apiv1.Reason_REASON_NO_LEADER}}
	for _, tt := range []struct {
		name string
		err  error
		want exitCode
	}{
		{"nothing", nil, exitOK},
		{"anything", errors.New("x"), exitFailed},
		{"usage", usageErrorf("x"), exitUsage},
		{"with a hint", withHint(usageErrorf("x"), "y"), exitUsage},
		{"of a command that was run", &silentError{42}, 42},
		{"timeout", fmt.Errorf("x: %w", context.DeadlineExceeded), exitTimeout},
		{"interrupted", fmt.Errorf("x: %w", context.Canceled), exitInterrupted},
		{"not found", fmt.Errorf("x: %w", &client.Error{Reason: apiv1.Reason_REASON_INSTANCE_NOT_FOUND}), exitNotFound},
		{"lock held", &client.Error{Reason: apiv1.Reason_REASON_LOCK_HELD}, exitConflict},
		{"denied", &client.Error{Code: codes.PermissionDenied}, exitDenied},
		{"unreachable", &client.UnreachableError{Attempts: []client.Attempt{refused}, Cause: context.DeadlineExceeded}, exitUnreachable},
		{"no leader", &client.UnreachableError{Attempts: []client.Attempt{refused, noLeader}, Cause: context.DeadlineExceeded}, exitUnreachable},
		{"too stale", &client.UnreachableError{Attempts: []client.Attempt{refused, stale}, Cause: context.DeadlineExceeded}, exitTimeout},
		{"given up", &client.UnreachableError{Attempts: []client.Attempt{refused}, Cause: context.Canceled}, exitInterrupted},
		{"unknown", &client.UnreachableError{Attempts: []client.Attempt{refused}, OutcomeUnknown: true, Cause: context.DeadlineExceeded}, exitUnknown},
		{"lock lost", fmt.Errorf("x: %w", client.ErrLockLost), exitConflict},
		{"superseded", client.ErrSuperseded, exitConflict},
	} {
		if got := codeOf(tt.err); got != tt.want {
			t.Errorf("%s: exit code %d, want %d", tt.name, got, tt.want)
		}
	}
}
