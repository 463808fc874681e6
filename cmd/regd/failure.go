package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// reasonExit is what a reason of the API means to whoever typed a command.
type reasonExit struct {
	reason apiv1.Reason
	code   exitCode
	// hint is what to type next; empty: what the node advises.
	hint string
}

// reasonExits has a row for each reason of the API's closed list.
func reasonExits() []reasonExit {
	return []reasonExit{
		{apiv1.Reason_REASON_INVALID_ARGUMENT, exitUsage, ""},
		{apiv1.Reason_REASON_INSTANCE_NOT_FOUND, exitNotFound, "regd instances  lists what there is; see also --namespace"},
		{apiv1.Reason_REASON_SERVICE_NOT_FOUND, exitNotFound, "regd services  lists what there is; see also --namespace"},
		{apiv1.Reason_REASON_SESSION_NOT_FOUND, exitNotFound, "regd sessions list  shows the open ones"},
		{apiv1.Reason_REASON_LEASE_NOT_FOUND, exitNotFound, ""},
		{apiv1.Reason_REASON_LOCK_NOT_FOUND, exitNotFound, ""},
		{apiv1.Reason_REASON_KEY_NOT_FOUND, exitNotFound, ""},
		{apiv1.Reason_REASON_CHECK_NOT_FOUND, exitNotFound, ""},
		{apiv1.Reason_REASON_MEMBER_NOT_FOUND, exitNotFound, "regd members  lists names and ids"},
		{apiv1.Reason_REASON_ALREADY_EXISTS, exitConflict, ""},
		{apiv1.Reason_REASON_KEY_EXISTS, exitConflict, ""},
		{apiv1.Reason_REASON_STALE_INCARNATION, exitConflict, ""},
		{apiv1.Reason_REASON_REVISION_MISMATCH, exitConflict, ""},
		{apiv1.Reason_REASON_LOCK_HELD, exitConflict, "leave out --no-wait to wait for it"},
		{apiv1.Reason_REASON_LOCK_NOT_HELD, exitConflict, ""},
		{apiv1.Reason_REASON_SLOTS_MISMATCH, exitConflict, "--slots must be the same for all who hold it"},
		{apiv1.Reason_REASON_REQUEST_REUSED, exitConflict, ""},
		{apiv1.Reason_REASON_REQUEST_TOO_OLD, exitUnknown, ""},
		{apiv1.Reason_REASON_NOT_LEADER, exitUnreachable, ""},
		{apiv1.Reason_REASON_NO_LEADER, exitUnreachable, "regd status  says which nodes are missing; reads still work with --freshness stale"},
		{apiv1.Reason_REASON_OUTCOME_UNKNOWN, exitUnknown, ""},
		{apiv1.Reason_REASON_OVERLOADED, exitFailed, ""},
		{apiv1.Reason_REASON_TOO_STALE, exitTimeout, "ask for less with --freshness, or give more --timeout"},
		{apiv1.Reason_REASON_PAGE_EXPIRED, exitFailed, "the registry changed faster than it was listed: try again"},
		{apiv1.Reason_REASON_SHUTTING_DOWN, exitUnreachable, ""},
		{apiv1.Reason_REASON_DISK_FULL, exitFailed, ""},
		{apiv1.Reason_REASON_REMOVED, exitUnreachable, "name a member of the cluster by --endpoint"},
		{apiv1.Reason_REASON_MEMBERSHIP_REFUSED, exitConflict, ""},
		{apiv1.Reason_REASON_BAD_SNAPSHOT, exitFailed, "regd snapshot inspect FILE  says what is wrong with it"},
		{apiv1.Reason_REASON_LIMIT_REACHED, exitFailed, ""},
		{apiv1.Reason_REASON_QUOTA_EXCEEDED, exitFailed, "regd namespaces show NAME  shows what is used; whoever administers raises it by regd namespaces put"},
		{apiv1.Reason_REASON_RATE_LIMITED, exitFailed, "regd namespaces show NAME  shows the limit"},
		{apiv1.Reason_REASON_INTERNAL, exitFailed, ""},
		{apiv1.Reason_REASON_UNAUTHENTICATED, exitDenied, "give a token by $REGD_TOKEN_FILE; regd access whoami  shows who you are"},
		{apiv1.Reason_REASON_PERMISSION_DENIED, exitDenied, "regd access whoami  shows who you are and what you may do"},
		{apiv1.Reason_REASON_BOOTSTRAPPED, exitConflict, ""},
		{apiv1.Reason_REASON_FEATURE_LEVEL, exitConflict, "regd members -o wide  shows the versions"},
		{apiv1.Reason_REASON_STARTING, exitUnreachable, "regd status --wait  waits until the cluster can be used"},
	}
}

func reasonExitOf(reason apiv1.Reason) (reasonExit, bool) {
	for _, row := range reasonExits() {
		if row.reason == reason {
			return row, true
		}
	}
	return reasonExit{}, false
}

// remoteCode tells with which code an error of the client ends the process; false: it is not of the client.
func remoteCode(err error) (exitCode, bool) {
	var unreachable *client.UnreachableError
	var remote *client.Error
	switch {
	case errors.As(err, &unreachable):
		if errors.Is(unreachable.Cause, context.Canceled) {
			return exitInterrupted, true
		}
		if unreachable.OutcomeUnknown {
			return exitUnknown, true
		}
		return unreachableCode(unreachable), true
	case errors.Is(err, client.ErrOutcomeUnknown):
		return exitUnknown, true
	case errors.As(err, &remote):
		return errorCode(remote), true
	case errors.Is(err, client.ErrSuperseded), errors.Is(err, client.ErrLockLost):
		return exitConflict, true
	}
	return 0, false
}

// unreachableCode is what all nodes together said: one that could be reached knows better than one that could not.
func unreachableCode(e *client.UnreachableError) exitCode {
	for _, a := range e.Attempts {
		if row, ok := tlsTroubleOf(a.Err.Error()); ok && row.denied {
			return exitDenied
		}
		var said *client.Error
		if errors.As(a.Err, &said) && said.Reason != apiv1.Reason_REASON_UNSPECIFIED {
			if code := errorCode(said); code != exitUnreachable {
				return code
			}
		}
	}
	return exitUnreachable
}

func errorCode(e *client.Error) exitCode {
	if row, ok := reasonExitOf(e.Reason); ok {
		return row.code
	}
	switch e.Code {
	case codes.Unauthenticated, codes.PermissionDenied:
		return exitDenied
	case codes.Unavailable:
		return exitUnreachable
	case codes.DeadlineExceeded:
		return exitTimeout
	case codes.Canceled:
		return exitInterrupted
	case codes.NotFound:
		return exitNotFound
	case codes.InvalidArgument:
		return exitUsage
	default:
		return exitFailed
	}
}

// report tells people about an error: what failed and why, then what to do. It is the only place that does.
func (a *app) report(cmd *cobra.Command, err error) {
	var silent *silentError
	if errors.As(err, &silent) {
		return
	}
	p := a.paintFor(a.stderr)
	if codeOf(err) == exitInterrupted {
		fmt.Fprintln(a.stderr, "interrupted")
		return
	}
	prefix := p.as(colourBad, "error:") + " "
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) {
		fmt.Fprintln(a.stderr, prefix+a.unreachableText(unreachable))
		writeAttempts(a.stderr, unreachable.Attempts)
	} else {
		fmt.Fprintln(a.stderr, prefix+indent(plain(err.Error())))
	}
	if hint := a.hintFor(cmd, err); hint != "" {
		fmt.Fprintln(a.stderr, "  "+p.as(colourBold, "hint:")+" "+hint)
	}
}

// plain drops what a message says twice in a row: what was attempted is told by the client and by the node.
func plain(text string) string {
	parts := strings.Split(text, ": ")
	return strings.Join(slices.Compact(parts), ": ")
}

// indent makes text fit below a first line, and for a terminal.
func indent(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return strings.Join(lines, "\n  ")
}

func (a *app) unreachableText(e *client.UnreachableError) string {
	within := ""
	if errors.Is(e.Cause, context.DeadlineExceeded) && a.timeout > 0 {
		within = fmt.Sprintf(" within %v", a.timeout)
	}
	text := e.Op + ": "
	switch {
	case e.OutcomeUnknown:
		text += "no node said" + within + " whether it was done; it may have been"
	case len(e.Attempts) == 1:
		text += "the node did not do it" + within
	default:
		text += fmt.Sprintf("none of %d nodes did it", len(e.Attempts)) + within
	}
	if a.origin != "" {
		text += " (addresses from " + a.origin + ")"
	}
	return text
}

// writeAttempts lists each address and what it said.
func writeAttempts(w io.Writer, attempts []client.Attempt) {
	width := 0
	for _, at := range attempts {
		width = max(width, len(at.Address))
	}
	for _, at := range attempts {
		fmt.Fprintf(w, "  %-*s  %s\n", width, clean(at.Address), clean(saidBy(at)))
	}
}

// saidBy is the last word of an address, without gRPC's and Go's wrapping.
func saidBy(at client.Attempt) string {
	text := at.Err.Error()
	text = strings.TrimPrefix(text, "connection error: ")
	text = strings.TrimPrefix(text, "dial tcp "+at.Address+": ")
	text = strings.TrimPrefix(text, "dial tcp: ")
	text = strings.TrimPrefix(text, "connect: ")
	return cmp.Or(transportGuess(text), text)
}

// transportGuess explains what the transport says when another protocol answers. gRPC has no types for these.
func transportGuess(text string) string {
	if row, ok := tlsTroubleOf(text); ok {
		return row.means
	}
	switch {
	case strings.Contains(text, "looked like an HTTP/1.1 header"):
		return "this is an HTTP port; the gRPC port of a node is 7400 by default"
	case strings.Contains(text, "error reading server preface"), strings.Contains(text, "connection reset by peer"),
		strings.Contains(text, "broken pipe"), text == "EOF":
		return mayWantTLS
	}
	return ""
}

// hintFor is what to do about an error.
func (a *app) hintFor(cmd *cobra.Command, err error) string {
	var own *exitError
	if errors.As(err, &own) && own.hint != "" {
		return own.hint
	}
	if own != nil && own.code == exitUsage {
		return cmd.CommandPath() + " --help  shows how it is used"
	}
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) {
		return unreachableHint(unreachable)
	}
	var remote *client.Error
	if !errors.As(err, &remote) {
		return ""
	}
	return remoteHint(remote)
}

func remoteHint(e *client.Error) string {
	if row, ok := reasonExitOf(e.Reason); ok && row.hint != "" {
		return row.hint
	}
	if e.Code == codes.Unimplemented {
		return "the node is older than this command line tool; regd version  tells both"
	}
	return clean(e.Metadata["hint"])
}

func unreachableHint(e *client.UnreachableError) string {
	if e.OutcomeUnknown {
		return "look whether it was done before you do it again"
	}
	for _, at := range e.Attempts {
		if row, ok := tlsTroubleOf(at.Err.Error()); ok {
			return row.hint
		}
		if saidBy(at) == mayWantTLS {
			return "with TLS give the authority of the nodes by --ca-cert or $REGD_CA_CERT; without, leave out --tls, --ca-cert and --cert"
		}
		var said *client.Error
		if !errors.As(at.Err, &said) {
			continue
		}
		if said.Reason != apiv1.Reason_REASON_UNSPECIFIED {
			return remoteHint(said)
		}
		if said.Code != codes.Unavailable {
			return "regd status  says what the cluster lacks"
		}
	}
	return "is a node running there? name others by --endpoint or $REGD_ENDPOINTS, or start a cluster with  regd dev"
}
