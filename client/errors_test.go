package client_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// overloadedFor makes the error of a node that asks for a pause.
func overloadedFor(t *testing.T, pause time.Duration) error {
	t.Helper()
	st, err := status.New(codes.ResourceExhausted, "overloaded").WithDetails(
		&errdetails.ErrorInfo{Reason: "OVERLOADED", Domain: "regd.io"},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(pause)},
	)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestOptionsReportAllFaults(t *testing.T) {
	_, err := client.New([]string{"n1:7400", "n1:7400", "n2", ":7400", "n3:0", "n4:99999"},
		client.WithName(strings.Repeat("x", 129)), client.WithLogger(nil), client.WithTLS(nil), client.WithNamespace(""),
		client.WithTransportCredentials(nil), client.WithSessionTTL(time.Second), client.WithRequestTimeout(0),
		client.WithAttemptTimeout(-1), client.WithCloseTimeout(0), client.WithDialOptions(nil))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`"n2"`, `":7400"`, `"n3:0"`, `"n4:99999"`, "name of 129 bytes", "logger", "tls", "namespace", "credentials",
		"session ttl 1s", "request timeout 0s", "attempt timeout", "close timeout", "dial options",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s:\n%v", want, err)
		}
	}
	if _, err := client.New(nil); err == nil {
		t.Error("no endpoints were accepted")
	}
}

func TestErrorMatchesOnlyTheSentinelOfItsReason(t *testing.T) {
	err := error(&client.Error{Reason: apiv1.Reason_REASON_LOCK_HELD, Message: "held"})
	if !errors.Is(err, client.ErrLockHeld) || errors.Is(err, client.ErrLockNotHeld) {
		t.Errorf("%v matches the wrong sentinel", err)
	}
	if errors.Is(&client.Error{}, client.ErrInternal) {
		t.Error("an error without a reason matches a sentinel")
	}
}

func TestErrorNamesAllViolations(t *testing.T) {
	err := &client.Error{Message: "2 fields are invalid", Violations: []client.Violation{
		{Field: "instance.id", Description: "is required"}, {Field: "instance.weight", Description: "above 65535"},
	}}
	const want = "2 fields are invalid; instance.id: is required; instance.weight: above 65535"
	if got := err.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
