package main

import (
	"context"
	"errors"
	"fmt"
)

// exitCode is how a command says to its caller what became of it. The list is closed and documented.
type exitCode int

// Exit codes. Those of serve lie above 64, so that a service manager can tell "don't start me again" from a crash.
const (
	exitOK          exitCode = 0
	exitFailed      exitCode = 1
	exitUsage       exitCode = 2
	exitNotFound    exitCode = 3
	exitDenied      exitCode = 4
	exitUnreachable exitCode = 5
	exitTimeout     exitCode = 6
	exitConflict    exitCode = 7
	exitDegraded    exitCode = 8
	exitUnknown     exitCode = 9
	exitNoneFit     exitCode = 10
	exitBadAnswer   exitCode = 11
	exitDataLocked  exitCode = 70
	exitDataForeign exitCode = 71
	exitDataNewer   exitCode = 72
	exitDataCorrupt exitCode = 73
	exitDataDenied  exitCode = 74
	exitDataSync    exitCode = 75
	exitConfig      exitCode = 78
	exitInterrupted exitCode = 130
)

// exitMeanings is the documentation of the exit codes, in order.
var exitMeanings = []struct { //nolint:gochecknoglobals // a constant table
	code    exitCode
	meaning string
}{
	{exitOK, "done"},
	{exitFailed, "failed"},
	{exitUsage, "wrong usage, nothing was tried"},
	{exitNotFound, "not found"},
	{exitDenied, "not allowed"},
	{exitUnreachable, "cluster unreachable, or without a leader"},
	{exitTimeout, "timed out"},
	{exitConflict, "conflict: somebody else was there first"},
	{exitDegraded, "degraded: it works, with problems"},
	{exitUnknown, "outcome unknown: the write may have happened"},
	{exitNoneFit, "call: no instance is fit for traffic"},
	{exitBadAnswer, "call --fail: the service gave a bad answer"},
	{exitDataLocked, "serve: another process uses the data folder"},
	{exitDataForeign, "serve: the data folder belongs to another cluster"},
	{exitDataNewer, "serve: the data folder was written by a newer version"},
	{exitDataCorrupt, "serve: the data folder is damaged"},
	{exitDataDenied, "serve: the data folder can't be written"},
	{exitDataSync, "serve: the disk did not keep what was written"},
	{exitConfig, "serve: the configuration is wrong"},
	{exitInterrupted, "interrupted"},
}

// exitError is an error with an exit code of its own.
type exitError struct {
	code exitCode
	err  error
	hint string // what to do about it; may be empty
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// silentError ends the process with a code without saying anything: it has been said, or belongs to another process.
type silentError struct{ code exitCode }

func (e *silentError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// usageErrorf is an error of whoever typed the command.
func usageErrorf(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// withHint adds what to do to an error.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &exitError{code: codeOf(err), err: err, hint: fmt.Sprintf(format, args...)}
}

// codeOf tells with which code an error ends the process.
func codeOf(err error) exitCode {
	var own *exitError
	var silent *silentError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &silent):
		return silent.code
	case errors.As(err, &own):
		return own.code
	}
	if code, ok := remoteCode(err); ok {
		return code
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}
